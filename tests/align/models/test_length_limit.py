"""How many tokens a model can read: the same for `check`, for every stage and for every engine."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from qwen_align.align.context import Context
from qwen_align.align.errors import RecipeError
from qwen_align.align.models import loading
from qwen_align.align.models.length_limit import compute_length_limit, require_room_for_completions
from qwen_align.align.pipeline.plan import plan as make_plan
from qwen_align.align.pipeline.preview import Preview
from qwen_align.align.rows import Chat, Message, Pair, Problem, Row, to_json_line
from qwen_align.align.settings.recipe import AnyStage
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.stages import sampling_checks
from qwen_align.align.stages.registry import STAGE_KINDS, import_function

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LINEAR = {"rope_type": "linear", "factor": 8.0}
LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "original_max_position_embeddings": 8192}
LONGROPE = {"rope_type": "longrope", "long_factor": [1.0], "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("config", "limit"),
    [
        ({"max_position_embeddings": 40960}, 40960),
        ({"max_position_embeddings": 40960, "rope_scaling": None}, 40960),
        ({"max_position_embeddings": 40960, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, 40960),
        # Qwen3's README: the scaling alone is added. https://huggingface.co/Qwen/Qwen3-8B, "Processing Long Texts"
        ({"max_position_embeddings": 40960, "rope_scaling": YARN}, 131072),
        ({"max_position_embeddings": 40960, "rope_parameters": {"rope_theta": 1e6, **YARN}}, 131072),
        ({"max_position_embeddings": 131072, "rope_scaling": YARN}, 131072),
        # Llama 3.2's config.json, whose positions are the scaled ones: it reads 128k tokens, not 8,192 times 32.
        ({"max_position_embeddings": 131072, "rope_scaling": LLAMA3}, 131072),
        ({"max_position_embeddings": 2048, "rope_scaling": {"type": "linear", "factor": 2.5}}, 5120),
        # Beyond these the frequencies are those of the longest row of a pass.
        ({"max_position_embeddings": 131072, "rope_scaling": LONGROPE}, 4096),
        ({"max_position_embeddings": 131072, "original_max_position_embeddings": 8192, "rope_scaling": LONGROPE}, 8192),
        ({"max_position_embeddings": 2048, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, 2048),
        (
            {"max_position_embeddings": 4096, "rope_parameters": {"full_attention": LINEAR, "sliding_attention": {}}},
            32768,
        ),
        ({"text_config": {"max_position_embeddings": 512}, "max_position_embeddings": 7}, 512),
        ({"n_positions": 1024}, 1024),
        ({"model_type": "bloom"}, None),
    ],
)
def test_the_limit_is_that_of_the_config_and_its_scaling(config: dict[str, Any], limit: int | None) -> None:
    assert compute_length_limit(config) == limit


def test_the_longest_prompt_that_does_not_fit_is_named() -> None:
    lengths = [("short", 3), ("long", 9), ("longest", 12), ("fits", 6)]
    require_room_for_completions(None, lengths, 99)
    require_room_for_completions(14, lengths, 2)
    with pytest.raises(RecipeError, match=r"2 prompts are too long: 'longest' and held\.max_tokens .* 12 \+ 4"):
        require_room_for_completions(10, lengths, 4, setting="held")


@pytest.fixture(scope="module")
def short_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with 24 positions, of which YaRN by 4 makes 96."""
    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("short") / "model")
    config = json.loads((folder / "config.json").read_text())
    yarn = {**config["rope_parameters"], **YARN, "original_max_position_embeddings": 24}
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 24, "rope_parameters": yarn}))
    return folder


def user(n_words: int) -> list[Message]:
    return [Message(role="user", content=" ".join(["7"] * n_words))]


def problem(n_words: int) -> list[Row]:
    asked = {"p": 2, "longest": n_words}
    return [Problem(id=name, messages=user(n), gold="1", reward="math_answer") for name, n in asked.items()]


def chat(n_words: int) -> list[Row]:
    answer = Message(role="assistant", content=" ".join(["7"] * n_words))
    return [Chat(id="c", messages=[*user(1), answer], mode="no_think")]


def pair(n_words: int) -> list[Row]:
    long, short = (Message(role="assistant", content=" ".join(["7"] * n)) for n in (n_words, 1))
    return [Pair(id="p", messages=user(1), chosen=short, rejected=long, mode="no_think")]


