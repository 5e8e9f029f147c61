"""Pairs and labels from files of judged answers."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.errors import DataError
from qwen_align.align.rows import Labelled, Message, Pair, RowError
from qwen_align.data_builders.conversion_report import Report
from qwen_align.data_builders.labelled_pairs import LabelledPairs
from qwen_align.data_builders.scored_pairs import ScoredPairs
from qwen_align.data_builders.sieve import Drops

DATA = Path(os.environ.get("QWEN_ALIGN_TEST_DATA", Path(__file__).parents[2] / "../shared/data")).resolve()
KEYS = ["6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"]


def labelled(path: Path, *rows: Any, **settings: Any) -> tuple[list[Any], Drops]:
    if rows:
        path = path / "solutions.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    drops = Drops()
    builder = LabelledPairs.model_validate({"path": f"{path}", "rows": "pair", "solutions": ["tries"]} | settings)
    return list(builder.build({}, 0, drops)), drops


def scored(path: Path, *rows: Any, **settings: Any) -> tuple[list[Any], Drops]:
    file = path / "scores.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    drops = Drops()
    return list(ScoredPairs.model_validate({"path": f"{file}"} | settings).build({}, 0, drops)), drops


def tries(*judged: tuple[bool, str]) -> dict[str, Any]:
    return {"question": "1+1?", "tries": [{"is_correct": label, "solution": text} for label, text in judged]}


def test_a_pair_and_its_labelled_rows_in_full(tmp_path: Path) -> None:
    row = tries((False, "1+1 = <<1+1=3>>3"), (True, "1+1 = <<1+1=2>>2"))
    pairs, drops = labelled(tmp_path, row, strip_marks=True, source="toy", system="Be short.")
    asked = [Message(role="system", content="Be short."), Message(role="user", content="1+1?")]
    right, wrong = (Message(role="assistant", content=f"1+1 = {n}") for n in (2, 3))
    assert pairs == [
        Pair(
            id="solutions:1#tries1>tries0",
            messages=asked,
            chosen=right,
            rejected=wrong,
            margin=1.0,
            kind="is_correct",
            source="toy",
            meta={"common_prefix": 6},
        )
    ]
    assert drops.rows == []
    rows, _ = labelled(tmp_path, row, rows="labelled", strip_marks=True)
    assert [(one.id, one.label, one.completion) for one in rows] == [
        ("solutions:1#tries0", False, wrong),
        ("solutions:1#tries1", True, right),
    ]


def test_equal_answers_judged_differently_make_no_pair(tmp_path: Path) -> None:
    kept, drops = labelled(tmp_path, tries((True, "2"), (False, "2 ")))
    assert (kept, drops.rows[0].reason) == ([], "equal answers of different worth")
    kept, drops = scored(tmp_path, {"prompt": "1+1?", "responses": ["2", "2", "3"], "rewards": [1.0, 0.5, 0.7]})
    assert [pair.id for pair in kept] == ["scores:1#0>2"]
    kept, drops = scored(tmp_path, {"prompt": "1+1?", "responses": ["2", "2"], "rewards": [1.0, 0.5]})
    assert (kept, drops.rows[0].reason) == ([], "equal answers of different worth")


def test_what_is_dropped(tmp_path: Path) -> None:
    rows = [tries((True, "2")), tries((False, "3")), tries((True, "2"), (False, " "), (False, "<think>3"))]
    kept, drops = labelled(tmp_path, *rows)
    assert kept == []
    assert [tuple(drop) for drop in drops.rows] == [
        ("no wrong completion", "solutions:1", "of 1 usable completions"),
        ("in no pair", "solutions:1#tries0", "no wrong completion"),
        ("no correct completion", "solutions:2", "of 1 usable completions"),
        ("in no pair", "solutions:2#tries0", "no correct completion"),
        ("malformed turn", "solutions:3#tries1", "no answer"),
        ("malformed turn", "solutions:3#tries2", "unfinished thinking"),
        ("no wrong completion", "solutions:3", "of 1 usable completions"),
        ("in no pair", "solutions:3#tries0", "no wrong completion"),
    ]
    kept, drops = labelled(tmp_path, *rows, rows="labelled", both_sides_only=True)
    assert kept == []
    assert drops.counts == {"all right": 2, "malformed turn": 2, "all wrong": 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tries": []}, "solutions.jsonl:1: 'question' is missing"),
        ({"question": "a"}, "solutions.jsonl:1: 'tries' is missing"),
        ({"question": "a", "tries": ["2"]}, "neither a solution nor a list of them"),
        ({"question": "a", "tries": [{"is_correct": 1, "solution": "2"}]}, "'is_correct' is 1, not true or false"),
        ({"question": "a", "tries": [{"correct": True, "solution": "2"}]}, "Did you mean 'correct'?"),
        ({"question": "a", "tries": [{"is_correct": True, "solution": 2}]}, "'solution' is 2, not a text"),
        ("a", "is str 'a', not an object with keys"),
    ],
)
def test_wrong_rows_are_named(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(RowError, match=message.replace("?", r"\?")):
        labelled(tmp_path, row)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rule": "best_vs_worst"}, "labels are true or false"),
        ({"both_sides_only": True}, "both_sides_only: is nothing for 'rows: pair'"),
        ({"rows": "labelled", "per_prompt": 1}, "per_prompt: is nothing for 'rows: labelled'"),
        ({"solutions": []}, "at least 1 item"),
    ],
)
def test_wrong_settings_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        labelled(tmp_path, tries(), **settings)


def test_scored_responses(tmp_path: Path) -> None:
    rows = [
        {"prompt": "1+1?", "responses": ["3", "2", "4", "5"], "rewards": [-0.5, 1, -1.0, None]},
        {"prompt": "2+1?", "responses": ["3", "4"], "rewards": [0.5, 0.5]},
        {"prompt": "3+1?", "responses": [], "rewards": []},
    ]
    pairs, drops = scored(tmp_path, *rows, rule="online_dpo_r1")
    assert [(pair.id, pair.chosen.content, pair.rejected.content, pair.margin) for pair in pairs] == [
        ("scores:1#1>2", "2", "4", 2.0)
    ]
    assert [(drop.reason, drop.id) for drop in drops.rows] == [
        ("no verdict", "scores:1#3"),
        ("in no pair", "scores:1#0"),
        ("tie", "scores:2"),
        ("in no pair", "scores:2#0"),
        ("in no pair", "scores:2#1"),
        ("no usable completion", "scores:3"),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "responses": ["b"], "rewards": []}, "have to be lists of one length"),
        ({"prompt": "a", "responses": ["b"], "rewards": [True]}, "'rewards' holds True, not a number"),
        ({"prompt": "a", "responses": ["b"], "rewards": [int("9" * 400)]}, "'rewards' holds 9.*, not a number that a"),
        ({"prompt": "a", "responses": [1], "rewards": [1.0]}, "'responses' holds 1, not a text"),
    ],
)
def test_wrong_scores_are_named(tmp_path: Path, row: Any, message: str) -> None:
    with pytest.raises(RowError, match=message):
        scored(tmp_path, row)


@pytest.mark.skipif(
    not (DATA / "gsm8k").is_dir(), reason=f"no real data at {DATA}; set QWEN_ALIGN_TEST_DATA to the folder of gsm8k"
)
def test_every_solution_of_gsm8ks_models_is_a_row_or_counted() -> None:
    path = DATA / "gsm8k" / "model_solutions.jsonl"
    rows, drops = labelled(path, rows="labelled", solutions=KEYS, strip_marks=True)
    assert len(rows) + len(drops.rows) == 1319 * 4
    assert all(isinstance(row, Labelled) and "<<" not in row.completion.content for row in rows)
    truth = Counter(
        one[key]["is_correct"] for line in path.open(encoding="utf-8") for one in [json.loads(line)] for key in KEYS
    )
    assert drops.counts == {"malformed turn": 5}  # marks that the model never closed
    assert truth - Counter(row.label for row in rows) == {False: 5}
    pairs, drops = labelled(path, solutions=KEYS, per_prompt=1)
    groups = [drop for drop in drops.rows if "#" not in drop.id]
    assert len(pairs) + len(groups) == 1319
    assert {drop.reason for drop in groups} == {"no wrong completion", "no correct completion"}
    assert 2 * len(pairs) + len(drops.rows) - len(groups) == 1319 * 4
    assert drops.counts["in no pair"] == 1319 * 4 - 2 * len(pairs) - drops.counts.get("malformed turn", 0)
    both = {row.meta["question"] for row in rows if row.label} & {row.meta["question"] for row in rows if not row.label}
    assert len(pairs) == len(both)


def test_columns_that_are_left_out_are_counted_or_refused(tmp_path: Path) -> None:
    row = tries((False, "3"), (True, "2"))
    files = {
        LabelledPairs: ({"rows": "pair", "solutions": ["tries"]}, row),
        ScoredPairs: ({}, {"prompt": "1+1?", "responses": ["2", "3"], "rewards": [1, 0]}),
    }
    for builder_class, (settings, value) in files.items():
        path = tmp_path / "x.jsonl"
        path.write_text(f"{json.dumps({**value, 'by': 'ann'})}\n{json.dumps({**value, 'images': []})}\n")
        report = Report()
        builder = builder_class.model_validate({"path": str(path), **settings})
        assert len(list(builder.build_with_report(report, Drops()))) == 2
        assert report.n_left_out == {"by": 1, "images": 1}
        for column, item in (("system", "Be brief."), ("images", ["a.png"]), ("history", [["a", "b"]])):
            path.write_text(json.dumps({**value, column: item}) + "\n")
            with pytest.raises(RowError, match=rf"x\.jsonl:1: {column}: is .* ignore_columns: \[{column}\]"):
                list(builder.build({}, 0, Drops()))
            ignoring = builder_class.model_validate({"path": str(path), **settings, "ignore_columns": [column]})
            assert len(list(ignoring.build({}, 0, Drops()))) == 1
        with pytest.raises(DataError, match=r"x\.jsonl: no row has 'histry', which the recipe names.*'history'"):
            list(builder.model_copy(update={"ignore_columns": ["histry", "history"]}).build({}, 0, Drops()))


def test_a_question_that_is_turns_in_a_text_is_refused(tmp_path: Path) -> None:
    question = json.dumps([{"role": "user", "content": "1+1?"}])
    with pytest.raises(RowError, match=r"'prompt' is .*, not a text"):
        scored(tmp_path, {"prompt": question, "responses": ["2", "3"], "rewards": [1, 0]})


def test_answers_that_repeat_their_prompt_are_refused_or_cut(tmp_path: Path) -> None:
    row = {"prompt": "1+1?", "responses": ["1+1? 2", "1+1? 3"], "rewards": [1, 0]}
    with pytest.raises(RowError, match=r"scores\.jsonl: row 'scores:1#0>1': both sides begin with the whole prompt"):
        scored(tmp_path, row)
    ([pair], _) = scored(tmp_path, row, repeated_prompt="cut")
    assert (pair.chosen.content, pair.rejected.content) == ("2", "3")
    ([pair], _) = scored(tmp_path, row, repeated_prompt="keep")
    assert (pair.chosen.content, pair.rejected.content) == ("1+1? 2", "1+1? 3")
