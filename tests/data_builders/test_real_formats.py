"""Every kind of real file builds, with a true count of what was made, converted, left out and dropped."""

import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from qwen_align.align.errors import DataError
from qwen_align.align.rows import Chat, Labelled, Problem
from qwen_align.data_builders.conversion_report import Report
from qwen_align.data_builders.local_file import LocalFile
from qwen_align.data_builders.sieve import Drops, Sieve, sieve

DATA = Path(os.environ.get("QWEN_ALIGN_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))


class Case(NamedTuple):
    """A file, how it is read, what is made of it, and what is dropped by reader and sieve."""

    name: str
    settings: dict[str, Any]
    format: str
    made: dict[str, int]
    dropped: dict[str, int] = {}  # noqa: RUF012
    left_out: tuple[str, ...] = ()


GSM8K = {"format": "gsm8k", "calculator_marks": "remove"}
LIMR = {"format": "prompt_gold", "on_bad_row": "drop"}
CASES = [
    Case("gsm8k/train.jsonl", {}, "gsm8k", {"problem": 7473}),
    Case("gsm8k/test.jsonl", {}, "gsm8k", {"problem": 1319}),
    Case("gsm8k/test.jsonl", {**GSM8K, "rows": "chat"}, "gsm8k", {"chat": 1319}),
    Case("gsm8k/test.jsonl", {**GSM8K, "rows": "trace"}, "gsm8k", {"trace": 1319}),
    Case("limr/math_8k.json", LIMR, "prompt_gold", {"problem": 8521}, {"no gold": 2, "unusable gold": 2}, ("source",)),
    Case(
        "math500/test.jsonl",
        {},
        "prompt_gold",
        {"problem": 500},
        {},
        ("level", "solution", "subject", "unique_id"),
    ),
    Case("aime24/test.jsonl", {"format": "prompt_gold"}, "prompt_gold", {"problem": 30}, {}, ("solution", "url")),
    Case("aime24/test.jsonl", {"format": "limo"}, "limo", {"chat": 30}, {}, ("answer", "problem", "url")),
    Case("amc23/test.jsonl", {}, "prompt_gold", {"problem": 40}, {}, ("url",)),
    Case("svamp/svamp.json", {}, "svamp", {"problem": 1000}, {}, ("Equation", "ID", "Type")),
    Case("mawps/addsub.jsonl", {}, "prompt_gold", {"problem": 395}),
    Case("mawps/multiarith.jsonl", {}, "prompt_gold", {"problem": 600}),
    Case("mawps/singleeq.jsonl", {}, "prompt_gold", {"problem": 508}),
    Case("mawps/singleop.jsonl", {}, "prompt_gold", {"problem": 562}),
    Case("preference/dpo_en_demo.json", {}, "sharegpt_preference", {"pair": 299}),
    Case("preference/dpo_zh_demo.json", {}, "sharegpt_preference", {"pair": 300}),
    Case("preference/kto_en_demo.json", {}, "kto", {"labelled": 300}),
    Case("chat/alpaca_en_demo.json", {}, "alpaca", {"chat": 999}),
    Case("chat/alpaca_zh_demo.json", {}, "alpaca", {"chat": 1000}),
    Case("chat/glaive_toolcall_en_demo.json", {}, "sharegpt", {"chat": 300}),
    Case("humaneval/HumanEval.jsonl.gz", {}, "humaneval", {"problem": 164}, {}, ("task_id",)),
    Case("mbpp/mbpp.jsonl", {}, "mbpp", {"problem": 974}, {}, ("challenge_test_list", "task_id")),
]


def path_of(name: str) -> Path:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"the real data is not at {DATA}")
    return path


@pytest.mark.slow(seconds=0.3)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name} {case.settings.get('rows', '')}")
def test_real_files_build(case: Case) -> None:
    path = path_of(case.name)
    report, drops = Report(), Drops()
    builder = LocalFile.model_validate({"path": str(path), **case.settings})
    # Code golds are judged by running them, which the tests of the reward do; here their form is what counts.
    settings = Sieve(is_unique=False, gold_is_usable=case.format not in ("humaneval", "mbpp"))
    kept = list(sieve(builder.build_with_report(report, drops), settings, drops))
    assert (report.format, dict(report.n_made)) == (case.format, case.made)
    assert drops.counts == case.dropped
    n_after_reader = sum(case.made.values())
    assert len(kept) == n_after_reader - sum(n for why, n in case.dropped.items() if why == "unusable gold")
    assert sorted(report.n_left_out) == sorted(case.left_out)


@pytest.mark.parametrize(
    ("name", "candidates"),
    [("limr/math_8k.json", "question_answer .* prompt_gold"), ("aime24/test.jsonl", "limo .* prompt_gold")],
)
def test_real_files_whose_keys_do_not_tell(name: str, candidates: str) -> None:
    builder = LocalFile.model_validate({"path": str(path_of(name))})
    with pytest.raises(DataError, match=f"could be in 2 formats.*{candidates}"):
        list(builder.build({}, 0, Drops()))


@pytest.mark.parametrize("name", ["gsm8k/model_solutions.jsonl", "limr/scores.json"])
def test_real_files_in_no_format(name: str) -> None:
    builder = LocalFile.model_validate({"path": str(path_of(name))})
    with pytest.raises(DataError, match="the rows are in no format we know; their keys: "):
        list(builder.build({}, 0, Drops()))


def test_real_tool_calls_are_carried() -> None:
    builder = LocalFile.model_validate({"path": str(path_of("chat/glaive_toolcall_en_demo.json"))})
    rows = [row for row in builder.build({}, 0, Drops()) if isinstance(row, Chat)]
    roles = Counter(turn.role for row in rows for turn in row.messages)
    assert (sum(row.tools is not None for row in rows), roles["tool"]) == (191, 211)
    calls = [call for row in rows for turn in row.messages for call in turn.tool_calls or []]
    assert len(calls) == 211
    assert all(isinstance(call["function"]["arguments"], dict) for call in calls)


def test_real_labels_and_system_messages_are_carried() -> None:
    kto = LocalFile.model_validate({"path": str(path_of("preference/kto_en_demo.json"))})
    labels = Counter(row.label for row in kto.build({}, 0, Drops()) if isinstance(row, Labelled))
    assert labels == {True: 150, False: 150}
    dpo = LocalFile.model_validate({"path": str(path_of("preference/dpo_en_demo.json"))})
    assert sum(row.row == "pair" and row.messages[0].role == "system" for row in dpo.build({}, 0, Drops())) == 80


def test_real_code_golds_have_their_tests() -> None:
    for name in ("humaneval/HumanEval.jsonl.gz", "mbpp/mbpp.jsonl"):
        rows = LocalFile.model_validate({"path": str(path_of(name))}).build({}, 0, Drops())
        golds = [row.gold for row in rows if isinstance(row, Problem) and row.reward == "code_tests"]
        assert len(golds) in (164, 974)
        assert all(gold.get("tests") or gold["test"] for gold in golds)
