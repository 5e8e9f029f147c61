"""Gathers the weights of a model that several processes hold in shards, to hand it on."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


def gather_weights(trainer: Any) -> dict[str, Tensor]:
    """Returns a model's whole weights in the main process, and nothing in the others. All processes call it.

    Trained weights are the fp32 ones that the optimiser writes, of which a model in bf16 under DeepSpeed holds roundings.
    """
    if not trainer.is_deepspeed_enabled:
        weights: dict[str, Tensor] = trainer.accelerator.get_state_dict(trainer.model)
        return weights if trainer.args.should_save else {}
    model: nn.Module = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    gathered = {name: weight.detach() for name, weight in model.state_dict(keep_vars=True).items() if _is_buffer(weight)}
    for name, parameter in model.named_parameters():
        with _gather_parameter(parameter):
            weight = _find_master(parameter)
            if trainer.args.should_save:
                gathered[name] = weight.detach().to("cpu", copy=True)
    return gathered if trainer.args.should_save else {}


def _is_buffer(weight: Tensor) -> bool:
    return not isinstance(weight, nn.Parameter)


def _gather_parameter(parameter: nn.Parameter) -> AbstractContextManager[Any]:
    """Returns a context manager in which a parameter is whole in every process, also under ZeRO-3."""
    if not hasattr(parameter, "ds_id"):
        return nullcontext()
    from deepspeed import zero

    return zero.GatheredParameters([parameter])  # type: ignore[no-any-return]


def _find_master(parameter: nn.Parameter) -> Tensor:
    """Returns the fp32 weight of which a trained parameter in 16 bits is the rounding, else the parameter."""
    if parameter.dtype == torch.float32 or not parameter.requires_grad:
        return parameter
    from deepspeed.utils import safe_get_full_fp32_param

    master = safe_get_full_fp32_param(parameter)
    assert master is not None
    return master.view(parameter.shape)
