"""Estimates what a stage's device will hold in each phase, for its log and for the message where memory runs out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_align.align.estimation.device import Device
from qwen_align.align.estimation.stage_estimate import estimate_stage
from qwen_align.align.models.model_description import locate_model_files
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.store.files import read_json
from qwen_align.align.training.memory_meter import GIB, read_device_capacity


def estimate_memory(settings: Any, inputs: Mapping[str, Path], runtime: Runtime) -> dict[str, float]:
    """Estimates the GiB on this process's device in each phase of a stage that starts from a model, else nothing."""
    if settings.get_workload() is None:
        return {}
    from qwen_align.align.models.loading import choose_device, fetch_base_folder

    files = locate_model_files(inputs[settings.from_model])
    config = read_json(fetch_base_folder(files) / "config.json")
    return estimate_phases(settings, runtime, config, choose_device(runtime), merges_adapters=bool(files.adapters))


def estimate_phases(
    settings: Any, runtime: Runtime, config: Mapping[str, Any], device: Any, *, merges_adapters: bool = False
) -> dict[str, float]:
    """Estimates the GiB of tensors on a torch device in each phase of a stage, without the device's own overhead.

    Returns nothing for a kind of stage, or a model's architecture, of which there is no estimate.
    """
    is_on_gpu = device.type == "cuda"
    try:
        device_memory = Device(int(read_device_capacity(device) * GIB))
        estimate = estimate_stage(
            settings, runtime, config, device_memory, is_on_gpu=is_on_gpu, merges_adapters=merges_adapters
        )
    except ValueError:  # an architecture that is not known
        return {}
    phases = estimate.phases if estimate else []
    return {phase.name: (phase.total - phase.parts["overhead"]) / GIB for phase in phases}
