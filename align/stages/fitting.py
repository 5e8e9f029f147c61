"""Finds settings with which a stage fits a device: first those that leave its result as it is, then the others."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from qwen_align.align.estimation.device import Device
from qwen_align.align.estimation.stage_estimate import StageEstimate, estimate_stage
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.settings.workload import DrawnRows
from qwen_align.align.stages.memory_settings import Shortage, Turn, list_turns


class Fit(NamedTuple):
    """Settings with which a stage fits. `runtime` and `stage` are what has to be changed, as recipes have it.

    Of a setting with settings of its own, such as lora, `stage` has all that are not at their default.

    What is in `stage` is in the stage's key: with it another model is trained.
    """

    runtime: dict[str, Any]
    stage: dict[str, Any]
    estimate: StageEstimate


def find_fit(
    settings: Any, runtime: Runtime, config: Mapping[str, Any], device: Device, *, prompt_tokens: int | None = None
) -> Fit | None:
    """Returns the first change with which a stage fits a device, the smallest first; if none does, one that is tight.

    Returns None where nothing helps. Adapters in the place of full training are no such change, nor are shorter
    completions: those are another method.
    """
    tight: Fit | None = None
    stage_changes: dict[str, Any] = {}
    while True:
        asked, turned = runtime, dict[str, Any]()
        while True:
            estimate = estimate_stage(settings, asked, config, device, prompt_tokens=prompt_tokens)
            if estimate is None:
                return None
            verdict, found = estimate.judge(device), Fit(turned, dict(stage_changes), estimate)
            if verdict == "fits":
                return found
            tight = tight or (found if verdict == "tight" else None)
            turns = [one for one in list_turns(settings, asked, _describe_shortage(estimate)) if one.same_method]
            turn = next((one for one in turns if one.runtime_setting), None)
            if turn is None:
                break
            asked, field = _apply(asked, turn._replace(setting=str(turn.runtime_setting)))
            turned = {**turned, field: _dump(asked, field)}
        turn = next((one for one in turns if not one.runtime_setting), None)
        if turn is None:
            return tight
        settings, field = _apply(settings, turn)
        stage_changes[field] = _dump(settings, field)


def _describe_shortage(estimate: StageEstimate) -> Shortage:
    """Describes the worst phase of an estimate as what settings are turned for."""
    phase, batch, rows = estimate.peak, estimate.micro_batch, estimate.rows_in_pass
    if batch is None or rows is None or phase.name not in ("score", "update"):
        return Shortage(phase.name, holds=phase.parts, checkpoints=estimate.checkpointing)
    longest = batch.n_tokens // rows
    return Shortage(phase.name, rows, longest, batch.n_tokens, phase.parts, estimate.checkpointing)


def _apply(settings: Any, turn: Turn) -> tuple[Any, str]:
    """Returns settings of a stage, or its runtime, with a turn of their own, and the field that it is in."""
    field, _, inner = turn.setting.partition(".")
    value = getattr(settings, field).model_copy(update={inner: turn.value}) if inner else turn.value
    return settings.model_copy(update={field: value}), field


def _dump(settings: Any, field: str) -> Any:
    """Returns a setting as a recipe has it."""
    value = getattr(settings, field)
    return value.model_dump(exclude_defaults=True) if hasattr(value, "model_dump") else value


def find_most_tokens(
    settings: Any, runtime: Runtime, config: Mapping[str, Any], device: Device, *, prompt_tokens: int | None = None
) -> tuple[int | None, StageEstimate]:
    """Returns the longest row, or in online RL completion, with which a stage fits a device, and the estimate of it.

    Of powers of two from 512 to what the model can read. Without one that fits: None, and the estimate of the shortest.
    """
    longest: tuple[int | None, StageEstimate] | None = None
    tokens = 512
    while tokens <= (config.get("max_position_embeddings") or 32_768):
        changed = _set_length(settings, tokens)
        estimate = estimate_stage(changed, runtime, config, device, prompt_tokens=prompt_tokens)
        assert estimate is not None
        if estimate.judge(device) != "fits":
            return longest or (None, estimate)
        longest, tokens = (tokens, estimate), tokens * 2
    assert longest is not None
    return longest


def _set_length(settings: Any, tokens: int) -> Any:
    """Returns the settings of a stage with another length of rows, or of completions."""
    if isinstance(settings.get_workload().rows, DrawnRows):
        return settings.model_copy(update={"sampling": settings.sampling.model_copy(update={"max_tokens": tokens})})
    return settings.model_copy(update={"max_tokens": tokens})
