"""Prepares a model that is not trained, as a reference policy, to compute beside the one that is."""

import copy
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import nn

from qwen_align.align.training.fsdp2 import shard_for_accelerator

# What of DeepSpeed's settings is for an optimiser, which a frozen model has not.
OF_OPTIMIZER = ("optimizer", "scheduler", "gradient_clipping")


def prepare_frozen(model: nn.Module, accelerator: Any) -> Any:
    """Freezes a model and returns what computes its forward passes on the accelerator's device.

    Where processes hold parts of the trained model's weights they hold parts of these too, and need as many passes as
    each other. Else each has the whole model, in bf16 where DeepSpeed holds the trained one in bf16.
    """
    model.eval().requires_grad_(False)
    if accelerator.distributed_type == DistributedType.FSDP:
        shard_for_accelerator(model, accelerator)
        return _Resharded(model)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        if accelerator.state.deepspeed_plugin.zero_stage == 3:
            return _shard_by_deepspeed(model, config)
        if config.get("bf16", {}).get("enabled") is True:
            for weight in model.parameters():
                weight.data = weight.data.to(torch.bfloat16)
    return model.to(accelerator.device)


def _shard_by_deepspeed(model: Any, config: dict[str, Any]) -> Any:
    """Returns DeepSpeed's engine of a frozen model under ZeRO 3, with the settings of the trained model's."""
    import deepspeed

    settings = {name: value for name, value in copy.deepcopy(config).items() if name not in OF_OPTIMIZER}
    zero = settings["zero_optimization"]
    zero.pop("offload_optimizer", None)
    hidden_size = model.config.get_text_config().hidden_size
    by_size = {  # as transformers fills in "auto"
        "reduce_bucket_size": hidden_size**2,
        "stage3_prefetch_bucket_size": int(0.9 * hidden_size**2),
        "stage3_param_persistence_threshold": 10 * hidden_size,
    }
    zero |= {name: value for name, value in by_size.items() if zero.get(name) == "auto"}
    engine, *_ = deepspeed.initialize(model=model, config=settings)
    engine.eval()
    return engine


class _Resharded:
    """A frozen model of FSDP2 that holds its parts alone after each pass.

    FSDP2 keeps what lies outside of the layers, embeddings and head, for a backward pass, which never comes.
    """

    def __init__(self, model: Any) -> None:
        self.model = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self.model(*args, **kwargs)
        finally:
            self.model.reshard()
