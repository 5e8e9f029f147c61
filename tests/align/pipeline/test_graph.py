"""Stages in the order their references ask for, with repeats and matrices spelt out."""

from typing import Any

import pytest

from qwen_align.align.errors import RecipeError
from qwen_align.align.pipeline.graph import Graph, Stage, build_graph
from qwen_align.align.settings.recipe import Recipe
from qwen_align.align.settings.recipe_file import Variant

SAMPLING = {"temperature": 1.0, "max_tokens": 8}


def data(name: str = "data", **rest: Any) -> dict[str, Any]:
    builder = {"kind": "arithmetic", "rows": "problem", "n": 4, "steps": [1]}
    return {"name": name, "kind": "build_data", "builder": builder, **rest}


def sft(name: str = "sft", model: str = "base", rows: str = "data", **rest: Any) -> dict[str, Any]:
    settings = {"max_tokens": 8, "batch": 1, "epochs": 1, "learning_rate": 1e-4}
    return {"name": name, "kind": "sft", "from_model": model, "from_data": [rows], **settings, **rest}


def rollout(name: str, model: str, rows: str) -> dict[str, Any]:
    asked = {"completions_per_prompt": 2, "sampling": SAMPLING, "rewards": [{"kind": "math_answer"}]}
    return {"name": name, "kind": "rollout", "from_model": model, "from_data": rows, **asked}


def pairs(name: str, rows: str) -> dict[str, Any]:
    return {"name": name, "kind": "build_data", "builder": {"kind": "pairs", "from_data": rows}}


def evaluate(name: str, model: str, rows: str = "data") -> dict[str, Any]:
    return {
        "name": name,
        "kind": "evaluate",
        "from_model": model,
        "from_data": [rows],
        "completions_per_prompt": 1,
        "sampling": SAMPLING,
    }


def repeat(times: int, carry: dict[str, str], *stages: dict[str, Any]) -> dict[str, Any]:
    return {"repeat": {"times": times, "carry": carry, "stages": list(stages)}}


ROUND = (rollout("draws", "policy", "data"), pairs("pairs", "draws"), {**sft("dpo", "policy", "pairs"), "batch": 2})


def recipe(*stages: dict[str, Any], **rest: Any) -> Recipe:
    models = {"base": {"path": "/models/base"}, **rest.pop("models", {})}
    return Recipe.model_validate({"name": "trial", "models": models, "stages": list(stages), **rest})


def graph(*stages: dict[str, Any], **rest: Any) -> Graph:
    return build_graph([Variant({}, recipe(*stages, **rest))])


def names(whole: Graph) -> list[str]:
    return [stage.name for stage in whole.stages]


def named(whole: Graph, name: str) -> Stage:
    return next(stage for stage in whole.stages if stage.name == name)


def test_order_comes_from_references_and_else_from_position() -> None:
    whole = graph(evaluate("e", "second"), sft("second", "first"), data("late"), sft("first"), data())
    assert names(whole) == ["late", "data", "first", "second", "e"]
    assert named(whole, "second").targets == {"first": "first", "data": "data"}


