"""Checks that a stage can train under the strategy that its runtime asks for, on this machine. No torch.

Strategies are of stages that train. Others, which have no training state, run as they would without.
"""

import os
from collections.abc import Callable, Iterator
from typing import Any

from qwen_align.align.errors import RecipeError
from qwen_align.align.pipeline.deepspeed_operators import find_missing_program
from qwen_align.align.pipeline.graph import Stage
from qwen_align.align.settings.online_rl import OnlineRl
from qwen_align.align.settings.strategy import SHARDINGS, choose_strategy, read_deepspeed_file, uses_deepspeed
from qwen_align.align.settings.training import Optimizer

FSDP2_ON_CPUS = "QWEN_ALIGN_TESTS_FSDP2_ON_CPUS"  # set by tests, which patch accelerate to shard there

_BATCHES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")


def trains_with_deepspeed(stage: Stage) -> bool:
    """Returns whether DeepSpeed trains a stage. One that does not train has nothing that it could divide."""
    return isinstance(stage.settings, Optimizer) and uses_deepspeed(stage.runtime)


def check_strategy(stage: Stage, n_processes: int, count_gpus: Callable[[], int], *, has_deepspeed: bool) -> None:
    """Raises RecipeError where a stage that trains could not do so in so many processes under its strategy."""
    settings, runtime = stage.settings, stage.runtime
    if not isinstance(settings, Optimizer):
        return
    if runtime.deepspeed is not None and (faults := list(list_file_faults(runtime.deepspeed, settings))):
        raise RecipeError(f"runtime.deepspeed: {runtime.deepspeed}: {'; '.join(faults)}")
    strategy = choose_strategy(runtime)
    said = f"runtime.strategy: {strategy}: " if runtime.deepspeed is None else "runtime.deepspeed: "
    if settings.lora and settings.lora.dora and SHARDINGS[strategy].parameters:
        raise RecipeError(
            f"{said}lora.dora: DoRA starts with norms of whole weights, of which each process has a part here; take "
            "zero2, or set dora: false"
        )
    is_on_cpu = runtime.device == "cpu" or (strategy != "ddp" and not count_gpus())
    if uses_deepspeed(runtime):
        if not has_deepspeed:
            raise RecipeError(f"{said}deepspeed is not installed: pip install 'qwen-align[deepspeed]'")
        if is_on_cpu and (program := find_missing_program(runtime)):
            raise RecipeError(
                f"{said}on a CPU DeepSpeed compiles an operator, and {program} is not installed here: install a C++ "
                "compiler and ninja (Debian: apt-get install g++ ninja-build)"
            )
    if strategy == "fsdp2":
        if n_processes == 1:
            raise RecipeError(f"{said}one process has nobody to share with; ask for more with processes, or take ddp")
        if is_on_cpu and not os.environ.get(FSDP2_ON_CPUS):
            raise RecipeError(
                f"{said}there is no GPU here, and accelerate shards over GPUs alone; take zero3, which does on CPUs too"
            )


def list_file_faults(path: str, settings: Optimizer) -> Iterator[str]:
    """Yields what a DeepSpeed file says against the stage that it is to train, and what to write instead."""
    content = read_deepspeed_file(path)
    for name in _BATCHES:
        if content.get(name, "auto") != "auto":
            yield f'{name} is {content[name]}: the recipe says the batch; write "auto"'
    if _is_enabled(content, "fp16"):
        yield "fp16 is enabled: weights are trained in fp32 or bf16; leave it out"
    if _get(content, "bf16", "enabled", "auto") != "auto":
        yield 'bf16.enabled is said: the recipe says the precision; write "auto"'
    if "torch_autocast" in content:
        yield "torch_autocast is said: the recipe says the precision; leave it out"
    clipping = content.get("gradient_clipping", "auto")
    if clipping not in ("auto", settings.max_grad_norm):
        yield f'gradient_clipping is {clipping}, and max_grad_norm {settings.max_grad_norm}; write "auto"'
    if content.get("sequence_parallel_size", 1) != 1:
        yield "sequence_parallel_size is said: rows are not divided among devices; leave it out"
    if isinstance(settings, OnlineRl):
        named = next((name for name in ("optimizer", "scheduler") if name in content), None)
        if named:
            yield f"{named}: grpo and ppo build their own, of learning_rate, schedule and critic; leave it out"
        return
    of_optimizer: dict[str, Any] = {
        "lr": settings.learning_rate,
        "betas": [*settings.betas],
        "weight_decay": settings.weight_decay,
        "eps": 1e-8,
    }
    for name, said in of_optimizer.items():
        written = _get(_get(content, "optimizer", "params", {}), name, None, "auto")
        if written not in ("auto", said):
            yield f'optimizer.params.{name} is {written}, and the recipe says {said}; write "auto"'


def _get(content: Any, name: str, inner: str | None, default: Any) -> Any:
    """Returns a value of a JSON object, or of an object in it, else the default."""
    value = content.get(name, {} if inner else default) if isinstance(content, dict) else default
    return (value.get(inner, default) if isinstance(value, dict) else default) if inner else value


def _is_enabled(content: Any, name: str) -> bool:
    """Returns whether a part of a DeepSpeed file is switched on."""
    return _get(content, name, "enabled", False) is True
