"""Starts the server process of a sandbox."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from qwen_align.reward.code.isolation_advice import suggest_isolation_fixes
from qwen_align.reward.code.server_messages import Isolation

_PACKAGE = Path(__file__).parents[2]
_SHOWN_PACKAGES = ("numpy", "numpy.libs")
"""The packages cells may import besides Python's own."""
START_LIMIT_S = 60.0  # for the server's imports, on a machine that is busy with something else
_ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # the order of a set is the same in every run
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",  # an arena a thread is 64 MiB of address space
}


class SandboxError(Exception):
    """Raised when this machine cannot give the isolation asked for, or has stopped giving it."""


def start_server(isolation: Isolation) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Starts a sandbox server process and returns it with its control socket.

    Raises SandboxError if it cannot start.
    """
    if not hasattr(os, "fork"):
        raise SandboxError("code is run in forked processes, which Windows does not have; use WSL 2")
    if isolation == "full" and sys.platform != "linux":
        raise SandboxError(f"isolation: full needs Linux's namespaces; {suggest_isolation_fixes()}")
    if isolation == "process" and is_root():
        raise SandboxError(
            "isolation: process runs model-written code as your own user, and root's could break this machine: "
            "start as an ordinary user, or take isolation: full"
        )
    our_end, server_end = socket.socketpair()
    settings = {"isolation": isolation, "packages": _find_shown_packages(), "control": server_end.fileno()}
    server = subprocess.Popen(
        build_server_command(settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[server_end.fileno()],
        cwd="/",
        env=_ENVIRONMENT,
        start_new_session=True,
    )
    server_end.close()
    our_end.settimeout(START_LIMIT_S)
    try:
        answer = our_end.makefile().readline().strip()
    except TimeoutError:
        answer = f"its server was not ready after {START_LIMIT_S:.0f} s"
    our_end.settimeout(None)
    if answer == "ready":
        return server, our_end
    our_end.close()
    server.kill()
    server.wait()
    if not answer:
        raise SandboxError(f"the server of isolation: {isolation} ended before it was ready: see standard error")
    raise SandboxError(f"isolation: {isolation} cannot be had here: {answer}; {suggest_isolation_fixes()}")


def is_root() -> bool:
    """Returns whether this process runs as root, whose files and devices no limit of its own protects."""
    return os.geteuid() == 0


def build_server_command(settings: Mapping[str, object]) -> list[str]:
    """Builds the command line that runs `cell_server_main.py` with the given settings."""
    program = str(Path(__file__).with_name("cell_server_main.py"))
    return [sys.executable, "-S", "-s", "-P", program, json.dumps({**settings, "package": str(_PACKAGE)})]


def _find_shown_packages() -> list[str]:
    """Returns the paths of the packages that sandbox cells may import."""
    spec = importlib.util.find_spec("numpy")
    if spec is None or not spec.submodule_search_locations:
        return []
    site_packages = Path(next(iter(spec.submodule_search_locations))).parent
    return [str(site_packages / name) for name in _SHOWN_PACKAGES if (site_packages / name).is_dir()]
