"""Ends a process when its parent process ends."""

import ctypes
import os
import signal
import sys

PARENT_VARIABLE = "QWEN_ALIGN_PARENT"  # environment variable: id of the process whose end ends this one


def die_with_parent() -> None:
    """Asks the Linux kernel to kill this process when its parent process dies.

    On other systems the process ends when its input does.

    A parent that names itself in the environment may also have died before this call, while Python started.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.environ.get(PARENT_VARIABLE, str(os.getppid())) != str(os.getppid()):
            os._exit(128 + signal.SIGKILL)
        os.environ[PARENT_VARIABLE] = str(os.getpid())  # for what this process starts
