"""Implements `qwen-align build`, which builds one data stage from a settings file into a folder."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from qwen_align.align.context import PROGRESS, Context
from qwen_align.align.errors import RecipeError
from qwen_align.align.pipeline.hub_revisions import RevisionFinder
from qwen_align.align.references import OutsideFile, find_references
from qwen_align.align.settings.base import format_suggestion
from qwen_align.align.settings.build_data import BuildData
from qwen_align.align.settings.recipe_errors import explain_error
from qwen_align.align.settings.recipe_file import read_settings
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.stages import build_data


class BuildSpec(BuildData):
    """The settings of one `build_data` stage outside a recipe. `data` maps each stage they refer to to its folder."""

    data: dict[str, OutsideFile] = Field(default_factory=dict)


def load_build_settings(path: Path, overrides: Sequence[str] = ()) -> BuildSpec:
    """Reads the settings of a data build from a YAML file.

    Kind and name may be left out. Raises RecipeError for wrong settings.
    """
    raw = {"kind": "build_data", "name": "data", "seed": 0, **read_settings(path, overrides)}
    try:
        settings = BuildSpec.model_validate(raw, context={"folder": str(path.parent)})
    except ValidationError as error:
        raise explain_error(error, raw, path) from None
    for field_path, ref in find_references(settings):
        if ref not in settings.data:
            raise RecipeError(
                f"{path}: {field_path}: no folder is given for '{ref}'; add it under data: {{{ref}: FOLDER}}"
            )
        if not (Path(settings.data[ref]) / "rows.jsonl").is_file():
            raise RecipeError(f"{path}: data.{ref}: {settings.data[ref]} holds no rows.jsonl")
    referenced_names = {str(ref) for _, ref in find_references(settings)}
    for name in settings.data:
        if name not in referenced_names:
            raise RecipeError(
                f"{path}: data.{name}: no setting refers to it{format_suggestion(name, referenced_names)}"
            )
    return settings


def build_data_folder(settings: BuildSpec, out: Path) -> dict[str, Any]:
    """Builds a data set into the new folder `out` and returns its row and drop counts.

    It writes rows.jsonl, dropped.jsonl and README.md.

    Raises RecipeError if there is something in `out`; nothing is left there when the build fails.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise RecipeError(f"{out}: exists already and is not empty; name a new folder")
    finder = RevisionFinder(None)
    settings = finder.pin_settings(settings)
    unfinished = out.with_name(f".{out.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    inputs = {str(ref): Path(settings.data[ref]) for _, ref in find_references(settings)}
    try:
        summary = build_data.run(settings, inputs, unfinished, Context(unfinished, settings.seed or 0, Runtime()))
        (unfinished / PROGRESS).unlink(missing_ok=True)
        if out.exists():
            out.rmdir()
        unfinished.replace(out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return {**summary, "revisions": [found.format_line() for found in finder.found.values()]}
