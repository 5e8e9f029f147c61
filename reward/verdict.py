"""The verdict of a reward on a completion, with a value and a reason."""

from typing import Annotated

from pydantic import Field

from qwen_align.align.settings.base import Strict


def is_right_value(value: float) -> bool:
    """Returns whether a reward of this value means that the completion is right: it is 1 or more."""
    return value >= 1


class Verdict(Strict):
    """A reward's verdict on a completion, with a value and a short reason.

    `value` is None where there is no verdict, as for an unusable gold: counted, and neither right nor wrong.
    `parts` holds the verdicts a combined reward was made from; `steps` one value a reasoning step.
    """

    value: Annotated[float, Field(allow_inf_nan=False)] | None
    reason: str
    parts: dict[str, "Verdict"] | None = None
    steps: list[float] | None = None
