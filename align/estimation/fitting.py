"""Finds settings with which a stage fits a device: first those that leave its result as it is, then the others."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from qwen_align.align.estimation.device import Device
from qwen_align.align.estimation.stage_estimate import StageEstimate, estimate_stage
from qwen_align.align.settings.online_rl import OnlineRl, Vllm
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.settings.training import Lora, Optimizer


class Fit(NamedTuple):
    """Settings with which a stage fits. `runtime` and `stage` are what has to be changed, as recipes have it.

    What is in `stage` is in the stage's key: with it another model is trained.
    """

    runtime: dict[str, Any]
    stage: dict[str, Any]
    estimate: StageEstimate


def find_fit(
    settings: Any, runtime: Runtime, config: Mapping[str, Any], device: Device, *, prompt_tokens: int | None = None
) -> Fit | None:
    """Returns the first change with which a stage fits a device, the smallest first. Returns None where none does.

    Adapters in the place of full training are no such change: that is another method.
    """
    for changed, stage_change in _list_stage_changes(settings):
        for runtime_change in _list_runtime_changes(changed, runtime):
            asked = runtime.model_copy(update=runtime_change)
            estimate = estimate_stage(changed, asked, config, device, prompt_tokens=prompt_tokens)
            if estimate is not None and estimate.judge(device) == "fits":
                return Fit(runtime_change, stage_change, estimate)
    return None


def _list_stage_changes(settings: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Yields the settings as they are, then with a smaller base or smaller moments, each with what was changed."""
    yield settings, {}
    if isinstance(settings, OnlineRl) and isinstance(settings.engine, Vllm) and not settings.engine.enable_sleep_mode:
        engine = settings.engine.model_copy(update={"enable_sleep_mode": True})
        settings = settings.model_copy(update={"engine": engine})
        yield settings, {"engine": {"enable_sleep_mode": True}}
    if not isinstance(settings, Optimizer):
        return
    lora: Lora | None = getattr(settings, "lora", None)
    if lora is None:
        if settings.optimizer == "adamw":
            yield settings.model_copy(update={"optimizer": "adamw_8bit"}), {"optimizer": "adamw_8bit"}
        return
    for held in {"auto": ("bf16", "nf4"), "fp32": ("bf16", "nf4"), "bf16": ("nf4",), "nf4": ()}[lora.base_weights]:
        changed = {"lora": lora.model_copy(update={"base_weights": held})}
        precision = {"precision": "bf16"} if settings.precision == "fp32" else {}
        yield settings.model_copy(update={**changed, **precision}), {"lora": {"base_weights": held}, **precision}


def _list_runtime_changes(settings: Any, runtime: Runtime) -> Iterator[dict[str, Any]]:
    """Yields changes of the runtime: none, then checkpointing, then ever smaller micro-batches with it."""
    yield {}
    if not isinstance(settings, Optimizer):
        for rows in _halve(runtime.generation_batch):
            yield {"generation_batch": rows}
        return
    asked = {} if runtime.gradient_checkpointing is True else {"gradient_checkpointing": True}
    if asked:
        yield asked
    for rows in _halve(runtime.micro_batch):
        tokens = {"micro_batch_tokens": None} if runtime.micro_batch_tokens is not None else {}
        yield {**asked, "micro_batch": rows, **tokens}
    if isinstance(settings, OnlineRl):
        for rows in _halve(runtime.generation_batch):
            yield {**asked, "micro_batch": 1, "generation_batch": rows}


def _halve(number: int) -> Iterator[int]:
    while number > 1:
        number //= 2
        yield number


def find_most_tokens(
    settings: Any, runtime: Runtime, config: Mapping[str, Any], device: Device, *, prompt_tokens: int | None = None
) -> int | None:
    """Returns the longest completion with which an online RL stage fits a device, as a power of two times 256.

    One row a forward pass, checkpointed. Returns None where not even 256 tokens fit.
    """
    asked = runtime.model_copy(update={"micro_batch": 1, "micro_batch_tokens": None, "gradient_checkpointing": True})
    longest, tokens = None, 256
    while tokens <= (config.get("max_position_embeddings") or 32_768):
        sampling = settings.sampling.model_copy(update={"max_tokens": tokens})
        changed = settings.model_copy(update={"sampling": sampling})
        estimate = estimate_stage(changed, asked, config, device, prompt_tokens=prompt_tokens)
        if estimate is None or estimate.judge(device) == "does not fit":
            break
        longest, tokens = tokens, tokens * 2
    return longest
