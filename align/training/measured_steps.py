"""Measures every optimiser step of a Trainer: its peak memory, tokens a second and model FLOPs."""

import time
from typing import Any

import torch
from torch import Tensor, nn

from qwen_align.align.context import MEASURED, Context
from qwen_align.align.training.memory_meter import gather_peak_memory
from qwen_align.align.training.model_flops import find_peak_tflops, measure_flop_costs


class StepMeter:
    """A meter of what one device computes between two logged steps.

    Its sums stay on the device until they are read, so that counting waits for nothing.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._costs = measure_flop_costs(model)
        self._peak_tflops = find_peak_tflops(device)
        self._device = device
        self.restart()

    def restart(self) -> None:
        """Begins anew, with the clock at 0."""
        self._started = time.monotonic()
        self._tokens: Tensor | float = 0.0
        self._flops: Tensor | float = 0.0

    def count_reference_pass(self, tokens: Tensor, pairs: Tensor) -> None:
        """Counts a reference policy's forward pass over `tokens`, in which they see `pairs` altogether."""
        self._flops = self._flops + self._costs.count_pass(tokens, pairs, with_backward=False)

    def count_pass(self, tokens: Tensor, pairs: Tensor) -> None:
        """Counts a training pass over `tokens`, in which they see `pairs` tokens altogether, themselves included."""
        self._tokens = self._tokens + tokens
        self._flops = self._flops + self._costs.count_pass(tokens, pairs, with_backward=True)

    def read_speed(self, seconds: float | None = None) -> dict[str, float]:
        """Returns the speed since the last restart, or in the given seconds, under its names in metrics.jsonl."""
        if not self._tokens:
            return {}
        seconds = max(time.monotonic() - self._started if seconds is None else seconds, 1e-9)
        tflops = float(self._flops) / seconds / 1e12
        figures = {"speed/tokens_per_second": float(self._tokens) / seconds, "speed/tflops": tflops}
        if self._peak_tflops is not None:
            figures["speed/mfu"] = tflops / self._peak_tflops
        return figures


def count_tokens_and_pairs(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Counts the tokens of rows of the given lengths, and the pairs of a token and one that it sees or is."""
    lengths = lengths.double()
    return lengths.sum(), (lengths * (lengths + 1) / 2).sum()


def measure_memory(context: Context) -> dict[str, float]:
    """Returns the peak memory of the fullest device so far, and the estimate, under their names in metrics.jsonl.

    Every process has to call it.
    """
    peak = gather_peak_memory()
    figures = {} if peak is None else {"memory/peak_gib": peak.held}
    if peak is not None and peak.reserved is not None:
        figures["memory/reserved_gib"] = peak.reserved
    if context.estimates_gib:
        figures["memory/estimate_gib"] = max(context.estimates_gib.values())
    return figures


class MeasuredSteps:
    """A mixin for a transformers Trainer that measures its steps and what saving them takes.

    It comes first among the base classes. `n_reference_passes`: forward passes of a reference policy over each batch.
    """

    context: Context
    n_reference_passes = 0
    _meter: StepMeter | None = None

    @property
    def meter(self) -> StepMeter:
        """Returns the meter of this process's device."""
        if self._meter is None:
            trainer: Any = self
            self._meter = StepMeter(trainer.model, trainer.args.device)
        return self._meter

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs a step's metrics with the figures of its speed and memory."""
        if "loss" in logs:
            logs |= self.measure_step() | measure_memory(self.context)
            self.context.measured = {name: value for name, value in logs.items() if name.startswith(MEASURED)}
        super().log(logs, start_time)  # type: ignore[misc]
        self.meter.restart()

    def measure_step(self) -> dict[str, float]:
        """Returns the speed of the step that has just ended."""
        return self.meter.read_speed()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Saves a checkpoint, in the phase `save`. Its time is no step's."""
        trainer: Any = self
        with self.context.work_on("save", step=trainer.state.global_step):
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        self.meter.restart()
