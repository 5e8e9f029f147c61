"""What would hang in silence or be no number is refused by `check` at once, with the bound."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import pytest
from pydantic import BaseModel

from qwen_align.align.settings.base import Strict
from qwen_align.align.settings.recipe import Recipe

DATA: dict[str, Any] = {
    "name": "data",
    "kind": "build_data",
    "builder": {"kind": "arithmetic", "rows": "trace", "n": 4, "steps": [1]},
}
SFT: dict[str, Any] = {
    "name": "sft",
    "kind": "sft",
    "from_model": "base",
    "from_data": ["data"],
    "max_tokens": 128,
    "batch": 1,
    "epochs": 1,
    "learning_rate": 1e-4,
}


@pytest.fixture
def refusal(tmp_path: Path, cli: Callable[..., Any], write_recipe: Callable[..., Path]) -> Callable[..., str]:
    """What `check` says of a recipe that it refuses within seconds."""

    def of(*stages: dict[str, Any], **rest: Any) -> str:
        recipe = write_recipe(list(stages), **{"models": {"base": {"shipped": "tiny_base"}}, **rest})
        began = time.process_time()
        said = cli("check", recipe, home=tmp_path / "home")
        assert time.process_time() - began < 5
        assert said.code == 2
        assert "Traceback" not in said.err
        return str(said.err)

    return of


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs", 1e300),
        ("epochs", 10_001),
        ("batch", 10**12),
        ("runtime", {"micro_batch": 10**10}),
        ("runtime", {"processes": 10**6}),
        ("runtime", {"threads": 10**6}),
        ("runtime", {"generation_batch": 10**9}),
    ],
)
def test_amounts_that_nobody_means_are_refused(refusal: Callable[..., str], setting: str, value: Any) -> None:
    assert "must be at most" in refusal(DATA, {**SFT, setting: value})


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("learning_rate", math.inf),
        ("learning_rate", math.nan),
        ("weight_decay", math.nan),
        ("max_grad_norm", math.inf),
        ("epochs", math.nan),
        ("betas", [0.9, math.nan]),
        ("betas", [0.9, 1.5]),
        ("betas", [-math.inf, 0.9]),
        ("lora", {"rank": 4, "alpha": math.inf}),
        ("lora", {"rank": 4, "alpha": 8.0, "dropout": math.nan}),
    ],
)
def test_nan_and_infinity_are_no_settings(refusal: Callable[..., str], setting: str, value: Any) -> None:
    assert f"stage 'sft': {setting}" in refusal(DATA, {**SFT, setting: value})


def list_settings_classes(annotation: Any, seen: set[Any]) -> Iterator[type[BaseModel]]:
    """Every settings class that a recipe can hold."""
    if get_origin(annotation) is Annotated or get_args(annotation):
        for argument in get_args(annotation):
            yield from list_settings_classes(argument, seen)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel) and annotation not in seen:
        seen.add(annotation)
        yield annotation
        for field in annotation.model_fields.values():
            yield from list_settings_classes(field.annotation, seen)


def test_no_settings_class_lets_nan_in() -> None:
    found = list(list_settings_classes(Recipe, set()))
    assert len(found) > 60
    for one in found:
        assert issubclass(one, Strict), one
        assert one.model_config.get("allow_inf_nan") is False, one


def test_repeats_and_matrices_have_a_cap_that_says_so(refusal: Callable[..., str]) -> None:
    assert "times: must be at most 1000" in refusal({"repeat": {"times": 20_000, "stages": [DATA]}})
    said = refusal(DATA, matrix={"seed": list(range(300)), "stages.data.limit": list(range(1, 101))})
    assert "30,000 cells of the matrix with 1 stages each (repeats counted) make 30,000 stages; at most 10,000" in said
    axes = {f"stages.data.builder.a{axis}": list(range(10)) for axis in range(12)}
    assert "1,000,000,000,000 cells" in refusal(DATA, matrix=axes)
    blocks = [{"repeat": {"times": 1000, "stages": [{**DATA, "name": f"d{n}"}]}} for n in range(11)]
    assert "11,000 stages" in refusal(*blocks)


@pytest.mark.parametrize(
    "setting", ["name", "report.title", "tracking.group", "tiny", "extends", "matrix", "anchors.x", "change"]
)
def test_what_the_cells_of_a_matrix_share_is_no_axis(refusal: Callable[..., str], setting: str) -> None:
    assert f"matrix: {setting}: the cells share one run" in refusal(DATA, matrix={setting: ["a", "b"]})


def test_aliases_that_multiply_are_refused(tmp_path: Path, cli: Callable[..., Any]) -> None:
    levels = "".join(f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10))
    (tmp_path / "bomb.yaml").write_text(f"name: bomb\nanchors:\n  a0: &a0 [x]\n{levels}stages: []\n")
    began = time.process_time()
    said = cli("check", tmp_path / "bomb.yaml")
    assert (said.code, "more than 100,000 values" in said.err) == (2, True)
    levels = "".join(f"  a{n}: &a{n} {{k{n}: 1, <<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 10))
    (tmp_path / "merge.yaml").write_text(f"name: bomb\nanchors:\n  a0: &a0 {{x: 1}}\n{levels}stages: []\n")
    assert cli("check", tmp_path / "merge.yaml").code == 2
    assert time.process_time() - began < 5
