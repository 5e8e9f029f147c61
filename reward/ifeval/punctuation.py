"""IFEval's `punctuation` instruction: no commas."""

import re

from qwen_align.reward.ifeval.instruction import Instruction

_COMMA = re.compile("[,\u060c\u3001\ufe10\ufe11\ufe50\ufe51\uff0c\uff64]")


class NoComma(Instruction):
    """Requires a text without a comma, nor an Arabic, Chinese or Japanese one (officially those may stand)."""

    def follows(self, text: str) -> bool:
        """Returns whether the text has no comma."""
        return _COMMA.search(text) is None
