"""Keeps libraries from fetching compiled kernels from a hub, which they do where the package `kernels` is installed.

bitsandbytes does while it is imported, as PEFT does in every process, on CPUs with AVX512-BF16; on other machines, and
without `kernels`, it says in the log that this failed. transformers does for some architectures. `USE_HUB_KERNELS=1` in
the environment, which is transformers' own, allows both.
"""

import logging
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType

ALLOWING = "USE_HUB_KERNELS"
# What bitsandbytes 0.50 fetches in: on a CPU while it is imported, on a Mac at the first call unless that has failed.
_BACKENDS = ("bitsandbytes.backends.cpu.ops", "bitsandbytes.backends.mps.ops")
_HAS_FAILED = "_kernel_load_failed"


def forbid_hub_kernels() -> None:
    """Has bitsandbytes and transformers compute with what is installed, unless the environment says otherwise.

    It has to be called before they are imported.
    """
    if os.environ.setdefault(ALLOWING, "0").upper() in ("1", "ON", "YES", "TRUE"):
        return
    if not any(isinstance(finder, _BackendFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _BackendFinder())


class _BackendFinder(MetaPathFinder):
    """Finds the modules of bitsandbytes that fetch kernels, to be executed without `kernels`."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname in _BACKENDS else None
        if spec is not None and spec.origin is not None:
            spec.loader = _BackendLoader(fullname, spec.origin)
        return spec


class _BackendLoader(SourceFileLoader):
    """Executes a module as if `kernels` were not installed, and without a warning that it is not."""

    def exec_module(self, module: ModuleType) -> None:
        installed = sys.modules.get("kernels")
        logger = logging.getLogger(module.__name__)
        sys.modules["kernels"] = None  # type: ignore[assignment]
        logger.disabled = True
        try:
            super().exec_module(module)
        finally:
            logger.disabled = False
            del sys.modules["kernels"]
            if installed is not None:
                sys.modules["kernels"] = installed
        if hasattr(module, _HAS_FAILED):
            setattr(module, _HAS_FAILED, True)
