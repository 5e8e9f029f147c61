"""Checks the machine itself: Python, the sandbox for a model's code, and the home folder."""

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from qwen_align.align.doctor.finding import Finding
from qwen_align.reward.base import count_cores
from qwen_align.reward.code.isolation_report import check_isolation

MIN_PYTHON = (3, 11)
LOW_DISK_GIB = 2.0  # the quickstart's store takes 0.1 GiB; a 0.6B model's checkpoint about 7


def check_system() -> Iterator[Finding]:
    """Yields findings with the versions of Python and of the operating system, and the cores."""
    is_old = sys.version_info[:2] < MIN_PYTHON
    yield Finding("python", platform.python_version(), "3.11 or newer is needed" if is_old else "", is_old)
    cores = (
        f"{count_cores()} of {os.cpu_count()} cores" if count_cores() != os.cpu_count() else f"{os.cpu_count()} cores"
    )
    yield Finding("system", f"{platform.system()} {platform.machine()}, {cores}")


def check_sandbox() -> Iterator[Finding]:
    """Yields a finding on how well this machine can isolate the programs that rewards run."""
    isolation = check_isolation()
    layers = [layer for layer in isolation.layers if not layer.name.startswith("isolation:")]
    if isolation.full:
        yield Finding("sandbox", f"full: {', '.join(layer.name for layer in layers if layer.given)}")
        return
    missing = "; ".join(f"no {layer.name}: {layer.why}" for layer in layers if not layer.given)
    found = "process only (a session and resource limits)" if isolation.process else "none"
    yield Finding("sandbox", f"{found}; {missing}", f"code_tests: {isolation.advice}")


def check_home(home: Path) -> Iterator[Finding]:
    """Yields a finding on whether the home folder is writable and has free space."""
    if not os.access(home, os.W_OK | os.X_OK):
        yield Finding("home", str(home.resolve()), "cannot be written; name another with --home", is_bad=True)
        return
    free_gib = shutil.disk_usage(home).free / 2**30
    advice = "little room: `qwen-align prune` deletes what no run links to" if free_gib < LOW_DISK_GIB else ""
    yield Finding("home", f"{home.resolve()}, {free_gib:.1f} GiB free", advice)
