"""Keeps a copy of a model that is whole while completions are drawn from it, where processes hold parts of its weights.

A process that draws runs the model as often as its own completions need, and waits for no other: weights that are
fetched in each forward pass, as DeepSpeed and FSDP2 do, would make it wait for passes that others do not make.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from qwen_align.align.models.bf16_weights import list_weights_kept_from_bf16


class WholeCopy:
    """A copy of a model's modules, whose weights are gathered when they are needed and freed after.

    Made before DeepSpeed or FSDP2 put hooks into the model, it has none. While it is held each process has, beside its
    parts of the model, all weights in the precision they are drawn with, and while they are gathered one of them twice.
    """

    def __init__(self, original: nn.Module, device: torch.device, *, in_bf16: bool) -> None:
        memo: dict[int, Any] = {
            id(weight): nn.Parameter(torch.empty(0, dtype=weight.dtype, device=device), requires_grad=False)
            for weight in original.parameters()
        }
        self.model: Any = copy.deepcopy(original, memo).to(device)
        self._original, self._device = original, device
        kept = list_weights_kept_from_bf16(original)
        self._types = {
            name: torch.bfloat16 if in_bf16 and weight.is_floating_point() and name not in kept else None
            for name, weight in original.named_parameters()
        }

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Gathers the model's present weights into the copy, and frees them afterwards. Every process calls it."""
        originals = dict(self._original.named_parameters())  # FSDP2 has put others in their place
        weights = dict(self.model.named_parameters())
        for name, weight in weights.items():
            weight.data = gather_weight(originals[name], self._device, self._types[name])
        try:
            yield
        finally:
            for weight in weights.values():
                weight.data = weight.new_empty(0)


@torch.no_grad()
def gather_weight(weight: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Returns a weight of which processes hold parts as a whole, in each of them; in its own precision without another.

    Every process has to call it. A weight that is whole already is not copied if nothing about it changes.
    """
    from torch.distributed.tensor import DTensor

    if hasattr(weight, "ds_id"):
        from deepspeed import zero

        with zero.GatheredParameters([weight]):
            return weight.detach().to(device, dtype, copy=True)
    if isinstance(weight, DTensor):
        whole: Tensor = weight.to(device).full_tensor()  # type: ignore[attr-defined]  # `to` of a DTensor gives another
        return whole.to(dtype)
    return weight.detach().to(device, dtype)


@torch.no_grad()
def set_weight(weight: Any, whole: Tensor) -> None:
    """Sets a weight, of which processes hold parts, to a whole tensor that all of them have. Every process calls it."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if hasattr(weight, "ds_id"):
        from deepspeed import zero

        with zero.GatheredParameters([weight], modifier_rank=0):
            weight.data.copy_(whole)
    elif isinstance(weight, DTensor):
        whole = whole.to(weight.device, weight.dtype)
        weight.copy_(distribute_tensor(whole, weight.device_mesh, weight.placements, src_data_rank=None))
    else:
        weight.data.copy_(whole)


def copy_weights(source: nn.Module, target: nn.Module, device: torch.device) -> None:
    """Copies the weights of a module to another of the same kind, one at a time; processes may hold parts of both."""
    for module in target.modules():
        if isinstance(module, FSDPModule):
            module.reshard()  # what is written to a gathered weight is lost
    originals = dict(source.named_parameters())
    for name, weight in target.named_parameters():
        set_weight(weight, gather_weight(originals[name], device))
