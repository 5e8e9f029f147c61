"""Reports what isolation this machine gives to model-written code, and what would give more."""

import json
import subprocess
import sys
from typing import Literal, NamedTuple

from qwen_align.reward.code.isolation_advice import suggest_isolation_fixes
from qwen_align.reward.code.launch_server import SandboxError, build_server_command
from qwen_align.reward.code.sandbox import Sandbox

_TRY_LIMIT_S = 60.0


class Layer(NamedTuple):
    """One part of an isolation: whether this machine gives it, and why not."""

    name: str
    given: bool
    why: str


class Isolation(NamedTuple):
    """What isolation this machine gives; `full` and `process` say whether `Sandbox` can have them."""

    full: bool
    process: bool
    layers: tuple[Layer, ...]
    advice: str
    """What would give full isolation; empty where it is given."""


def check_isolation() -> Isolation:
    """Tries each layer, and a whole cell under each isolation; returns what this machine gives."""
    layers = [*try_kernel_layers(), _try_cell("process"), _try_cell("full")]
    process, full = layers[-2:]
    return Isolation(full.given, process.given, tuple(layers), "" if full.given else suggest_isolation_fixes())


def try_kernel_layers() -> list[Layer]:
    """Returns what this machine's kernel gives, tried in a process of its own: entering a namespace is for good."""
    if sys.platform != "linux":
        return [Layer("namespaces and system call filters", False, f"they are Linux's; this is {sys.platform}")]
    command = build_server_command({"isolation": "probe"})
    process = subprocess.run(command, capture_output=True, text=True, timeout=_TRY_LIMIT_S, check=False, cwd="/")
    if process.returncode:
        raise SandboxError(f"the isolation's layers could not be tried: {process.stderr.strip()[-500:]}")
    return [Layer(name, why is None, why or "given") for name, why in json.loads(process.stdout).items()]


def _try_cell(isolation: Literal["full", "process"]) -> Layer:
    """Returns whether a cell can be started under an isolation."""
    sandbox = Sandbox(isolation)
    try:
        sandbox.warm_up()
    except SandboxError as error:
        return Layer(f"isolation: {isolation}", False, str(error))
    finally:
        sandbox.close()
    return Layer(f"isolation: {isolation}", True, "given")
