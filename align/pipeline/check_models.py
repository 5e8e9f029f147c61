"""Checks the models that a plan's stages read, and what LoRA is to adapt in them, before anything is trained."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from qwen_align.align.errors import RecipeError
from qwen_align.align.models.logit_scales import find_logit_scale
from qwen_align.align.models.lora_targets import check_lora_targets, describe_all_linear, list_layers
from qwen_align.align.models.model_description import find_base_folder, is_stage_folder, locate_model_files
from qwen_align.align.models.router_settings import describe_routers, resolve_router_settings
from qwen_align.align.models.tensor_table import Head
from qwen_align.align.models.weight_check import (
    check_weights,
    refuse_adapter_alone,
    refuse_stray_adapter,
)
from qwen_align.align.models.weight_precision import describe_precision, resolve_precision
from qwen_align.align.pipeline.model_configs import trace_config, trace_precision
from qwen_align.align.pipeline.plan import Plan, PlannedStage
from qwen_align.align.references import ScorerRef, find_references, list_fields
from qwen_align.align.settings.online_rl import OnlineRl
from qwen_align.align.settings.recipe import ModelSource
from qwen_align.align.settings.training import Lora, Optimizer
from qwen_align.align.stages.registry import STAGE_KINDS


def check_models(plan: Plan, forced: Sequence[PlannedStage] = ()) -> list[str]:
    """Checks the weights of the local models that stages are to read, and the target modules of their adapters.

    Returns notes: what of a model is not read, not checked, or not adapted. Raises RecipeError for a model that cannot
    be loaded whole, and for target modules that it does not have. Models on the hub are checked once they are there.
    `forced`: stored stages that will run again.
    """
    stages_to_run = [stage for stage in plan.stages if not stage.is_stored or stage in forced]
    notes: dict[str, None] = {}  # each once, in order
    for name, heads in _list_read_heads(plan, stages_to_run).items():
        source = plan.graph.models[name]
        folder = next(Path(e["folder"]) for stage in stages_to_run for e in stage.inputs.values() if e["name"] == name)
        try:
            for head in heads:
                notes |= dict.fromkeys(f"models: {name}: {note}" for note in _check_model(source, folder, head))
        except RecipeError as error:
            raise RecipeError(f"models: {name}: {error}") from None
    for stage in stages_to_run:
        notes |= dict.fromkeys(_check_lora(plan, stage))
        notes |= dict.fromkeys(_check_precision(plan, stage))
        notes |= dict.fromkeys(_check_routers(plan, stage))
        _check_logits(plan, stage)
    return list(notes)


def _list_read_heads(plan: Plan, stages: Iterable[PlannedStage]) -> dict[str, list[Head | None]]:
    """Returns which heads of each local model the stages read: its own, a scorer's, or None for the trunk alone."""
    heads: dict[str, set[Head | None]] = {}
    for stage in stages:
        for _, ref in find_references(stage.settings):
            target = stage.targets[str(ref)]
            if target in plan.graph.models and not plan.graph.models[target].hub:
                makes_head = STAGE_KINDS[stage.kind].makes_head
                head: Head | None = "score" if isinstance(ref, ScorerRef) else None if makes_head else "lm_head"
                heads.setdefault(target, set()).add(head)
    return {name: sorted(read - {None} or {None}, key=str) for name, read in heads.items()}


def _check_model(source: ModelSource, folder: Path, head: Head | None) -> list[str]:
    """Checks a local model as far as it is outside the store, and returns notes."""
    base = find_base_folder(folder)
    if base is None:
        return []
    if is_stage_folder(folder):
        has_own_head = head != "score" or not locate_model_files(folder).adapters  # else it lies in the adapter
        return check_weights(base, head if has_own_head else None)
    refuse_adapter_alone(folder)
    if source.adapter != "ignore":
        refuse_stray_adapter(folder)
    return check_weights(base, head)


def _check_lora(plan: Plan, stage: PlannedStage) -> Iterator[str]:
    """Checks the target modules of a stage's adapters where its model's config is known, and yields notes."""
    lora = next((value for _, value in list_fields(stage.settings) if isinstance(value, Lora)), None)
    config = trace_config(plan, stage) if lora else None
    if lora is None or config is None:
        return
    try:
        layers = list_layers(config, "score" if STAGE_KINDS[stage.kind].makes_head else "lm_head")
        if layers is None:
            if lora.target_modules != "all-linear":
                yield f"stage '{stage.origin}': lora.target_modules are not checked here; loading the model does"
            return
        check_lora_targets(lora, layers)
    except ValueError as error:
        raise RecipeError(f"stage '{stage.origin}': {error}") from None
    left_out = describe_all_linear(layers, config) if lora.target_modules == "all-linear" else None
    if left_out:
        yield f"stage '{stage.origin}': lora: {left_out}"


def _check_precision(plan: Plan, stage: PlannedStage) -> Iterator[str]:
    """Yields in what precision a stage trains a model that is not simply fp32.

    Raises RecipeError where its settings contradict each other or the model's files.
    """
    settings = stage.settings
    if not isinstance(settings, Optimizer):
        return
    stored = trace_precision(plan, stage)
    try:
        if stored is None:
            for possible in ("fp32", "bf16"):  # what is contradictory with either is said now
                with suppress(RecipeError):
                    resolve_precision(settings, possible)
                    return
            resolve_precision(settings, "bf16")
            return
        line = describe_precision(settings, stored.precision)
    except RecipeError as error:
        raise RecipeError(f"stage '{stage.origin}': {error}") from None
    if stored.note:
        yield f"stage '{stage.origin}': {stored.note}"
    if line:
        yield f"stage '{stage.origin}': {line}"


def _check_routers(plan: Plan, stage: PlannedStage) -> Iterator[str]:
    """Yields how a stage trains the routers of a mixture of experts, where its model's config is known.

    Raises RecipeError for settings that do not fit the model.
    """
    config = trace_config(plan, stage) if isinstance(stage.settings, Optimizer) else None
    if config is None:
        return
    assert isinstance(stage.settings, Optimizer)
    try:
        found = resolve_router_settings(stage.settings, config, stage.runtime)
    except RecipeError as error:
        raise RecipeError(f"stage '{stage.origin}': {error}") from None
    if found is not None:
        yield f"stage '{stage.origin}': experts: {describe_routers(found)}"


def _check_logits(plan: Plan, stage: PlannedStage) -> None:
    """Raises RecipeError for online RL of a model that scales or caps its logits, where its config is known."""
    is_ours = isinstance(stage.settings, OnlineRl) and stage.settings.has_own_loop
    config = trace_config(plan, stage) if is_ours else None
    scale = find_logit_scale(config) if config else None
    if scale:
        raise RecipeError(f"stage '{stage.origin}': online RL does not know this model's logits ({scale})")
