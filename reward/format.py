"""Is the turn laid out as its mode asks: a thinking block where thinking was asked for, none where it was not."""

from typing import Annotated, Any, Literal

from pydantic import Field

from qwen_align.align.rows import Completion, Mode
from qwen_align.align.strict import Strict
from qwen_align.reward.thinking import Turn, split_turn
from qwen_align.reward.verdict import Verdict


def obeys(text: str, mode: Mode) -> bool:
    """Whether the model thought, or did not, as asked; a malformed block obeys neither mode."""
    turn = split_turn(text)
    return isinstance(turn, Turn) and (turn.thinking is not None) == (mode == "think")


class Format(Strict):
    """1.0 for a well-formed turn in the completion's mode, else 0.0.

    think: one block with non-blank thinking, then a non-blank answer. no_think: a non-blank answer, alone or after
    an empty block. A completion without a mode, and a bare string, may be either. A block that is only white space
    counts as empty thinking in no_think too, unless it is exactly the empty block of Qwen's template.
    """

    kind: Literal["format"] = "format"
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0

    def judge(self, completion: str | Completion, gold: Any = None) -> Verdict:
        """The verdict on one completion; `gold` is not looked at."""
        text, mode = (completion, None) if isinstance(completion, str) else (completion.text, completion.mode)
        turn = split_turn(text)
        if isinstance(turn, str):
            return Verdict(value=0.0, reason=turn)
        if mode == "think" and turn.thinking is None:
            return Verdict(value=0.0, reason="no thinking")
        if mode == "no_think" and turn.thinking is not None:
            return Verdict(value=0.0, reason="thinking not asked for")
        return Verdict(value=1.0, reason="well formed")

    def judge_gold(self, gold: Any) -> Verdict:
        """Every gold will do, None too."""
        return Verdict(value=1.0, reason="needs no gold")
