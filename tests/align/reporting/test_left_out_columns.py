"""Columns that no format reads stand in the manifest, in `check`, `run`, `show` and `build`, and in each report."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
COLUMN = "column 'a_rather_long_name_of_a_column' left out of 2 rows"
ROWS = [
    {"instruction": "1+1?", "output": "2", "a_rather_long_name_of_a_column": 1, "by": "ann"},
    {"instruction": "2+2?", "output": "4", "a_rather_long_name_of_a_column": None, "is_correct": True},
]
DATA: dict[str, Any] = {"name": "data", "kind": "build_data", "builder": {"kind": "local_file", "path": "x.jsonl"}}


@pytest.fixture
def recipe(tmp_path: Path, write_recipe: Callable[..., Path]) -> Path:
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return write_recipe([DATA])


def test_check_run_and_the_reports_say_every_column_that_was_left_out(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    checked = cli("check", recipe)
    assert checked.code == 0
    for line in (COLUMN, "column 'by' left out of 1 rows", "column 'is_correct' left out of 1 rows"):
        assert line in checked.out
    ran = cli("run", recipe)
    assert ran.code == 0
    assert f"data: {COLUMN}" in ran.out
    assert COLUMN in cli("check", recipe).out
    assert f"data: {COLUMN}" in cli("run", recipe).out
    folder = tmp_path / "runs" / "trial"
    counts = {"a_rather_long_name_of_a_column": 2, "by": 1, "is_correct": 1}
    manifest = json.loads((folder / "stages" / "data" / "manifest.json").read_text())
    assert manifest["summary"]["conversion"]["columns_left_out"] == counts
    [stage] = json.loads((folder / "report.json").read_text())["stages"]
    assert stage["summary"]["conversion"]["columns_left_out"] == counts
    text = (folder / "report.md").read_text()
    assert "## Columns of the sources that were left out" in text
    assert "| data | a_rather_long_name_of_a_column | 2 |" in text
    assert '<span class="chip">2 a_rather_long_name_of_a_column</span>' in (folder / "report.html").read_text()
    assert "| a_rather_long_name_of_a_column | 2 |" in (folder / "stages" / "data" / "README.md").read_text()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"score": 0.5}, "x.jsonl:2: score: is 0.5; that is how good the answer is"),
        ({"images": ["a.png"]}, "x.jsonl:2: images: is ['a.png']; that is what the text goes with"),
    ],
)
def test_what_run_refuses_check_refuses(
    cli: Cli, recipe: Path, tmp_path: Path, more: dict[str, Any], message: str
) -> None:
    (tmp_path / "x.jsonl").write_text(f"{json.dumps(ROWS[0])}\n{json.dumps({**ROWS[1], **more})}\n")
    said = cli("check", recipe)
    assert (said.code, message in said.err) == (3, True)
    if "score" in more:  # the same code, so one run shows it
        ran = cli("run", recipe)
        assert (ran.code, message in ran.err) == (3, True)
    (column,) = more
    ignored = cli("check", recipe, "--set", f"stages.data.builder.ignore_columns=[{column}]")
    assert (ignored.code, f"column '{column}' left out of 1 rows" in ignored.out) == (0, True)


def test_show_says_them_too(cli: Cli, recipe: Path, tiny_model: Path, write_recipe: Callable[..., Path]) -> None:
    training = {"max_tokens": 64, "batch": 1, "epochs": 1, "learning_rate": 1e-4}
    sft = {"name": "sft", "kind": "sft", "from_model": "base", "from_data": ["data"], **training}
    path = write_recipe([DATA, sft], models={"base": {"path": str(tiny_model)}})
    assert COLUMN in cli("show", path, "data").out
