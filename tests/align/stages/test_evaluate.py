"""An evaluation of judged completions: what is right, paid, without a verdict; and the same held out in RL."""

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.context import NOTES, Context
from qwen_align.align.errors import DataError, RecipeError, StageError
from qwen_align.align.rows import Message, Problem, to_json_line
from qwen_align.align.settings.evaluate import Evaluate
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.rollout import Rollout
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.stages import evaluate, grpo, rollout

# A reward that pays what the gold says, for the first completion and for the second; null is no verdict.
JUDGE = """
def judge(completion, gold):
    return gold[completion.sample]
"""
GOLDS = {"both": [1, 1], "one": [1, 0], "partly": [0.5, 0.5], "missing": [1, None], "unknown": [None, None]}
SAMPLING = {"temperature": 1.0, "max_tokens": 3}


@pytest.fixture
def inputs(tiny_model: Path, tmp_path: Path) -> dict[str, Path]:
    (tmp_path / "judge.py").write_text(JUDGE)
    (tmp_path / "rows").mkdir()
    rows = [
        Problem(id=name, messages=[Message(role="user", content=f"{name}?")], gold=gold, reward="python")
        for name, gold in GOLDS.items()
    ]
    (tmp_path / "rows" / "rows.jsonl").write_text("".join(to_json_line(row) + "\n" for row in rows))
    (tmp_path / "out").mkdir()
    return {"base": tiny_model, "rows": tmp_path / "rows"}


def run(folder: Path, inputs: dict[str, Path], **settings: Any) -> dict[str, Any]:
    spec = Evaluate.model_validate(
        {
            "name": "eval",
            "kind": "evaluate",
            "from_model": "base",
            "from_data": ["rows"],
            "completions_per_prompt": 2,
            "sampling": SAMPLING,
            "rewards": [{"kind": "python", "file": str(folder / "judge.py")}],
            **settings,
        }
    )
    out = folder / "out"
    (result,) = evaluate.run(spec, inputs, out, Context(out, 0, Runtime(device="cpu")))["results"]
    return dict(result)


def test_right_is_a_reward_of_one_and_a_missing_verdict_is_counted(inputs: dict[str, Path], tmp_path: Path) -> None:
    result = run(tmp_path, inputs)
    # Of the four questions with a verdict, by hand: shares of right ones 1, 1/2, 0, 1.
    assert result["accuracy"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert result["mean_reward"] == pytest.approx((1 + 0.5 + 0.5 + 1) / 4)
    assert result["pass_at_k"] == pytest.approx((1 + 1 + 0 + 1) / 4)
    assert (result["no_verdict"], result["n_questions"]) == (3, 5)
    means = json.loads((tmp_path / "out" / evaluate.QUESTIONS).read_text())["means"]
    assert means == [{"both": 1.0, "one": 0.5, "partly": 0.0, "missing": 1.0, "unknown": None}]
    (note,) = map(json.loads, (tmp_path / "out" / NOTES).read_text().splitlines())
    assert "rows, default: 3 of 10 completions have no verdict" in note["message"]


def test_the_share_without_a_verdict_has_a_limit(inputs: dict[str, Path], tmp_path: Path) -> None:
    said = (
        "rows, default: 3 of 10 completions have no verdict, and max_no_verdict_share is 0.25; the most frequent reason"
    )
    with pytest.raises(StageError, match=said):
        run(tmp_path, inputs, max_no_verdict_share=0.25)
    assert not (tmp_path / "out" / "completions.jsonl").exists()
    (tmp_path / "judge.py").write_text("def judge(completion, gold):\n    return None\n")
    with pytest.raises(StageError, match="none of 10 completions has a verdict"):
        run(tmp_path, inputs, max_no_verdict_share=1.0)


@pytest.mark.slow
def test_the_held_out_set_has_the_same_figures(inputs: dict[str, Path], tmp_path: Path) -> None:
    expected = run(tmp_path, inputs)
    own = {"kind": "python", "file": str(tmp_path / "judge.py")}
    held_out = {"from_data": ["rows"], "every_steps": 1, "completions_per_prompt": 2, "rewards": [own]}
    spec = Grpo.model_validate(
        {
            "name": "grpo",
            "kind": "grpo",
            "from_model": "base",
            "from_data": ["rows"],
            "rewards": [{"kind": "random"}],
            "steps": 1,
            "prompts_per_step": 1,
            "completions_per_prompt": 2,
            "sampling": SAMPLING,
            "learning_rate": 1e-4,
            "held_out": held_out,
        }
    )
    out = tmp_path / "grpo"
    out.mkdir()
    found = grpo.run(spec, inputs, out, Context(out, 0, Runtime(device="cpu")))
    for name in ("accuracy", "stderr", "mean_reward", "no_verdict"):
        assert found[f"held_out_{name}"] == pytest.approx(expected[name]), name
    (logged,) = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    assert logged["held_out/no_verdict"] == 3
    limited = spec.model_copy(update={"held_out": spec.held_out.model_copy(update={"max_no_verdict_share": 0.25})})
    (tmp_path / "again").mkdir()
    with pytest.raises(StageError, match="held_out: 3 of 10 completions have no verdict"):
        grpo.run(limited, inputs, tmp_path / "again", Context(tmp_path / "again", 0, Runtime(device="cpu")))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            [{"kind": "math_answer"}],
            "rewards: no question names 'math_answer', .*name python",
        ),
        ("same", "rewards: 'python' is listed twice"),
    ],
)
def test_a_reward_that_would_judge_nothing_is_refused(
    inputs: dict[str, Path], tmp_path: Path, more: Any, message: str
) -> None:
    own = {"kind": "python", "file": str(tmp_path / "judge.py")}
    with pytest.raises(RecipeError, match=message):
        run(tmp_path, inputs, rewards=[own, *([own] if more == "same" else more)])
    assert not list((tmp_path / "out").glob("parts/*/*")), "nothing has been sampled"


def test_a_rollout_without_any_verdict_fails_as_grpo_does(inputs: dict[str, Path], tmp_path: Path) -> None:
    """It ended with exit 0 and a mean reward of 0.0."""
    (tmp_path / "judge.py").write_text("def judge(completion, gold):\n    return None\n")
    spec = Rollout.model_validate(
        {
            "name": "rollout",
            "kind": "rollout",
            "from_model": "base",
            "from_data": "rows",
            "completions_per_prompt": 1,
            "sampling": SAMPLING,
            "rewards": [{"kind": "python", "file": str(tmp_path / "judge.py")}],
        }
    )
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"rewards: none of 5 completions has a verdict: judge: no verdict \(5 times\)"):
        rollout.run(spec, inputs, out, Context(out, 0, Runtime(device="cpu")))
    assert not (out / "rows.jsonl").exists()
