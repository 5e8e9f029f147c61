"""LIMR's selection: the published 1,389 prompts, the score against the authors' formula, gaps in learning curves."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import ValidationError

from qwen_align.align.errors import DataError
from qwen_align.align.rows import Completion, Message, Problem, Row, RowError
from qwen_align.data_builders.selection_limr import Limr, compute_alignment_scores, fill_missing_epochs
from qwen_align.data_builders.sieve import Drops
from qwen_align.reward.verdict import Verdict

DATA = Path(os.environ.get("QWEN_ALIGN_TEST_DATA", Path(__file__).parents[2] / "../shared/data")).resolve() / "limr"
PUBLISHED = "ddcc71f3c1225648cc9956f43fa297c38f5e422756f74f9fb1328e86c831029c"  # of GAIR/LIMR's ids, sorted, by lines
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no LIMR data at {DATA}; set QWEN_ALIGN_TEST_DATA to the folder that holds limr"
)


def problem(row_id: str, question: str = "?", **meta: Any) -> Problem:
    messages = [Message(role="user", content=question)]
    return Problem(id=row_id, messages=messages, reward="math_answer", gold="1", meta=meta)


def build_rows(rows: Sequence[Row], others: Any = None, **settings: Any) -> tuple[list[Any], Drops]:
    drops = Drops()
    builder = Limr.model_validate({"from_data": "prompts", **settings})
    return list(builder.build({"prompts": lambda: iter(rows), **(others or {})}, 0, drops)), drops


@needs_data
@pytest.mark.parametrize(("comparison", "n_kept"), [("at_least", 1389), ("above", 1324)])
def test_the_published_prompts(comparison: str, n_kept: int) -> None:
    prompts, scores = (
        json.loads((DATA / f"{name}.json").read_text(encoding="utf-8")) for name in ("math_8k", "scores")
    )
    score_of = {entry["prompt"]: entry["score"] for entry in scores}
    rows = [problem(entry["id"], entry["prompt"], score=score_of.get(entry["prompt"])) for entry in prompts]
    kept, drops = build_rows(rows, score_column="score", comparison=comparison)
    assert len(kept) == n_kept
    assert drops.counts["no score"] == sum(entry["prompt"] not in score_of for entry in prompts)
    assert drops.counts.total() + n_kept == len(rows) if isinstance(drops.counts, Counter) else True
    assert sum(drops.counts.values()) + n_kept == len(rows) == 8523
    if comparison == "at_least":
        from_file, _ = build_rows(
            [problem(entry["id"], entry["prompt"]) for entry in prompts], scores_file=str(DATA / "scores.json")
        )
        assert [row.id for row in from_file] == [row.id for row in kept]
        assert hashlib.sha256("\n".join(sorted(row.id for row in kept)).encode()).hexdigest() == PUBLISHED


def test_a_selection_in_full() -> None:
    """Two prompts learn alike, one does not, one missed an epoch for good."""
    curves = {"alike": [[0, 0], [1, 0], [1, 1]], "too": [0.0, 0.5, 1.0], "never": [0, 0, [0]], "gap": [0, 1, None]}
    rows = [problem(name, rewards=curve) for name, curve in curves.items()]
    kept, drops = build_rows(rows, rewards_column="rewards", threshold=0.7)
    # average 0, 1/3, 2/3: room 1 + 4/9 + 1/9 = 14/9; alike: 1/36 + 1/9 = 5/36; never: 1/9 + 4/9 = 5/9
    score = pytest.approx(1 - (5 / 36) / (14 / 9))
    assert [row.meta["limr"] for row in kept] == [{"score": score, "rank": 1}, {"score": score, "rank": 2}]
    assert [row.meta["rewards"] for row in kept] == [curves["alike"], curves["too"]]
    assert [(drop.id, drop.reason, drop.detail) for drop in drops.rows] == [
        ("never", "learns unlike the average", "0.6429"),
        ("gap", "epochs missing", ""),
    ]


@given(
    st.integers(1, 6).flatmap(
        lambda epochs: st.lists(
            st.lists(st.sampled_from([None, 0.0, 0.125, 0.5, 1.0]), min_size=epochs, max_size=epochs), max_size=8
        )
    )
)
def test_scores_are_the_authors(curves: list[list[float | None]]) -> None:
    """Against a reading of lim_selection.py with its -1 for epochs that are missing."""
    sequences = {str(index): [-1 if one is None else one for one in curve] for index, curve in enumerate(curves)}
    for sequence in sequences.values():
        for index in range(len(sequence) - 1):
            if sequence[index] == -1 and sequence[index + 1] != -1:
                sequence[index] = sequence[index + 1]
    whole = {name: sequence for name, sequence in sequences.items() if -1 not in sequence}
    mean = np.mean(list(whole.values()), axis=0) if whole else np.zeros(0)
    assume(not whole or np.sum((1 - mean) ** 2) > 0)
    expected = {
        name: 1 - np.sum((np.array(sequence) - mean) ** 2) / np.sum((1 - mean) ** 2) for name, sequence in whole.items()
    }
    found = compute_alignment_scores({str(index): curve for index, curve in enumerate(curves)})
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("curve", "filled"),
    [
        ([None, 0.5, 1.0], [0.5, 0.5, 1.0]),
        ([0.0, None, 1.0], [0.0, 1.0, 1.0]),
        ([None, None, 1.0], [None, 1.0, 1.0]),  # from the next epoch only
        ([0.0, None], [0.0, None]),
        ([0.0, None, None], [0.0, None, None]),
        ([], []),
    ],
)
def test_back_fill(curve: list[float | None], filled: list[float | None]) -> None:
    assert fill_missing_epochs(curve) == filled


def test_only_the_first_epochs_count() -> None:
    rows = [problem("a", rewards=[0, 1, None]), problem("b", rewards=[1, 0, 1, 1])]
    kept, _ = build_rows(rows, rewards_column="rewards", epochs=2, threshold=-9.0)
    assert [row.meta["limr"]["score"] for row in kept] == [0.0, 0.0]  # average 1/2, 1/2: as far off as always solved
    with pytest.raises(DataError, match="3 epochs in 'a', 4 epochs in 'b'"):
        build_rows(rows, rewards_column="rewards")


def test_from_a_rollout_of_each_checkpoint() -> None:
    def stage(values: dict[str, list[float | None]]) -> Any:
        rows = [
            Completion(
                prompt_id=name,
                sample=index,
                prompt=[Message(role="user", content="?")],
                text="1",
                finish_reason="stop",
                n_tokens=1,
                verdicts={"math_answer": Verdict(value=value, reason="toy")},
            )
            for name, found in values.items()
            for index, value in enumerate(found)
        ]
        return lambda: iter(rows)

    checkpoints = {"first": stage({"a": [0.0, 0.0], "b": [0.0]}), "second": stage({"a": [1.0, 0.0], "b": [None]})}
    kept, drops = build_rows(
        [problem("a"), problem("b"), problem("c")], checkpoints, from_rollouts=["first", "second"], threshold=1.0
    )
    assert [row.id for row in kept] == ["a"]  # alone it is the average
    assert [(drop.id, drop.reason) for drop in drops.rows] == [("b", "epochs missing"), ("c", "epochs missing")]


def test_n_is_reached_or_an_error() -> None:
    rows = [problem(name, score=score) for name, score in {"a": 0.7, "b": 0.9, "c": 0.7, "d": 0.1}.items()]
    kept, drops = build_rows(rows, score_column="score", n=2)
    assert [(row.id, row.meta["limr"]["rank"]) for row in kept] == [("a", 2), ("b", 1)]
    assert [(drop.id, drop.reason) for drop in drops.rows] == [
        ("d", "learns unlike the average"),
        ("c", "ranked below n"),
    ]
    with pytest.raises(DataError, match="3 rows pass, fewer than n: 4"):
        build_rows(rows, score_column="score", n=4)


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        (None, "is None; wanted is a list"),
        ([], "wanted is a list"),
        ([0.5], "has 1 epochs of 2"),
        ([2, 0.5], "an epoch is 2; wanted"),
        ([-1, 0.5], "an epoch is -1; wanted"),
        ([["1"], 0.5], "an epoch is"),
        ([0.5, "1"], "an epoch is '1'"),
    ],
)
def test_wrong_curves(rewards: Any, message: str) -> None:
    with pytest.raises(RowError, match="row 'a': meta 'rewards'") as caught:
        build_rows([problem("a", rewards=rewards)], rewards_column="rewards", epochs=2)
    assert message in str(caught.value)


def test_scores_of_a_file_go_to_rows_that_ask_just_that(tmp_path: Path) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text('{"prompt": "1+1?", "score": 0.7}\n{"prompt": "1+2?", "score": 0.5}\n')
    table = tmp_path / "scores.csv"
    table.write_text("prompt,score\n1+1?,0.7\n1+2?,5e-1\n")
    rows = [problem("a", "1+1?"), problem("b", "1+2?"), problem("c", "1 + 1?")]
    assert build_rows(rows, scores_file=str(path))[0] == build_rows(rows, scores_file=str(table))[0]
    kept, drops = build_rows(rows, scores_file=str(path))
    assert [(row.id, row.meta["limr"]) for row in kept] == [("a", {"score": 0.7, "rank": 1})]
    assert [(drop.id, drop.reason) for drop in drops.rows] == [("b", "learns unlike the average"), ("c", "no score")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "1+1?"}', r"scores.jsonl:2: is \{'prompt': '1\+1\?'\}; wanted: an object with a text 'prompt'"),
        ('{"prompt": "1+1?", "score": "high"}', "wanted: an object with a text 'prompt' and a number 'score'"),
        ('{"prompt": "1+1?", "score": 0.6}', r"scores.jsonl:2: scores a prompt 0.6 that was 0.7 before: 1\+1\?"),
        ("7", "scores.jsonl:2: is 7; wanted"),
    ],
)
def test_wrong_files_of_scores(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "scores.jsonl"
    path.write_text(f'{{"prompt": "1+1?", "score": 0.7}}\n{line}\n')
    with pytest.raises(RowError, match=message):
        build_rows([problem("a", "1+1?")], scores_file=str(path))


def test_wrong_scores() -> None:
    with pytest.raises(RowError, match=r"'a': meta 'score' is '0\.9'; a score is a number"):
        build_rows([problem("a", score="0.9")], score_column="score")
    huge = int("9" * 400)
    with pytest.raises(RowError, match=r"'a': meta 'score' is 9.*; a score is a number that a float can hold"):
        build_rows([problem("a", score=huge)], score_column="score")
    for entry in (huge, [huge]):
        with pytest.raises(RowError, match=r"'a': meta 'rewards': an epoch is .*9.*; wanted: rewards"):
            build_rows([problem("a", rewards=[entry])], rewards_column="rewards")


def test_prompts_that_are_always_solved_tell_nothing() -> None:
    with pytest.raises(DataError, match="solved in every epoch"):
        build_rows([problem("a", rewards=[1, 1])], rewards_column="rewards")


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"rewards_column": "a", "score_column": "b"},
        {"scores_file": "a.jsonl", "score_column": "b"},
        {"scores_file": "a.jsonl", "epochs": 3},
        {"scores_file": "a.txt"},
        {"score_column": "a", "epochs": 3},
        {"score_column": "a", "reward": "math_answer"},
        {"from_rollouts": ["a"], "epochs": 3},
        {"from_rollouts": []},
        {"score_column": "a", "comparison": "over"},
    ],
)
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Limr.model_validate({"from_data": "a", **wrong})
