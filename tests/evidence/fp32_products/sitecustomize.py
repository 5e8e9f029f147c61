"""Has torch multiply bf16 matrices on a CPU in blocks of fp32, in any process with this folder in PYTHONPATH.

A CPU without bf16 instructions multiplies them seven times slower than fp32 ones, 10 against 75 GFLOP/s of a core (AMD
EPYC Milan, torch 2.13). A process holds BLOCK numbers of each factor and of the product more, 12 MiB in all.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from typing import Any

BLOCK = 1 << 20  # numbers, 4 MiB


class _Finder:
    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path, target) if name == "torch" else None
        if spec is not None and spec.origin is not None:
            spec.loader = _Loader(name, spec.origin)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: Any) -> None:
        super().exec_module(module)
        _replace_products(module)


def _replace_products(torch: Any) -> None:
    """Replaces the products of two matrices, which linear layers and their gradients come to."""

    def multiply(one: Any, other: Any) -> Any:
        return multiply_into(one, other, out=one.new_empty(one.shape[0], other.shape[1]))

    def multiply_into(one: Any, other: Any, *, out: Any) -> Any:
        if one.dtype != torch.bfloat16:
            return torch.addmm(out, one, other, beta=0, out=out)
        inner = max(1, one.shape[1])
        size = max(1, BLOCK // inner)
        for row in range(0, one.shape[0], size):
            wide = one[row : row + size].float()
            for column in range(0, other.shape[1], size):
                block = other[:, column : column + size].float()
                out[row : row + size, column : column + size] = wide @ block
        return out

    library = torch.library.Library("aten", "IMPL")
    library.impl("mm", multiply, "CPU")
    library.impl("mm.out", multiply_into, "CPU")
    torch._fp32_products = library  # it is in force as long as it lives


sys.meta_path.insert(0, _Finder())
