"""Reads a recipe given in Python: a file, YAML, a dict or keywords, with rows and functions in it."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_align.align.api.given_values import fill_in_paths, replace_given_values, write_given_files
from qwen_align.align.errors import RecipeError, StageError
from qwen_align.align.settings.recipe_file import (
    Variant,
    complete_settings,
    expand_variants,
    parse_overrides,
    parse_yaml,
    read_settings,
    set_value,
)
from qwen_align.align.store.run_folders import RunRequest, build_request

Overrides = Mapping[str, Any] | Sequence[str]
"""`{"stages.sft.learning_rate": 1e-5}`, or `["stages.sft.learning_rate=1e-5"]` as on the command line."""


class Recipe:
    """A recipe given in Python: models, stages and how they build on each other, as in a recipe file.

    `Recipe("my.yaml")` reads a file, `Recipe("name: ...\\nstages: ...")` YAML, `Recipe({...})` a dict, and
    `Recipe(name=..., models={...}, stages=[...])` takes the sections as keywords. Where a file of rows is named, a list
    of dicts or a pandas DataFrame may stand instead of its path; in a list of rewards a function may stand. Paths in a
    recipe that is no file are relative to `folder`.

    Raises RecipeError where the settings are wrong, with the messages of a recipe file; DataError for rows that JSON
    cannot hold.
    """

    def __init__(
        self, source: str | Path | Mapping[str, Any] | None = None, *, folder: str | Path = ".", **sections: Any
    ) -> None:
        if (source is None) == (not sections):
            raise TypeError("give a recipe file, YAML or a dict, or the recipe's sections as keywords (name, stages)")
        self._path, self._settings = _read_source(sections if source is None else source, Path(folder))
        settings = complete_settings(copy.deepcopy(self._settings), self._path)
        expand_variants(fill_in_paths(settings, Path()), self._path)  # what is wrong is said here, not by `plan`

    @property
    def name(self) -> str:
        """Returns the recipe's name, which is also the name of its folder under runs/."""
        return str(self._settings["name"])

    @property
    def path(self) -> Path:
        """Returns the path of the recipe's file. For a recipe without a file it is the name that error messages use."""
        return self._path

    def variants(self, home: Path, overrides: Overrides = (), *, tiny: bool = False) -> list[Variant]:
        """Returns the checked settings of each matrix cell of the recipe.

        Rows and functions are written under `home`/inputs.

        `overrides`: dotted settings and their values; `tiny`: the recipe's tiny form. Raises RecipeError, DataError,
        and StageError where the files cannot be written.
        """
        changes = dict(parse_overrides(overrides) if not isinstance(overrides, Mapping) else overrides)
        settings = complete_settings(copy.deepcopy(self._settings), self._path, tiny=tiny)
        where = f"{self._path}: overrides"
        for setting, value in replace_given_values(changes, f"{where}: ").items():
            set_value(settings, setting, value, where=where)
        variants = expand_variants(fill_in_paths(settings, home), self._path)
        try:
            write_given_files(settings, home)
        except OSError as error:
            raise StageError(f"{error.filename or home}: cannot be written: {error.strerror or error}") from None
        return variants

    def build_request(self, overrides: Overrides = (), *, tiny: bool = False) -> RunRequest:
        """Returns what a run of the recipe is asked for, for the record of the run."""
        settings = complete_settings(copy.deepcopy(self._settings), self._path, tiny=tiny)
        if not isinstance(overrides, Mapping):
            return build_request(self._path, settings, overrides, tiny=tiny)
        try:
            texts = [f"{setting}={json.dumps(value)}" for setting, value in overrides.items()]
        except TypeError:  # rows or a function, which the command line could not give
            return RunRequest("", tuple(sorted(map(str, overrides))), tiny)
        return build_request(self._path, settings, texts, tiny=tiny)

    def __repr__(self) -> str:
        stages = self._settings.get("stages", [])
        names = [str(stage.get("name", "repeat")) for stage in stages]
        return f"Recipe '{self.name}': {format_stage_count(len(names))} ({', '.join(names)})"


def format_stage_count(number: int) -> str:
    """Formats a number of stages as `1 stage` or `2 stages`."""
    return f"{number} stage{'' if number == 1 else 's'}"


def _read_source(source: str | Path | Mapping[str, Any], folder: Path) -> tuple[Path, dict[str, Any]]:
    """Returns a recipe's path (or its name in error messages) and its settings.

    The path lies in the folder from which the recipe's relative paths start.
    """
    if isinstance(source, Mapping):
        path = folder / "Recipe(...)"
        return path, replace_given_values(source, f"{path}: ")
    if isinstance(source, str) and "\n" in source:
        path = folder / "Recipe(YAML)"
        settings = parse_yaml(source, where=str(path))
        if not isinstance(settings, dict):
            raise RecipeError(f"{path}: a recipe is a mapping with name and stages; found {settings!r:.80}")
        return path, settings
    return Path(source), read_settings(Path(source))
