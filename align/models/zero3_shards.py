"""Hands weights that were loaded as shards to DeepSpeed's ZeRO-3, one at a time, so that no process holds the model.

ZeRO-3 holds an equal part of a weight's numbers in each process, in their order: where the rows divide by the
processes, that is the rows that the process has read.
"""

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers.integrations.deepspeed import deepspeed_config, is_deepspeed_zero3_enabled

from qwen_align.align.models.weight_shards import has_shards, replace_parameters

Model = TypeVar("Model", bound=nn.Module)


def partition_with_zero3(model: Model) -> Model:
    """Turns the shards of a model into ZeRO-3's parameters and returns it, where DeepSpeed is to train under ZeRO-3.

    Other models stay as they are.
    """
    if not has_shards(model) or not is_deepspeed_zero3_enabled():
        return model
    from deepspeed.runtime.zero import partition_parameters

    class Partitioning(partition_parameters.Init):  # type: ignore[misc]
        """DeepSpeed's partitioning of a model, which takes shards without sending the weights to all processes."""

        def _convert_to_zero_parameters(self, param_list: Iterable[nn.Parameter]) -> None:
            if has_shards(model):
                replace_parameters(model, self._take_shard)
            super()._convert_to_zero_parameters(param_list)  # what else a model has, such as adapters made later

        def _take_shard(self, shard: Tensor) -> Tensor | None:
            if not isinstance(shard, DTensor):
                return None
            weight: Any = nn.Parameter(_place_rows(shard, self.local_device), requires_grad=shard.requires_grad)
            self._convert_to_deepspeed_param(weight)
            weight.partition()
            return weight  # type: ignore[no-any-return]

    Partitioning(module=model, config_dict_or_path=deepspeed_config())
    return model


def _place_rows(shard: DTensor, device: torch.device) -> Tensor:
    """Returns a weight of which only those numbers are set that ZeRO-3 keeps in this process.

    On a CPU the others take no memory, because nothing touches them.
    """
    n_rows, n_processes = shard.shape[0], shard.device_mesh.size()
    if n_rows % n_processes:
        return shard.full_tensor().to(device)
    rows: Any = shard.to_local()
    weight = torch.empty(shard.shape, dtype=shard.dtype, device=device)
    weight.narrow(0, shard.device_mesh.get_local_rank() * len(rows), len(rows)).copy_(rows)
    return weight
