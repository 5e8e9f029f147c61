"""Shipped recipes: what `check` says of them, offline; the tiny forms and the example of a task of one's own learn."""

import importlib.util
import json
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from qwen_align.align.errors import RecipeError
from qwen_align.align.pipeline.plan import plan as make_plan
from qwen_align.align.rows import Completion, Message
from qwen_align.align.settings.recipe_file import load_variants
from qwen_align.data_builders.arithmetic import Arithmetic

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
WITH_TINY = ["limo", "s1"]
DOC = ROOT / "docs" / "own_task.md"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("something wants the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_recipe_is_read(path: Path) -> None:
    assert load_variants(path)[0].recipe.name == path.stem


def test_the_coin_is_grpo_but_for_its_reward() -> None:
    by_name = {stage.name: stage for stage in load_variants(RECIPES / "evidence.yaml")[0].recipe.stages}
    coin, grpo = (by_name[name].model_dump(exclude={"name", "rewards", "runtime"}) for name in ("grpo_random", "grpo"))
    assert coin == grpo


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_tiny_form_is_read_where_there_is_one(path: Path) -> None:
    if path.stem in WITH_TINY:
        assert load_variants(path, tiny=True)[0].recipe.name == f"{path.stem}_tiny"
    else:
        with pytest.raises(RecipeError, match="has no tiny form"):
            load_variants(path, tiny=True)


@pytest.mark.parametrize(
    ("name", "rows", "says"),
    [
        ("s1", 1000, "if all 1,000 rows are kept: steps 315, 16 of warm-up; limit 32768"),
        ("limo", 800, "if all 800 rows are kept: steps 195, no warm-up; limit 16384"),
    ],
)
def test_published_runs_have_their_steps(
    cli: Callable[..., Any], offline: None, name: str, rows: int, says: str
) -> None:
    said = cli("check", RECIPES / f"{name}.yaml")
    assert said.code == 0, said.err
    assert says in said.out
    assert f"rows {rows:,}, if all are kept" in said.out


# What the authors' files say: simplescaling/s1 train/sft.sh, GAIR-NLP/LIMO train/examples/train_limo.yaml.
PUBLISHED = {
    "s1": {"batch": 16, "learning_rate": 1e-5, "schedule": "cosine", "warmup_steps": 16, "weight_decay": 1e-4,
           "betas": [0.9, 0.95], "max_tokens": 32768},
    "limo": {"batch": 64, "learning_rate": 5e-6, "schedule": "cosine", "warmup_steps": 0, "weight_decay": 0.0,
             "betas": [0.9, 0.999], "max_tokens": 16384},
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_runs_have_their_settings(name: str) -> None:
    (variant,) = load_variants(RECIPES / f"{name}.yaml")
    (sft,) = [stage for stage in variant.recipe.stages if getattr(stage, "name", "") == "sft"]
    given = sft.model_dump()
    assert {key: given[key] for key in PUBLISHED[name]} == PUBLISHED[name]
    assert sft.model_fields_set >= {*PUBLISHED[name], "epochs"}


@pytest.mark.parametrize("name", WITH_TINY)
def test_tiny_forms_are_checked_whole(cli: Callable[..., Any], offline: None, name: str) -> None:
    said = cli("check", RECIPES / f"{name}.yaml", "--tiny")
    assert said.code == 0, said.err
    assert "unknown until" not in said.out
    assert not re.search("aime|math500", said.out), "sums are not called by a benchmark's name"


def test_limo_does_not_run_without_its_rows(cli: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "limo.yaml").write_text((RECIPES / "limo.yaml").read_text())
    said = cli("run", tmp_path / "limo.yaml")
    assert said.code == 2
    assert f"{tmp_path}/limo_v2.jsonl: no such file" in said.err.replace("\n", "")


def test_limo_rows_become_chats_under_its_system_message(cli: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "limo.yaml").write_text((RECIPES / "limo.yaml").read_text())
    rows = [{"question": f"What is {n} + 1?", "solution": f"It is \\boxed{{{n + 1}}}.", "answer": n} for n in range(3)]
    (tmp_path / "limo_v2.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = cli("check", tmp_path / "limo.yaml")
    assert said.code == 3
    assert "has 3 rows, but expect_rows is 800" in said.err.replace("\n", " ")
    stage = make_plan(tmp_path / "limo.yaml", tmp_path, ["stages.limo.builder.expect_rows=3"]).stages[0]
    builder = stage.stage.settings.builder
    first = next(iter(builder.build({}, 0, None)))
    assert [turn.role for turn in first.messages] == ["system", "user", "assistant"]
    assert first.messages[0].content == r"Please reason step by step, and put your final answer within \boxed{}."


@pytest.fixture(scope="module")
def reward() -> ModuleType:
    spec = importlib.util.spec_from_file_location("extraction_reward", RECIPES / "extraction" / "reward.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Ann, Tom, 3 May", 1.0),
        ("tom; ANN: May 3", 1.0),  # words, in any order and case
        ("Ann, Tom", 2 * 2 / (2 + 4)),
        ("Ann, Ann, Tom, 3 May", 2 * 4 / (5 + 4)),  # a name twice is named once too often
        ("Ben, 5 June", 0.0),
        ("", 0.0),
        ("<think>Ann</think>Tom", 2 * 1 / (1 + 4)),
        ("<think>Ann, Tom, 3 May", 0.0),
        ("<think></think>Ann<think>Tom, 3 May", 2 * 1 / (1 + 4)),
    ],
)
def test_the_examples_reward(reward: ModuleType, text: str, value: float) -> None:
    asked = [Message(role="user", content="?")]
    row = Completion(prompt_id="p", sample=0, prompt=asked, text=text, finish_reason="stop", n_tokens=1)
    assert reward.judge(row, "Ann, Tom, 3 May") == reward.judge(text, "Ann, Tom, 3 May") == pytest.approx(value)


def test_the_examples_questions_are_in_no_training_row() -> None:
    train, test = (
        [json.loads(line) for line in (RECIPES / "extraction" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "test")
    )
    assert (len(train), len(test)) == (44, 16)
    assert not {row["label"] for row in train} & {row["label"] for row in test}
    for row in train + test:
        assert set(re.findall(r"\w+", row["label"])) <= set(re.findall(r"\w+", row["text"]))


def test_the_document_prints_the_files() -> None:
    text = DOC.read_text()
    (python,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    (printed,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    (row,) = re.findall(r"```json\n(.*?)```", text, flags=re.DOTALL)
    assert python == (RECIPES / "extraction" / "reward.py").read_text()
    assert printed == (RECIPES / "extraction.yaml").read_text()
    assert row in (RECIPES / "extraction" / "train.jsonl").read_text()
    assert len(printed.splitlines()) <= 40
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (DOC.parent / target).exists(), target


def test_the_examples_reward_is_told_what_it_pays_for(cli: Callable[..., Any]) -> None:
    said = cli("check", RECIPES / "extraction.yaml")
    assert said.code == 0, said.err
    assert "judge pays for what solves nothing: the prompt copied, many boxes" in " ".join(said.out.split())


def figures(home: Path, name: str, figure: str = "accuracy") -> dict[tuple[str, str], float]:
    report = json.loads((home / "runs" / name / "report.json").read_text())
    return {(row["stage"], row["set"]): row[figure] for row in report["ladder"]}


@pytest.mark.slow(seconds=30)
@pytest.mark.parametrize("name", WITH_TINY)
def test_tiny_forms_learn(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qwen_align.cli", "run", RECIPES / f"{name}.yaml", "--tiny", "--home", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    accuracy = figures(tmp_path, f"{name}_tiny")
    assert accuracy["base", "sums_2_3"] == 0.0  # it has never seen a chat
    assert accuracy["sft", "sums_2_3"] > 0.6
    resolved = yaml.safe_load((tmp_path / "runs" / f"{name}_tiny" / "recipe.yaml").read_text())
    assert "tiny" not in resolved


def write_like_gsm8k(folder: Path) -> None:
    """Rows in the form of GSM8K's files, and solutions labelled right and wrong."""
    folder.mkdir()
    for name, seed, n in (("train", 0, 160), ("test", 1, 24)):
        lines = []
        for row in Arithmetic(rows="trace", n=n, steps=[2], split="test" if name == "test" else "train").generate(seed):
            assert row.row == "trace"
            solution = "\n".join(f"<<{line}>>{line}" for line in row.thinking.splitlines())
            lines.append({"question": row.messages[0].content, "answer": f"{solution}\n#### {row.gold}"})
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    judged = [
        {
            "question": line["question"],
            "175b_verification": {"is_correct": True, "solution": line["answer"].replace("####", "A:")},
            "6b_verification": {"is_correct": False, "solution": "It is 100.\nA: 100"},
        }
        for line in lines
    ]
    (folder / "model_solutions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in judged))


@pytest.mark.slow(seconds=20)
def test_the_ladder_of_real_rows_goes_through(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text((RECIPES / "gsm8k_smollm2.yaml").read_text())
    write_like_gsm8k(tmp_path / "gsm8k")
    command = [
        sys.executable,
        "-m",
        "qwen_align.cli",
        "run",
        "recipe.yaml",
        "--set",
        "models.base={shipped: tiny_base}",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert list(dict.fromkeys(stage for stage, _ in figures(tmp_path, "gsm8k_smollm2"))) == [
        "base", "sft", "dpo", "grpo", "fusion"
    ]  # fmt: skip


@pytest.mark.slow(seconds=20)
def test_the_example_of_a_task_of_ones_own_learns(tmp_path: Path) -> None:
    """The commands of the document, in their order, in a folder with the files."""
    (tmp_path / "recipes").symlink_to(RECIPES)
    for line in re.findall(r"```sh\n(.*?)```", DOC.read_text(), flags=re.DOTALL):
        for command in line.splitlines():
            words = [sys.executable, "-m", "qwen_align.cli", *command.split()[1:]]
            done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    f1 = figures(tmp_path, "extraction", "mean_reward")
    assert f1["base", "test"] < 0.1
    assert f1["sft", "test"] > f1["base", "test"] + 0.2
    assert f1["grpo", "test"] > f1["base", "test"] + 0.2
