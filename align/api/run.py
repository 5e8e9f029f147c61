"""Plans and runs a recipe from a script or notebook, and returns the results as Python values."""

import contextlib
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from qwen_align.align.api.notebook_progress import NotebookProgress, SilentListener, is_notebook
from qwen_align.align.api.recipe import Overrides, Recipe, format_stage_count
from qwen_align.align.api.results import Results, collect_results
from qwen_align.align.commands.progress import RunProgress, stop_on_signals
from qwen_align.align.errors import Preempted
from qwen_align.align.pipeline.plan import Plan as PipelinePlan
from qwen_align.align.pipeline.plan import plan_variants
from qwen_align.align.pipeline.run import RunListener
from qwen_align.align.reporting.live_report import run_and_report

RecipeSource = Recipe | str | Path | Mapping[str, Any]


@dataclass(frozen=True)
class StagePlan:
    """A planned stage. `key` is a hash of everything its result depends on and names its `folder`."""

    name: str
    kind: str
    key: str
    folder: Path

    @property
    def is_stored(self) -> bool:
        """Returns whether the stage's result is stored, so that the stage will not run again."""
        return (self.folder / "manifest.json").exists()


class Plan:
    """A plan of a recipe: its stages in running order.

    Printed, it is a table of stored stages and of stages that would run.
    """

    def __init__(self, planned: PipelinePlan) -> None:
        self.pipeline_plan = planned
        self.name = planned.recipe.name
        self.stages = [StagePlan(stage.name, stage.kind, stage.key, stage.folder.path) for stage in planned.stages]

    @property
    def run_folder(self) -> Path:
        """Returns the folder of the run: runs/NAME under the home folder, or another where that is another run's."""
        return self.pipeline_plan.run_folder

    def __repr__(self) -> str:
        width = max(len(stage.name) for stage in self.stages)
        to_run = sum(not stage.is_stored for stage in self.stages)
        lines = [f"Plan '{self.name}': {format_stage_count(len(self.stages))}, {to_run} to run; {self.run_folder}"]
        lines += [
            f"  {stage.name:<{width}}  {stage.kind:<12}  {stage.key[:16]}  {'stored' if stage.is_stored else 'to run'}"
            for stage in self.stages
        ]
        return "\n".join(lines)


def plan(recipe: RecipeSource, *, home: str | Path = ".", overrides: Overrides = (), tiny: bool = False) -> Plan:
    """Returns the stages of a recipe in running order, with their keys and whether they are stored.

    Nothing is run.

    `recipe`: a Recipe, or what `Recipe(...)` takes. `home`: the folder that holds store/ and runs/, and inputs/ for
    rows and functions. `overrides`: dotted settings and their values, `{"stages.sft.epochs": 2}`. `tiny`: the recipe's
    tiny form. Raises RecipeError or DataError, which say where and what would be right.
    """
    source = recipe if isinstance(recipe, Recipe) else Recipe(recipe)
    variants = source.variants(Path(home), overrides, tiny=tiny)
    request = source.build_request(overrides, tiny=tiny)
    return Plan(plan_variants(variants, Path(home), source.path, request))


def run(
    recipe: RecipeSource | Plan,
    *,
    home: str | Path | None = None,
    overrides: Overrides = (),
    tiny: bool = False,
    force: Sequence[str] = (),
    same_versions: bool = False,
    progress: bool = True,
) -> Results:
    """Runs the stages of a recipe that are not stored yet, each in its own process, and returns all results.

    `recipe`, `home`, `overrides`, `tiny`: as for `plan`, or a plan alone. `force`: stages to recompute.
    `same_versions`: refuse results of other major library versions. `progress`: print a line a stage, with a bar in a
    terminal and a status line in a notebook.

    Interrupting (Ctrl-C, or the notebook's stop button) lets the running stage save what it has and raises
    KeyboardInterrupt; the same call goes on from there. Raises the AlignError of the first stage that fails, and
    Preempted when SIGTERM or SIGUSR1 asks to stop.
    """
    if isinstance(recipe, Plan):
        if home is not None or overrides or tiny:
            raise TypeError("a plan has its home, overrides and tiny form already: give them to plan()")
        planned = recipe.pipeline_plan
    else:
        planned = plan(recipe, home="." if home is None else home, overrides=overrides, tiny=tiny).pipeline_plan
    with _open_progress(planned, progress) as listener, stop_on_signals() as stop:
        try:
            results = run_and_report(planned, listener, force=force, same_versions=same_versions, stop=stop)
        except Preempted as error:
            if signal.SIGINT in stop.signals:
                raise KeyboardInterrupt(str(error)) from None
            raise
    return collect_results(planned, results)


def _open_progress(planned: PipelinePlan, progress: bool) -> contextlib.AbstractContextManager[RunListener]:
    """Returns the context manager that shows the run's progress in a notebook, a terminal or not at all."""
    if not progress:
        return contextlib.nullcontext(SilentListener())
    console = Console(highlight=False, markup=False, emoji=False, force_jupyter=False)
    if not is_notebook():
        return RunProgress(console, planned)
    # A notebook says that it is a terminal, but shows neither bars nor long lines as one does.
    plain = Console(highlight=False, markup=False, emoji=False, force_jupyter=False, force_terminal=False)
    return NotebookProgress(plain, planned)
