"""Names from other toolkits: each is told as the setting that is meant, and that setting exists."""

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from qwen_align.align.settings.fault_wording import describe_error
from qwen_align.align.settings.foreign_names import list_foreign_names
from qwen_align.align.settings.recipe import ModelSource, Recipe, StageSpec
from qwen_align.data_builders import BuilderSettings
from qwen_align.reward.settings import Reward


def has_setting(annotation: Any, path: list[str]) -> bool:
    """Whether a type, or one of the types it is made of, has a setting at a dotted path."""
    if not path:
        return True
    fields = getattr(annotation, "model_fields", {})
    if path[0] in fields and has_setting(fields[path[0]].annotation, path[1:]):
        return True
    return any(has_setting(inner, path) for inner in get_args(annotation))


@pytest.mark.parametrize(("name", "setting"), list(list_foreign_names()))
def test_every_setting_that_is_named_exists(name: str, setting: str) -> None:
    types = [StageSpec, ModelSource, BuilderSettings, Reward]
    assert any(has_setting(one, setting.split(".")) for one in types), f"{name} -> {setting}"
    assert name not in Recipe.model_fields


STAGE = {"name": "s", "from_model": "base", "from_data": ["data"]}
TRAINED = {**STAGE, "max_tokens": 8, "batch": 2, "epochs": 1, "learning_rate": 1e-4}
SFT = {**TRAINED, "kind": "sft"}
GRPO = {
    **STAGE,
    "kind": "grpo",
    "steps": 1,
    "prompts_per_step": 2,
    "completions_per_prompt": 2,
    "sampling": {"max_tokens": 8, "temperature": 1.0},
    "rewards": [{"kind": "math_answer"}],
    "learning_rate": 1e-4,
}


@pytest.mark.parametrize(
    ("stage", "changed", "said"),
    [
        (SFT, {"per_device_train_batch_size": 8}, "'per_device_train_batch_size' is called 'batch' here (over all"),
        (SFT, {"gradient_accumulation_steps": 8}, "'gradient_accumulation_steps' is no setting: accumulation follows"),
        (SFT, {"max_seq_length": 8}, "'max_seq_length' is called 'max_tokens' here (longer rows are dropped"),
        (SFT, {"cutoff_len": 8}, "'cutoff_len' is called 'max_tokens' here"),
        (SFT, {"num_train_epochs": 8}, "'num_train_epochs' is called 'epochs' here"),
        (SFT, {"lora_alpha": 8}, "'lora_alpha' is called 'lora.alpha' here"),
        (SFT, {"lora": {"r": 8, "lora_alpha": 2}}, "'r' is called 'rank' here; 'lora_alpha' is called 'alpha' here"),
        (SFT, {"gradient-checkpointing-kwargs": {}}, "is called 'runtime.gradient_checkpointing' here"),
        (GRPO, {"num_generations": 8}, "'num_generations' is called 'completions_per_prompt' here"),
        (GRPO, {"beta": 0.1}, "'beta' is called 'kl.coefficient' here (without kl: no penalty)"),
        (GRPO, {"max_completion_length": 8}, "'max_completion_length' is called 'sampling.max_tokens' here"),
        (GRPO, {"sampling": {"max_new_tokens": 8}}, "'max_new_tokens' is called 'max_tokens' here"),
        (GRPO, {"temperature": 1.0}, "'temperature' is called 'sampling.temperature' here"),
        (GRPO, {"reward_funcs": []}, "'reward_funcs' is called 'rewards' here ([{kind: math_answer}], or"),
        (GRPO, {"ppo_epochs": 2}, "'ppo_epochs' is called 'updates.epochs' here"),
        (SFT, {"num_generations": 2}, "'num_generations' is called 'completions_per_prompt' here, and stands in a st"),
        (SFT, {"optim": "adamw"}, "'optim' is no setting: the optimiser is AdamW"),
        (
            SFT,
            {"rope_scaling": "yarn"},
            "'rope_scaling' is no setting: `yarn: {factor: 4.0}` stands beside path or hub",
        ),
        (
            SFT,
            {"runtime": {"context_parallel": 2}},
            "'context_parallel' is no setting: each row is trained on one device",
        ),
    ],
)
def test_a_name_of_another_toolkit_is_told_as_ours(stage: dict[str, Any], changed: dict[str, Any], said: str) -> None:
    (settings_class,) = [one for one in get_args(StageSpec) if one.__name__.lower() == stage["kind"]]
    settings_class.model_validate(stage)
    with pytest.raises(ValidationError) as error:
        settings_class.model_validate({**stage, **changed})
    assert said in describe_error(error.value)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("output_dir", "'output_dir' is no setting: results lie under --home"),
        ("per_device_train_batch_size", "is called 'batch' here, and stands in a stage"),
        ("learning_rate", "'learning_rate' is a setting of stages, not of the recipe"),
        ("model_name_or_path", "is called 'from_model' here, and stands in a stage (a stage names an entry of models"),
    ],
)
def test_a_setting_beside_the_stages_is_told_where_it_stands(key: str, said: str) -> None:
    with pytest.raises(ValidationError) as error:
        Recipe.model_validate({"name": "x", "stages": [SFT], key: 1})
    assert said in describe_error(error.value)
