"""IFEval's `keywords` instructions: phrases and letters that have to be there, or must not. Case never counts."""

import re
from functools import lru_cache
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from qwen_align.reward.ifeval.instruction import Instruction, Phrase, Phrases, Positive, Relation, satisfies_relation

# Written without spaces between words: Han, kana, Thai, Lao, Burmese, Khmer.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff]")


def _check_letter(value: str) -> str:
    """Returns the letter without white space around it; raises for more or less than one."""
    if len(value.strip()) != 1:
        raise PydanticCustomError("letter", "'{said}' is not one letter", {"said": value[:20]})
    return value.strip()


class Existence(Instruction):
    """Requires every keyword in the text, be it inside of a longer word, as in the official code."""

    keywords: Phrases

    def follows(self, text: str) -> bool:
        """Returns whether the text has every keyword."""
        text = text.casefold()
        return all(keyword.casefold() in text for keyword in self.keywords)


class Frequency(Instruction):
    """Requires the keyword as often as asked, be it inside of a longer word, as in the official code."""

    keyword: Phrase
    frequency: Positive
    relation: Relation

    def follows(self, text: str) -> bool:
        """Returns whether the text has the keyword as often as asked."""
        return satisfies_relation(text.casefold().count(self.keyword.casefold()), self.relation, self.frequency)


class ForbiddenWords(Instruction):
    r"""Requires that no forbidden word is in the text as a word of its own.

    A word ends where the official `\b` says, but "C++" has no letters at its end and Chinese no spaces: such an end may
    touch anything. Words are no regular expressions (officially they are).
    """

    forbidden_words: Phrases

    def follows(self, text: str) -> bool:
        """Returns whether the text has none of the forbidden words."""
        text = text.casefold()
        return not any(_compile_word(word.casefold()).search(text) for word in self.forbidden_words)


class LetterFrequency(Instruction):
    """Requires a letter as often as asked, large or small.

    `#` and `!` are letters too (officially another is drawn).
    """

    letter: Annotated[str, AfterValidator(_check_letter)]
    let_frequency: Positive
    let_relation: Relation

    def follows(self, text: str) -> bool:
        """Returns whether the text has the letter as often as asked."""
        return satisfies_relation(text.lower().count(self.letter.lower()), self.let_relation, self.let_frequency)


@lru_cache(maxsize=1_024)
def _compile_word(word: str) -> re.Pattern[str]:
    """Returns the pattern that finds a word as a word of its own."""
    before = r"(?<!\w)" if _needs_spaces(word[0]) else ""
    after = r"(?!\w)" if _needs_spaces(word[-1]) else ""
    return re.compile(before + re.escape(word) + after)


def _needs_spaces(char: str) -> bool:
    """Returns whether a character is of a script that separates words by spaces."""
    return re.match(r"\w", char) is not None and _UNSPACED.match(char) is None
