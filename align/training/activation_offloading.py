"""Keeps what the backward pass needs in host memory while a model is trained: less memory of the device, more time."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

# Smaller tensors stay where they are: moving them costs more time than it frees memory (our choice).
LEAST_BYTES = 1 << 10


class HostCopy(NamedTuple):
    """A tensor that was moved to host memory, and the device that it is needed on."""

    tensor: Tensor
    device: torch.device


class ActivationOffloading(torch.autograd.graph.saved_tensors_hooks):
    """A context manager in which autograd keeps saved activations in host memory and brings them back when asked.

    What shares its memory with a weight of the model stays, for it frees none: PyTorch's own `save_on_cpu` copies the
    weights too. `n_moved` counts the tensors that were moved. On a CPU a copy lies in the same memory as what it was
    copied from, so there it gains nothing.
    """

    def __init__(self, model: nn.Module) -> None:
        self.n_moved = 0
        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        weights |= {buffer.untyped_storage().data_ptr() for buffer in model.buffers()}

        def move_to_host(tensor: Tensor) -> Tensor | HostCopy:
            if tensor.nbytes < LEAST_BYTES or tensor.untyped_storage().data_ptr() in weights:
                return tensor
            self.n_moved += 1
            on_gpu = tensor.device.type == "cuda"
            copy = torch.empty(tensor.size(), dtype=tensor.dtype, layout=tensor.layout, pin_memory=on_gpu)
            return HostCopy(copy.copy_(tensor), tensor.device)

        def bring_back(packed: Tensor | HostCopy) -> Tensor:
            if isinstance(packed, HostCopy):
                return packed.tensor.to(packed.device, non_blocking=packed.tensor.is_pinned())
            return packed

        super().__init__(move_to_host, bring_back)


def offload_activations(model: Any, *, is_asked: bool) -> AbstractContextManager[Any]:
    """Returns the context manager to train a model in: with activations in host memory if that is asked for."""
    return ActivationOffloading(model) if is_asked else nullcontext()
