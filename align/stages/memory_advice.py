"""Says which one setting to turn when memory has run out in a phase of a stage, and to what value."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from qwen_align.align.context import Phase
from qwen_align.align.settings.evaluate import Evaluate
from qwen_align.align.settings.online_rl import OnlineRl, Vllm
from qwen_align.align.settings.pretrain import Pretrain
from qwen_align.align.settings.rollout import Rollout
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.settings.training import Optimizer


class Advice(NamedTuple):
    """A setting and the value it should get next. `in_key`: with it the stage has another key, so it starts anew."""

    setting: str
    value: Any
    now: Any
    in_key: bool

    def format(self) -> str:
        """Formats the advice as a sentence without its full stop."""
        key = "; it is part of the stage's key, so the stage then starts anew" if self.in_key else ""
        return f"Set {self.setting}: {_format_value(self.value)} (now {_format_value(self.now)}){key}"


def word_advice(settings: Any, runtime: Runtime, phase: Phase) -> str:
    """Says which setting to turn when a stage ran out of memory in a phase, without a full stop."""
    advice = choose_advice(settings, runtime, phase)
    return advice.format() if advice else "No setting is left to change: take a smaller model or more memory"


def choose_advice(settings: Any, runtime: Runtime, phase: Phase) -> Advice | None:
    """Returns the setting to turn when a stage ran out of memory in a phase. Returns None where none is left.

    Settings that leave the result as it is come first, so that the stage can go on.
    """
    lists = {
        "load": _list_for_loading,
        "draw": _list_for_drawing,
        "score": _list_for_passes,
        "update": _list_for_updates,
        "sync": _list_for_syncing,
        "save": _list_for_saving,
    }
    return next(lists[phase.name](settings, runtime, phase), None)


def _list_for_loading(settings: Any, runtime: Runtime, phase: Phase) -> Iterator[Advice]:
    """Yields what to turn while models are loaded: how many bytes a weight has."""
    yield from _list_for_vllm(settings)
    if isinstance(settings, Optimizer):
        yield from _list_for_weights(settings)
    elif isinstance(settings, Evaluate | Rollout) and settings.precision != "bf16":
        yield Advice("precision", "bf16", settings.precision, in_key=True)


def _list_for_drawing(settings: Any, runtime: Runtime, phase: Phase) -> Iterator[Advice]:
    """Yields what to turn while completions are drawn: how many are decoded side by side."""
    yield from _list_for_vllm(settings)
    if runtime.kv_cache_gib is not None:
        yield Advice("runtime.kv_cache_gib", round(runtime.kv_cache_gib / 2, 3), runtime.kv_cache_gib, in_key=False)
    rows = min(runtime.generation_batch, phase.rows or runtime.generation_batch)
    if rows > 1:
        yield Advice("runtime.generation_batch", rows // 2, runtime.generation_batch, in_key=False)
    if isinstance(settings, Evaluate | Rollout | OnlineRl):
        max_tokens = settings.sampling.max_tokens
        yield Advice("sampling.max_tokens", max(1, max_tokens // 2), max_tokens, in_key=True)


def _list_for_passes(settings: Any, runtime: Runtime, phase: Phase) -> Iterator[Advice]:
    """Yields what to turn in forward passes: how many rows or tokens each has."""
    in_key = bool(settings.get_runtime_key_settings(runtime))
    tokens, longest = runtime.micro_batch_tokens, phase.longest_row or 1
    if tokens is not None and tokens > longest:
        yield Advice("runtime.micro_batch_tokens", max(longest, tokens // 2), tokens, in_key)
    rows = min(runtime.micro_batch, phase.rows or runtime.micro_batch)
    if tokens is None and rows > 1:
        yield Advice("runtime.micro_batch", rows // 2, runtime.micro_batch, in_key)


def _list_for_updates(settings: Any, runtime: Runtime, phase: Phase) -> Iterator[Advice]:
    """Yields what to turn in training passes: fewer rows, then what the backward pass keeps, then the weights.

    Without rows it was the optimiser's step, when no pass holds anything any more: its moment estimates.
    """
    if phase.rows is None and isinstance(settings, Optimizer):
        if settings.optimizer in ("adamw", "paged_adamw") and runtime.device != "cpu":
            yield Advice("optimizer", f"{settings.optimizer}_8bit", settings.optimizer, in_key=True)
        yield from _list_for_weights(settings)
    if isinstance(settings, Pretrain):  # its batch is one forward pass
        yield Advice("batch", max(1, settings.batch // 2), settings.batch, in_key=True)
        return
    yield from _list_for_passes(settings, runtime, phase)
    workload = settings.get_workload()
    can_checkpoint = workload and workload.training and workload.training.can_checkpoint
    if can_checkpoint and runtime.gradient_checkpointing is not True:
        yield Advice("runtime.gradient_checkpointing", True, runtime.gradient_checkpointing, in_key=False)
    if isinstance(settings, Optimizer):
        yield from _list_for_weights(settings)


def _list_for_syncing(settings: Any, runtime: Runtime, phase: Phase) -> Iterator[Advice]:
    """Yields what to turn while weights are sent to the engine: what the engine holds beside them."""
    yield from _list_for_vllm(settings)
    yield from _list_for_passes(settings, runtime, phase)


def _list_for_saving(settings: Any, runtime: Runtime, phase: Phase) -> Iterator[Advice]:
    """Yields what to turn while a checkpoint or a model is written: what training leaves, then what is written."""
    yield from _list_for_passes(settings, runtime, phase)
    if isinstance(settings, Optimizer):
        yield from _list_for_weights(settings)


def _list_for_weights(settings: Any) -> Iterator[Advice]:
    """Yields what makes weights, gradients and moments of a stage that trains smaller."""
    if settings.lora is None:
        yield Advice("lora", {"rank": 16, "alpha": 32}, None, in_key=True)  # rank and scale of QLoRA's recipes
    elif settings.lora.base_weights in ("auto", "fp32"):
        yield Advice("lora.base_weights", "bf16", settings.lora.base_weights, in_key=True)
    elif settings.lora.base_weights == "bf16":
        yield Advice("lora.base_weights", "nf4", "bf16", in_key=True)


def _list_for_vllm(settings: Any) -> Iterator[Advice]:
    """Yields a smaller share of the GPU for a vLLM in the trainer's own processes."""
    engine = settings.engine if isinstance(settings, OnlineRl) else None
    if isinstance(engine, Vllm) and engine.mode == "colocate" and engine.gpu_memory_utilization > 0.1:
        share = engine.gpu_memory_utilization
        yield Advice("engine.gpu_memory_utilization", round(share - 0.1, 2), share, in_key=True)


def _format_value(value: Any) -> str:
    """Formats a setting's value as YAML has it in a line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {_format_value(each)}" for name, each in value.items()) + "}"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
