"""Reports the progress and losses of a transformers Trainer and stops it on request."""

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qwen_align.align.context import Context
from qwen_align.align.errors import StageError
from qwen_align.align.training.distributed import is_true_in_any_process


class ProgressCallback(TrainerCallback):  # type: ignore[misc]
    """A Trainer callback that reports progress and metrics and stops training on request.

    Raises StageError when the loss is not finite.
    """

    def __init__(self, context: Context, tokens_per_step: float = 0.0) -> None:
        self.context = context
        self.tokens_per_step = tokens_per_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        """Reports the finished step, and saves and stops if any process was asked to stop."""
        tokens = state.num_input_tokens_seen or int(self.tokens_per_step * state.global_step)
        self.context.report_progress(state.global_step, state.max_steps, tokens)
        if is_true_in_any_process(self.context.is_stop_requested()) and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True
        return control

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Logs the metrics of a step.

        Raises StageError when the loss is not finite.
        """
        logs = {name: value for name, value in (kwargs.get("logs") or {}).items() if isinstance(value, int | float)}
        if not math.isfinite(logs.get("loss", 0.0)):
            raise StageError(f"step {state.global_step}: the loss is {logs['loss']}; lower learning_rate")
        if "loss" in logs:
            if self.tokens_per_step:  # TRL's own count starts at 0 again when a stage is resumed
                logs["num_tokens"] = int(self.tokens_per_step * state.global_step)
            self.context.log_metrics({"step": state.global_step, **logs})
        return control
