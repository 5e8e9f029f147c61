r"""Is the boxed answer the gold? Numbers exactly, all else as text in normal form; when in doubt, no."""

import math
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field

from qwen_align.align.rows import Completion
from qwen_align.align.strict import Strict
from qwen_align.reward.boxes import last_boxes
from qwen_align.reward.simple_value import MAX_DIGITS, Value, equal, parse
from qwen_align.reward.thinking import after_thinking
from qwen_align.reward.verdict import Verdict


class MathAnswer(Strict):
    r"""1.0 if the last `\boxed{}` after the thinking states the gold, else 0.0; no verdict if the gold is unusable.

    Integers, decimals, fractions, mixed numbers, percent, money and common units are compared as exact numbers; a
    unit counts only where both have one, so `50%` is 50 but not 0.5. Everything else is compared as text: algebra,
    sets and intervals are right only if written alike. Several different boxes joined by commas, "and", "or" are
    wrong, whatever they hold.
    """

    kind: Literal["math_answer"] = "math_answer"
    weight: Annotated[float, Field(allow_inf_nan=False)] = 1.0

    def judge(self, completion: str | Completion, gold: Any = None) -> Verdict:
        """The verdict on one completion; without `gold`, against the completion's own."""
        text = completion if isinstance(completion, str) else completion.text
        if gold is None and not isinstance(completion, str):
            gold = completion.gold
        right = gold_value(gold)
        if right is None:
            return Verdict(value=None, reason="unusable gold")
        said = final_value(text)
        if isinstance(said, str):
            return Verdict(value=0.0, reason=said)
        if equal(said, right):
            return Verdict(value=1.0, reason="correct")
        return Verdict(value=0.0, reason="wrong")

    def judge_gold(self, gold: Any) -> Verdict:
        """The verdict on a completion that says exactly the gold: anything but 1.0 makes the gold unusable."""
        right = gold_value(gold)
        said = gold if isinstance(gold, str) or right is None else right.text
        return self.judge(rf"\boxed{{{said}}}", gold)

    def answer(self, completion: str | Completion) -> str | None:
        """The answer in normal form, without unit, for counting votes; None if there is none."""
        said = final_value(completion if isinstance(completion, str) else completion.text)
        return None if isinstance(said, str) else said.text


def gold_value(gold: Any) -> Value | None:
    """The value of a data set's gold (a string, an integer or a finite float), None if it is unusable."""
    if isinstance(gold, str):
        value = final_value(gold) if r"\boxed" in gold else parse(gold)
        return value if isinstance(value, Value) else None
    if isinstance(gold, bool):
        return None
    if isinstance(gold, int):
        return parse(str(gold)) if abs(gold) < 10**MAX_DIGITS else None
    if isinstance(gold, float) and math.isfinite(gold):
        return parse(format(Decimal(repr(gold)), "f"))
    return None


def final_value(text: str) -> Value | str:
    """What the last box after the thinking says, else the short reason why it says nothing."""
    spoken = after_thinking(text)
    if spoken is None:
        return "unfinished thinking"
    boxes = last_boxes(spoken)
    if isinstance(boxes, str):
        return boxes
    last = parse(boxes[-1].content)
    if last is None:
        return "empty box"
    others = (parse(box.content) for box in boxes[:-1])
    return last if all(other is not None and equal(other, last) for other in others) else "several answers"
