"""Lets accelerate shard with FSDP2 in processes that are connected by gloo; for tests alone, in PYTHONPATH.

accelerate shards only where it sees several GPUs, and on CPUs it trains as plain data parallelism without a word.
Python imports this file at its start where its folder is in PYTHONPATH, so the processes of a stage are patched too.
accelerate is not imported here, but patched once it is.
"""

import importlib.abc
import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from typing import Any


def patch_state(state: Any) -> None:
    """Has an AcceleratorState of several processes on CPUs believe that they are on GPUs, where FSDP is asked for."""
    original = state.AcceleratorState.__init__

    def start(self: Any, *args: Any, **kwargs: Any) -> None:
        shared = state.PartialState._shared_state
        is_asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
        if is_asked and shared.get("distributed_type") == state.DistributedType.MULTI_CPU:
            shared["distributed_type"] = state.DistributedType.MULTI_GPU
        original(self, *args, **kwargs)

    state.AcceleratorState.__init__ = start


class _PatchOnImport(importlib.abc.MetaPathFinder):
    """A finder that lets `accelerate.state` be found as ever and patches it once it is imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "accelerate.state":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def load_and_patch(module: Any) -> None:
            load(module)
            patch_state(module)

        spec.loader.exec_module = load_and_patch  # type: ignore[method-assign]
        return spec


os.environ["QWEN_ALIGN_TESTS_FSDP2_ON_CPUS"] = "1"  # what `check` asks; see align/pipeline/strategy_check.py
sys.meta_path.insert(0, _PatchOnImport())
