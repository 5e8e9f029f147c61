"""What is said of wrong values: our words for every setting there is, what was found and what to write."""

import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from qwen_align.align.errors import RecipeError
from qwen_align.align.settings.base import Strict
from qwen_align.align.settings.fault_wording import describe_error
from qwen_align.align.settings.recipe import Recipe
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.settings.sft import Sft
from qwen_align.reward.settings import parse_reward

# What pydantic says of itself: its types, its "should", its links.
RAW = re.compile(
    r"\b(?:Input|String|List|Tuple|Set|Dictionary|Value|Number|Field|Object|Unable|Extra)\b"
    r"|should|valid (?:string|integer|number|list|dictionary|boolean)|instance of|pydantic|\^|\\w|error"
)
WRONG: list[Any] = [True, 3, -1, 1.5, float("nan"), "x", "", "3", [], [3], [[]], ["a b"], {}, {"a": 1}, None]


def list_settings_classes() -> list[type[Strict]]:
    """Every class of settings that a recipe can hold, found by its fields' types."""
    found: dict[type[Strict], None] = {}

    def walk(annotation: Any) -> None:
        if isinstance(annotation, type) and issubclass(annotation, Strict) and annotation not in found:
            found[annotation] = None
            for field in annotation.model_fields.values():
                walk(field.annotation)
        for inner in get_args(annotation):
            walk(inner)

    walk(Recipe)
    return list(found)


def list_said(settings_class: type[BaseModel]) -> Iterator[tuple[str, str]]:
    for field in settings_class.model_fields:
        for value in WRONG:
            try:
                settings_class.model_validate({field: value}, context={"folder": "/"})
            except ValidationError as error:
                yield f"{settings_class.__name__}.{field}: {value!r}", describe_error(error)


@pytest.mark.parametrize("settings_class", list_settings_classes(), ids=lambda cls: cls.__name__)
def test_no_wrong_value_is_told_in_the_librarys_words(settings_class: type[Strict]) -> None:
    raw = {where: said for where, said in list_said(settings_class) if RAW.search(said)}
    assert not raw


def test_all_classes_are_looked_at() -> None:
    names = {settings_class.__name__ for settings_class in list_settings_classes()}
    assert {"Recipe", "ModelSource", "Sft", "Lora", "Grpo", "Kl", "PythonReward", "LocalFile", "Sieve"} <= names


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"from_data": "traces"}, "from_data: must be a list; found 'traces'; write [traces]"),
        ({"from_model": ["base"]}, "from_model: must be a text; found ['base']; write base, without brackets"),
        ({"lora": True}, "lora: must be a group of settings, {rank: ..., alpha: ...}; found true"),
        ({"lora": {"rank": 0, "alpha": 1}}, "lora.rank: must be at least 1; found 0"),
        ({"learning_rate": "1e-5"}, "learning_rate: must be a number; found '1e-5'; write it without quotes"),
        ({"batch": 2.5}, "batch: must be a whole number; found 2.5"),
        ({"schedule": "lineer"}, "schedule: must be 'constant', 'linear' or 'cosine'; found 'lineer'. Did you mean"),
        ({"betas": [0.9]}, "betas: must be a list of at least 2; found [0.9]"),
    ],
)
def test_a_wrong_value_is_told_with_what_to_write(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as error:
        Sft.model_validate(settings)
    assert said in describe_error(error.value)


def test_a_setting_of_two_types_is_one_fault() -> None:
    with pytest.raises(ValidationError) as error:
        Recipe.model_validate({"models": {"base": "Qwen/Qwen3-0.6B"}})
    assert "{hub: Qwen/Qwen3-0.6B, revision: main}" in describe_error(error.value)


def test_rewards_of_the_command_line_are_told_alike() -> None:
    with pytest.raises(RecipeError, match=r"^reward 'math_answer': weight: must be a number; found 'x'$"):
        parse_reward("math_answer", {"weight": "x"})


def test_a_value_by_its_name_elsewhere_is_told_the_name_here() -> None:
    with pytest.raises(ValidationError) as error:
        Runtime.model_validate({"device": "GPU"})
    assert describe_error(error.value).endswith("found 'GPU'. Did you mean 'cuda'?")
