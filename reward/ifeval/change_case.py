"""IFEval's `change_case` instructions: everything in capital or in small letters, or some words in capital letters."""

import re

from qwen_align.reward.ifeval.detect_language import is_in_language
from qwen_align.reward.ifeval.instruction import Instruction, Positive, Relation, satisfies_relation

# What nltk's tokenizer, used by the official code, takes off a word, and dashes and curly quotes.
_TOKEN = re.compile(r"[^\s,;:@#$%&?!\"()\[\]{}<>…—“”«»„]+")


class EnglishCapital(Instruction):
    """Requires English without a small letter.

    Officially any language will do: langdetect leaves words in capital letters out.
    """

    @property
    def required_language(self) -> str:
        """The code of the language the text has to be in."""
        return "en"

    def follows(self, text: str) -> bool:
        """Returns whether the text is English in capital letters."""
        return text.isupper() and is_in_language(text, "en")


class EnglishLowercase(Instruction):
    """Requires English without a capital letter."""

    @property
    def required_language(self) -> str:
        """The code of the language the text has to be in."""
        return "en"

    def follows(self, text: str) -> bool:
        """Returns whether the text is English in small letters."""
        return text.islower() and is_in_language(text, "en")


class CapitalWordFrequency(Instruction):
    """Requires as many words in capital letters only as asked.

    "I" is one, and so is "WELL-KNOWN" and the NASA of "NASA's". "DON'T" is one word (officially two).
    """

    capital_frequency: Positive
    capital_relation: Relation

    def follows(self, text: str) -> bool:
        """Returns whether the text has as many words in capital letters as asked."""
        n_capital = sum(1 for token in _TOKEN.finditer(text.replace("--", " ")) if _cut_apostrophe(token[0]).isupper())
        return satisfies_relation(n_capital, self.capital_relation, self.capital_frequency)


def _cut_apostrophe(token: str) -> str:
    """Returns a word up to its apostrophe."""
    return token.replace("’", "'").strip("'").partition("'")[0]
