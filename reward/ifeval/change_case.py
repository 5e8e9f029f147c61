"""IFEval's `change_case` instructions, which ask for capital letters, small letters or some capitalised words."""

import re

from qwen_align.reward.ifeval.detect_language import is_in_language
from qwen_align.reward.ifeval.instruction import Instruction, Positive, Relation, satisfies_relation

# What nltk's tokenizer, used by the official code, takes off a word, and dashes and curly quotes.
_TOKEN = re.compile(r"[^\s,;:@#$%&?!\"()\[\]{}<>…—“”«»„]+")


class EnglishCapital(Instruction):
    """An IFEval instruction to answer in English without small letters.

    Officially any language will do: langdetect leaves words in capital letters out.
    """

    @property
    def required_language(self) -> str:
        """Returns the code of the language that the text must be in."""
        return "en"

    def follows(self, text: str) -> bool:
        """Returns whether the text is English in capital letters."""
        return text.isupper() and is_in_language(text, "en")


class EnglishLowercase(Instruction):
    """An IFEval instruction to answer in English without capital letters."""

    @property
    def required_language(self) -> str:
        """Returns the code of the language that the text must be in."""
        return "en"

    def follows(self, text: str) -> bool:
        """Returns whether the text is English in small letters."""
        return text.islower() and is_in_language(text, "en")


class CapitalWordFrequency(Instruction):
    """An IFEval instruction to use a given number of words in all capital letters.

    "I" is one, and so is "WELL-KNOWN" and the NASA of "NASA's". "DON'T" is one word (officially two).
    """

    capital_frequency: Positive
    capital_relation: Relation

    def follows(self, text: str) -> bool:
        """Returns whether the number of words in all capital letters is as the instruction asks."""
        n_capital = sum(
            1 for token in _TOKEN.finditer(text.replace("--", " ")) if _cut_at_apostrophe(token[0]).isupper()
        )
        return satisfies_relation(n_capital, self.capital_relation, self.capital_frequency)


def _cut_at_apostrophe(token: str) -> str:
    """Returns a word up to its first apostrophe."""
    return token.replace("’", "'").strip("'").partition("'")[0]
