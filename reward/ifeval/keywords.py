"""IFEval's `keywords` instructions, which require or forbid words and letters, in any case."""

import re
from functools import lru_cache
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from qwen_align.reward.ifeval.instruction import Instruction, Phrase, Phrases, Positive, Relation, satisfies_relation

# Written without spaces between words: Han, kana, Thai, Lao, Burmese, Khmer.
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff]")


def _check_letter(value: str) -> str:
    """Strips white space around a letter. Raises if the value is not exactly one character."""
    if len(value.strip()) != 1:
        raise PydanticCustomError("letter", "'{said}' is not one letter", {"said": value[:20]})
    return value.strip()


class Existence(Instruction):
    """An IFEval instruction to use every given keyword.

    A keyword inside a longer word counts, as in the official code.
    """

    keywords: Phrases

    def follows(self, text: str) -> bool:
        """Returns whether the text contains every keyword."""
        text = text.casefold()
        return all(keyword.casefold() in text for keyword in self.keywords)


class Frequency(Instruction):
    """An IFEval instruction to use a keyword a given number of times.

    Occurrences inside longer words count, as in the official code.
    """

    keyword: Phrase
    frequency: Positive
    relation: Relation

    def follows(self, text: str) -> bool:
        """Returns whether the text contains the keyword as often as asked."""
        return satisfies_relation(text.casefold().count(self.keyword.casefold()), self.relation, self.frequency)


class ForbiddenWords(Instruction):
    r"""An IFEval instruction not to use any of the forbidden words as a word of its own.

    A word ends where the official `\b` says, but "C++" has no letters at its end and Chinese no spaces: such an end may
    touch anything. Words are no regular expressions (officially they are).
    """

    forbidden_words: Phrases

    def follows(self, text: str) -> bool:
        """Returns whether the text contains none of the forbidden words."""
        text = text.casefold()
        return not any(_compile_word(word.casefold()).search(text) for word in self.forbidden_words)


class LetterFrequency(Instruction):
    """An IFEval instruction to use a letter, large or small, a given number of times.

    `#` and `!` are letters too (officially another is drawn).
    """

    letter: Annotated[str, AfterValidator(_check_letter)]
    let_frequency: Positive
    let_relation: Relation

    def follows(self, text: str) -> bool:
        """Returns whether the text contains the letter as often as asked."""
        return satisfies_relation(text.lower().count(self.letter.lower()), self.let_relation, self.let_frequency)


@lru_cache(maxsize=1_024)
def _compile_word(word: str) -> re.Pattern[str]:
    """Compiles the pattern that finds a word only as a whole word."""
    before = r"(?<!\w)" if _is_in_spaced_script(word[0]) else ""
    after = r"(?!\w)" if _is_in_spaced_script(word[-1]) else ""
    return re.compile(before + re.escape(word) + after)


def _is_in_spaced_script(char: str) -> bool:
    """Returns whether a character belongs to a script that separates words by spaces."""
    return re.match(r"\w", char) is not None and _UNSPACED.match(char) is None
