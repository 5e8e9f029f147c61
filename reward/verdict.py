"""The verdict of a reward on a completion, with a value and a reason."""

from typing import Annotated

from pydantic import BeforeValidator, Field

from qwen_align.align.settings.base import Strict


def is_right_value(value: float) -> bool:
    """Returns whether a reward of this value means that the completion is right: it is 1 or more."""
    return value >= 1


def _escape_half_characters(reason: object) -> object:
    """Returns a reason with an escape for each lone surrogate, which no file can hold: a user's error may have one."""
    return reason.encode("utf-8", "backslashreplace").decode() if isinstance(reason, str) else reason


class Verdict(Strict):
    """A reward's verdict on a completion, with a value and a short reason.

    `value` is None where there is no verdict, as for an unusable gold: counted, and neither right nor wrong.
    `parts` holds the verdicts a combined reward was made from; `steps` one value a reasoning step.
    """

    value: Annotated[float, Field(allow_inf_nan=False)] | None
    reason: Annotated[str, BeforeValidator(_escape_half_characters)]
    parts: dict[str, "Verdict"] | None = None
    steps: list[float] | None = None
