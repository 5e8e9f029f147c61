"""The processes of a stage: ranks, world size, barriers and the values that processes exchange.

Ranks are read from the environment, as torchrun and the warm server set them, so that asking costs no import of torch.
"""

import os
from datetime import timedelta
from typing import Any, TypeVar

Value = TypeVar("Value")


def get_rank() -> int:
    """Returns this process's rank among the stage's processes, 0 in a single one."""
    return int(os.environ.get("RANK", "0"))


def get_local_rank() -> int:
    """Returns this process's rank among those on its machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def get_world_size() -> int:
    """Returns the number of the stage's processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Tells whether this is rank 0, or there are no ranks."""
    return get_rank() == 0


def is_connected() -> bool:
    """Tells whether the process group is set up, so that processes can exchange values."""
    if get_world_size() == 1:
        return False
    import torch.distributed

    return torch.distributed.is_available() and torch.distributed.is_initialized()


def connect_on_cpu() -> None:
    """Sets up a gloo process group, where no trainer has set one up."""
    if get_world_size() > 1 and not is_connected():
        import torch.distributed

        # The default of 30 minutes would end a stage in which one process has more to do than another.
        torch.distributed.init_process_group("gloo", timeout=timedelta(days=7))


def wait_for_all() -> None:
    """Waits until every process has come here; returns at once in a single one."""
    if is_connected():
        import torch.distributed

        torch.distributed.barrier()


def broadcast_from_main(value: Value | None) -> Value:
    """Returns the main process's value in every process."""
    values = [value]
    if is_connected():
        import torch.distributed

        torch.distributed.broadcast_object_list(values, src=0)
    assert values[0] is not None
    return values[0]


def gather_objects(value: Value) -> list[Value]:
    """Returns every process's value, by rank, in every process."""
    if not is_connected():
        return [value]
    import torch.distributed

    values: list[Any] = [None] * get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def sum_over_processes(values: Any) -> None:
    """Replaces the tensor's values by their sums over all processes."""
    if is_connected():
        import torch.distributed

        torch.distributed.all_reduce(values)


def is_true_anywhere(flag: bool) -> bool:
    """Tells whether the flag is set in any process: all have to stop after the same step."""
    if not is_connected():
        return flag
    import torch.distributed

    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    flags = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return bool(flags)
