"""Loads a model as shards: each process reads its own rows of every weight, and none ever holds the whole model.

transformers reads a weight that is a DTensor without numbers by the rows that this process holds. So the weights of a
model are made such before they are read. ZeRO-3 and FSDP2 then take over what was read (`zero3_shards`,
`align/training/fsdp2.py`); until then, layers that have to be whole for a moment are gathered here.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.integrations import deepspeed

from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.settings.strategy import SHARDINGS, choose_strategy
from qwen_align.align.training.distributed import get_world_size


def build_shard_mesh(runtime: Runtime, device: torch.device) -> DeviceMesh | None:
    """Returns the processes over which a stage's models are loaded as shards. None where each holds them whole.

    The processes have to be connected.
    """
    if not SHARDINGS[choose_strategy(runtime)].parameters:
        return None
    return init_device_mesh(device.type, (get_world_size(),))


@contextmanager
def load_as_shards(mesh: DeviceMesh | None) -> Iterator[None]:
    """Has transformers read models as shards over a mesh inside a context manager; without one, whole.

    Also under ZeRO-3, where transformers would by itself read the whole model in one process and gather every layer
    in all of them: 3.4 shards at the peak of Qwen3-4B's widths in 2 processes.
    """
    original = PreTrainedModel._load_pretrained_model

    def load(model: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        if mesh is not None:
            _drop_all_rows_but_own(model, mesh)
        return original(model, *args, **kwargs)

    PreTrainedModel._load_pretrained_model = staticmethod(load)
    try:
        with build_without_zero3():
            yield
    finally:
        PreTrainedModel._load_pretrained_model = staticmethod(original)


@contextmanager
def build_without_zero3() -> Iterator[None]:
    """Keeps transformers from partitioning what is built or loaded inside a context manager as it does under ZeRO-3."""
    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config


def _drop_all_rows_but_own(model: nn.Module, mesh: DeviceMesh) -> None:
    """Turns the weights of a model on the meta device into shards without numbers."""
    replace_parameters(model, lambda weight: build_shard(weight, _cut_own_rows(weight, mesh), mesh))


def _cut_own_rows(weight: Tensor, mesh: DeviceMesh) -> Tensor:
    """Returns this process's rows of a whole weight, as FSDP2 cuts it."""
    parts = torch.chunk(weight.detach(), mesh.size(), dim=0)
    rank = mesh.get_local_rank()
    return parts[rank] if rank < len(parts) else weight.detach()[:0]


def build_shard(weight: Tensor, rows: Tensor, mesh: DeviceMesh) -> DTensor:
    """Returns the shard of a weight that holds this process's rows."""
    return DTensor.from_local(rows, mesh, [Shard(0)], run_check=False, shape=weight.shape, stride=weight.stride())


def replace_parameters(model: nn.Module, build: Callable[[Tensor], Tensor | None]) -> None:
    """Replaces each parameter of a model that has rows by what `build` makes of it; shared ones stay shared.

    What `build` returns None for stays.
    """
    new: dict[int, nn.Parameter] = {}
    kept: list[nn.Parameter] = []  # so that no id is used twice
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            if weight is None or not weight.dim():
                continue
            if id(weight) not in new:
                built = build(weight)
                if built is None:
                    continue
                new[id(weight)] = (
                    built
                    if isinstance(built, nn.Parameter)
                    else nn.Parameter(built, requires_grad=weight.requires_grad)
                )
                kept.append(weight)
            module._parameters[name] = new[id(weight)]


def is_shard(weight: Any) -> bool:
    """Returns whether a weight is a shard that neither ZeRO-3 nor FSDP2 has taken over."""
    return isinstance(weight, DTensor)


def list_shards(modules: Iterable[nn.Module]) -> list[tuple[nn.Module, str, Any]]:
    """Returns the modules' own shards, each with its module and its name there; a shared one once for each module."""
    return [
        (module, name, weight)
        for module in modules
        for name, weight in module._parameters.items()
        if isinstance(weight, DTensor)
    ]


def has_shards(model: nn.Module) -> bool:
    """Returns whether a model was loaded as shards that neither ZeRO-3 nor FSDP2 has taken over."""
    return any(is_shard(weight) for weight in model.parameters())


def get_held_numbers(weight: Tensor) -> Tensor:
    """Returns the numbers of a weight that this process holds."""
    return weight.to_local() if isinstance(weight, DTensor) else weight


@contextmanager
def gather_layer(layer: nn.Module, *, recurse: bool = True, changes: bool = False) -> Iterator[None]:
    """Makes the weights of a layer whole inside a context manager, in all processes at once.

    `changes`: each process keeps its rows of what the weights have become, in their precision. Other layers stay.
    """
    shards = list_shards(layer.modules() if recurse else [layer])
    for module, name, shard in shards:
        module._parameters[name] = nn.Parameter(shard.detach().full_tensor(), requires_grad=shard.requires_grad)
    try:
        yield
    finally:
        for module, name, shard in shards:
            if changes:
                rows = _cut_own_rows(getattr(module, name), shard.device_mesh)
                shard.detach().to_local().copy_(rows)
            module._parameters[name] = shard


@contextmanager
def hide_shards(model: nn.Module) -> Iterator[None]:
    """Puts zeros that take no memory in the place of a model's shards inside a context manager.

    For what looks at weights and computes with them, but keeps nothing of that.
    """
    hidden = list_shards(model.modules())
    zeros = {id(shard): nn.Parameter(_build_zeros(shard), requires_grad=shard.requires_grad) for *_, shard in hidden}
    for module, name, shard in hidden:
        module._parameters[name] = zeros[id(shard)]
    try:
        yield
    finally:
        for module, name, shard in hidden:
            shard.requires_grad_(zeros[id(shard)].requires_grad)
            module._parameters[name] = shard


def _build_zeros(shard: DTensor) -> Tensor:
    """Returns zeros of a whole weight's shape that all lie in the same place."""
    return torch.zeros((), dtype=shard.dtype, device=shard.device).expand(shard.shape)


@contextmanager
def gather_in_forward(model: nn.Module, needs_whole: tuple[type[nn.Module], ...] = ()) -> Iterator[None]:
    """Lets all processes run the forward pass of a model of shards, one layer whole at a time.

    `needs_whole`: modules that read the weights of the modules inside them.
    """
    open_layers: dict[int, Any] = {}
    hooks: list[RemovableHandle] = []

    def enter(module: nn.Module, inputs: Any) -> None:
        open_layers[id(module)] = gather_layer(module, recurse=isinstance(module, needs_whole))
        open_layers[id(module)].__enter__()

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        open_layers.pop(id(module)).__exit__(None, None, None)

    for module in model.modules():
        if any(is_shard(weight) for weight in module.parameters(recurse=isinstance(module, needs_whole))):
            hooks += [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
