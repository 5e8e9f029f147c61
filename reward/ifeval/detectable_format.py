"""IFEval's `detectable_format` instructions for bullets, options, highlights, sections, JSON and titles."""

import json
import re
from functools import lru_cache

from qwen_align.reward.ifeval.instruction import Count, Instruction, Phrase, Positive

# The options of the official code.
_OPTIONS = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
_FENCES = ("```json", "```Json", "```JSON", "```")
_MANY_STARS = re.compile(r"\*{3,}")
_ITALIC = re.compile(r"\*[^\n*]*\*")
_BOLD = re.compile(r"\*\*[^\n*]*\*\*")


class NumberBulletLists(Instruction):
    """An IFEval instruction to write exactly a given number of bullets.

    These are lines that start with `*`, not `**`, or with `-`; as officially, `---` is one.
    """

    num_bullets: Count

    def follows(self, text: str) -> bool:
        """Returns whether the text has exactly the number of bullets asked for."""
        lines = (line.lstrip()[:2] for line in text.split("\n"))
        return sum(1 for mark in lines if mark[:1] == "-" or (mark[:1] == "*" and mark != "**")) == self.num_bullets


class ConstrainedResponse(Instruction):
    """An IFEval instruction to answer with exactly one of three given options. The official code allows two."""

    def follows(self, text: str) -> bool:
        """Returns whether the text contains exactly one of the options."""
        return sum(option in text for option in _OPTIONS) == 1


class NumberHighlightedSections(Instruction):
    """An IFEval instruction to write at least a given number of `*highlights*` or `**highlights**`.

    Each is on one line and not blank.

    `***this***` is one (officially two). `* a *` is a highlight too, as in the official code.
    """

    num_highlights: Positive

    def follows(self, text: str) -> bool:
        """Returns whether the text has enough highlights."""
        text = _MANY_STARS.sub("**", text)
        n_highlights = sum(1 for mark in (_ITALIC, _BOLD) for part in mark.finditer(text) if part[0].strip("*").strip())
        return n_highlights >= self.num_highlights


class MultipleSections(Instruction):
    """An IFEval instruction to write at least a given number of section headings.

    Each is the given word, as it is written, and a number.
    """

    section_spliter: Phrase
    num_sections: Positive

    def follows(self, text: str) -> bool:
        """Returns whether the text has enough section headings."""
        return sum(1 for _ in _compile_heading(self.section_spliter).finditer(text)) >= self.num_sections


class JsonFormat(Instruction):
    """An IFEval instruction to write the whole answer as JSON, also in a fenced block.

    `NaN` and `Infinity` are none (officially they are).
    """

    def follows(self, text: str) -> bool:
        """Returns whether the whole text is JSON."""
        text = text.strip()
        for fence in _FENCES:
            text = text.removeprefix(fence)
        try:
            # Numbers stay text: converting long ones takes quadratic time.
            json.loads(
                text.removesuffix("```").strip(), parse_int=str, parse_float=str, parse_constant=_reject_nan_or_infinity
            )
        except (ValueError, RecursionError):
            return False
        return True


class Title(Instruction):
    """An IFEval instruction to write a `<<title>>` that is not blank, on one line."""

    def follows(self, text: str) -> bool:
        """Returns whether the text contains a `<<title>>`."""
        return any(map(_has_title, text.split("\n")))


def _has_title(line: str) -> bool:
    """Returns whether a line contains a `<<title>>`."""
    start, end = line.find("<<"), line.rfind(">>")
    return start >= 0 and start + 3 <= end and bool(line[start:end].lstrip("<").rstrip(">").strip())


def _reject_nan_or_infinity(word: str) -> None:
    """Raises ValueError for the JSON constants NaN, Infinity and -Infinity."""
    raise ValueError(f"{word} is no JSON")


@lru_cache(maxsize=256)
def _compile_heading(word: str) -> re.Pattern[str]:
    """Compiles the pattern that finds a heading made of a word and a number."""
    return re.compile(re.escape(word) + r"\s?\d+")
