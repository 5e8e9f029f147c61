"""Implements `qwen-align recipes`, which lists and prints the recipes that come with the package."""

import importlib.resources
from collections.abc import Iterator

from qwen_align.align.errors import RecipeError
from qwen_align.align.settings.base import format_suggestion


def list_recipes() -> Iterator[tuple[str, str]]:
    """Yields the name and the first comment line of each shipped recipe."""
    for entry in sorted(importlib.resources.files("qwen_align").joinpath("recipes").iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".yaml"):
            comments = [line[2:] for line in entry.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
            sentence = next(line for line in comments if not line.startswith("yaml-language-server"))
            yield entry.name.removesuffix(".yaml"), sentence


def read_recipe(name: str) -> str:
    """Returns the text of a shipped recipe. Raises RecipeError when no shipped recipe has that name."""
    folder = importlib.resources.files("qwen_align").joinpath("recipes")
    path = folder.joinpath(f"{name.removesuffix('.yaml')}.yaml")
    if not path.is_file():
        raise RecipeError(
            f"no shipped recipe is called '{name}'{format_suggestion(name, [name for name, _ in list_recipes()])}"
        )
    return path.read_text(encoding="utf-8")
