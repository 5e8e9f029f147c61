"""Lists the settings that leave less in memory, in the order in which to turn them.

`check --gpu` searches them for settings that fit, and the message of a stage that ran out of memory names the first.
"""

from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from qwen_align.align.settings.engine import DrawsWithEngine
from qwen_align.align.settings.evaluate import Evaluate
from qwen_align.align.settings.online_rl import OnlineRl
from qwen_align.align.settings.pretrain import Pretrain
from qwen_align.align.settings.rollout import Rollout
from qwen_align.align.settings.runtime import Runtime, Strategy
from qwen_align.align.settings.strategy import SHARDINGS, choose_strategy
from qwen_align.align.settings.training import Optimizer

_RUNTIME = "runtime."
_LEAST_PREFILL_TOKENS = 512  # our choice: a pass over fewer leaves a GPU idle
_LEAST_ENGINE_SHARE = 0.1  # of a GPU's memory, that is left to vLLM; our choice


class Shortage(NamedTuple):
    """What is known of where memory is short.

    rows, longest_row, pass_tokens: of a forward pass, or completions side by side while they are drawn; without rows it
    was the optimiser's step. holds: what takes memory there, in the words of the estimate. checkpoints: whether
    gradients are checkpointed already.
    """

    phase: str
    rows: int | None = None
    longest_row: int | None = None
    pass_tokens: int | None = None
    holds: Collection[str] | None = None
    checkpoints: bool | None = None

    def may_hold(self, *parts: str) -> bool:
        """Returns whether one of these parts may take memory."""
        return self.holds is None or any(part in self.holds for part in parts)


class Turn(NamedTuple):
    """A setting and the value it should get next.

    in_key: with it the stage has another key. same_method: what is trained or drawn stays the same but for rounding.
    keeps_checkpoints: a checkpoint without it can be gone on from with it.
    """

    setting: str
    value: Any
    now: Any
    in_key: bool
    same_method: bool = True
    keeps_checkpoints: bool = True

    @property
    def runtime_setting(self) -> str | None:
        """Returns the name of the runtime's setting; None for one of the stage's own."""
        return self.setting.removeprefix(_RUNTIME) if self.setting.startswith(_RUNTIME) else None


def list_turns(settings: Any, runtime: Runtime, short: Shortage) -> Iterator[Turn]:
    """Yields what to turn where memory is short, what leaves the result as it is before what does not."""
    lists = {
        "load": _list_for_loading,
        "draw": _list_for_drawing,
        "score": _list_for_passes,
        "update": _list_for_updates,
        "sync": _list_for_syncing,
    }
    yield from lists.get(short.phase, _list_for_saving)(settings, runtime, short)


def _list_for_loading(settings: Any, runtime: Runtime, short: Shortage) -> Iterator[Turn]:
    """Yields what to turn while models are loaded: how many bytes a weight has."""
    yield from _list_for_vllm(settings, runtime)
    yield from _list_for_sharding(settings, runtime)
    yield from _list_for_weights(settings)


