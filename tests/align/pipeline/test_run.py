"""Runs of stages that need no torch: what is stored is skipped, what changed runs, nothing half-done counts."""

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_align.align.errors import RecipeError
from qwen_align.align.pipeline.plan import PlannedStage
from qwen_align.align.pipeline.plan import plan as make_plan
from qwen_align.align.pipeline.run import run as run_plan
from qwen_align.align.rows import Completion, Message, to_json_line
from qwen_align.reward.verdict import Verdict

TYPED = {"kind": "local_file", "path": "draws.jsonl", "rows": "typed"}
DRAWS: dict[str, Any] = {"name": "draws", "kind": "build_data", "builder": TYPED}
PAIRS: dict[str, Any] = {"name": "pairs", "kind": "build_data", "builder": {"kind": "pairs", "from_data": "draws"}}


class Heard:
    """A listener that keeps what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def on_stage_skipped(self, planned: PlannedStage) -> None:
        self.said.append(f"{planned.stage.name} stored")

    def on_stage_started(self, planned: PlannedStage) -> None:
        self.said.append(f"{planned.stage.name} started")

    def on_stage_progress(self, planned: PlannedStage) -> None:
        pass

    def on_stage_finished(self, planned: PlannedStage) -> None:
        self.said.append(f"{planned.stage.name} finished")

    def on_note(self, message: str) -> None:
        self.said.append(message)


def completion(prompt: int, sample: int, value: float) -> Completion:
    return Completion(
        prompt_id=f"p{prompt}",
        sample=sample,
        prompt=[Message(role="user", content=f"question {prompt}")],
        text=f"<think>\nthought {sample}\n</think>\n\nanswer {value}",
        finish_reason="stop",
        n_tokens=9,
        gold="1",
        reward="math_answer",
        verdicts={"math_answer": Verdict(value=value, reason="told")},
    )


def write(folder: Path, *stages: dict[str, Any], **rest: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump({"name": "trial", "stages": list(stages), **rest}, sort_keys=False))
    return path


def run(folder: Path, **options: Any) -> list[str]:
    heard = Heard()
    run_plan(make_plan(folder / "recipe.yaml", folder), heard, **options)
    return heard.said


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe of two stages, run to the end."""
    folder = tmp_path_factory.mktemp("done")
    rows = [completion(prompt, sample, float(sample % 2)) for prompt in range(3) for sample in range(4)]
    (folder / "draws.jsonl").write_text("".join(to_json_line(row) + "\n" for row in rows))
    write(folder, DRAWS, PAIRS)
    assert run(folder) == ["draws started", "draws finished", "pairs started", "pairs finished"]
    return folder


@pytest.fixture
def folder(done: Path, tmp_path: Path) -> Path:
    """A copy of `done` for a test to change."""
    return shutil.copytree(done, tmp_path / "copy", symlinks=True)


def stage_folder(folder: Path, name: str) -> Path:
    return (folder / "runs" / "trial" / "stages" / name).resolve()


def test_a_stages_folder_says_what_it_is_and_what_it_made(done: Path) -> None:
    folder = stage_folder(done, "pairs")
    assert folder.parent == done / "store"
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "dropped.jsonl",
        "lease",
        "log.txt",
        "manifest.json",
        "rows.jsonl",
        "stage.json",
    ]
    manifest = json.loads((folder / "manifest.json").read_text())
    job = json.loads((folder / "stage.json").read_text())
    assert folder.name == f"build_data-{manifest['key'][:16]}"
    assert manifest["key"] == job["key"]
    assert manifest["outputs"] == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
        for name in ("rows.jsonl", "dropped.jsonl", "README.md")
    }
    assert manifest["summary"] == {"rows": 6, "dropped": {"in no pair": 3}}
    assert job["inputs"]["draws"]["folder"] == str(stage_folder(done, "draws"))
    assert all(manifest[figure] > 0 for figure in ("seconds", "import_seconds", "peak_rss_gib", "disk_gib"))
    assert {"torch", "transformers", "trl"} <= set(manifest["libraries"])