TRAIN = {"from_data": ["rows"], "max_tokens": 500, "batch": 1, "epochs": 1, "learning_rate": 1e-4}
SAMPLE = {"sampling": {"temperature": 1.0, "max_tokens": 4}, "completions_per_prompt": 2}
RL = {**SAMPLE, "from_data": ["rows"], "steps": 1, "prompts_per_step": 1, "learning_rate": 1e-4}
MATH = {"rewards": [{"kind": "math_answer"}]}
HELD_OUT = {"held_out": {"from_data": ["long"], "every_steps": 1}}
KINDS: dict[str, tuple[dict[str, Any], Any]] = {
    "sft": ({**TRAIN, "kind": "sft"}, chat),
    "dpo": ({**TRAIN, "kind": "dpo", "beta": 0.1}, pair),
    "reward_model": ({**TRAIN, "kind": "reward_model"}, pair),
    "rollout": ({**SAMPLE, **MATH, "kind": "rollout", "from_data": "rows"}, problem),
    "evaluate": ({**SAMPLE, "kind": "evaluate", "from_data": ["rows"]}, problem),
    "grpo": ({**RL, **MATH, "kind": "grpo"}, problem),
    "grpo with TRL": ({**RL, **MATH, "kind": "grpo", "trainer": "trl"}, problem),
    "ppo": ({**RL, **MATH, "kind": "ppo", "critic": {"learning_rate": 1e-4}}, problem),
    "held out": ({**RL, **MATH, **HELD_OUT, "kind": "grpo", "from_data": ["short"]}, problem),
    "held out, long completions": (
        {
            **RL,
            **MATH,
            "kind": "grpo",
            "from_data": ["short"],
            "held_out": {**HELD_OUT["held_out"], "sampling": {"temperature": 1.0, "max_tokens": 80}},
        },
        lambda n_words: problem(20 if n_words > 96 else 1),
    ),
}


def write_rows(folder: Path, n_words: int, make: Callable[[int], list[Row]]) -> None:
    for ref, rows in {"rows": make(n_words), "long": make(n_words), "short": problem(1)}.items():
        (folder / ref).mkdir(parents=True)
        (folder / ref / "rows.jsonl").write_text("".join(to_json_line(row) + "\n" for row in rows))


def check(model: Path, folder: Path, settings: dict[str, Any]) -> list[str]:
    data = [
        {
            "name": ref,
            "kind": "build_data",
            "builder": {"kind": "local_file", "path": f"{ref}/rows.jsonl", "rows": "typed"},
        }
        for ref in ("rows", "long", "short")
    ]
    stage = {"name": "stage", "from_model": "base", **settings}
    recipe = {"name": "lengths", "models": {"base": {"path": str(model)}}, "stages": [*data, stage]}
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    planned = make_plan(folder / "recipe.yaml", folder)
    (of_stage,) = planned.find_stages("stage")
    return list(import_function(STAGE_KINDS[settings["kind"]].check)(of_stage, Preview(planned)))


def run(model: Path, folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    spec = TypeAdapter[Any](AnyStage).validate_python({"name": "stage", "from_model": "base", **settings})
    out = folder / "out"
    out.mkdir()
    inputs = {"base": model, **{ref: folder / ref for ref in ("rows", "long", "short")}}
    summary: dict[str, Any] = import_function(STAGE_KINDS[settings["kind"]].run)(
        spec, inputs, out, Context(out, 0, Runtime(device="cpu"))
    )
    return summary


@pytest.mark.parametrize("name", KINDS)
def test_what_is_too_long_is_refused_by_check_and_at_the_start_of_the_stage(
    short_model: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, make = KINDS[name]
    write_rows(tmp_path, 120, make)
    monkeypatch.setattr(loading, "load_model", None)  # nothing is loaded, sampled or trained before
    with pytest.raises(RecipeError, match="the model has 96 positions") as by_check:
        check(short_model, tmp_path, settings)
    with pytest.raises(RecipeError) as by_run:
        run(short_model, tmp_path, settings)
    assert str(by_check.value) == str(by_run.value)


@pytest.mark.parametrize("name", KINDS)
def test_check_accepts_a_length_within_the_scaled_positions(short_model: Path, tmp_path: Path, name: str) -> None:
    settings, make = KINDS[name]
    write_rows(tmp_path, 30, make)
    assert check(short_model, tmp_path, settings)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpo", "held out"])  # the others: tests/end_to_end/test_long_context.py
def test_a_length_within_the_scaled_positions_is_run(short_model: Path, tmp_path: Path, name: str) -> None:
    settings, make = KINDS[name]
    write_rows(tmp_path, 30, make)
    assert run(short_model, tmp_path, settings)


def test_every_prompt_that_may_be_too_long_is_measured_and_no_other() -> None:
    """Not only those with most characters: a letter of Chinese may be three tokens of a model that knows none."""
    asked = {f"latin{n}": "a" * 100 for n in range(60)} | {"chinese": "天" * 60}
    assert len(asked["chinese"]) < 100 < len(asked["chinese"].encode())
    problems = [
        Problem(id=name, messages=[Message(role="user", content=text)], gold="1", reward="math_answer")
        for name, text in asked.items()
    ]
    chosen = sampling_checks._select_long_prompts(problems, max_tokens=100, limit=100 + 512 + 116)
    assert len(chosen) == sampling_checks.N_LONGEST_RENDERED
    assert chosen[0].id == "chinese"
    assert len(sampling_checks._select_long_prompts(problems, max_tokens=100, limit=100 + 512 + 115)) == 61
    assert (
        len(sampling_checks._select_long_prompts(problems, max_tokens=100, limit=None))
        == sampling_checks.N_LONGEST_RENDERED
    )
