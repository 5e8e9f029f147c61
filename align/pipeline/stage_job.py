"""Builds stage.json, the only input of a stage's processes."""

from typing import Any

from qwen_align.align.pipeline.plan import PlannedStage


def build_stage_job(stage: PlannedStage) -> dict[str, Any]:
    """Returns the content of stage.json, the only input of the worker process, without the lease of its run."""
    return {
        "key": stage.key,
        "name": stage.name,
        "settings": stage.settings.model_dump(exclude_unset=True),
        "inputs": stage.inputs,
        "seed": stage.seed,
        "runtime": stage.runtime.model_dump(),
        "outside": stage.outside._asdict(),
    }