def test_the_manifest_is_written_last(done: Path) -> None:
    for name in ("draws", "pairs"):
        times = {path.name: path.stat().st_mtime_ns for path in stage_folder(done, name).iterdir()}
        assert max(times, key=lambda name: times[name]) == "manifest.json"


def test_a_second_run_does_nothing(folder: Path) -> None:
    def state() -> dict[str, int]:
        return {str(path): path.lstat().st_mtime_ns for path in folder.glob("store/*/**/*")}

    before = state()
    assert run(folder) == ["draws stored", "pairs stored"]
    assert state() == before


def test_only_what_depends_on_a_change_runs_again(folder: Path) -> None:
    changed = {**PAIRS, "builder": {**PAIRS["builder"], "per_prompt": 1}}
    write(folder, DRAWS, changed)
    assert run(folder) == ["draws stored", "pairs started", "pairs finished"]
    assert len((stage_folder(folder, "pairs") / "rows.jsonl").read_text().splitlines()) == 3
    write(folder, DRAWS, PAIRS)
    assert run(folder) == ["draws stored", "pairs stored"], "going back costs nothing"


def test_renaming_runs_nothing(folder: Path) -> None:
    renamed = {**PAIRS, "name": "preferences", "builder": {"kind": "pairs", "from_data": "completions"}}
    write(folder, renamed, {**DRAWS, "name": "completions", "runtime": {"micro_batch": 3}})
    assert run(folder) == ["completions stored", "preferences stored"]
    assert sorted(path.name for path in (folder / "runs" / "trial" / "stages").iterdir()) == [
        "completions",
        "preferences",
    ]


def test_force_recomputes_that_stage_alone(folder: Path) -> None:
    rows = stage_folder(folder, "draws") / "rows.jsonl"
    before = rows.read_bytes()
    rows.write_text("spoilt")
    assert run(folder, force=["draws"]) == ["draws started", "draws finished", "pairs stored"]
    assert rows.read_bytes() == before


def test_forcing_what_is_not_there_touches_nothing(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"no stage is called 'draw'\. Did you mean 'draws'\?"):
        run(folder, force=["pairs", "draw"])
    assert run(folder) == ["draws stored", "pairs stored"]


def test_a_folder_without_a_manifest_is_continued_not_wiped(folder: Path) -> None:
    unfinished = stage_folder(folder, "pairs")
    (unfinished / "manifest.json").unlink()
    for name in (".rows.jsonl", ".manifest.json.4711"):
        (unfinished / name).write_text("half a ro")  # as a kill leaves them
    (unfinished / "of_an_earlier_try.txt").write_text("kept")
    (unfinished / "log.txt").write_text("the earlier try\n")
    assert run(folder) == ["draws stored", "pairs started", "pairs finished"]
    assert (unfinished / "of_an_earlier_try.txt").read_text() == "kept"
    assert (unfinished / "log.txt").read_text().startswith("the earlier try\n")
    assert not list(unfinished.glob(".*"))
    assert len((unfinished / "rows.jsonl").read_text().splitlines()) == 6


def test_stages_that_are_alike_run_once(folder: Path) -> None:
    write(folder, DRAWS, PAIRS, {**PAIRS, "name": "more", "sieve": {"is_unique": False}}, {**PAIRS, "name": "same"})
    assert run(folder) == ["draws stored", "pairs stored", "more started", "more finished", "same stored"]
    assert stage_folder(folder, "same") == stage_folder(folder, "pairs")


