"""What this machine has, and what is wrong with it; imports torch only in a process of its own."""

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
    """One thing looked at; `advice` is empty when it is well."""

    what: str
    found: str
    advice: str = ""
    is_bad: bool = False

    def line(self) -> str:
        sign = "wrong" if self.is_bad else ("note" if self.advice else "ok")
        return f"{sign:<6}{self.what:<14}{self.found}" + (f"  -> {self.advice}" if self.advice else "")


def examine(home: Path) -> list[Finding]:
    """All findings, the ones that stop a run marked bad."""
    return [*_python(), *_libraries(), *_torch(), *_sandbox(), *_disk(home)]


def _python() -> Iterator[Finding]:
    is_old = sys.version_info[:2] < MIN_PYTHON
    yield Finding("python", platform.python_version(), "3.11 or newer is needed" if is_old else "", is_old)
    yield Finding("system", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores")


def _libraries() -> Iterator[Finding]:
    for name, version in read_library_versions().items():
        wanted = NEEDED.get(name)
        is_off = wanted is not None and not f"{version}.".startswith(f"{wanted}.")
        yield Finding(name, version, f"{wanted}.* is what this was tested with" if is_off else "", is_off)
    for name, use in OPTIONAL.items():
        try:
            yield Finding(name, f"{importlib.metadata.version(name)} ({use})")
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, f"not installed ({use}: pip install 'qwen-align[{name}]')")


def _torch() -> Iterator[Finding]:
    said = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False)
    if said.returncode != 0:
        yield Finding("torch", said.stderr.strip().splitlines()[-1], "reinstall torch", is_bad=True)
        return
    probe = json.loads(said.stdout)
    yield Finding("devices", ", ".join(probe["gpus"]) or f"no GPU, {probe['threads']} CPU threads")


def _sandbox() -> Iterator[Finding]:
    here = check_isolation()
    layers = [layer for layer in here.layers if not layer.name.startswith("isolation:")]
    if here.full:
        yield Finding("sandbox", f"full: {', '.join(layer.name for layer in layers if layer.given)}")
        return
    missing = "; ".join(f"no {layer.name}: {layer.why}" for layer in layers if not layer.given)
    found = "process only (a session and resource limits)" if here.process else "none"
    yield Finding("sandbox", f"{found}; {missing}", f"code_tests: {here.advice}")


def _disk(home: Path) -> Iterator[Finding]:
    if not os.access(home, os.W_OK):
        yield Finding("home", str(home.resolve()), "cannot be written; name another with --home", is_bad=True)
        return
    free = shutil.disk_usage(home).free / 2**30
    advice = "little room: `qwen-align prune` deletes what no run links to" if free < LOW_DISK_GIB else ""
    yield Finding("home", f"{home.resolve()}, {free:.1f} GiB free", advice)
