"""Copies and casts of a model's weights in bf16: for drawing, for a frozen reference, and for handing a model on."""

import copy
import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qwen_align.align.models.fp32_head import Fp32Linear
from qwen_align.align.models.weight_shards import get_held_numbers, is_shard
from qwen_align.align.training.distributed import is_true_in_any_process

NUMBERS_AT_ONCE = 1 << 24  # numbers; 64 MiB of fp32 at a time


def copy_in_bf16(model: PreTrainedModel) -> PreTrainedModel:
    """Returns a copy of a model whose weights are bf16; tied weights stay tied.

    Weights in bf16 and in 4 bits are not copied, nor are DoRA's adapters, which stay fp32: they compute with norms of
    the weights, and in bf16 those are off by 0.2 %. Each other weight is rounded on its own, so that there is never a
    second copy in fp32.
    """
    memo: dict[int, Any] = {}
    kept = list_weights_kept_from_bf16(model)
    for name, parameter in model.named_parameters():
        if name in kept:
            memo[id(parameter)] = parameter
        elif parameter.is_floating_point():
            memo[id(parameter)] = nn.Parameter(parameter.detach().to(torch.bfloat16), requires_grad=False)
        else:
            memo[id(parameter)] = parameter
            memo[id(parameter.quant_state)] = parameter.quant_state  # the layer has it too
    copied = copy.deepcopy(model, memo)
    assert isinstance(copied, PreTrainedModel)
    return copied


def list_weights_kept_from_bf16(model: nn.Module) -> set[str]:
    """Returns the names of the weights that a copy in bf16 keeps in fp32: those of DoRA's adapters."""
    names = [name for name, _ in model.named_parameters()]
    has_norms = any(".lora_magnitude_vector." in name for name in names)
    return {name for name in names if has_norms and ".lora_" in name}


def hold_frozen_in_bf16(model: PreTrainedModel) -> PreTrainedModel:
    """Casts those weights of a frozen fp32 model to bf16 with which autocast computes the same as before, bit by bit.

    Those are the weights of linear layers, which autocast rounds in each forward pass anyway, and embeddings that bf16
    holds exactly; an embedding is then read as fp32, as the residual stream has to be. Norms stay as they are: they are
    computed in fp32, and small. Weights of a mixture's fused experts stay too.
    """
    cast: dict[int, Tensor] = {}
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        if type(module) is nn.Embedding and _fits_bf16(module.weight):
            module.weight.data = _cast_once(module.weight, cast)
            module.register_forward_hook(_read_as_fp32)
        elif type(module) is nn.Linear and id(module.weight) not in embeddings:
            for parameter in module.parameters():
                parameter.data = _cast_once(parameter, cast)
    return model


def _read_as_fp32(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output.float()


def _cast_once(parameter: Tensor, cast: dict[int, Tensor]) -> Tensor:
    """Returns a weight in bf16, the same for all modules that share it."""
    return cast.setdefault(id(parameter), parameter.data.to(torch.bfloat16))


def _fits_bf16(weight: Tensor) -> bool:
    """Returns whether bf16 holds all numbers of a weight exactly; of a shard, those of all processes."""
    fits = _fits_in_this_process(get_held_numbers(weight.detach()))
    return not is_true_in_any_process(not fits) if is_shard(weight) else fits


def _fits_in_this_process(weight: Tensor) -> bool:
    """Returns whether bf16 holds all of these numbers exactly."""
    flat = weight.flatten()
    parts = (flat[start : start + NUMBERS_AT_ONCE] for start in range(0, len(flat), NUMBERS_AT_ONCE))
    return all(torch.equal(part.to(torch.bfloat16).to(part.dtype), part) for part in parts)


@torch.no_grad()
def round_to_bf16(weight: Tensor, name: str) -> Tensor:
    """Rounds fp32 numbers to bf16 stochastically: up with a probability of what is left over, so the mean is exact.

    What bf16 holds is left as it is (arXiv:2010.06192). The same name rounds the same way every time.
    """
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=7).digest(), "little")
    generator = torch.Generator().manual_seed(seed)
    rounded = torch.empty(weight.shape, dtype=torch.bfloat16)
    parts = (torch.split(one, NUMBERS_AT_ONCE) for one in (weight.flatten(), rounded.view(-1)))
    for source, target in zip(*parts, strict=True):
        bits = source.cpu().view(torch.int32)
        # bf16 is the upper half of fp32: below 2**16 carries into it as often as the lower half is large.
        bits = bits + torch.randint(0, 1 << 16, bits.shape, generator=generator, dtype=torch.int32)
        target.copy_((bits & -(1 << 16)).view(torch.float32))
    return rounded.to(weight.device)


def cast_state(model: nn.Module, state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Returns a model's weights in another precision, but for heads that compute in fp32.

    Those that share their memory still do, so that they are saved once.
    """
    heads = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Fp32Linear))
    cast: dict[tuple[int, torch.Size], Tensor] = {}
    return {
        name: cast.setdefault((weight.data_ptr(), weight.shape), weight.detach().to(dtype))
        if weight.is_floating_point() and weight.numel() and not name.startswith(heads)
        else weight
        for name, weight in state.items()
    }
