"""`score` and `audit` as a user meets them: files in, files out, and what is said of bad ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]

ROWS = [
    {"completion": r"so \boxed{2}", "gold": "2", "id": 7},
    {"text": r"so \boxed{3}", "gold": 2},
    {"completion": r"so \boxed{3}", "gold": "?"},
    {"completion": "<think>\nAh", "gold": "2"},
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_come_back_with_value_and_reason(cli: Cli, tmp_path: Path) -> None:
    done = cli("score", write(tmp_path / "in.jsonl", ROWS), "--reward", "math_answer", "--out", tmp_path / "out.jsonl")
    assert done.code == 0
    rows = read(tmp_path / "out.jsonl")
    assert [(row["value"], row["reason"]) for row in rows] == [
        (1.0, "correct"),
        (0.0, "wrong"),
        (None, "unusable gold"),
        (0.0, "unfinished thinking"),
    ]
    assert rows[0]["id"] == 7
    assert "4 rows, mean value 0.3333, without a verdict: 1" in done.out


def test_more_rows_than_are_judged_together(cli: Cli, tmp_path: Path) -> None:
    rows = [{"completion": rf"\boxed{{{n}}}", "gold": str(n - n % 2)} for n in range(2500)]
    assert (
        cli("score", write(tmp_path / "in.jsonl", rows), "--reward", "math_answer", "--out", tmp_path / "out").code == 0
    )
    assert [row["value"] for row in read(tmp_path / "out")] == [1.0, 0.0] * 1250


def test_settings_and_a_function_of_ones_own(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def long(completion, gold):\n    return len(completion.text) / 100\n")
    rows = write(tmp_path / "in.jsonl", ROWS[:2])
    named = f"{tmp_path / 'mine.py'}:long"
    assert cli("score", rows, "--reward", named, "--set", "weight=2.0", "--out", tmp_path / "out.jsonl").code == 0
    assert [row["value"] for row in read(tmp_path / "out.jsonl")] == [0.12, 0.12]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "in.jsonl:2: "),
        ("[]", "in.jsonl:2: a row is an object with completion and gold, not list"),
        ('{"gold": "2"}', "in.jsonl:2: 'completion' is missing"),
        ('{"completion": 3, "gold": "2"}', "in.jsonl:2: 'completion' is int, not a string"),
        ('{"completion": "x"}', "in.jsonl:2: 'gold' is missing; math_answer judges against it"),
        ("[" * 200_000, "in.jsonl:2: "),
        (r'{"completion": "\ud800", "gold": "2"}', "in.jsonl:2: "),
        ('{"completion": "x", "gold": 1e999}', "in.jsonl:2: "),
        (
            '{"completion": "x", "gold": "2", "mode": "thinking"}',
            "in.jsonl:2: mode: must be 'think' or 'no_think'; found 'thinking'",
        ),
    ],
)
def test_a_bad_row_is_named_and_nothing_written(cli: Cli, tmp_path: Path, row: str, said: str) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps(ROWS[0]) + "\n" + row + "\n")
    done = cli("score", tmp_path / "in.jsonl", "--reward", "math_answer", "--out", tmp_path / "out.jsonl")
    assert done.code == 3
    assert said in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--reward", "math_anser"], "'math_anser' is no reward. Did you mean 'math_answer'?"),
        (["--reward", "nowhere.py:judge"], "nowhere.py is not there"),
        (["--reward", "math_answer", "--set", "boxx=required"], "'boxx' is no setting here"),
        (["--reward", "math_answer", "--set", "box"], "write it as setting=value"),
    ],
)
def test_a_wrong_reward_is_told(cli: Cli, tmp_path: Path, arguments: list[str], said: str) -> None:
    done = cli("score", write(tmp_path / "in.jsonl", ROWS), *arguments, "--out", tmp_path / "out.jsonl")
    assert done.code == 2
    assert said in done.err
    assert not (tmp_path / "out.jsonl").exists()


def test_audit_prints_what_a_reward_pays_for(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def judge(completion, gold):\n    return str(gold) in completion.text\n")
    done = cli("audit", "reward", f"{tmp_path / 'mine.py'}:judge")
    assert done.code == 0
    assert "paid  the gold in the thinking only" in done.out
    assert "3 paid that solve nothing" in done.out
    done = cli("audit", "reward", "math_answer")
    assert done.code == 0
    assert " 0 judged wrongly, 0 paid" in done.out


def test_other_kinds_of_files(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(ROWS[:2]).encode())
    (tmp_path / "table.csv").write_text('completion,gold\n"\\boxed{2}",2\n')
    for name, values in (("list.json", [1.0, 0.0]), ("table.csv", [1.0])):
        assert cli("score", tmp_path / name, "--reward", "math_answer", "--out", tmp_path / "out.jsonl").code == 0
        assert [row["value"] for row in read(tmp_path / "out.jsonl")] == values


@pytest.mark.parametrize(
    ("given", "target", "said"),
    [
        ("", "out.jsonl", "in.jsonl: holds no rows"),
        ("{}", "/dev/null", "/dev/null: is no ordinary file"),
        ("{}", "no/folder/out.jsonl", "there is no such folder"),
        ("\udc80", "out.jsonl", "in.jsonl"),
    ],
)
def test_files_that_cannot_be_judged_or_written(cli: Cli, tmp_path: Path, given: str, target: str, said: str) -> None:
    (tmp_path / "in.jsonl").write_bytes(given.encode("utf-8", "surrogateescape"))
    done = cli("score", tmp_path / "in.jsonl", "--reward", "math_answer", "--out", tmp_path / target)
    assert done.code == 3
    assert said in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
    assert Path("/dev/null").is_char_device()


def test_a_link_stays_one(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "real.jsonl").write_text("old")
    (tmp_path / "link.jsonl").symlink_to("real.jsonl")
    rows = write(tmp_path / "in.jsonl", ROWS[:1])
    assert cli("score", rows, "--reward", "math_answer", "--out", tmp_path / "link.jsonl").code == 0
    assert (tmp_path / "link.jsonl").is_symlink()
    assert [row["value"] for row in read(tmp_path / "real.jsonl")] == [1.0]


def test_audit_of_a_reward_without_verdicts_fails(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def judge(completion, gold):\n    return None\n")
    done = cli("audit", "reward", f"{tmp_path / 'mine.py'}:judge")
    assert done.code == 4
    assert "it has no verdict on any completion" in done.out
