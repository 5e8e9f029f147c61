"""A run remembers how it was run: looking at it needs no --set again, and what runs there are is listed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_align import Recipe, run
from qwen_align.align.commands.remembered_plan import plan_as_last_run
from qwen_align.align.context import Context
from qwen_align.align.pipeline.graph import Stage
from qwen_align.align.pipeline.launcher import Launcher, StageExit
from qwen_align.align.pipeline.plan import plan
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.stages import build_data
from qwen_align.align.store.files import write_json
from qwen_align.align.store.run_folders import hold_runs_lease
from qwen_align.align.store.stage_folder import StageFolder

DATA: dict[str, Any] = {
    "name": "data",
    "kind": "build_data",
    "builder": {"kind": "arithmetic", "rows": "problem", "n": 4, "steps": [1]},
}
MORE = "stages.data.builder.n=7"


@pytest.fixture(autouse=True)
def _quick_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage makes its rows in this process: what is run here is not what is tested."""

    def run_stage(launcher: Launcher, stage: Stage, folder: Path, poll_stop: Callable[[], bool]) -> StageExit:
        settings: Any = stage.settings
        poll_stop()
        summary = build_data.run(settings, {}, folder, Context(folder, stage.seed, Runtime()))
        manifest = {"seconds": 0.1, "import_seconds": 0.1, "cpu_seconds": 0.1, "peak_rss_gib": 0.1, "disk_gib": 0.0}
        known = {"key": "", "kind": stage.kind, "outputs": {}, "libraries": {}, "summary": summary}
        write_json(folder / "manifest.json", manifest | known)
        return StageExit(0, "")

    monkeypatch.setattr(Launcher, "run_stage", run_stage)


@pytest.fixture
def recipe(write_recipe: Callable[..., Path]) -> Path:
    return write_recipe([DATA], tiny={"stages.data.builder.n": 2})


def count_rows(home: Path, folder: str) -> int:
    return len((home / "runs" / folder / "stages" / "data" / "rows.jsonl").read_text().splitlines())


def test_looking_at_a_run_needs_no_set_again(cli: Callable[..., Any], tmp_path: Path, recipe: Path) -> None:
    assert cli("run", recipe, "--set", MORE).code == 0
    reports = tmp_path / "runs" / "trial" / "report.json"
    before = reports.read_bytes()
    said = cli("report", recipe)
    assert said.code == 0
    assert said.out.startswith(f"note: {recipe} as it was last run, 20")
    assert f": --set {MORE}\n" in said.out
    assert reports.read_bytes() == before
    assert [stage["name"] for stage in json.loads(before)["stages"]] == ["data"]
    planned = plan_as_last_run(recipe, tmp_path, (), tiny=False).plan
    assert all(stage.is_stored for stage in planned.stages)
    assert planned.run_folder == tmp_path / "runs" / "trial"
    said = cli("report", recipe, "--set", "stages.data.builder.n=9")
    assert "runs/trial.2: nothing has run yet" in said.out, "what is asked for is not what is shown"
    assert reports.read_bytes() == before


def test_a_recipe_that_has_changed_is_taken_as_it_is_and_that_is_said(
    cli: Callable[..., Any], tmp_path: Path, recipe: Path, write_recipe: Callable[..., Path]
) -> None:
    cli("run", recipe, "--set", MORE)
    recipe.write_text(f"# a comment is no change\n{recipe.read_text()}")
    assert "as it was last run" in cli("report", recipe).out
    write_recipe([{**DATA, "limit": 3}])
    said = cli("report", recipe)
    assert f"has changed since its last run, with --set {MORE}; this is without" in said.out
    assert "nothing has run yet" in said.out
    assert count_rows(tmp_path, "trial") == 7


