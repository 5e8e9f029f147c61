"""Restricts a process's file access by Landlock (Linux 5.13), for sandbox cells without a private file system."""

import os
import struct

from qwen_align.reward.code import syscalls

# include/uapi/linux/landlock.h; the numbers are the same on every machine
_CREATE, _ADD, _RESTRICT = 444, 445, 446
_VERSION_FLAG, _PATH_BENEATH = 1, 1
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_FOLDER = 1, 2, 4, 8
_FIRST_RIGHTS = 13
_LATER_RIGHTS = {2: 1, 3: 2, 4: 2}  # by version of Landlock: REFER, then TRUNCATE; the next is for devices
_DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom")


def get_landlock_version() -> int:
    """Returns the version of the kernel's Landlock support. Raises OSError if it has none."""
    return syscalls.call_by_number(_CREATE, "Landlock", None, 0, _VERSION_FLAG)


def restrict_files(readable: list[str], writable: str) -> None:
    """Restricts the process permanently to reading some folders and writing to one folder.

    Needs `forbid_new_privileges`. Raises OSError where the kernel refuses.
    """
    newest = get_landlock_version()
    everything = (1 << (_FIRST_RIGHTS + _LATER_RIGHTS.get(min(newest, 4), 0))) - 1
    ruleset = syscalls.call_by_number(_CREATE, "a set of file rules", struct.pack("=Q", everything), 8, 0)
    reading = _EXECUTE | _READ_FILE | _READ_FOLDER
    rules = dict.fromkeys(readable, reading) | dict.fromkeys(_DEVICES, _READ_FILE | _WRITE_FILE)
    for path, rights in (rules | {writable: everything}).items():
        file = os.open(path, os.O_PATH | os.O_CLOEXEC)
        syscalls.call_by_number(
            _ADD, f"a file rule on {path}", ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, file), 0
        )
        os.close(file)
    syscalls.call_by_number(_RESTRICT, "file rules", ruleset, 0)
    os.close(ruleset)
