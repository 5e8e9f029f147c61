"""Shards a model with PyTorch's FSDP2 (`fully_shard`), from the shards that were loaded: no process holds the whole.

A decoder layer is whole only while it computes, and so are embeddings that are not the head too. What is left belongs
to the outermost module and is whole from the beginning of its forward pass to the end of its backward pass: the head's
weights are read outside the head's own forward pass.

Weights are gathered in the precision they are held in, and autocast computes as in a single process. PyTorch's own
mixed precision would cast norms and embeddings too.
"""

from functools import partial
from types import MethodType
from typing import Any

import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from transformers import PreTrainedModel

from qwen_align.align.models.weight_shards import list_shards, replace_parameters
from qwen_align.align.training.distributed import broadcast_tensor_from_main


def shard_trained_model(trainer: Any) -> None:
    """Shards the model of a trainer that accelerate has set up for FSDP2, once; accelerate then takes it as it is.

    Call it when the model is complete, with its adapters, and before an optimiser sees its weights.
    """
    model, accelerator = trainer.model, trainer.accelerator
    if not accelerator.is_fsdp2 or isinstance(model, FSDPModule):
        return
    shard_for_accelerator(model, accelerator)
    if accelerator.native_amp:
        device = accelerator.device
        forward = model.forward.__func__ if hasattr(model.forward, "__func__") else model.forward
        in_autocast = torch.autocast(device.type, dtype=torch.bfloat16)(forward)
        model.forward = MethodType(convert_outputs_to_fp32(in_autocast), model)


def shard_for_accelerator(model: nn.Module, accelerator: Any) -> None:
    """Shards a model over all processes of an accelerator that was set up for FSDP2, as its settings say."""
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    offload = accelerator.state.fsdp_plugin.cpu_offload
    shard_model(model, mesh, accelerator.device, offloads=isinstance(offload, CPUOffloadPolicy))


def shard_model(model: nn.Module, mesh: DeviceMesh, device: torch.device, *, offloads: bool = False) -> None:
    """Shards a model over the processes of a mesh; one that was loaded as shards needs no more memory for it.

    `offloads`: shards are held in host memory. Weights that every process holds whole, such as new adapters, become
    those of the first process, as in data parallelism.
    """
    loaded = _take_out_shards(model)
    _send_from_first(model, mesh)
    policy = CPUOffloadPolicy(pin_memory=device.type == "cuda") if offloads else OffloadPolicy()
    shard = partial(
        fully_shard,
        mesh=mesh,
        offload_policy=policy,
        shard_placement_fn=partial(_choose_cut, n_processes=mesh.size()),
    )
    for layer in [*_list_decoder_layers(model), *_list_embeddings_alone(model)]:
        name = type(layer).__name__
        shard(layer, reshard_after_forward=True)
        type(layer).__name__ = name  # by which accelerate and PEFT look for layers; the class is FSDP2's own
    shard(model, reshard_after_forward=False)
    _put_shards_in(model, loaded, torch.device("cpu") if offloads else device)


def _take_out_shards(model: nn.Module) -> dict[tuple[int, str], DTensor]:
    """Takes the loaded shards out of a model and leaves weights without numbers; by module and name."""
    loaded = {(id(module), name): shard for module, name, shard in list_shards(model.modules())}

    def empty(weight: Tensor) -> Tensor | None:
        return torch.empty(weight.shape, dtype=weight.dtype, device="meta") if isinstance(weight, DTensor) else None

    replace_parameters(model, empty)
    return loaded


def _send_from_first(model: nn.Module, mesh: DeviceMesh) -> None:
    """Gives all processes the first one's numbers of what each of them holds whole."""
    whole = [one.data for one in (*model.parameters(), *model.buffers()) if not one.is_meta and one.numel()]
    for tensor in whole:
        sent = tensor.to(mesh.device_type).contiguous()
        broadcast_tensor_from_main(sent, mesh.get_group())
        tensor.copy_(sent)


def _choose_cut(weight: nn.Parameter, n_processes: int) -> Shard | None:
    """Returns how a weight with fewer rows than processes is cut: by columns, so that none holds an empty shard."""
    by_columns = weight.dim() > 1 and weight.shape[0] < n_processes and weight.shape[1] % n_processes == 0
    return Shard(1) if by_columns else None


def _list_decoder_layers(model: nn.Module) -> list[nn.Module]:
    """Returns the layers of all models inside a module."""
    names = {
        name for one in model.modules() if isinstance(one, PreTrainedModel) for name in (one._no_split_modules or ())
    }
    return [module for module in model.modules() if type(module).__name__ in names]


def _list_embeddings_alone(model: nn.Module) -> list[nn.Module]:
    """Returns the embeddings of all models inside a module that share their weights with no head and adapt nothing."""
    owners: dict[int, int] = {}
    for module in model.modules():
        for weight in module._parameters.values():
            owners[id(weight)] = owners.get(id(weight), 0) + 1
    found = [one.get_input_embeddings() for one in model.modules() if isinstance(one, PreTrainedModel)]
    unique = {id(module): module for module in found if type(module) is nn.Embedding}
    return [module for module in unique.values() if owners[id(module.weight)] == 1]


def _put_shards_in(model: nn.Module, loaded: dict[tuple[int, str], DTensor], device: torch.device) -> None:
    """Puts loaded shards into the sharded model's weights, those that are shared once."""
    placed: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in list(module._parameters.items()):
            shard = loaded.get((id(module), name))
            if shard is None:
                continue
            assert isinstance(weight, DTensor)
            if id(shard) not in placed:
                rows = shard.detach()
                if weight.placements != shard.placements:
                    rows = distribute_tensor(rows.full_tensor(), shard.device_mesh, weight.placements)
                rows = DTensor.from_local(
                    rows.to_local().to(device),
                    weight.device_mesh,
                    weight.placements,
                    run_check=False,
                    shape=weight.shape,
                    stride=weight.stride(),
                )
                placed[id(shard)] = nn.Parameter(rows, requires_grad=weight.requires_grad)
            module._parameters[name] = placed[id(shard)]
