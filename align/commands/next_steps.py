"""Says at the end of a run where its models and its page are, and what can be done next."""

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from qwen_align.align.models.model_description import MODEL
from qwen_align.align.pipeline.plan import Plan, PlannedStage
from qwen_align.align.store.files import read_json

MAX_MODELS = 4


def describe_outcome(plan: Plan, recipe: Path) -> Iterator[str]:
    """Yields lines that name the models at the ends of a run, its page, and a command to go on with."""
    folder = plan.run_folder
    models = list_last_models(plan)
    for stage in models[:MAX_MODELS]:
        yield f"model: {_locate_model(folder / 'stages' / stage.name)}"
    if len(models) > MAX_MODELS:
        yield f"       and {len(models) - MAX_MODELS} more in {folder / 'stages'}"
    yield f"page:  {folder / 'report.html'}"
    data = [stage for stage in plan.stages if stage.product == "data"]
    if models:
        yield f"next:  {_format_command('chat', plan, recipe, models[-1].name)}"
    elif data:
        yield f"next:  {_format_command('show', plan, recipe, data[-1].name)}"


def list_last_models(plan: Plan) -> list[PlannedStage]:
    """Returns the stages whose model no other stage trains further, in running order; controls come first."""
    trained = [stage for stage in plan.stages if stage.product in ("model", "scorer")]
    read = {target for stage in trained for target in stage.targets.values()}
    last = [stage for stage in trained if stage.name not in read and stage.product == "model" and stage.is_stored]
    return sorted(last, key=lambda stage: stage.origin not in plan.recipe.report.controls)


def _locate_model(folder: Path) -> str:
    """Returns the folder of a stage's model, or says that it is an adapter."""
    description = read_json(folder / MODEL)
    if "model" in description:
        return str(folder / description["model"])
    adapters: Sequence[str] = description["adapters"]
    return f"{folder} (adapter; qwen_align.load_model merges it)" if adapters else f"{folder} (the model it began with)"


def format_go_on(plan: Plan, recipe: Path) -> str:
    """Returns the command that goes on with a run that was stopped."""
    command = _format_command("run", plan, recipe)
    return f"{command} {plan.request.options}".rstrip()


def _format_command(verb: str, plan: Plan, recipe: Path, *arguments: str) -> str:
    home = [] if plan.home == Path() else ["--home", str(plan.home)]
    return shlex.join(["qwen-align", verb, str(recipe), *arguments, *home])
