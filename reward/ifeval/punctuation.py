"""IFEval's `punctuation` instruction, which forbids commas."""

import re

from qwen_align.reward.ifeval.instruction import Instruction

_COMMA = re.compile("[,\u060c\u3001\ufe10\ufe11\ufe50\ufe51\uff0c\uff64]")


class NoComma(Instruction):
    """An IFEval instruction not to use commas, including Arabic, Chinese and Japanese ones.

    The official code allows those.
    """

    def follows(self, text: str) -> bool:
        """Returns whether the text contains no comma."""
        return _COMMA.search(text) is None
