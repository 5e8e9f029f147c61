"""Implements `qwen-align recipes`, which lists, prints and copies the recipes that come with the package."""

import importlib.resources
from collections.abc import Iterator
from pathlib import Path

from qwen_align.align.errors import RecipeError
from qwen_align.align.references import find_outside_files
from qwen_align.align.settings.base import format_suggestion
from qwen_align.align.settings.recipe_file import list_recipe_files, load_variants


def get_folder() -> Path:
    """Returns the folder of the shipped recipes."""
    return Path(str(importlib.resources.files("qwen_align") / "recipes"))


def list_recipes() -> Iterator[tuple[str, str]]:
    """Yields the name and the first comment line of each shipped recipe."""
    for path in sorted(get_folder().glob("*.yaml")):
        comments = [line[2:] for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
        sentence = next(line for line in comments if not line.startswith("yaml-language-server"))
        yield path.stem, sentence


def find_recipe(name: str) -> Path:
    """Returns the file of a shipped recipe. Raises RecipeError when no shipped recipe has that name."""
    known = {path.stem: path for path in get_folder().glob("*.yaml")}
    if name.removesuffix(".yaml") not in known:
        raise RecipeError(f"no shipped recipe is called '{name}'{format_suggestion(name, sorted(known))}")
    return known[name.removesuffix(".yaml")]


def read_recipe(name: str) -> str:
    """Returns the text of a shipped recipe. Raises RecipeError when no shipped recipe has that name."""
    return find_recipe(name).read_text(encoding="utf-8")


def list_companions(name: str) -> list[str]:
    """Lists the shipped files that a shipped recipe needs beside it, relative to its own folder."""
    recipe = find_recipe(name)
    return [_name_in_folder(path) for path in _list_needed_files(recipe) if path != recipe and path.exists()]


def list_missing(name: str) -> list[str]:
    """Lists the files and folders that a shipped recipe names beside it and that do not come with it."""
    return [_name_in_folder(path) for path in _list_needed_files(find_recipe(name)) if not path.exists()]


def _name_in_folder(path: Path) -> str:
    return path.relative_to(get_folder()).as_posix()


def _list_needed_files(recipe: Path) -> list[Path]:
    """Lists a shipped recipe's file and all that it names in its folder: recipes, rows, rewards, models."""
    folder = get_folder().resolve()
    named = [Path(file) for variant in load_variants(recipe) for _, file in find_outside_files(variant.recipe)]
    inside = [get_folder() / path.relative_to(folder) for path in named if path.is_relative_to(folder)]
    return list(dict.fromkeys([*list_recipe_files(recipe), *inside]))


def copy_recipe(name: str, target: Path) -> list[Path]:
    """Copies a shipped recipe into a folder, with all shipped files that it needs, and returns the copies.

    Raises RecipeError, with nothing written, where another file of that name is there.
    """
    sources = {target / _name_in_folder(path): path for path in _list_needed_files(find_recipe(name)) if path.exists()}
    for copy, source in sources.items():
        if copy.exists() and not (copy.is_file() and copy.read_bytes() == source.read_bytes()):
            raise RecipeError(f"{copy}: exists already and is another file; name another folder, or move it away")
    for copy, source in sources.items():
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes())
    return list(sources)
