"""Implements `qwen-align check`, which reports stage order, row counts, drops, lengths and steps before training."""

import warnings
from collections.abc import Iterator

from qwen_align.align.errors import BY_EXIT_CODE, AlignError
from qwen_align.align.pipeline.check_models import check_models
from qwen_align.align.pipeline.machine_check import describe_machine_use
from qwen_align.align.pipeline.plan import Plan, PlannedStage, check_can_start
from qwen_align.align.pipeline.preview import Preview, RowsUnknown
from qwen_align.align.rendering.chat_template import TEMPLATE_DATE
from qwen_align.align.stages.registry import STAGE_KINDS, import_function
from qwen_align.align.stages.reward_trials import RewardTrials
from qwen_align.align.tracking import setup
from qwen_align.reward.user_code import leave_out_user_code


def describe_plan(plan: Plan, *, runs_code: bool = True) -> Iterator[str]:
    """Yields report lines about each stage of a plan that would run. Raises the AlignError of the first problem.

    `runs_code`: whether the Python files that the recipe names are run, in worker processes, to try them.
    """
    setup.check_installed(plan.recipe.tracking)
    preview = Preview(plan)
    trials = RewardTrials(preview)
    check_can_start(plan, load_renderer=preview.load_renderer)
    width = max(len(stage.name) for stage in plan.stages)
    notes = [f"note: {note}" for note in check_models(plan)]
    for number, stage in enumerate(plan.stages, start=1):
        state = "stored" if stage.is_stored else "to run"
        head = f"{number:>3}  {stage.name:<{width}}  {stage.kind:<10}  {state}  "
        with warnings.catch_warnings(record=True) as caught, leave_out_user_code(is_left_out=not runs_code):
            warnings.simplefilter("always", UserWarning)
            lines = _describe_stage(stage, preview, trials)
        notes += [f"note: stage '{stage.name}': {warning.message}" for warning in caught]
        for row, text in enumerate(lines):
            yield (head if row == 0 else " " * len(head)) + text
    yield from notes
    yield from (f"note: {found.format_line()}" for found in plan.revisions)
    for template in preview.list_dated_templates():
        yield (
            f"note: {template}: prints today's date; here it always prints {TEMPLATE_DATE:%d %b %Y}, so that no result "
            "depends on the day; to have another, write it into the template"
        )
    yield from setup.describe_destinations(plan.recipe.tracking, plan.group, plan.tracking_folder)
    n_to_run = sum(not stage.is_stored for stage in plan.stages)
    yield f"{len(plan.stages)} stages, {n_to_run} to run; home: {plan.home.resolve()}"


def _describe_stage(stage: PlannedStage, preview: Preview, trials: RewardTrials) -> list[str]:
    """Returns the `check` report of one stage as lines. Where its input rows do not exist yet, it is a forecast."""
    kind = STAGE_KINDS[stage.kind]
    for note in () if stage.is_stored else describe_machine_use(stage.stage):
        warnings.warn(note, stacklevel=2)
    try:
        try:
            lines = list(import_function(kind.check)(stage, preview))
        except RowsUnknown as unknown:
            forecast = import_function(kind.forecast)(stage, preview) if kind.forecast else ()
            lines = [f"unknown until {unknown}", *forecast]
        return [*lines, *trials.describe_stage(stage)]
    except AlignError as error:
        raise BY_EXIT_CODE[error.exit_code](f"stage '{stage.name}': {error}") from None
