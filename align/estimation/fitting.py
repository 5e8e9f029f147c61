"""Finds settings with which a stage fits a device: first those that leave its result as it is, then the others."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from qwen_align.align.estimation.device import Device
from qwen_align.align.estimation.stage_estimate import StageEstimate, estimate_stage
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.settings.workload import DrawnRows

_LEAST_PREFILL_TOKENS = 512  # our choice: a pass over fewer leaves a GPU idle


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

    Returns None where nothing helps. Adapters in the place of full training are no such change: that is another method.
    """
    tight: Fit | None = None
    for changed, stage_change in _list_stage_changes(settings):
        turned: dict[str, Any] | None = {}
        while turned is not None:
            asked = runtime.model_copy(update=turned)
            estimate = estimate_stage(changed, asked, config, device, prompt_tokens=prompt_tokens)
            if estimate is None:
                return None
            verdict, found = estimate.judge(device), Fit(turned, stage_change, estimate)
            if verdict == "fits":
                return found
            tight = tight or (found if verdict == "tight" else None)
            turned = _turn_next(estimate, asked, turned)
    return tight


def _list_stage_changes(settings: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yields the settings as they are, then with a smaller base or smaller moments, each with what was changed."""
    yield settings, {}
    workload = settings.get_workload()
    if workload is None:
        return
    if workload.training is None:
        if workload.precision != "bf16":
            yield settings.model_copy(update={"precision": "bf16"}), {"precision": "bf16"}
        return
    changes: dict[str, Any] = {}
    vllm = workload.rows.vllm if isinstance(workload.rows, DrawnRows) else None
    if vllm and vllm.of_device and not vllm.sleeps:
        asleep = settings.engine.model_copy(update={"enable_sleep_mode": True})
        settings = settings.model_copy(update={"engine": asleep})
        changes = {"engine": asleep.model_dump(exclude_defaults=True)}
        yield settings, changes
    lora = workload.training.lora
    if lora is None:
        if workload.training.optimizer == "adamw":
            smaller = {"optimizer": "adamw_8bit"}
            yield settings.model_copy(update=smaller), {**changes, **smaller}
        return
    precision = {"precision": "bf16"} if workload.precision == "fp32" else {}
    for held in {"auto": ("bf16", "nf4"), "fp32": ("bf16", "nf4"), "bf16": ("nf4",), "nf4": ()}[lora.base_weights]:
        smaller_base = lora.model_copy(update={"base_weights": held})
        said = {"lora": smaller_base.model_dump(exclude_defaults=True), **precision}
        yield settings.model_copy(update={"lora": smaller_base, **precision}), {**changes, **said}


def _turn_next(estimate: StageEstimate, runtime: Runtime, turned: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the changes of the runtime with one more, of what makes the worst phase smaller. None: none is left."""
    phase = estimate.peak
    if phase.name == "draw" and runtime.kv_cache_gib is not None:  # without it, what is free
        return {**turned, "kv_cache_gib": None}
    if phase.name == "draw" and phase.parts.get("logits") and runtime.generation_batch > 1:
        return {**turned, "generation_batch": runtime.generation_batch // 2}
    if phase.name == "draw" and phase.parts.get("activations") and runtime.prefill_tokens > _LEAST_PREFILL_TOKENS:
        return {**turned, "prefill_tokens": runtime.prefill_tokens // 2}
    if phase.name not in ("score", "update"):
        return None
    training = estimate.workload.training
    if phase.name == "update" and training and training.can_checkpoint and not estimate.checkpointing:
        return {**turned, "gradient_checkpointing": True}
    if runtime.micro_batch_tokens is not None:  # then micro_batch says nothing
        assert estimate.micro_batch is not None
        halved = estimate.micro_batch.n_tokens // 2
        return {**turned, "micro_batch_tokens": halved} if (estimate.rows_in_pass or 1) > 1 else None
    if runtime.micro_batch > 1:
        rows = min(runtime.micro_batch, estimate.rows_in_pass or runtime.micro_batch) // 2
        return {**turned, "micro_batch": max(1, rows)}
    return None


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
