"""IFEval's `detectable_format` instructions: bullets, options, highlights, sections, JSON, a title."""

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
    """Requires exactly so many lines that start with `*`, not `**`, or with `-`; as officially, `---` is one."""

    num_bullets: Count

    def follows(self, text: str) -> bool:
        """Returns whether the text has exactly so many bullets."""
        lines = (line.lstrip()[:2] for line in text.split("\n"))
        return sum(1 for mark in lines if mark[:1] == "-" or (mark[:1] == "*" and mark != "**")) == self.num_bullets


class ConstrainedResponse(Instruction):
    """Requires one of the three options in the text; not two of them, which officially will do."""

    def follows(self, text: str) -> bool:
        """Returns whether the text has exactly one of the options."""
        return sum(option in text for option in _OPTIONS) == 1


class NumberHighlightedSections(Instruction):
    """Requires at least so many `*highlights*` or `**highlights**` that are not blank, each on one line.

    `***this***` is one (officially two). `* a *` is a highlight too, as in the official code.
    """

    num_highlights: Positive

    def follows(self, text: str) -> bool:
        """Returns whether the text has enough highlights."""
        text = _MANY_STARS.sub("**", text)
        n_highlights = sum(1 for mark in (_ITALIC, _BOLD) for part in mark.finditer(text) if part[0].strip("*").strip())
        return n_highlights >= self.num_highlights


class MultipleSections(Instruction):
    """Requires at least so many headings: the word, as it is written, and a number."""

    section_spliter: Phrase
    num_sections: Positive

    def follows(self, text: str) -> bool:
        """Returns whether the text has enough headings."""
        return sum(1 for _ in _compile_heading(self.section_spliter).finditer(text)) >= self.num_sections


class JsonFormat(Instruction):
    """Requires a text that is all JSON, be it in a fenced block.

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
                text.removesuffix("```").strip(), parse_int=str, parse_float=str, parse_constant=_refuse_constant
            )
        except (ValueError, RecursionError):
            return False
        return True


class Title(Instruction):
    """Requires a `<<title>>` that is not blank, on one line."""

    def follows(self, text: str) -> bool:
        """Returns whether the text has a title."""
        return any(map(_has_title, text.split("\n")))


def _has_title(line: str) -> bool:
    """Returns whether a line has a title."""
    start, end = line.find("<<"), line.rfind(">>")
    return start >= 0 and start + 3 <= end and bool(line[start:end].lstrip("<").rstrip(">").strip())


def _refuse_constant(word: str) -> None:
    """Raises ValueError for NaN and the infinities."""
    raise ValueError(f"{word} is no JSON")


@lru_cache(maxsize=256)
def _compile_heading(word: str) -> re.Pattern[str]:
    """Returns the pattern that finds a heading of a word and a number."""
    return re.compile(re.escape(word) + r"\s?\d+")
