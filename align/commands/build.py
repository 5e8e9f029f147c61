"""Implements `qwen-align build`, which builds one data stage from a settings file into a folder."""

import contextlib
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from qwen_align.align.context import Context
from qwen_align.align.errors import RecipeError
from qwen_align.align.pipeline.hub_revisions import RevisionFinder
from qwen_align.align.references import OutsideFile, find_references
from qwen_align.align.settings.base import format_suggestion
from qwen_align.align.settings.build_data import BuildData
from qwen_align.align.settings.recipe_errors import explain_error
from qwen_align.align.settings.recipe_file import read_settings
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.stages import build_data
from qwen_align.align.store.lease import Lease, hold_lease
from qwen_align.align.store.lease_record import LeaseHeld
from qwen_align.align.store.stage_folder import LEASE

SECONDS_BETWEEN_LINES = 5.0  # of progress, where there is no terminal


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


class _BuildContext(Context):
    """The context of a build outside a run, which reports progress to its caller."""

    report: Callable[[int], None] = staticmethod(lambda n_rows: None)

    def report_progress(self, done: int, total: int, tokens: int = 0, unit: str = "steps") -> None:
        """Reports the number of rows kept so far."""
        self.report(done)


@contextlib.contextmanager
def show_progress(console: Console) -> Iterator[Callable[[int], None]]:
    """Shows rows kept and time elapsed while a build goes on, and yields the function that takes the number of rows.

    In a terminal it is a line that goes again; elsewhere a line on standard error every so often.
    """
    columns = (SpinnerColumn(), TextColumn("{task.completed:,.0f} rows kept"), TimeElapsedColumn())
    last = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def report(n_rows: int) -> None:
            nonlocal last
            bar.update(task, completed=n_rows)
            if not console.is_terminal and time.monotonic() - last > SECONDS_BETWEEN_LINES:
                last = time.monotonic()
                print(f"building: {n_rows:,} rows kept so far", file=sys.stderr, flush=True)

        yield report


@contextlib.contextmanager
def _hold_unfinished_folder(out: Path, say: Callable[[str], None]) -> Iterator[tuple[Path, Lease]]:
    """Makes a hidden folder beside `out` in which a build goes on, and removes it at the end of the `with` block.

    Folders that killed builds have left go. The folder's name is the lease's own: two builds never write in one, even
    if both take themselves for the only one, and of two that are done the file system lets one take the place of `out`.

    Raises RecipeError if another build is at work on the same.
    """
    unfinished = out.with_name(f".{out.name}.unfinished")
    try:
        with hold_lease(unfinished / LEASE, say=say) as lease:
            for left in unfinished.iterdir():
                if left.name != LEASE:
                    shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
            work = unfinished / lease.record.token
            work.mkdir()
            try:
                yield work, lease
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)
    except LeaseHeld as error:
        raise RecipeError(f"{out}: another build is writing it, {error}; wait for it, or name another folder") from None


def build_data_folder(
    settings: BuildSpec,
    out: Path,
    report: Callable[[int], None] = lambda n_rows: None,
    say: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Builds a data set into the new folder `out` and returns its row and drop counts.

    It writes rows.jsonl, dropped.jsonl and README.md. `report` is told the number of rows kept so far, `say` what is
    waited for.

    Raises RecipeError if there is something in `out`; nothing is left there when the build fails.
    """
    out = out.resolve()  # `.` has no name
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise RecipeError(f"{out}: exists already and is not empty; name a new folder")
    finder = RevisionFinder(None)
    settings = finder.pin_settings(settings)
    inputs = {str(ref): Path(settings.data[ref]) for _, ref in find_references(settings)}
    with _hold_unfinished_folder(out, say) as (unfinished, lease):
        context = _BuildContext(unfinished, settings.seed or 0, Runtime())
        context.report = report
        summary = build_data.run(settings, inputs, unfinished, context)
        lease.check()
        if out.exists():
            out.rmdir()
        unfinished.replace(out)
    return {**summary, "revisions": [found.format_line() for found in finder.found.values()]}
