"""Finds config.json and precision of the model that a stage of a plan starts from, as far back as it was made."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_align.align.errors import RecipeError
from qwen_align.align.estimation.known_configs import KNOWN_CONFIGS
from qwen_align.align.models.model_description import (
    find_base_folder,
    is_stage_folder,
    locate_model_files,
    parse_hub_model,
)
from qwen_align.align.models.rotary_scaling import extend_by_yarn
from qwen_align.align.models.weight_check import read_model_config
from qwen_align.align.models.weight_precision import (
    StoredPrecision,
    find_handed_on_precision,
    read_precision,
    resolve_precision,
)
from qwen_align.align.pipeline.plan import Plan, PlannedStage
from qwen_align.align.references import ModelRef, find_references
from qwen_align.align.settings.training import Optimizer


def trace_config(plan: Plan, stage: PlannedStage) -> Mapping[str, Any] | None:
    """Returns the config.json of the local model that a stage starts from.

    Of a model that is pretrained here, what says which layers it has. Returns None if it is not known yet.
    """
    source = _trace_source(plan, stage)
    if source is None or isinstance(source, Mapping):
        return source
    base = None if source.startswith("hub:") else find_base_folder(Path(source))
    return read_model_config(base) if base else None


def find_config(plan: Plan, stage: PlannedStage) -> Mapping[str, Any] | None:
    """Returns what `trace_config` does, and of a model on the hub its config.json in the hub's cache.

    Of one that is not there yet it is what is known of Qwen's. Returns None for any other. Its `dtype` is that of the
    model's files, where these are known. Raises RecipeError for YaRN that this config cannot be given.
    """
    found = trace_config(plan, stage)
    if found is not None:
        stored = trace_precision(plan, stage)
        return {**found, "dtype": {"bf16": "bfloat16", "fp32": "float32"}[stored.precision]} if stored else found
    source = _trace_source(plan, stage)
    if not isinstance(source, str):
        return None
    if not source.startswith("hub:"):
        source = locate_model_files(Path(source)).base if is_stage_folder(Path(source)) else source
    if not source.startswith("hub:"):
        return None
    hub = parse_hub_model(source)
    cached = _get_hub_cache() / f"models--{hub.name.replace('/', '--')}" / "snapshots" / hub.revision / "config.json"
    if cached.is_file():
        config: Mapping[str, Any] | None = json.loads(cached.read_text(encoding="utf-8"))
    else:
        config = KNOWN_CONFIGS.get(hub.name)
    try:
        return extend_by_yarn(config, hub.yarn) if config and hub.yarn else config
    except ValueError as error:
        raise RecipeError(f"{hub.name}: {error}") from None


def trace_precision(plan: Plan, stage: PlannedStage) -> StoredPrecision | None:
    """Returns the precision of the model that a stage starts from. Returns None where only a download tells."""
    ref = next((ref for _, ref in find_references(stage.settings) if isinstance(ref, ModelRef)), None)
    if ref is None:
        return StoredPrecision("fp32")  # it makes a model of its own
    maker = next((other for other in plan.stages if other.name == stage.targets[str(ref)]), None)
    if maker is None:
        folder = Path(stage.inputs[str(ref)]["folder"])
        return None if str(folder).startswith("hub:") or find_base_folder(folder) is None else read_precision(folder)
    if isinstance(maker.settings, Optimizer):
        stored = trace_precision(plan, maker)
        if stored is None:
            return None
        resolved = resolve_precision(maker.settings, stored.precision)
        return StoredPrecision(find_handed_on_precision(resolved, stored.precision))
    return StoredPrecision("fp32")


def name_model(plan: Plan, stage: PlannedStage) -> str:
    """Returns the name of the model that a stage goes back to: its hub id, or that of its folder."""
    source = _trace_source(plan, stage)
    if not isinstance(source, str):
        return "a new model"
    if source.startswith("hub:"):
        return parse_hub_model(source).name
    return Path(source).name


def _trace_source(plan: Plan, stage: PlannedStage) -> str | Mapping[str, Any] | None:
    """Returns the folder or `hub:ID@COMMIT` that a stage's model goes back to, or the config of one made here."""
    ref = next((ref for _, ref in find_references(stage.settings) if isinstance(ref, ModelRef)), None)
    if ref is None:
        return None
    target = stage.targets[str(ref)]
    maker = next((other for other in plan.stages if other.name == target), None)
    if maker is None:
        return stage.inputs[str(ref)]["folder"]
    return maker.settings.get_new_model_config() or _trace_source(plan, maker)


def _get_hub_cache() -> Path:
    """Returns the folder in which huggingface_hub keeps models, without importing it."""
    if "HF_HUB_CACHE" in os.environ:
        return Path(os.environ["HF_HUB_CACHE"])
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    return Path(home).expanduser() / "hub"
