"""Tests in child processes which layers of sandbox isolation this machine's kernel allows."""

import errno
import json
import os
import sys
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from qwen_align.reward.code import landlock, seccomp, syscalls
from qwen_align.reward.code.namespaces import enter_namespaces, mount_read_only_root

FILE_RULES = "file rules (only `isolation: process` uses them)"
_NAMESPACES = {
    "pid namespace": syscalls.NEW_PIDS,
    "mount namespace": syscalls.NEW_MOUNTS,
    "net namespace": syscalls.NEW_NET,
    "ipc namespace": syscalls.NEW_IPC,
}


def report_layers() -> NoReturn:
    """Prints as JSON why the kernel refuses each isolation layer, or null if it allows it, and exits."""
    layers: dict[str, Callable[[], object]] = {
        "system call filter": _try_syscall_filter,
        "user namespace": lambda: syscalls.enter_new_namespaces(syscalls.NEW_USER, "unshare"),
        **{name: partial(enter_namespaces, flag) for name, flag in _NAMESPACES.items()},
        "private file system": _try_private_file_system,
        FILE_RULES: _try_landlock_rules,
    }
    sys.stdout.write(json.dumps({name: _try_layer(attempt) for name, attempt in layers.items()}))
    sys.stdout.flush()
    os._exit(0)


def _try_layer(attempt: Callable[[], object]) -> str | None:
    """Tries one isolation layer in a child process. Returns the kernel's reason for refusing it, or None."""
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
        refusal = pipe.read()
    _, status = os.waitpid(child, 0)
    return refusal or (None if status == 0 else f"the attempt was ended by signal {status}")


def _try_syscall_filter() -> None:
    """Puts the process under the system call filter of a sandbox cell."""
    syscalls.forbid_new_privileges()
    filtering = seccomp.build_filter(syscalls.get_machine_name(), processes=False, signals=False, metadata=False)
    syscalls.set_syscall_filter(seccomp.bind_filter(filtering, os.getpid()))


def _try_private_file_system() -> None:
    """Mounts the read-only root file system that sandbox cells see."""
    enter_namespaces(syscalls.NEW_MOUNTS)
    mount_read_only_root([])


def _try_landlock_rules() -> None:
    """Restricts the process's file access by Landlock."""
    syscalls.forbid_new_privileges()
    landlock.restrict_files([], "/")
