"""Plans a recipe as it was last run, for commands that look at a run: `report`, `chat` and `show`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from qwen_align.align.errors import RecipeError
from qwen_align.align.pipeline.plan import Plan
from qwen_align.align.pipeline.plan import plan as make_plan
from qwen_align.align.settings.recipe_file import read_settings
from qwen_align.align.store.run_folders import (
    RECORD,
    RESOLVED,
    RunRecord,
    digest_settings,
    find_last_record,
    format_request,
    format_time,
    is_recipe_gone,
    read_record,
    require_recipe,
)


class RememberedPlan(NamedTuple):
    """A plan, and what has to be said of it: with which changes the recipe was run, if it is planned with them."""

    plan: Plan
    note: str = ""


def plan_as_last_run(path: Path, home: Path, overrides: Sequence[str], *, tiny: bool) -> RememberedPlan:
    """Plans a recipe as it was last run in `home`, if it is given without changes and is what it was then.

    `path`: a recipe file, or the folder of a run. With overrides it is planned with these.
    """
    if (path / RECORD).is_file():
        return _plan_run_in_folder(path, home, overrides, tiny=tiny)
    record = None if overrides else find_last_record(home, path)
    if record is None or not record.request.options or (tiny and not record.request.tiny):
        return RememberedPlan(make_plan(path, home, overrides, tiny=tiny))
    if _is_changed(record, path):
        note = f"{path} has changed since its last run, with {record.request.options}; this is without"
        return RememberedPlan(make_plan(path, home, tiny=tiny), note)
    return RememberedPlan(_plan_record(record, path, home), _describe_last_run(record, path))


def _plan_run_in_folder(folder: Path, home: Path, overrides: Sequence[str], *, tiny: bool) -> RememberedPlan:
    """Plans the recipe of the run in a folder, with the changes it was run with. Its home is the one it lies in."""
    record = read_record(folder)
    if record is None:
        raise RecipeError(f"{folder / RECORD}: cannot be read; name the recipe file instead")
    if overrides or tiny:
        raise RecipeError(f"{folder}: a run's folder stands for its recipe as it was run; to change it name its recipe")
    own_home = folder.resolve().parent.parent
    home = home if home.resolve() == own_home else own_home
    if is_recipe_gone(record) and (folder / RESOLVED).is_file():
        resolved = make_plan(folder / RESOLVED, home)  # its changes are in it
        note = f"{folder}: {record.request.recipe} is gone; this is {RESOLVED}, what it was when it was run"
        return RememberedPlan(replace(resolved, known_folder=record.folder), note)
    path = require_recipe(record)
    note = f"{folder}: {format_request(record.request)}"
    if _is_changed(record, path):
        note += "; the recipe has changed since"
    return RememberedPlan(_plan_record(record, path, home), note)


def _plan_record(record: RunRecord, path: Path, home: Path) -> Plan:
    planned = make_plan(path, home, record.request.overrides, tiny=record.request.tiny)
    return replace(planned, known_folder=record.folder)


def _is_changed(record: RunRecord, path: Path) -> bool:
    """Returns whether a recipe's settings are others than when it was run."""
    return digest_settings(read_settings(path, tiny=record.request.tiny)) != record.request.digest


def _describe_last_run(record: RunRecord, path: Path) -> str:
    return f"{path} as it was last run, {format_time(record.started)}: {record.request.options}"


def note_other_run(plan: Plan) -> str:
    """Returns a note if a recipe is now run without changes while its last run has some and is not finished."""
    request = plan.request
    record = find_last_record(plan.home, Path(request.recipe)) if request.recipe else None
    if record is None or record.exit_code == 0 or request.options or not record.request.options:
        return ""
    return (
        f"note: the last run of this recipe, which is not finished, was with {record.request.options}; "
        "this one is without"
    )
