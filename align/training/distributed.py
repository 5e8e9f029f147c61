"""Gives a stage's processes their ranks, world size, barriers and exchange of values.

Ranks are read from the environment, as torchrun and the warm server set them, so that asking costs no import of torch.
"""

import os
from datetime import timedelta
from typing import Any, TypeVar

Value = TypeVar("Value")

# The default of 30 minutes would end a stage in which one process draws or judges for hours while another waits.
TIMEOUT = timedelta(days=7)


def get_rank() -> int:
    """Returns the rank of this process among the stage's processes.

    It is 0 in a single one.
    """
    return int(os.environ.get("RANK", "0"))


def get_local_rank() -> int:
    """Returns the rank of this process among the stage's processes on the same machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def get_world_size() -> int:
    """Returns the number of the stage's processes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Returns whether this process has rank 0 or is the only one."""
    return get_rank() == 0


def is_connected() -> bool:
    """Returns whether torch's process group is set up, so that processes can exchange values."""
    if get_world_size() == 1:
        return False
    import torch.distributed

    return torch.distributed.is_available() and torch.distributed.is_initialized()


def connect_on_cpu() -> None:
    """Sets up a gloo process group unless a process group is already set up."""
    if get_world_size() > 1 and not is_connected():
        import torch.distributed

        torch.distributed.init_process_group("gloo", timeout=TIMEOUT)


def wait_for_all() -> None:
    """Waits until every process has reached this barrier.

    Returns at once in a single one.
    """
    if is_connected():
        import torch.distributed

        torch.distributed.barrier()


def broadcast_from_main(value: Value | None) -> Value:
    """Broadcasts the main process's value and returns it in every process."""
    values = [value]
    if is_connected():
        import torch.distributed

        torch.distributed.broadcast_object_list(values, src=0)
    assert values[0] is not None
    return values[0]


def gather_objects(value: Value) -> list[Value]:
    """Gathers one value from each process and returns all of them in every process, ordered by rank."""
    if not is_connected():
        return [value]
    import torch.distributed

    values: list[Any] = [None] * get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def sum_over_processes(values: Any) -> None:
    """Sums a tensor over all processes, in place."""
    if is_connected():
        import torch.distributed

        torch.distributed.all_reduce(values)


def is_true_in_any_process(flag: bool) -> bool:
    """Returns whether the flag is true in at least one process.

    So all can stop after the same step.
    """
    if not is_connected():
        return flag
    import torch.distributed

    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    flags = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return bool(flags)
