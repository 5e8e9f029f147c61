"""Trains with DeepSpeed or FSDP2 where a stage's runtime asks for it, and refuses to train with anything else.

The libraries fall back in silence: accelerate runs FSDP2 as plain data parallelism where it sees no GPU, and leaves
DeepSpeed out under `--cpu`. So what a trainer has become is compared with what was asked before its first step.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from transformers import TrainingArguments

from qwen_align.align.errors import StageError
from qwen_align.align.settings.runtime import Runtime, Strategy
from qwen_align.align.settings.strategy import (
    REDUCED_NUMBERS,
    SHARDINGS,
    ZERO_STAGES,
    choose_strategy,
    name_zero_strategy,
    read_deepspeed_file,
    uses_deepspeed,
)
from qwen_align.align.store.files import write_json
from qwen_align.align.training.distributed import TIMEOUT, get_world_size, is_main_process

# In the stage's folder: what the library gets, to be given to transformers by hand (`deepspeed=`, `fsdp_config=`).
DEEPSPEED_FILE, FSDP_FILE = "deepspeed.json", "fsdp.json"

# What a stage's own settings say, for transformers to fill in. DeepSpeed would not clip where its settings say nothing.
LEFT_TO_STAGE = {
    "gradient_clipping": "auto",
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": "auto",
}


def build_strategy_arguments(runtime: Runtime, *, in_bf16: bool) -> dict[str, Any]:
    """Builds the arguments of transformers' TrainingArguments that say the strategy of a runtime."""
    strategy = choose_strategy(runtime)
    if strategy == "ddp":
        return {}
    if strategy == "fsdp2":
        return {"fsdp": True, "fsdp_config": _build_fsdp_settings(runtime)}
    if runtime.deepspeed is not None:
        settings = {**LEFT_TO_STAGE, **read_deepspeed_file(runtime.deepspeed)}
    else:
        settings = _build_deepspeed_settings(strategy, runtime)
    return _leave_weights_as_loaded(settings, in_bf16=in_bf16)


def _leave_weights_as_loaded(settings: Mapping[str, Any], *, in_bf16: bool) -> dict[str, Any]:
    """Builds the arguments of DeepSpeed, which holds each weight in the precision that it was loaded in.

    bf16 is then autocast's, as in a single process. DeepSpeed's own bf16 rounds a model's tables of rotations too, and
    the sums between layers: losses of the tiny base were off by 4 %. Under ZeRO-3 it takes weights that were
    partitioned before for bf16 ones, and would compute in fp32 without a word. Weights and gradients are exchanged in
    the precision they have.
    """
    autocast = {"enabled": in_bf16, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    return {"deepspeed": {**settings, "bf16": {"enabled": False}, "torch_autocast": autocast}, "bf16": False}


def _build_deepspeed_settings(strategy: Strategy, runtime: Runtime) -> dict[str, Any]:
    """Builds DeepSpeed's settings; what the stage's own settings say is "auto", which transformers fills in.

    The optimiser is PyTorch's, also where its state is offloaded: DeepSpeed's own needs a compiler at run time.
    """
    zero: dict[str, Any] = {"stage": ZERO_STAGES[strategy], "contiguous_gradients": True, "overlap_comm": False}
    if strategy != "zero3":
        zero["reduce_bucket_size"] = REDUCED_NUMBERS
    if runtime.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": False}
    if runtime.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": False}
    if strategy == "zero3":  # "auto" is of the hidden size
        zero |= dict.fromkeys(
            ("reduce_bucket_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"), "auto"
        )
    return {
        "zero_optimization": zero,
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "data_types": {"grad_accum_dtype": "fp32"},  # a step has several passes, whose gradients bf16 would round
        **LEFT_TO_STAGE,
    }


def _build_fsdp_settings(runtime: Runtime) -> dict[str, Any]:
    """Builds accelerate's settings of FSDP2."""
    return {
        "version": 2,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "state_dict_type": "SHARDED_STATE_DICT",
        "cpu_offload": runtime.offload == "parameters",
        "reshard_after_forward": True,
    }


def open_deepspeed_autocast(accelerator: Any, device: torch.device) -> AbstractContextManager[Any]:
    """Returns a context manager in which a model computes in the precision that DeepSpeed is going to train it in."""
    autocast = accelerator.state.deepspeed_plugin.deepspeed_config.get("torch_autocast", {})
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=autocast.get("enabled") is True)


def start_strategy(args: TrainingArguments, runtime: Runtime, out: Path) -> None:
    """Connects the stage's processes as its strategy needs it and keeps the strategy's settings in the stage's folder.

    Call it before a model is loaded: under ZeRO-3 models are then loaded as shards.
    """
    if uses_deepspeed(runtime):
        import deepspeed

        backend = "gloo" if args.use_cpu else "nccl"
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, timeout=TIMEOUT, verbose=False)
    strategy = choose_strategy(runtime)
    if SHARDINGS[strategy].parameters:
        # Autocast would keep a bf16 copy of every weight that it has met until a forward pass ends: the whole model.
        torch.set_autocast_cache_enabled(False)
    if is_main_process() and strategy != "ddp":
        settings = args.deepspeed or args.fsdp_config
        write_json(out / (DEEPSPEED_FILE if args.deepspeed else FSDP_FILE), settings)
        print(f"strategy: {strategy} in {get_world_size()} processes: {settings}", flush=True)


def require_strategy(trainer: Any, runtime: Runtime) -> None:
    """Raises StageError where a trainer would train with another strategy, or other processes, than was asked for."""
    n_asked, n_actual = get_world_size(), trainer.accelerator.num_processes
    if n_asked != n_actual:
        raise StageError(f"the stage has {n_asked} processes, but training would run in {n_actual}")
    asked, actual = choose_strategy(runtime), read_strategy(trainer.accelerator)
    if asked != actual:
        raise StageError(
            f"runtime.strategy is {asked}, but the libraries would train with {actual} "
            f"({trainer.accelerator.distributed_type}); nothing was trained"
        )


def read_strategy(accelerator: Any) -> Strategy:
    """Returns the strategy that an accelerator was set up for."""
    kind = accelerator.distributed_type
    if kind == DistributedType.DEEPSPEED:
        return name_zero_strategy(accelerator.state.deepspeed_plugin.zero_stage)
    if kind == DistributedType.FSDP and accelerator.state.fsdp_plugin.fsdp_version == 2:
        return "fsdp2"
    return "ddp"
