"""What this machine's kernel gives to an isolation: each thing tried, in a child that ends after it."""

import errno
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from qwen_align.reward.code import landlock, seccomp, syscalls
from qwen_align.reward.code.namespaces import enter, read_only_root

FILE_RULES = "file rules (only `isolation: process` uses them)"
_NAMESPACES = {
    "pid namespace": syscalls.NEW_PIDS,
    "mount namespace": syscalls.NEW_MOUNTS,
    "net namespace": syscalls.NEW_NET,
    "ipc namespace": syscalls.NEW_IPC,
}


def report() -> NoReturn:
    """Prints, as JSON, why each layer is refused, or null where it is given."""
    layers: dict[str, Callable[[], object]] = {
        "system call filter": _filter,
        "user namespace": lambda: syscalls.unshare(syscalls.NEW_USER, "unshare"),
        **{name: partial(enter, flag) for name, flag in _NAMESPACES.items()},
        "private file system": _file_system,
        FILE_RULES: _file_rules,
    }
    sys.stdout.write(json.dumps({name: _refusal(attempt) for name, attempt in layers.items()}))
    sys.stdout.flush()
    os._exit(0)


def _refusal(attempt: Callable[[], object]) -> str | None:
    """Why the kernel refuses, None where it does not."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        why = ""
        try:
            attempt()
        except OSError as error:
            why = f"{error.strerror} ({errno.errorcode.get(error.errno or 0, 'unknown')})"
        except seccomp.UnknownMachineError as error:
            why = str(error)
        finally:
            os.write(writing, why.encode())
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    _, status = os.waitpid(child, 0)
    return told or (None if status == 0 else f"the attempt was ended by signal {status}")


def _filter() -> None:
    syscalls.no_new_privileges()
    filtering = seccomp.program(syscalls.machine(), processes=False, signals=False)
    syscalls.set_filter(seccomp.for_process(filtering, os.getpid()))


def _file_system() -> None:
    enter(syscalls.NEW_MOUNTS)
    read_only_root([])


def _file_rules() -> None:
    syscalls.no_new_privileges()
    landlock.only_files([], "/")
