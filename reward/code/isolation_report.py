"""Reports which isolation for model-written code this machine supports, and how to get more."""

import json
import subprocess
import sys
from typing import Literal, NamedTuple

from qwen_align.reward.code.isolation_advice import suggest_isolation_fixes
from qwen_align.reward.code.launch_server import SandboxError, build_server_command
from qwen_align.reward.code.sandbox import Sandbox

_TRY_LIMIT_S = 60.0


class Layer(NamedTuple):
    """One layer of sandbox isolation, with whether this machine supports it and the reason if not."""

    name: str
    given: bool
    why: str


class Isolation(NamedTuple):
    """The sandbox isolation that this machine supports. `full` and `process` say whether `Sandbox` can use them."""

    full: bool
    process: bool
    layers: tuple[Layer, ...]
    advice: str
    """What would give full isolation; empty where it is given."""


def check_isolation() -> Isolation:
    """Tries each isolation layer and a whole sandbox cell, and returns what this machine supports."""
    layers = [*try_kernel_layers(), _try_starting_cell("process"), _try_starting_cell("full")]
    process, full = layers[-2:]
    return Isolation(full.given, process.given, tuple(layers), "" if full.given else suggest_isolation_fixes())


def try_kernel_layers() -> list[Layer]:
    """Tries each isolation layer of this machine's kernel in a separate process and returns the results."""
    if sys.platform != "linux":
        return [Layer("namespaces and system call filters", False, f"they are Linux's; this is {sys.platform}")]
    command = build_server_command({"isolation": "probe"})
    process = subprocess.run(command, capture_output=True, text=True, timeout=_TRY_LIMIT_S, check=False, cwd="/")
    if process.returncode:
        raise SandboxError(f"the isolation's layers could not be tried: {process.stderr.strip()[-500:]}")
    return [Layer(name, why is None, why or "given") for name, why in json.loads(process.stdout).items()]


def _try_starting_cell(isolation: Literal["full", "process"]) -> Layer:
    """Tries to start a sandbox cell under the given isolation and returns the result as a layer."""
    sandbox = Sandbox(isolation)
    try:
        sandbox.warm_up()
    except SandboxError as error:
        return Layer(f"isolation: {isolation}", False, str(error))
    finally:
        sandbox.close()
    return Layer(f"isolation: {isolation}", True, "given")