def test_seed_and_runtime_are_the_recipes_but_for_what_a_stage_says() -> None:
    own = {"runtime": {"micro_batch": 2}, "seed": 5}
    whole = graph(data(), sft(), sft("other", **own), seed=3, runtime={"micro_batch": 64, "threads": 4})
    sizes = {stage.name: (stage.seed, stage.runtime.micro_batch, stage.runtime.threads) for stage in whole.stages}
    assert sizes == {"data": (3, 64, 4), "sft": (3, 64, 4), "other": (5, 2, 4)}


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([data(), sft(model="bsae")], "stage 'sft': from_model: 'bsae' is no stage or model. Did you mean 'base'?"),
        ([data(), sft(model="xyz")], "stage 'sft': from_model: 'xyz' is no stage or model; known: base, sft"),
        ([sft(rows="xyz")], "stage 'sft': from_data[0]: 'xyz' is no stage or model; nothing here makes data"),
        ([data(), sft(model="data")], "stage 'sft': from_model: 'data' makes data, but a model is wanted here"),
        ([data(), sft(rows="base")], "stage 'sft': from_data[0]: 'base' makes a model, but data is wanted here"),
        (
            [data(), evaluate("e", "base"), sft(model="e")],
            "stage 'sft': from_model: 'e' makes an evaluation, but a model is wanted here",
        ),
        ([data(), pairs("p", "base")], "stage 'p': builder.from_data: 'base' makes a model, but data is wanted here"),
        ([data(), sft(), sft()], "'sft' is the name of two stages or models; names are unique"),
        ([data(), sft("base")], "'base' is the name of two stages or models"),
        ([data(), repeat(1, {}, sft()), sft()], "'sft' is the name of two stages or models"),
        ([data(), repeat(1, {}, sft()), sft("sft.1")], "'sft.1' is the name of two stages or models"),
        ([data(), repeat(1, {}, sft()), repeat(1, {}, sft())], "'sft' is the name of two stages or models"),
        ([data(), repeat(1, {}, sft("base"))], "'base' is the name of two stages or models"),
        ([data(), sft(model="sft")], "stages wait for each other in a circle: sft -> sft"),
        (
            [data(), evaluate("e", "b"), sft("a", "c"), sft("b", "a"), sft("c", "b")],
            "stages wait for each other in a circle: b -> a -> c -> b",
        ),
        (
            [data(), repeat(2, {"base": "sff"}, sft())],
            "repeat: carry: 'base: sff': no stage here is called 'sff'.",
        ),
        (
            [data(), repeat(2, {"bse": "sft"}, sft())],
            "repeat: carry: 'bse: sft': no stage here refers to 'bse'.",
        ),
        (
            [data(), repeat(2, {"base": "x"}, sft(), data("x"))],
            "stage 'sft': from_model: 'base' makes data, but",
        ),
    ],
)
def test_wrong_references_are_refused(stages: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        graph(*stages)
    assert message in str(refused.value)
    assert refused.value.exit_code == 2


def test_repeat_carries_a_model_from_round_to_round() -> None:
    models = {"policy": {"path": "/models/policy"}}
    whole = graph(data(), repeat(3, {"policy": "dpo"}, *ROUND), evaluate("e", "dpo"), models=models)
    assert names(whole) == ["data", *(f"{name}.{n}" for n in (1, 2, 3) for name in ("draws", "pairs", "dpo")), "e"]
    targets = {stage.name: stage.targets for stage in whole.stages}
    assert targets["draws.1"] == {"policy": "policy", "data": "data"}
    assert targets["draws.2"] == {"policy": "dpo.1", "data": "data"}
    assert targets["pairs.2"] == {"draws": "draws.2"}
    assert targets["dpo.2"] == {"policy": "dpo.1", "pairs": "pairs.2"}
    assert targets["dpo.3"] == {"policy": "dpo.2", "pairs": "pairs.3"}
    assert targets["e"] == {"dpo": "dpo.3", "data": "data"}, "afterwards a name means the last round"
    assert {stage.name: stage.axes for stage in whole.stages}["dpo.2"] == {"round": "2"}
    assert named(whole, "dpo.2").origin == "dpo"


def test_carry_may_start_from_a_stage_before_the_repeat() -> None:
    whole = graph(data(), sft("policy"), repeat(2, {"policy": "dpo"}, *ROUND))
    assert named(whole, "dpo.1").targets["policy"] == "policy"
    assert named(whole, "dpo.2").targets["policy"] == "dpo.1"


def test_without_carry_rounds_start_alike() -> None:
    whole = graph(data(), repeat(2, {}, sft()))
    assert [named(whole, f"sft.{n}").targets["base"] for n in (1, 2)] == ["base", "base"]


def test_a_matrix_keeps_its_cells_apart() -> None:
    stages = [data(), sft(), repeat(2, {"sft": "more"}, sft("more", "sft"))]
    whole = build_graph([Variant({"seed": str(seed)}, recipe(*stages, seed=seed)) for seed in (0, 1)])
    assert set(whole.models) == {"base.seed=0", "base.seed=1"}
    assert names(whole)[:4] == ["data.seed=0", "sft.seed=0", "more.1.seed=0", "more.2.seed=0"]
    assert named(whole, "more.2.seed=1").targets == {"sft": "more.1.seed=1", "data": "data.seed=1"}
    assert named(whole, "more.2.seed=1").axes == {"seed": "1", "round": "2"}
    assert named(whole, "sft.seed=1").seed == 1
