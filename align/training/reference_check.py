"""Checks after the first training step that policy and reference model started with the same weights."""

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qwen_align.align.errors import StageError

FIRST_REWARD_TOLERANCE = 1e-3  # moves the sigmoid loss from ln 2 by at most that; float rounding is about 1e-6
FIRST_KL_TOLERANCE = 1e-4  # nats per token; float rounding is about 1e-7


def check_first_kl(kl: float) -> None:
    """Checks that the first KL between policy and reference model is 0, in nats per token.

    Raises StageError otherwise.
    """
    if not abs(kl) < FIRST_KL_TOLERANCE:
        raise StageError(f"the first KL is {kl:.3g}, not 0: the reference is another model")


def check_first_rewards(chosen: float, rejected: float) -> None:
    """Checks that the first implied rewards of a preference loss are 0.

    Raises StageError otherwise. With equal models the implied rewards are 0 and the sigmoid loss is ln 2.
    """
    largest = max(abs(chosen), abs(rejected))
    if not largest < FIRST_REWARD_TOLERANCE:
        raise StageError(f"the first implied reward is {largest:.3g}, not 0: the reference is another model")


class ReferenceStartCheck(TrainerCallback):  # type: ignore[misc]
    """A Trainer callback that checks after the first step that policy and reference were the same model.

    Raises StageError otherwise.
    """

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Checks the KL or the implied rewards that TRL logs for the first step."""
        logs = kwargs.get("logs") or {}
        if state.global_step != 1:
            return
        check_first_kl(logs.get("kl", 0.0))
        if "rewards/chosen" in logs:
            check_first_rewards(logs["rewards/chosen"], logs["rewards/rejected"])
