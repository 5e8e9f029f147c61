"""qwen-align: the whole post-training ladder of a Qwen model from one recipe."""

from typing import TYPE_CHECKING, Any

from qwen_align.align.hub_kernels import forbid_hub_kernels

if TYPE_CHECKING:
    from qwen_align.align.api.evaluate import evaluate
    from qwen_align.align.api.load_model import load_model
    from qwen_align.align.api.recipe import Recipe
    from qwen_align.align.api.run import plan, run

__version__ = "0.1.0"
__all__ = ["Recipe", "evaluate", "load_model", "plan", "run"]

forbid_hub_kernels()
_MODULES = {"Recipe": "recipe", "evaluate": "evaluate", "load_model": "load_model", "plan": "run", "run": "run"}


def __getattr__(name: str) -> Any:
    """Imports a name of the Python API when it is first asked for, so that `import qwen_align` takes no time."""
    if name not in _MODULES:
        raise AttributeError(f"module 'qwen_align' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"qwen_align.align.api.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
