"""Evaluates one model on the caller's own rows with a reward, through the same stage as in a recipe."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qwen_align.align.api.recipe import Recipe
from qwen_align.align.api.results import Evaluation, StageResult
from qwen_align.align.api.run import run

HUB_MODEL = re.compile(r"(?P<hub>[\w.-]+/[\w.-]+)@(?P<revision>[\w./-]+)")
STAGE_SETTINGS = ("seed", "runtime", "max_no_verdict_share")


def evaluate(
    model: str | Path | StageResult | Mapping[str, Any],
    rows: Any,
    *,
    sampling: Mapping[str, Any],
    reward: str | Callable[..., Any] | Mapping[str, Any] = "math_answer",
    completions_per_prompt: int = 1,
    columns: Mapping[str, str] | None = None,
    home: str | Path = ".",
    **settings: Any,
) -> Evaluation:
    """Evaluates a model on question rows and returns its accuracy with standard error, question means and completions.

    model: a stage of a run (`results["sft"]`), the folder of a stage or a model, a hub id with its commit,
    branch or tag ("Qwen/Qwen3-0.6B@<40 hex digits>"), or a recipe's form such as `{"shipped": "tiny_base"}`.
    rows: dicts or a DataFrame with `prompt` and `gold` (or other names: `columns={"prompt": "question"}`), the path of
    a file with such rows, a data stage of a run, or the settings of a builder (`{"kind": "arithmetic", ...}`).
    sampling: as in a recipe, `{"temperature": 0.7, "max_tokens": 512}`.
    reward: a kind, a function of completion and gold, or a reward's settings.
    completions_per_prompt: completions sampled for each question.
    settings: `thinking_switch` (how the model is asked to think or not), `seed`, `runtime`, `max_no_verdict_share`, and
    `name`, that of the run's folder under `home`/runs (default "evaluate").

    What was evaluated before with the same settings is read from the store. Raises as `run`.
    """
    name = settings.pop("name", "evaluate")
    switch = settings.pop("thinking_switch", None)
    if unknown := sorted(set(settings) - set(STAGE_SETTINGS)):
        raise TypeError(
            f"evaluate() has no argument '{unknown[0]}'; it has name, thinking_switch, {', '.join(STAGE_SETTINGS)}"
        )
    rule = _to_reward(reward)
    kind = rule.get("kind", "")
    questions: dict[str, Any] = {"name": "questions", "kind": "build_data", "builder": _to_builder(rows, columns, kind)}
    stage = {
        "name": "evaluation",
        "kind": "evaluate",
        "from_model": "model",
        "from_data": ["questions"],
        "completions_per_prompt": completions_per_prompt,
        "sampling": dict(sampling),
        "rewards": [rule],
        **({} if switch is None else {"thinking_switches": [dict(switch)]}),
        **settings,
    }
    recipe = Recipe(name=name, models={"model": _to_model_source(model)}, stages=[questions, stage])
    (evaluation,) = run(recipe, home=home).evaluations
    return replace(evaluation, model=_name_model(model))


def _name_model(model: str | Path | StageResult | Mapping[str, Any]) -> str:
    """Returns the display name of a model in results: its stage name, hub id or folder name."""
    if isinstance(model, StageResult):
        return model.name
    source = _to_model_source(model)
    return str(source.get("shipped") or source.get("hub") or Path(source["path"]).name)


def _to_model_source(model: str | Path | StageResult | Mapping[str, Any]) -> dict[str, Any]:
    """Converts the `model` argument of `evaluate` to the model source that a recipe would write."""
    if isinstance(model, Mapping):
        return dict(model)
    if isinstance(model, StageResult):
        return {"path": str(model.folder.resolve())}
    hub = HUB_MODEL.fullmatch(str(model))
    return hub.groupdict() if hub else {"path": str(model)}


def _to_reward(reward: str | Callable[..., Any] | Mapping[str, Any]) -> dict[str, Any]:
    """Converts the `reward` argument of `evaluate` to the reward settings that a recipe would write."""
    if isinstance(reward, str):
        return {"kind": reward}
    return dict(reward) if isinstance(reward, Mapping) else {"kind": "python", "file": reward}


def _to_builder(rows: Any, columns: Mapping[str, str] | None, reward: str) -> dict[str, Any]:
    """Returns the settings of the data builder that turns the caller's rows into questions for the named reward."""
    if isinstance(rows, Mapping):
        if columns:
            raise TypeError("columns: belong to rows; a builder's settings say themselves what is in its columns")
        return dict(rows)
    if isinstance(rows, StageResult):
        return {"kind": "local_file", "path": str(rows.folder.resolve() / "rows.jsonl"), "rows": "typed"}
    path = str(rows) if isinstance(rows, Path) else rows
    return {"kind": "local_file", "path": path, "rows": "problem", "reward": reward, "columns": dict(columns or {})}
