"""IFEval's `detectable_content` instructions, which ask for placeholders or a postscript."""

import re
from functools import lru_cache

from qwen_align.reward.ifeval.instruction import Instruction, Phrase, Positive

_NOT_IN_A_WORD = r"(?<![a-z0-9])(?<!\b[a-z]\.)"  # officially `U.P.S.` holds the marker `P.S.`


class NumberPlaceholders(Instruction):
    """An IFEval instruction to use at least a given number of `[placeholders]`, each on one line.

    `[]` counts, as in the official code.
    """

    num_placeholders: Positive

    def follows(self, text: str) -> bool:
        """Returns whether the text has enough placeholders."""
        return sum(map(_count_placeholders, text.split("\n"))) >= self.num_placeholders


class Postscript(Instruction):
    """An IFEval instruction to add a postscript that starts with a given marker, in any case of letters."""

    postscript_marker: Phrase

    def follows(self, text: str) -> bool:
        """Returns whether the text contains the postscript marker.

        Spaces after its first stops are allowed, as in "P. S.".
        """
        return _compile_marker(self.postscript_marker.lower()).search(text.lower()) is not None


def _count_placeholders(line: str) -> int:
    """Counts the `[placeholders]` in a line."""
    count, position = 0, line.find("[")
    while position >= 0:
        end = line.find("]", position)
        if end < 0:
            break
        count, position = count + 1, line.find("[", end)
    return count


@lru_cache(maxsize=256)
def _compile_marker(marker: str) -> re.Pattern[str]:
    """Compiles the pattern that finds a postscript marker in lower-case text."""
    if marker not in ("p.s.", "p.p.s", "p.p.s."):
        return re.compile(_NOT_IN_A_WORD + re.escape(marker))
    head, last = marker.rstrip(".").split("."), marker[-1] == "."
    return re.compile(_NOT_IN_A_WORD + r"\.\s?".join(head) + (r"\." if last else ""))
