"""What isolation this machine gives to model-written code, and what would give more."""

import json
import subprocess
import sys
from typing import Literal, NamedTuple

from qwen_align.reward.code.isolation_advice import advice
from qwen_align.reward.code.launch_server import SandboxError, server_command
from qwen_align.reward.code.sandbox import Sandbox

_PROBE_S = 60.0


class Layer(NamedTuple):
    """One thing an isolation is made of: whether this machine gives it, and why not."""

    name: str
    given: bool
    why: str


class Isolation(NamedTuple):
    """What this machine gives; `full` and `process` say what `Sandbox` would do."""

    full: bool
    process: bool
    layers: tuple[Layer, ...]
    advice: str
    """What would give full isolation; empty where it is given."""


def isolation_here() -> Isolation:
    """What this machine gives, each layer tried, and a whole cell started under each isolation."""
    layers = [*kernel_layers(), _cell("process"), _cell("full")]
    process, full = layers[-2:]
    return Isolation(full.given, process.given, tuple(layers), "" if full.given else advice())


def kernel_layers() -> list[Layer]:
    """What the kernel gives, asked in a process of its own: to enter a namespace is for good."""
    if sys.platform != "linux":
        return [Layer("namespaces and system call filters", False, f"they are Linux's; this is {sys.platform}")]
    command = server_command({"isolation": "probe"})
    done = subprocess.run(command, capture_output=True, text=True, timeout=_PROBE_S, check=False, cwd="/")
    if done.returncode:
        raise SandboxError(f"the isolation's layers could not be tried: {done.stderr.strip()[-500:]}")
    return [Layer(name, why is None, why or "given") for name, why in json.loads(done.stdout).items()]


def _cell(isolation: Literal["full", "process"]) -> Layer:
    """Whether a cell can be had under an isolation."""
    one = Sandbox(isolation)
    try:
        one.warm()
    except SandboxError as error:
        return Layer(f"isolation: {isolation}", False, str(error))
    finally:
        one.close()
    return Layer(f"isolation: {isolation}", True, "given")
