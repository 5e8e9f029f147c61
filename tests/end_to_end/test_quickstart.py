"""What `make quickstart` has to show, read from its report; skipped until it has run in this folder."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

REPORT = Path(__file__).parents[2] / "runs" / "quickstart" / "report.json"
LADDER = ["base", "sft", "dpo", "grpo", "fusion"]


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    if not REPORT.exists():
        assert not os.environ.get("CI"), "CI runs `make quickstart` before the tests"
        pytest.skip("run `make quickstart` first")
    loaded: dict[str, Any] = json.loads(REPORT.read_text())
    return loaded


def row(report: dict[str, Any], stage: str, switch: str = "default", mode: str | None = None) -> dict[str, Any]:
    (found,) = (
        row
        for row in report["ladder"]
        if (row["stage"], row["set"], row["switch"], row["mode"]) == (stage, "test", switch, mode)
    )
    return dict(found)


def test_every_rung_is_there_on_enough_questions(report: dict[str, Any]) -> None:
    assert list(dict.fromkeys(row["stage"] for row in report["ladder"])) == LADDER
    for stage in LADDER:
        assert row(report, stage)["n_questions"] >= 300
        assert row(report, stage)["k"] == 4


def test_cold_start_gains_thirty_points(report: dict[str, Any]) -> None:
    assert row(report, "sft")["accuracy"] >= row(report, "base")["accuracy"] + 0.30


def test_grpo_is_above_dpo(report: dict[str, Any]) -> None:
    assert row(report, "grpo")["accuracy"] > row(report, "dpo")["accuracy"]


def test_both_flags_are_obeyed(report: dict[str, Any]) -> None:
    for mode in ("think", "no_think"):
        assert row(report, "fusion", "flag", mode)["obeyed_share"] >= 0.97


def test_direct_answers_are_short(report: dict[str, Any]) -> None:
    thinking, direct = (row(report, "fusion", "flag", mode)["mean_tokens"] for mode in ("think", "no_think"))
    assert direct * 2 < thinking


def test_what_each_stage_took_is_there(report: dict[str, Any]) -> None:
    for stage in report["stages"]:
        assert stage["seconds"] >= 0
        assert stage["import_seconds"] >= 0
        assert stage["peak_rss_gib"] > 0
        assert stage["disk_gib"] > 0
    assert {"build_data", "rollout", "sft", "dpo", "grpo", "evaluate"} == {stage["kind"] for stage in report["stages"]}
