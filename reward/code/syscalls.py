"""Wrappers of the Linux system calls needed for isolation that Python 3.11 has no function for."""

import ctypes
import os
import platform
import struct
import sys
from functools import cache

# include/uapi/linux/sched.h
NEW_MOUNTS = 0x00020000
NEW_IPC = 0x08000000
NEW_USER = 0x10000000
NEW_PIDS = 0x20000000
NEW_NET = 0x40000000

# include/uapi/linux/mount.h
NOSUID, NODEV, NOEXEC, BIND, RECURSIVE, PRIVATE = 2, 4, 8, 0x1000, 0x4000, 0x40000
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
_AT_FDCWD, _AT_RECURSIVE, _DETACH = -100, 0x8000, 2

# include/uapi/linux/prctl.h
_SET_PDEATHSIG, _SET_DUMPABLE, _SET_SECCOMP, _SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2

_CAPABILITY_VERSION_3 = 0x20080522  # include/uapi/linux/capability.h
_MOUNT_SETATTR, _CLOSE_RANGE = 442, 436  # the same number on every machine since Linux 5.x
_NUMBERS = {  # (pivot_root, capset), from the machines' unistd.h
    "x86_64": (155, 126),
    "aarch64": (41, 91),
}


@cache
def _load_libc() -> ctypes.CDLL:
    """Loads the C library."""
    return ctypes.CDLL(None, use_errno=True)


def _check_result(result: int, what: str) -> int:
    """Returns the result of a system call. Raises OSError if the call failed."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def get_machine_name() -> str:
    """Returns the processor's name as used in the system call tables."""
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine().lower(), platform.machine())


def call_by_number(number: int, what: str, *arguments: int | bytes | None) -> int:
    """Makes a system call by its number and returns its result. Raises OSError if it fails."""
    c_arguments = [ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments]
    return _check_result(_load_libc().syscall(ctypes.c_long(number), *c_arguments), what)


def enter_new_namespaces(flags: int, what: str) -> None:
    """Moves the calling process (for pids: its next child) into new Linux namespaces. Raises OSError if refused."""
    _check_result(_load_libc().unshare(flags), what)


def enter_namespace(namespace: int, flag: int) -> None:
    """Moves the calling process (for pids: its next child) into the namespace of an open file.

    Raises OSError if refused.
    """
    _check_result(_load_libc().setns(namespace, flag), "setns")


def mount(source: str, target: str, file_system: str, flags: int, options: str = "") -> None:
    """Mounts a file system as mount(2) does. Raises OSError if it fails."""
    result = _load_libc().mount(
        source.encode(), target.encode(), file_system.encode(), ctypes.c_ulong(flags), options.encode()
    )
    _check_result(result, f"mount of {file_system or source} on {target}")


def restrict_mount(target: str, attributes: int, *, recursive: bool = False) -> None:
    """Adds attributes, such as read-only, to a mounted file system. Needs Linux 5.12."""
    attribute_struct = struct.pack("=QQQQ", attributes, 0, 0, 0)
    flags = _AT_RECURSIVE if recursive else 0
    call_by_number(
        _MOUNT_SETATTR,
        f"mount_setattr of {target}",
        _AT_FDCWD,
        target.encode(),
        flags,
        attribute_struct,
        len(attribute_struct),
    )


def change_root(new_root: str) -> None:
    """Makes a mount the process's root directory and unmounts the old root."""
    os.chdir(new_root)
    call_by_number(_NUMBERS[get_machine_name()][0], "pivot_root", b".", b".")
    _check_result(_load_libc().umount2(b".", _DETACH), "umount of the old root")
    os.chdir("/")


def drop_capabilities() -> None:
    """Drops all capabilities of the process in its user namespace."""
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    call_by_number(_NUMBERS[get_machine_name()][1], "capset", header, bytes(24))


def close_files_from(first: int) -> None:
    """Closes every file descriptor from `first` on."""
    if sys.platform != "linux":
        os.closerange(first, os.sysconf("SC_OPEN_MAX"))
        return
    call_by_number(_CLOSE_RANGE, "close_range", first, 0xFFFFFFFF, 0)


def die_with_parent(signal_number: int) -> None:
    """Makes the kernel send the process a signal when the thread that created it ends."""
    _check_result(_load_libc().prctl(_SET_PDEATHSIG, ctypes.c_ulong(signal_number), 0, 0, 0), "prctl PDEATHSIG")


def regain_proc_files() -> None:
    """Restores a process's access to its own /proc files after a change of user."""
    _check_result(_load_libc().prctl(_SET_DUMPABLE, ctypes.c_ulong(1), 0, 0, 0), "prctl DUMPABLE")


def forbid_new_privileges() -> None:
    """Prevents the process and its children from gaining privileges, for example by set-uid programs."""
    _check_result(_load_libc().prctl(_SET_NO_NEW_PRIVS, ctypes.c_ulong(1), 0, 0, 0), "prctl NO_NEW_PRIVS")


class _FilterProgram(ctypes.Structure):
    """A seccomp filter program in the form the kernel expects (sock_fprog)."""

    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def set_syscall_filter(program: bytes) -> None:
    """Puts the process under a seccomp filter of 8-byte instructions. Needs `forbid_new_privileges`."""
    filter_program = _FilterProgram(len(program) // 8, program)
    result = _load_libc().prctl(_SET_SECCOMP, ctypes.c_ulong(_SECCOMP_MODE_FILTER), ctypes.byref(filter_program), 0, 0)
    _check_result(result, "prctl SECCOMP")
