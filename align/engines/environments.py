"""Finds the environments that engines are installed in, apart from this one."""

import os
from pathlib import Path

from qwen_align.align.errors import RecipeError

FOLDER_VARIABLE = "QWEN_ALIGN_ENGINES"


def find_engine_python(name: str) -> Path:
    """Returns the Python of an engine's environment. Raises RecipeError where the engine is not installed."""
    folder = Path(os.environ.get(FOLDER_VARIABLE) or Path.home() / ".cache" / "qwen-align" / "engines") / name
    python = folder / "bin" / "python"
    if not python.exists():
        raise RecipeError(f"{name} is not installed in {folder}: qwen-align engines install {name}")
    return python
