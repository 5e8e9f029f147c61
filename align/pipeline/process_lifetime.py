"""A process that ends when the one that started it does."""

import ctypes
import os
import signal
import sys

PARENT = "QWEN_ALIGN_PARENT"  # environment: the process whose end is to be ours


def die_with_parent() -> None:
    """On Linux this process is killed when its parent dies, however it dies; elsewhere it ends with its input.

    A parent that names itself in the environment may also have died before this call, while Python started.
    """
    if sys.platform == "linux":
        pr_set_pdeathsig = 1  # linux/prctl.h
        ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
        if os.environ.get(PARENT, str(os.getppid())) != str(os.getppid()):
            os._exit(128 + signal.SIGKILL)
        os.environ[PARENT] = str(os.getpid())  # for what this process starts
