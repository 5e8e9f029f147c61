"""YaRN by 4 on a model of 64 positions: rows of 3.9 times as many tokens go through every stage, of 4.1 nowhere."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from qwen_align import load_model
from qwen_align.align.generation.requests import render_problem
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rows import Chat, Message, Problem, Row, read_rows, to_json_line

Made = TypeVar("Made", Chat, Problem)
ORIGINAL, FACTOR = 64, 4.0
ACCEPTED, REFUSED = int(3.9 * ORIGINAL), int(4.1 * ORIGINAL)
N_DRAWN = 5
SAMPLING = {"temperature": 1.0, "max_tokens": N_DRAWN}
TRAINED: dict[str, Any] = {"learning_rate": 1e-2, "lora": {"rank": 2, "alpha": 4}}
DRAWN: dict[str, Any] = {"completions_per_prompt": 2, "sampling": SAMPLING}
STAGES: dict[str, dict[str, Any]] = {
    "sft": {"from_data": ["chats"], "max_tokens": 1000, "batch": 1, "epochs": 1, **TRAINED},
    "rollout": {"from_data": "problems", "rewards": [{"kind": "random"}], **DRAWN},
    "evaluate": {"from_data": ["problems"], **DRAWN},
    "grpo": {
        "from_data": ["problems"],
        "rewards": [{"kind": "random"}],
        "steps": 1,
        "prompts_per_step": 1,
        **DRAWN,
        **TRAINED,
    },
}


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model with 64 positions and no scaling."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": ORIGINAL}))
    return folder


def make_row(measure: Callable[[Made], int], build: Callable[[str], Made], n_tokens: int) -> Made:
    """Makes a row of exactly so many tokens, by words one after another."""
    for n_words, last in itertools.product(range(1, n_tokens), ("7", "77")):
        row = build("7 " * n_words + last)
        if measure(row) == n_tokens:
            return row
    raise AssertionError(f"no row of {n_tokens} tokens")


def write_rows(folder: Path, model: Path, n_tokens: int) -> None:
    """Writes a conversation of so many tokens, and a problem that is as long with its completion."""
    renderer = Renderer.load(model)

    def build_problem(words: str) -> Problem:
        return Problem(id="long", messages=[Message(role="user", content=words)], gold="1", reward="math_answer")

    def build_chat(words: str) -> Chat:
        messages = [Message(role="user", content="2"), Message(role="assistant", content=words)]
        return Chat(id="long", messages=messages, mode="no_think")

    def measure_problem(row: Problem) -> int:
        return len(render_problem(row, renderer).prompt.ids)

    def measure_chat(row: Chat) -> int:
        return max(len(sample.ids) for sample in renderer.render_samples(row))

    rows: dict[str, Row] = {
        "chats": make_row(measure_chat, build_chat, n_tokens),
        "problems": make_row(measure_problem, build_problem, n_tokens - N_DRAWN),
    }
    for name, row in rows.items():
        (folder / f"{name}.jsonl").write_text(to_json_line(row) + "\n")


def list_stages(*kinds: str, source: str) -> list[dict[str, Any]]:
    """Lists stages of these kinds and of their data; all but sft start from `source`."""
    builder = {"kind": "local_file", "rows": "typed"}
    data = [
        {"name": name, "kind": "build_data", "builder": {**builder, "path": f"{name}.jsonl"}}
        for name in ("chats", "problems")
    ]
    of = [{"name": kind, "kind": kind, "from_model": "base" if kind == "sft" else source} for kind in kinds]
    return data + [{**stage, **STAGES[stage["kind"]]} for stage in of]


@pytest.mark.slow(seconds=60)
def test_with_yarn_rows_of_up_to_four_times_the_positions_go_through_every_stage(
    model: Path, tmp_path: Path, write_recipe: Callable[..., Path], cli: Callable[..., Any]
) -> None:
    yarn = {"models": {"base": {"path": str(model), "yarn": {"factor": FACTOR}}}}
    common = {**yarn, "runtime": {"device": "cpu", "threads": 1}}
    write_rows(tmp_path, model, ACCEPTED)
    recipe = write_recipe(list_stages(*STAGES, source="sft"), **common)
    for command in ("check", "run"):
        said = cli(command, recipe)
        assert said.code == 0, said
    stages = tmp_path / "runs" / "trial" / "stages"
    assert [row.row for row in read_rows(stages / "rollout" / "rows.jsonl")] == ["completion"] * 2
    # What is handed on has the scaling, and the user's own folder has none.
    trained, _ = load_model(stages / "grpo")
    assert trained.config.rope_parameters["rope_type"] == "yarn"
    assert trained.config.rope_parameters["original_max_position_embeddings"] == ORIGINAL
    assert "yarn" not in (model / "config.json").read_text()

    without = write_recipe(
        list_stages("sft", source="base"), models={"base": {"path": str(model)}}, runtime=common["runtime"]
    )
    assert f"takes up to {ACCEPTED} tokens, but the model has {ORIGINAL} positions" in cli("check", without).err

    write_rows(tmp_path, model, REFUSED)
    for kind in STAGES:
        recipe = write_recipe(list_stages(kind, source="base"), **common)
        found = [cli(command, recipe) for command in ("check", "run")]
        assert [said.code for said in found] == [2, 2], kind
        messages = [said.err[said.err.index("takes up to" if kind == "sft" else "prompt is") :] for said in found]
        assert messages[0].splitlines()[0] == messages[1].splitlines()[0]
        assert f"the model has {int(FACTOR * ORIGINAL)} positions" in messages[0]
