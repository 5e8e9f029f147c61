"""The report: what was measured, under the names of the recipe as it stands now, however far the run is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.errors import RecipeError
from qwen_align.align.pipeline.plan import Plan
from qwen_align.align.pipeline.plan import plan as make_plan
from qwen_align.align.reporting import results
from qwen_align.align.reporting.report_files import format_report, write_report
from qwen_align.align.settings.evaluate import Evaluate
from qwen_align.align.store.files import read_json, write_json
from qwen_align.align.store.provenance import read_library_versions

SAMPLING = {"temperature": 1.0, "max_tokens": 8}
DATA: dict[str, Any] = {
    "name": "test",
    "kind": "build_data",
    "seed": 0,
    "builder": {"kind": "arithmetic", "rows": "problem", "n": 4, "steps": [1]},
}
OTHER: dict[str, Any] = {**DATA, "name": "other", "builder": {**DATA["builder"], "n": 5}}
SFT: dict[str, Any] = {
    "name": "sft",
    "kind": "sft",
    "from_model": "base",
    "from_data": ["test"],
    "max_tokens": 64,
    "batch": 1,
    "epochs": 1,
    "learning_rate": 1e-4,
}
EVALUATE: dict[str, Any] = {
    "name": "eval_sft",
    "kind": "evaluate",
    "from_model": "sft",
    "from_data": ["test", "other"],
    "completions_per_prompt": 4,
    "sampling": SAMPLING,
    "thinking_switches": [{"method": "default"}, {"method": "kwarg", "mode": "no_think"}],
}
BEFORE: dict[str, Any] = {**EVALUATE, "name": "eval_base", "from_model": "base", "from_data": ["test"]}


@pytest.fixture
def plan(tiny_model: Path, tmp_path: Path, write_recipe: Callable[..., Path]) -> Callable[..., Plan]:
    def of(*stages: dict[str, Any], **rest: Any) -> Plan:
        path = write_recipe(list(stages), models={"base": {"path": str(tiny_model)}}, **rest)
        return make_plan(path, tmp_path)

    return of


def finish(planned: Plan, *names: str, accuracy: float = 0.5) -> None:
    """Stores the stages as if they had run."""
    planned.run_folder.mkdir(parents=True, exist_ok=True)
    for one in planned.stages:
        if one.stage.name in names:
            settings = one.stage.settings
            summary: dict[str, Any] = {"rows": 4, "dropped": {"duplicate": 3}}
            if isinstance(settings, Evaluate):
                summary = {"results": evaluation_results(settings, accuracy)}
            figures = {"seconds": 1.25, "import_seconds": 0.5, "peak_rss_gib": 0.125, "disk_gib": 0.001}
            one.folder.path.mkdir(parents=True, exist_ok=True)
            write_json(
                one.folder.path / "manifest.json",
                {"key": one.key, "summary": summary, "libraries": read_library_versions(), **figures},
            )


def evaluation_results(settings: Evaluate, accuracy: float) -> list[dict[str, Any]]:
    figures = {
        "stderr": 0.025,
        "mean_reward": 0.625,
        "no_verdict": 3,
        "n_questions": 4,
        "k": settings.completions_per_prompt,
        "obeyed_share": None,
        "stopped_share": 1.0,
        "mean_tokens": 12.4,
        "pass_at_k": 0.75,
    }
    return [
        {"set": str(ref), "switch": one.method, "mode": one.mode, "accuracy": accuracy + place / 100, **figures}
        for place, (ref, one) in enumerate(
            (ref, one) for ref in settings.from_data for one in settings.thinking_switches
        )
    ]


def test_each_rung_is_a_row_for_each_set_and_switch(plan: Callable[..., Plan]) -> None:
    planned = plan(DATA, OTHER, SFT, EVALUATE)
    finish(planned, "test", "other", "sft", "eval_sft")
    rows = results.collect_results(planned).ladder
    assert [(row["stage"], row["set"], row["switch"], row["mode"], row["accuracy"]) for row in rows] == [
        ("sft", "test", "default", None, 0.5),
        ("sft", "test", "kwarg", "no_think", 0.51),
        ("sft", "other", "default", None, 0.52),
        ("sft", "other", "kwarg", "no_think", 0.53),
    ]
    assert all(set(row) == set(results.LADDER_FIELDS) for row in rows)


def test_a_run_that_is_under_way_is_reported_so_far(plan: Callable[..., Plan]) -> None:
    planned = plan(DATA, OTHER, SFT, BEFORE, EVALUATE)
    finish(planned, "test", "eval_base")
    written = write_report(planned)
    text = (planned.run_folder / "report.md").read_text()
    assert [row["stage"] for row in written.ladder] == ["base", "base"]
    assert "| base | 0 | test | default | 50.0 ± 2.5 | 0.625 | 75.0 | 3 |  | 100.0 | 12 |" in text
    assert "| test | build_data | 1.2 | 0.5 | 0.12 | 0.0010 | " in text
    assert "| test | duplicate | 3 |" in text
    assert text.endswith("Not run yet: other, sft, eval_sft.\n")
    said = json.loads((planned.run_folder / "report.json").read_text())
    assert said["ladder"] == written.ladder
    assert [stage["name"] for stage in said["stages"]] == ["test", "eval_base"]
    assert said == read_json(planned.run_folder / "report.json")


def test_a_recipe_that_never_ran_has_no_report(plan: Callable[..., Plan]) -> None:
    planned = plan(DATA, BEFORE)
    assert write_report(planned) == ([], [], [], [], [])
    assert not planned.run_folder.exists()


def test_stages_renamed_after_they_ran_have_their_new_names(plan: Callable[..., Plan]) -> None:
    finish(plan(DATA, OTHER, SFT, EVALUATE), "test", "other", "sft", "eval_sft")
    renamed = plan(
        {**DATA, "name": "exam"},
        {**OTHER, "name": "quiz"},
        {**SFT, "name": "cold", "from_data": ["exam"]},
        {**EVALUATE, "name": "after", "from_model": "cold", "from_data": ["exam", "quiz"]},
    )
    assert all(one.is_stored for one in renamed.stages)
    rows = results.collect_results(renamed).ladder
    assert [(row["stage"], row["set"]) for row in rows] == [("cold", "exam")] * 2 + [("cold", "quiz")] * 2


def test_controls_stand_apart(plan: Callable[..., Plan]) -> None:
    planned = plan(DATA, OTHER, SFT, BEFORE, EVALUATE, report={"title": "A trial", "controls": ["base"]})
    finish(planned, "test", "other", "sft", "eval_base", "eval_sft")
    written = write_report(planned)
    assert {row["stage"] for row in written.controls} == {"base"}
    assert {row["stage"] for row in written.ladder} == {"sft"}
    text = (planned.run_folder / "report.md").read_text()
    assert text.startswith("# A trial\n")
    assert "| base (control) | 0 | test |" in text
    assert "Not run yet" not in text


def test_pairs_that_the_recipe_asks_for_are_compared_besides_the_rungs(plan: Callable[..., Plan]) -> None:
    more = {**SFT, "name": "more", "from_model": "sft"}
    ask = {**EVALUATE, "from_data": ["test"], "thinking_switches": [{"method": "default"}]}
    after = {**ask, "name": "eval_more", "from_model": "more"}
    report_ = {"controls": ["more"], "compare": [["base", "more"], ["base", "sft"]]}
    planned = plan(DATA, SFT, more, {**ask, "name": "eval_base", "from_model": "base"}, ask, after, report=report_)
    finish(planned, *(one.stage.name for one in planned.stages))
    means = {"eval_base": 0.0, "eval_sft": 0.25, "eval_more": 0.75}
    for one in planned.stages:
        if one.stage.kind == "evaluate":
            mean = means[one.stage.name]
            write_json(one.folder.path / "questions.json", {"means": [{"a": mean, "b": mean + 0.25}]})
    found = results.collect_results(planned).comparisons
    assert [(one["from"], one["to"], one["difference"]) for one in found] == [
        ("base", "sft", 0.25),
        ("base", "more", 0.75),
    ]


def test_models_are_compared_on_the_questions_that_both_have_a_verdict_of(plan: Callable[..., Plan]) -> None:
    ask = {**EVALUATE, "from_data": ["test"], "thinking_switches": [{"method": "default"}]}
    planned = plan(DATA, SFT, {**ask, "name": "eval_base", "from_model": "base"}, ask, matrix={"seed": [0, 1]})
    finish(planned, *(one.stage.name for one in planned.stages))
    before = {"a": 0.0, "b": None, "c": 0.5, "d": 0.25}
    after = {"a": 0.5, "b": 1.0, "c": None, "d": 0.5}
    for one in planned.stages:
        if one.stage.kind == "evaluate":
            means = before if one.stage.name.startswith("eval_base") else after
            write_json(one.folder.path / "questions.json", {"means": [means]})
    found = results.collect_results(planned).comparisons
    assert [one["seed"] for one in found] == [0, 1, None]
    for one in found:
        assert (one["n_questions"], one["difference"]) == (2, pytest.approx((0.5 + 0.25) / 2))


@pytest.mark.parametrize("said", [{"controls": ["stf"]}, {"compare": [["base", "stf"]]}])
def test_a_report_of_what_is_not_there_is_refused(plan: Callable[..., Plan], said: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"report.*no model or stage is called 'stf'. Did you mean 'sft'"):
        plan(DATA, OTHER, SFT, EVALUATE, report=said)


def test_cells_of_a_matrix_and_rounds_are_told_apart(plan: Callable[..., Plan]) -> None:
    block = {"repeat": {"times": 2, "carry": {"base": "sft"}, "stages": [SFT, {**EVALUATE, "from_data": ["test"]}]}}
    matrix = {"seed": [0, 1], "stages.eval_base.completions_per_prompt": [4, 8]}
    planned = plan(DATA, block, BEFORE, matrix=matrix, report={"controls": ["sft"]})
    finish(planned, *(one.stage.name for one in planned.stages))
    rows = [row for row in results.collect_results(planned).evaluations if row["switch"] == "default"]
    assert [
        (row["stage"], row["set"], row["seed"], row["axes"]["completions_per_prompt"], row["is_control"])
        for row in rows
    ] == [
        (name, "test", seed, samples, name != "base")
        for seed in (0, 1)
        for samples in ("4", "8")
        for name in ("sft.1", "sft.2", "base")
    ]
    text = format_report(planned, results.collect_results(planned))
    assert "| sft.2 completions_per_prompt=8 (control) | 1 | test | default |" in text
    assert "| base completions_per_prompt=4 | 0 | test | default |" in text


def test_the_command_prints_the_table(plan: Callable[..., Plan], cli: Callable[..., Any], tmp_path: Path) -> None:
    planned = plan(DATA, BEFORE)
    finish(planned, "test", "eval_base", accuracy=0.625)
    said = cli("report", tmp_path / "recipe.yaml")
    assert said.code == 0
    assert "62.5 ± 2.5" in said.out
    headings = said.out.splitlines()[1]
    assert headings.split() == "model set asked accuracy reward pass@k no verdict obeyed stop tokens".split()
    assert said.out.endswith(f"report: {planned.run_folder / 'report.md'}\n")
