"""Measures the bytes of parameters, gradients and optimiser state that a process of a stage holds while it trains.

A storage that several tensors share is counted once; of a tensor that is divided among processes, this one's part.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from accelerate.utils import DistributedType
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

from qwen_align.align.training.distributed import get_rank

MEASURED_STEP = 3  # the optimiser's state exists, and everything has been released once


class HeldBytes(TrainerCallback):  # type: ignore[misc]
    """A callback that writes what is held before an optimiser step, and how the process trains, to its rank's file."""

    def __init__(self, trainer: Any, folder: Path) -> None:
        self.trainer, self.path = trainer, folder / f"held-{get_rank()}.json"

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Has the optimiser that writes the weights measure first."""
        engine = self.trainer.model_wrapped
        is_deepspeed = self.trainer.accelerator.distributed_type == DistributedType.DEEPSPEED
        optimizer = engine.optimizer if is_deepspeed else self.trainer.optimizer.optimizer
        step: Callable[..., Any] = optimizer.step
        n_steps = 0

        def measure_and_step(*args: Any, **kwargs: Any) -> Any:
            nonlocal n_steps
            n_steps += 1
            if n_steps == MEASURED_STEP:
                self.path.write_text(json.dumps(self.describe(optimizer, is_deepspeed=is_deepspeed)))
            return step(*args, **kwargs)

        optimizer.step = measure_and_step

    def describe(self, optimizer: Any, *, is_deepspeed: bool) -> dict[str, Any]:
        """Returns the distributed type, the number of processes and the bytes held."""
        accelerator = self.trainer.accelerator
        parameters = [*self.trainer.model.parameters()]
        if is_deepspeed:
            held = {
                "parameters": [part for p in parameters for part in (p.data, getattr(p, "ds_tensor", None))],
                "gradients": [*(p.grad for p in parameters), *_list_zero_gradients(optimizer)],
                "masters": _list_zero_masters(optimizer, parameters),
                "master_gradients": [group.grad for group in _list_zero_groups(optimizer)],
                "optimizer": _list_states(optimizer.optimizer),
            }
        else:
            held = {
                "parameters": parameters,
                "gradients": [p.grad for p in parameters],
                "masters": [],
                "master_gradients": [],
                "optimizer": _list_states(optimizer),
            }
        return {
            "distributed_type": str(accelerator.distributed_type.value),
            "zero_stage": accelerator.state.deepspeed_plugin.zero_stage if is_deepspeed else None,
            "processes": accelerator.num_processes,
            "bytes": {name: count_bytes(tensors) for name, tensors in held.items()},
        }


def count_bytes(tensors: Iterable[Tensor | None]) -> int:
    """Counts the bytes of the storages of tensors in this process, each once."""
    storages = {}
    for tensor in tensors:
        if tensor is not None:
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            storages[local.untyped_storage().data_ptr()] = local.untyped_storage().nbytes()
    return sum(storages.values())


def _list_states(optimizer: Any) -> list[Tensor]:
    """Returns the tensors of an optimiser's state."""
    states = [value for state in optimizer.state.values() for value in state.values()]
    return [value for value in states if isinstance(value, Tensor) and value.numel() > 1]


def _list_zero_gradients(optimizer: Any) -> Iterator[Tensor]:
    """Yields the gradients of its part of the parameters that DeepSpeed's optimiser holds."""
    averaged = getattr(optimizer, "averaged_gradients", {})  # stages 1 and 2: of each group a list
    yield from (one for group in averaged.values() for one in group or [] if isinstance(one, Tensor))
    if hasattr(optimizer, "grad_partitions_flat_buffer"):  # stage 3
        yield optimizer.grad_partitions_flat_buffer


def _list_zero_groups(optimizer: Any) -> list[Tensor]:
    """Returns the weights that DeepSpeed's optimiser writes, its part of all, in fp32: stages 1 and 2, or 3."""
    groups = getattr(optimizer, "single_partition_of_fp32_groups", None)
    return [*(groups if groups is not None else optimizer.fp32_partitioned_groups_flat)]


def _list_zero_masters(optimizer: Any, parameters: list[Tensor]) -> list[Tensor]:
    """Returns the weights that DeepSpeed's optimiser writes, where they are others than the parameters' own."""
    of_model = {p.data.untyped_storage().data_ptr() for p in parameters}
    return [one for one in _list_zero_groups(optimizer) if one.untyped_storage().data_ptr() not in of_model]


def measure_held_bytes(run_trainer: Callable[..., None]) -> Callable[..., None]:
    """Returns a `run_trainer` that also measures into the stage's folder."""

    def run(trainer: Any, out: Path, context: Any) -> None:
        trainer.add_callback(HeldBytes(trainer, out))
        run_trainer(trainer, out, context)

    return run