def test_runs_of_one_name_do_not_overwrite_each_other(
    cli: Callable[..., Any], tmp_path: Path, recipe: Path, write_recipe: Callable[..., Path]
) -> None:
    cli("run", recipe)
    said = cli("run", recipe, "--set", MORE)
    assert f"{tmp_path}/runs/trial is kept, as the run of" in said.out
    assert f"page:  {tmp_path}/runs/trial.2/report.html" in said.out
    other = write_recipe([{**DATA, "limit": 1}], file="other.yaml")
    cli("run", other)
    cli("run", recipe, "--tiny")
    assert [count_rows(tmp_path, name) for name in ("trial", "trial.2", "trial.3", "trial_tiny")] == [4, 7, 1, 2]
    assert cli("prune").out.startswith("nothing to delete"), "all of them are kept"
    listed = [line.split() for line in cli("runs").out.splitlines()]
    assert [line[0] for line in listed] == ["trial", "trial.2", "trial.3", "trial_tiny"]
    assert all(line[3:5] == ["1/1", "stages"] for line in listed)
    assert [line[5:] for line in listed] == [
        [str(recipe)],
        [str(recipe), "--set", MORE],
        [str(other)],
        [str(recipe), "--tiny"],
    ]
    assert "--tiny" in cli("report", recipe).out, "the last run is that of --tiny"
    cli("run", recipe)
    assert not cli("report", recipe).out.startswith("note: "), "and now the plain one"


def test_the_folder_of_a_run_stands_for_its_recipe_as_it_was_run(
    cli: Callable[..., Any], tmp_path: Path, recipe: Path
) -> None:
    cli("run", recipe, "--set", MORE)
    cli("run", recipe)
    folder = tmp_path / "runs" / "trial"
    said = cli("report", folder, home=tmp_path / "elsewhere")
    assert said.out.startswith(f"note: {folder}: {recipe} --set {MORE}\n")
    assert f"page:   {folder}/report.html" in said.out
    said = cli("run", folder)
    assert said.code == 0
    assert "stored" in said.out
    assert cli("check", folder).code == 0
    assert "to change it name its recipe" in cli("report", folder, "--set", "seed=3").err
    recipe.unlink()
    said = cli("report", folder)
    assert said.code == 0, said.err
    assert said.out.startswith(f"note: {folder}: {recipe} is gone; this is recipe.yaml, ")
    assert f"page:   {folder}/report.html" in said.out
    assert "7 rows" in cli("show", folder, "data").out or count_rows(tmp_path, "trial") == 7
    assert "no such recipe" in cli("report", tmp_path / "absent").err
    assert cli("report", tmp_path).code == 2, "a folder that is no run's"


def test_going_on_without_the_set_of_a_run_that_was_stopped_is_said(
    cli: Callable[..., Any], tmp_path: Path, recipe: Path
) -> None:
    failed = cli("run", recipe, "--set", "stages.data.builder.split=none")
    assert failed.code == 2, "a recipe that is wrong is no run"
    assert not (tmp_path / "runs").exists()
    cli("run", recipe, "--set", MORE)
    record = tmp_path / "runs" / "trial" / "run.json"
    record.write_text(record.read_text().replace('"exit_code": 0', '"exit_code": 75'))
    assert f"was with --set {MORE}; this one is without" in cli("run", recipe).out


def test_a_recipe_from_python_has_a_record_too(cli: Callable[..., Any], tmp_path: Path, recipe: Path) -> None:
    run(Recipe(name="mine", stages=[DATA]), home=tmp_path, progress=False, overrides={"seed": 3})
    run(Recipe(recipe), home=tmp_path, progress=False, overrides={"stages.data.builder.n": 7})
    listed = cli("runs").out.splitlines()
    assert listed[0].endswith("a recipe from Python --set seed=3")
    assert listed[1].endswith(f"{recipe} --set {MORE}")
    assert "its recipe is no file" in cli("report", tmp_path / "runs" / "mine").err
    assert f"as it was last run, {listed[1].split()[1]}" in cli("report", recipe).out


def test_a_run_that_goes_on_is_listed_as_running(cli: Callable[..., Any], tmp_path: Path, recipe: Path) -> None:
    cli("run", recipe)
    (stage,) = plan(recipe, tmp_path).stages
    (stage.folder.path / "manifest.json").unlink()
    assert "0/1 stages, stopped" in cli("runs").out
    with StageFolder(stage.folder.path).hold_lease(), hold_runs_lease(tmp_path):
        assert "0/1 stages, running" in cli("runs").out
    record = tmp_path / "runs" / "trial" / "run.json"
    record.write_text(record.read_text().replace('"exit_code": 0', '"exit_code": 4'))
    assert "0/1 stages, failed" in cli("runs").out


def test_a_home_without_runs_says_so(cli: Callable[..., Any], tmp_path: Path) -> None:
    assert cli("runs").out == f"{tmp_path / 'runs'}: nothing has run yet\n"
