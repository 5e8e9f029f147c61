"""`qwen-align check`: order, what is stored, rows, drops, lengths and steps, before anything is trained."""

import warnings
from collections.abc import Iterator

from qwen_align.align.errors import BY_EXIT_CODE, AlignError
from qwen_align.align.pipeline.plan import Plan, Planned, check_models
from qwen_align.align.pipeline.preview import Preview, Unknown
from qwen_align.align.stages.registry import STAGE_KINDS, import_function
from qwen_align.align.tracking import setup


def describe_plan(planned: Plan) -> Iterator[str]:
    """Yields what would run, a line or a few a stage; raises the AlignError of the first thing that is wrong."""
    setup.check_installed(planned.recipe.tracking)
    check_models(planned)
    preview = Preview(planned)
    width = max(len(stage.name) for stage in planned.stages)
    notes: list[str] = []
    for number, stage in enumerate(planned.stages, start=1):
        state = "stored" if stage.is_stored else "to run"
        head = f"{number:>3}  {stage.name:<{width}}  {stage.kind:<10}  {state}  "
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            lines = _describe_stage(stage, preview)
        notes += [f"note: stage '{stage.name}': {warning.message}" for warning in caught]
        for row, text in enumerate(lines):
            yield (head if row == 0 else " " * len(head)) + text
    yield from notes
    yield from setup.describe_destinations(planned.recipe.tracking, planned.group, planned.tracking_folder)
    n_to_run = sum(not stage.is_stored for stage in planned.stages)
    yield f"{len(planned.stages)} stages, {n_to_run} to run; home: {planned.home.resolve()}"


def _describe_stage(stage: Planned, preview: Preview) -> list[str]:
    kind = STAGE_KINDS[stage.kind]
    try:
        return list(import_function(kind.check)(stage, preview))
    except Unknown as unknown:
        forecast = import_function(kind.forecast)(stage, preview) if kind.forecast else ()
        return [f"unknown until {unknown}", *forecast]
    except AlignError as error:
        raise BY_EXIT_CODE[error.exit_code](f"stage '{stage.name}': {error}") from None
