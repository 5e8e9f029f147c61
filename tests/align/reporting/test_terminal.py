"""The table of results in a terminal: numbers are whole at any width, and what is left out is said."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from qwen_align.align.pipeline.plan import Plan
from qwen_align.align.reporting.report_files import write_report
from qwen_align.align.reporting.results import RunResults
from qwen_align.align.reporting.terminal import print_results_table, render_results_table
from tests.align.reporting.test_results import BEFORE, DATA, EVALUATE, OTHER, SFT, finish, plan

__all__ = ["plan"]
LONG = "a_stage_with_a_name_that_is_rather_long"


@pytest.fixture
def results(plan: Callable[..., Plan]) -> RunResults:
    planned = plan(DATA, OTHER, {**SFT, "name": LONG}, BEFORE, {**EVALUATE, "from_model": LONG})
    finish(planned, "test", "other", LONG, "eval_base", "eval_sft")
    return write_report(planned)


@pytest.mark.parametrize(
    ("width", "left_out"),
    [
        (40, "reward, pass@k, no verdict, obeyed, stop, tokens"),
        (60, "obeyed, stop, tokens"),
        (80, "tokens"),
        (120, ""),
    ],
)
def test_a_terminal_cuts_no_number(results: RunResults, width: int, left_out: str) -> None:
    file = io.StringIO()
    print_results_table(Console(file=file, force_terminal=True, width=width, color_system=None), results)
    lines = file.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    assert "50.0 ± 2.5" in file.getvalue()
    assert "…" not in file.getvalue()
    said = " ".join(file.getvalue().split())
    assert (f"left out in {width} columns: {left_out}" in said) if left_out else "left out" not in said


def test_a_file_has_whole_lines(results: RunResults, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    file = io.StringIO()
    print_results_table(Console(file=file), results)
    assert file.getvalue() == render_results_table(results)
    rows = [line.split() for line in file.getvalue().splitlines()]
    assert [LONG, "test", "default", "50.0", "±", "2.5"] in [row[:6] for row in rows]