def _list_for_drawing(settings: Any, runtime: Runtime, short: Shortage) -> Iterator[Turn]:
    """Yields what to turn while completions are drawn: how many are decoded side by side."""
    yield from _list_for_vllm(settings, runtime)
    if runtime.kv_cache_gib is not None:  # without it, what is free beside passes over prompts
        yield Turn(f"{_RUNTIME}kv_cache_gib", None, runtime.kv_cache_gib, in_key=False)
    rows = min(runtime.generation_batch, short.rows or runtime.generation_batch)
    if rows > 1 and short.may_hold("logits"):
        yield Turn(f"{_RUNTIME}generation_batch", rows // 2, runtime.generation_batch, in_key=False)
    longest = short.longest_row or runtime.prefill_tokens
    n_read, fewest = min(runtime.prefill_tokens, rows * longest), max(_LEAST_PREFILL_TOKENS, short.longest_row or 0)
    if n_read > fewest and short.may_hold("activations"):
        fewer = max(fewest, n_read // 2)
        yield Turn(f"{_RUNTIME}prefill_tokens", fewer, runtime.prefill_tokens, in_key=False)
    if isinstance(settings, Evaluate | Rollout | OnlineRl):
        max_tokens = settings.sampling.max_tokens
        yield Turn("sampling.max_tokens", max(1, max_tokens // 2), max_tokens, in_key=True, same_method=False)
    yield from _list_for_weights(settings)


def _list_for_passes(settings: Any, runtime: Runtime, short: Shortage) -> Iterator[Turn]:
    """Yields what to turn in forward passes: how many rows or tokens each has."""
    if not short.may_hold("activations", "logits"):
        return
    in_key = bool(settings.get_runtime_key_settings(runtime))
    asked, longest = runtime.micro_batch_tokens, short.longest_row or 1
    if asked is not None:  # then micro_batch says nothing
        tokens = min(asked, short.pass_tokens or asked)
        if tokens > longest:
            yield Turn(f"{_RUNTIME}micro_batch_tokens", max(longest, tokens // 2), asked, in_key)
        return
    rows = min(runtime.micro_batch, short.rows or runtime.micro_batch)
    if rows > 1:
        yield Turn(f"{_RUNTIME}micro_batch", rows // 2, runtime.micro_batch, in_key)


def _list_for_updates(settings: Any, runtime: Runtime, short: Shortage) -> Iterator[Turn]:
    """Yields what to turn in training passes: fewer rows, then what the backward pass keeps, then the weights.

    In the optimiser's step no pass holds anything any more: its moment estimates come first.
    """
    if short.rows is None:
        yield from _list_for_moments(settings, runtime)
        yield from _list_for_weights(settings)
    if isinstance(settings, Pretrain):  # its batch is one forward pass
        yield Turn("batch", max(1, settings.batch // 2), settings.batch, in_key=True, same_method=False)
        return
    yield from _list_for_passes(settings, runtime, short)
    workload = settings.get_workload()
    can_checkpoint = workload and workload.training and workload.training.can_checkpoint
    if can_checkpoint and runtime.gradient_checkpointing is not True and not short.checkpoints:
        yield Turn(f"{_RUNTIME}gradient_checkpointing", True, runtime.gradient_checkpointing, in_key=False)
    yield from _list_for_sharding(settings, runtime)
    yield from _list_for_sleep(settings, runtime)
    if isinstance(settings, Optimizer) and settings.lora is None:
        yield from _list_for_moments(settings, runtime)
    yield from _list_for_weights(settings)


def _list_for_syncing(settings: Any, runtime: Runtime, short: Shortage) -> Iterator[Turn]:
    """Yields what to turn while weights are sent to the engine: what the engine holds beside them."""
    yield from _list_for_vllm(settings, runtime)
    yield from _list_for_passes(settings, runtime, short)
    yield from _list_for_weights(settings)


def _list_for_saving(settings: Any, runtime: Runtime, short: Shortage) -> Iterator[Turn]:
    """Yields what to turn while a checkpoint or a model is written: what training leaves, then what is written."""
    yield from _list_for_passes(settings, runtime, short)
    yield from _list_for_sharding(settings, runtime)
    yield from _list_for_sleep(settings, runtime)
    if isinstance(settings, Optimizer) and settings.lora is None:
        yield from _list_for_moments(settings, runtime)
    yield from _list_for_weights(settings)


def _list_for_sharding(settings: Any, runtime: Runtime) -> Iterator[Turn]:
    """Yields the next strategy that divides more of what is trained among processes, then what is offloaded."""
    if not isinstance(settings, Optimizer) or not _can_shard(settings) or runtime.deepspeed is not None:
        return
    strategy = choose_strategy(runtime)
    following: dict[Strategy, Strategy] = {"ddp": "zero2" if settings.lora is None else "zero3"}
    following |= {"zero1": "zero2", "zero2": "zero3"}
    if strategy in following and runtime.world_size > 1:
        yield Turn(f"{_RUNTIME}strategy", following[strategy], strategy, in_key=False, keeps_checkpoints=False)
    elif SHARDINGS[strategy].parameters and runtime.offload != "parameters":
        more = "optimizer" if strategy == "zero3" and runtime.offload == "none" else "parameters"
        yield Turn(f"{_RUNTIME}offload", more, runtime.offload, in_key=False, keeps_checkpoints=False)


def _can_shard(settings: Optimizer) -> bool:
    """Returns whether a stage can be trained with DeepSpeed: not in 4 bits, nor in TRL's own loop of online RL."""
    in_4_bits = settings.lora is not None and settings.lora.base_weights == "nf4"
    has_own_loop = not isinstance(settings, OnlineRl) or settings.has_own_loop
    return settings.optimizer == "adamw" and not in_4_bits and has_own_loop


def _list_for_moments(settings: Any, runtime: Runtime) -> Iterator[Turn]:
    """Yields moment estimates in 8 bits, which GPUs alone have."""
    if isinstance(settings, Optimizer) and not settings.optimizer.endswith("8bit") and runtime.device != "cpu":
        yield Turn("optimizer", f"{settings.optimizer}_8bit", settings.optimizer, in_key=True)


def _list_for_weights(settings: Any) -> Iterator[Turn]:
    """Yields what makes the weights of a stage, or what it trains of them, smaller."""
    if isinstance(settings, Evaluate | Rollout):
        if settings.precision != "bf16":
            yield Turn("precision", "bf16", settings.precision, in_key=True)
        return
    if not isinstance(settings, Optimizer):
        return
    lora = settings.lora
    if lora is None:  # rank and scale of QLoRA's recipes
        yield Turn("lora", {"rank": 16, "alpha": 32}, None, in_key=True, same_method=False)
        return
    if settings.precision == "fp32":
        yield Turn("precision", "bf16", "fp32", in_key=True)
    elif lora.base_weights == "fp32" and settings.precision == "bf16":
        yield Turn("lora.base_weights", "bf16", "fp32", in_key=True)
    draws_with_vllm = isinstance(settings, OnlineRl) and settings.engine == "vllm"
    if lora.base_weights != "nf4" and not draws_with_vllm:
        yield Turn("lora.base_weights", "nf4", lora.base_weights, in_key=True)


def _list_for_vllm(settings: Any, runtime: Runtime) -> Iterator[Turn]:
    """Yields a smaller share of the stage's own GPU for vLLM."""
    share = runtime.engine.get_memory_share(trains=isinstance(settings, OnlineRl))
    if _has_engine_beside(settings, runtime) and runtime.device != "cpu" and share > _LEAST_ENGINE_SHARE:
        fewer = max(_LEAST_ENGINE_SHARE, round(share - 0.1, 2))
        yield Turn(f"{_RUNTIME}engine.gpu_memory_utilization", fewer, share, in_key=False)


def _list_for_sleep(settings: Any, runtime: Runtime) -> Iterator[Turn]:
    """Yields that a vLLM on the trainer's device frees its memory while the policy is trained."""
    is_trained = isinstance(settings, OnlineRl) and _has_engine_beside(settings, runtime)
    if is_trained and runtime.device != "cpu" and not runtime.engine.enable_sleep_mode:
        yield Turn(f"{_RUNTIME}engine.enable_sleep_mode", True, False, in_key=False)


def _has_engine_beside(settings: Any, runtime: Runtime) -> bool:
    """Returns whether vLLM draws for a stage on the stage's own device."""
    return isinstance(settings, DrawsWithEngine) and settings.engine == "vllm" and runtime.engine.where == "beside"
