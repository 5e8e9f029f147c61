"""Lists the stage kinds: one entry per kind, with everything the rest of the code needs to know of it.

`align/settings/<kind>.py` holds a kind's settings, `align/stages/<kind>.py` what it does. Functions are named by import
strings ("module:name"), so that reading this table imports nothing heavy.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from qwen_align.align.references import Product


@dataclass(frozen=True)
class StageKind:
    """A kind of stage, as the rest of the code needs to know it.

    settings: its settings class. run: `run(settings, inputs, out, context) -> summary`, in the stage's own process.
    check: `check(planned, preview) -> lines`, what `check` reports and refuses; imports no torch.
    forecast: the same where rows or model are not there yet. list_rows: the rows it will make, where that can be told
    before it has run.
    code_version: part of the key of everything the kind makes; raise it when results change.
    makes_head: its model gets a new head, so that of the model it starts from may be missing.
    curve: what trackers get, its logged steps or the figures of its evaluation. completions_file: where the completions
    lie that the report draws lengths and rewards of.
    """

    settings: str
    run: str
    check: str
    product: Product
    code_version: int
    forecast: str | None = None
    list_rows: str | None = None
    needs_torch: bool = True
    is_single_process: bool = False
    makes_tokenizer: bool = False
    makes_head: bool = False
    curve: Literal["steps", "evaluation"] | None = None
    completions_file: str | None = None


_SETTINGS, _STAGES = "qwen_align.align.settings", "qwen_align.align.stages"
_CHECKS = f"{_STAGES}.checks"
_SAMPLING_CHECKS = f"{_STAGES}.sampling_checks"

STAGE_KINDS: dict[str, StageKind] = {
    "build_data": StageKind(
        settings=f"{_SETTINGS}.build_data:BuildData",
        run=f"{_STAGES}.build_data:run",
        check=f"{_CHECKS}:check_data",
        forecast=f"{_CHECKS}:forecast_data",
        list_rows=f"{_CHECKS}:list_built_rows",
        product="data",
        code_version=6,
        needs_torch=False,
        is_single_process=True,
    ),
    "pretrain": StageKind(
        settings=f"{_SETTINGS}.pretrain:Pretrain",
        run=f"{_STAGES}.pretrain:run",
        check=f"{_CHECKS}:check_pretraining",
        product="model",
        code_version=2,
        is_single_process=True,
        makes_tokenizer=True,
        curve="steps",
    ),
    "rollout": StageKind(
        settings=f"{_SETTINGS}.rollout:Rollout",
        run=f"{_STAGES}.rollout:run",
        check=f"{_SAMPLING_CHECKS}:check_rollout",
        forecast=f"{_SAMPLING_CHECKS}:forecast_rollout",
        product="data",
        code_version=5,
        completions_file="rows.jsonl",
    ),
    "sft": StageKind(
        settings=f"{_SETTINGS}.sft:Sft",
        run=f"{_STAGES}.sft:run",
        check=f"{_CHECKS}:check_supervised_training",
        forecast=f"{_CHECKS}:forecast_training",
        product="model",
        code_version=4,
        curve="steps",
    ),
    "dpo": StageKind(
        settings=f"{_SETTINGS}.dpo:Dpo",
        run=f"{_STAGES}.dpo:run",
        check=f"{_CHECKS}:check_training_on_pairs",
        forecast=f"{_CHECKS}:forecast_training",
        product="model",
        code_version=3,
        curve="steps",
    ),
    "reward_model": StageKind(
        settings=f"{_SETTINGS}.reward_model:RewardModel",
        run=f"{_STAGES}.reward_model:run",
        check=f"{_CHECKS}:check_training_on_pairs",
        forecast=f"{_CHECKS}:forecast_training",
        product="scorer",
        makes_head=True,
        code_version=4,
        curve="steps",
    ),
    "grpo": StageKind(
        settings=f"{_SETTINGS}.grpo:Grpo",
        run=f"{_STAGES}.grpo:run",
        check=f"{_SAMPLING_CHECKS}:check_online_rl",
        forecast=f"{_SAMPLING_CHECKS}:forecast_online_rl",
        product="model",
        code_version=10,
        curve="steps",
    ),
    "ppo": StageKind(
        settings=f"{_SETTINGS}.ppo:Ppo",
        run=f"{_STAGES}.ppo:run",
        check=f"{_SAMPLING_CHECKS}:check_online_rl",
        forecast=f"{_SAMPLING_CHECKS}:forecast_online_rl",
        product="model",
        code_version=7,
        curve="steps",
    ),
    "evaluate": StageKind(
        settings=f"{_SETTINGS}.evaluate:Evaluate",
        run=f"{_STAGES}.evaluate:run",
        check=f"{_SAMPLING_CHECKS}:check_evaluation",
        forecast=f"{_SAMPLING_CHECKS}:forecast_evaluation",
        product="evaluation",
        code_version=6,
        curve="evaluation",
        completions_file="completions.jsonl",
    ),
}
CODE_VERSIONS = {name: kind.code_version for name, kind in STAGE_KINDS.items()}


def import_function(import_string: str) -> Callable[..., Any]:
    """Imports and returns the function or class that an import string "module:name" names."""
    module, _, name = import_string.partition(":")
    function: Callable[..., Any] = getattr(import_module(module), name)
    return function
