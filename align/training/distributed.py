"""Gives a stage's processes their ranks, world size, barriers and exchange of values.

Ranks are read from the environment, as torchrun and the warm server set them, so that asking costs no import of torch.
"""

import os
import time
from contextlib import suppress
from datetime import timedelta
from errno import ENOENT
from pathlib import Path
from typing import Any, TypeVar

Value = TypeVar("Value")

# How long a process waits for the others. Of two processes one may draw for hours longer than the other, which the
# default of 30 minutes takes for a death, with NCCL too. A death is noticed otherwise: the run watches the processes on
# this machine, and the nodes' connections. A collective that can never end would thus hang: progress.json says where.
TIMEOUT = timedelta(days=7)

# NFS clients keep what they know of a folder for 30 to 60 s (acdirmin, acdirmax of nfs(5)); twice that.
VISIBLE_WITHIN_S = 120.0


def get_rank() -> int:
    """Returns the rank of this process among the stage's processes.

    It is 0 in a single one.
    """
    return int(os.environ.get("RANK", "0"))


def get_local_rank() -> int:
    """Returns the rank of this process among the stage's processes on the same machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def get_local_world_size() -> int:
    """Returns the number of the stage's processes on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", get_world_size()))


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


def broadcast_tensor_from_main(values: Any, group: Any = None) -> None:
    """Sets a tensor in every process of a group, by default of all, to the main process's, in place."""
    import torch.distributed

    torch.distributed.broadcast(values, src=0, group=group)


def gather_objects(value: Value) -> list[Value]:
    """Gathers one value from each process and returns all of them in every process, ordered by rank."""
    if not is_connected():
        return [value]
    import torch.distributed

    values: list[Any] = [None] * get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def wait_until_visible(path: Path) -> None:
    """Waits until a file that another process has written is seen here. A network file system may take half a minute.

    Raises FileNotFoundError where it does not come.
    """
    deadline = time.monotonic() + (VISIBLE_WITHIN_S if get_world_size() > get_local_world_size() else 0.0)
    while not path.exists():
        if time.monotonic() >= deadline:
            raise FileNotFoundError(ENOENT, f"has not appeared in {VISIBLE_WITHIN_S:g} s", str(path))
        with suppress(OSError):
            os.listdir(path.parent)  # which makes some clients look again
        time.sleep(0.1)


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


def read_shard_names(folder: Path) -> list[str]:
    """Returns the names of the files that a distributed checkpoint of torch's lies in, of its own record of them."""
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    stored = FileSystemReader(folder).read_metadata().storage_data or {}
    return sorted({info.relative_path for info in stored.values()})
