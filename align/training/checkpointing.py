"""Decides whether a stage computes its activations again in the backward pass, where its runtime leaves it open."""

from collections.abc import Mapping
from typing import Any

from qwen_align.align.estimation.host_memory import read_memory_limit
from qwen_align.align.estimation.stage_estimate import choose_checkpointing
from qwen_align.align.models.loading import choose_device
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.settings.stage import StageSettings
from qwen_align.align.training.memory_meter import GIB, read_device_capacity


def decide_checkpointing(settings: StageSettings, runtime: Runtime, config: Mapping[str, Any]) -> Runtime:
    """Returns the runtime with true or false in the place of `gradient_checkpointing: auto`.

    It is on where the estimate of an optimiser step without it is above half of the memory of the stage's device, or of
    the process's share of the machine's. Results do not depend on it.
    """
    if runtime.gradient_checkpointing != "auto":
        return runtime
    device = choose_device(runtime)
    is_on_gpu = device.type == "cuda"
    n_bytes = int(read_device_capacity(device) * GIB) if is_on_gpu else _measure_share_of_host(runtime)
    is_on = choose_checkpointing(settings, runtime, config, n_bytes, is_on_gpu=is_on_gpu)
    return runtime.model_copy(update={"gradient_checkpointing": is_on})


def _measure_share_of_host(runtime: Runtime) -> int:
    """Measures the bytes of the machine's or container's memory for each of the stage's processes."""
    return read_memory_limit() // runtime.processes
