"""No library fetches kernels from a hub when it is imported, also where the package that fetches them is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.utils.import_utils import KERNELS_MIN_VERSION

# A package `kernels` that says what it is asked to fetch.
KERNELS = """
import sys
def get_kernel(name, **settings):
    print("fetched", name)
    raise FileNotFoundError(name)
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    methods = {"__init__": lambda self, *args, **settings: None, "__call__": lambda self, decorated: decorated}
    return type(name, (), methods)
"""
# On this machine bitsandbytes is told that the CPU has AVX512-BF16.
PROGRAM = """
import sys
import qwen_align
from importlib.machinery import PathFinder, SourceFileLoader
class Loader(SourceFileLoader):
    def exec_module(self, module):
        super().exec_module(module)
        module.has_avx512bf16 = lambda: True
class Finder:
    def find_spec(self, name, path, target=None):
        spec = PathFinder.find_spec(name, path, target) if name == "bitsandbytes.functional" else None
        if spec:
            spec.loader = Loader(name, spec.origin)
        return spec
sys.meta_path.insert(0, Finder())
import peft, kernels
from bitsandbytes.backends.cpu import ops
from transformers.integrations.hub_kernels import lazy_load_kernel
lazy_load_kernel("sonic-moe")
print("read", ops.gemm_4bit_forward_kernel, sys.modules["kernels"] is kernels)
"""


@pytest.mark.slow(seconds=8)
@pytest.mark.parametrize(
    ("asked", "fetched"),
    [
        (None, set()),
        ("1", {"kernels-community/quantization-bitsandbytes", "kernels-community/sonic-moe"}),
    ],
)
def test_nothing_is_fetched_unless_the_environment_asks_for_it(
    asked: str | None, fetched: set[str], tmp_path: Path
) -> None:
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text(KERNELS)
    described = tmp_path / f"kernels-{KERNELS_MIN_VERSION}.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {KERNELS_MIN_VERSION}\n")
    environment = {name: value for name, value in os.environ.items() if name != "USE_HUB_KERNELS"}
    environment["PYTHONPATH"] = os.pathsep.join([str(tmp_path), environment.get("PYTHONPATH", "")])
    environment |= {"USE_HUB_KERNELS": asked} if asked else {}
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "read None True"
    assert {line.removeprefix("fetched ") for line in lines[:-1]} == fetched
    assert ("Failed to load CPU gemm_4bit_forward" in done.stderr) == bool(asked)