def test_the_resolved_recipe_is_the_same_recipe(folder: Path, tmp_path: Path) -> None:
    resolved = folder / "runs" / "trial" / "recipe.yaml"
    moved = tmp_path / "elsewhere.yaml"
    moved.write_text(resolved.read_text())
    keys = [one.key for one in make_plan(folder / "recipe.yaml", folder).stages]
    assert [one.key for one in make_plan(resolved, folder).stages] == keys
    assert [one.key for one in make_plan(moved, folder).stages] == keys, "its paths hold from anywhere"


def test_results_of_other_major_versions_are_noted_or_refused(folder: Path, cli: Callable[..., Any]) -> None:
    path = stage_folder(folder, "draws") / "manifest.json"
    manifest = json.loads(path.read_text())
    now = manifest["libraries"]["torch"]
    manifest["libraries"]["torch"] = "1.13.1"
    path.write_text(json.dumps(manifest))
    said = cli("run", folder / "recipe.yaml", home=folder)
    assert said.code == 0
    assert f"note: made with other versions: torch 1.13.1 -> {now}" in said.out
    said = cli("run", folder / "recipe.yaml", "--same-versions", home=folder)
    assert said.code == 4
    assert f"stage 'draws' was made with other major versions: torch 1.13.1 -> {now}; recompute it with" in said.err


def test_a_stage_that_another_process_works_on_is_left_to_it(folder: Path, cli: Callable[..., Any]) -> None:
    (stage_folder(folder, "pairs") / "manifest.json").unlink()
    hold = (
        "import sys, pathlib; from qwen_align.align.store.stage_folder import StageFolder\n"
        "with StageFolder(pathlib.Path(sys.argv[1])).hold_lease(): print('held', flush=True); sys.stdin.read()"
    )
    line = [sys.executable, "-c", hold, str(stage_folder(folder, "pairs"))]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        said = cli("run", folder / "recipe.yaml", home=folder)
        assert (said.code, said.err.count("\n")) == (4, 1)
        assert f"process {holder.pid} is working on this stage; wait for it, or stop it and run again" in said.err
        assert cli("run", folder / "recipe.yaml", "--force", "pairs", home=folder).code == 4
        holder.terminate()
    assert cli("run", folder / "recipe.yaml", home=folder).code == 0


def test_a_stop_signal_ends_the_run_with_nothing_half_written(tmp_path: Path) -> None:
    builder = {"kind": "arithmetic", "rows": "trace", "steps": [5], "n": 60_000}  # seconds of work
    path = write(tmp_path, {"name": "many", "kind": "build_data", "builder": builder})
    line = [sys.executable, "-m", "qwen_align.cli", "run", str(path), "--home", str(tmp_path)]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("store/*/progress.json")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "stage 'many': stopped as asked; run again to go on" in err
    assert not list(tmp_path.glob("store/*/manifest.json"))
    assert not list(tmp_path.glob("store/*/.*"))


def test_models_from_outside_reach_the_stage_by_folder_or_commit(
    tiny_model: Path, tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    asked = {"completions_per_prompt": 1, "sampling": {"max_tokens": 4}, "from_data": ["data"], "kind": "evaluate"}
    builder = {"kind": "arithmetic", "rows": "problem", "n": 2, "steps": [1]}
    data = {"name": "data", "kind": "build_data", "builder": builder}
    models = {"mine": {"path": os.path.relpath(tiny_model, tmp_path)}, "far": {"hub": "a/b", "revision": "0" * 40}}
    stages = [data, {"name": "one", "from_model": "mine", **asked}, {"name": "two", "from_model": "far", **asked}]
    planned = make_plan(write_recipe(stages, models=models), tmp_path)
    inputs = {one.stage.name: one.inputs for one in planned.stages}
    assert inputs["one"]["mine"]["folder"] == str(tiny_model)
    assert inputs["two"]["far"]["folder"] == f"hub:a/b@{'0' * 40}"
    assert inputs["one"]["data"]["folder"] == str(planned.stages[0].folder.path.resolve())
    assert re.fullmatch("[0-9a-f]{64}", inputs["one"]["data"]["key"])
