"""Implements `qwen-align doctor`, which checks this machine. torch is imported only in a child process."""

import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from qwen_align.align.engines.environments import list_engines
from qwen_align.align.store.provenance import read_library_versions
from qwen_align.reward.code.isolation_report import check_isolation

MIN_PYTHON = (3, 11)
NEEDED = {"trl": "1.16", "transformers": "5.23", "peft": "0.21"}
OPTIONAL = {"deepspeed": "for runtime.deepspeed"}
LOW_DISK_GIB = 2.0  # the quickstart's store takes 0.1 GiB; a 0.6B model's checkpoint about 7

_PROBE = """
import json, torch
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
print(json.dumps({"torch": torch.__version__, "gpus": gpus, "threads": torch.get_num_threads()}))
"""


class Finding(NamedTuple):
    """The result of one machine check. `advice` is empty when nothing is wrong."""

    what: str
    found: str
    advice: str = ""
    is_bad: bool = False

    def format_line(self) -> str:
        """Formats the finding as one line of text."""
        sign = "wrong" if self.is_bad else ("note" if self.advice else "ok")
        return f"{sign:<6}{self.what:<14}{self.found}" + (f"  -> {self.advice}" if self.advice else "")


def examine_machine(home: Path) -> list[Finding]:
    """Runs all machine checks and returns their findings. Findings that prevent a run are marked as bad."""
    return [
        *_check_python(),
        *_check_libraries(),
        *_check_devices(),
        *_check_engines(),
        *_check_sandbox(),
        *_check_home(home),
    ]


def _check_python() -> Iterator[Finding]:
    """Yields a finding with the versions of Python and of the operating system."""
    is_old = sys.version_info[:2] < MIN_PYTHON
    yield Finding("python", platform.python_version(), "3.11 or newer is needed" if is_old else "", is_old)
    yield Finding("system", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores")


def _check_libraries() -> Iterator[Finding]:
    """Yields a finding that compares the installed library versions with the tested ones."""
    for name, version in read_library_versions().items():
        tested_version = NEEDED.get(name)
        is_other = tested_version is not None and not f"{version}.".startswith(f"{tested_version}.")
        yield Finding(name, version, f"{tested_version}.* is what this was tested with" if is_other else "", is_other)
    for name, use in OPTIONAL.items():
        try:
            yield Finding(name, f"{importlib.metadata.version(name)} ({use})")
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, f"not installed ({use}: pip install 'qwen-align[{name}]')")


def _check_devices() -> Iterator[Finding]:
    """Yields a finding with the compute devices (GPU, CPU) that torch detects."""
    probe_output = subprocess.run([sys.executable, "-P", "-c", _PROBE], capture_output=True, text=True, check=False)
    if probe_output.returncode != 0:
        yield Finding("torch", probe_output.stderr.strip().splitlines()[-1], "reinstall torch", is_bad=True)
        return
    probe = json.loads(probe_output.stdout)
    yield Finding("devices", ", ".join(probe["gpus"]) or f"no GPU, {probe['threads']} CPU threads")


def _check_engines() -> Iterator[Finding]:
    """Yields for each engine whether it is installed, of which versions, and which were tested with this package."""
    for engine in list_engines():
        is_worse = engine.state in ("outdated", "broken")
        found = f"{engine.state}: {engine.found}" + ("" if is_worse or not engine.advice else f" ({engine.advice})")
        yield Finding(engine.name, found, engine.advice if is_worse else "")


def _check_sandbox() -> Iterator[Finding]:
    """Yields a finding on how well this machine can isolate the programs that rewards run."""
    isolation = check_isolation()
    layers = [layer for layer in isolation.layers if not layer.name.startswith("isolation:")]
    if isolation.full:
        yield Finding("sandbox", f"full: {', '.join(layer.name for layer in layers if layer.given)}")
        return
    missing = "; ".join(f"no {layer.name}: {layer.why}" for layer in layers if not layer.given)
    found = "process only (a session and resource limits)" if isolation.process else "none"
    yield Finding("sandbox", f"{found}; {missing}", f"code_tests: {isolation.advice}")


def _check_home(home: Path) -> Iterator[Finding]:
    """Yields a finding on whether the home folder is writable and has free space."""
    if not os.access(home, os.W_OK):
        yield Finding("home", str(home.resolve()), "cannot be written; name another with --home", is_bad=True)
        return
    free_gib = shutil.disk_usage(home).free / 2**30
    advice = "little room: `qwen-align prune` deletes what no run links to" if free_gib < LOW_DISK_GIB else ""
    yield Finding("home", f"{home.resolve()}, {free_gib:.1f} GiB free", advice)
