"""A file of the user's that is edited while a run goes on is noticed: nothing is stored under its earlier key."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.commands.progress import RunProgress
from qwen_align.align.pipeline import worker
from qwen_align.align.pipeline.plan import plan as make_plan
from qwen_align.align.pipeline.stage_job import build_stage_job
from qwen_align.align.stages.registry import import_function
from qwen_align.align.store import outside_files
from qwen_align.align.store.files import write_json
from qwen_align.align.store.outside_files import (
    OutsideFileChanged,
    OutsideFiles,
    OutsideFileWatch,
    verify_outside_files,
)

FIRST: dict[str, Any] = {
    "name": "first",
    "kind": "build_data",
    "builder": {"kind": "arithmetic", "rows": "problem", "n": 4, "steps": [1]},
}
FILE: dict[str, Any] = {
    "name": "rows",
    "kind": "build_data",
    "builder": {"kind": "local_file", "path": "rows.jsonl", "rows": "problem"},
}
ONE, OTHER = ('{"prompt": "1+1?", "gold": "2"}\n', '{"prompt": "1+2?", "gold": "3"}\n')
ROLLOUT: dict[str, Any] = {
    "name": "rollout",
    "kind": "rollout",
    "from_model": "base",
    "from_data": "first",
    "completions_per_prompt": 1,
    "sampling": {"temperature": 1.0, "max_tokens": 4},
    "rewards": [{"kind": "python", "file": "judge.py"}],
}


def get_stored_rows(home: Path) -> list[str]:
    """The prompts that stages have stored."""
    folders = [path.parent for path in home.glob("store/build_data-*/manifest.json")]
    return [json.loads((folder / "rows.jsonl").read_text().splitlines()[0])["id"] for folder in folders]


def test_rows_edited_while_an_earlier_stage_runs_are_not_stored(
    tmp_path: Path, write_recipe: Callable[..., Path], cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(ONE)
    recipe = write_recipe([FIRST, FILE])

    def edit(self: RunProgress, stage: Any) -> None:
        if stage.name == "first":
            rows.write_text(OTHER)

    with monkeypatch.context() as patched:
        patched.setattr(RunProgress, "on_stage_started", edit)
        said = cli("run", recipe)
    assert said.code == 4
    assert f"stage 'rows': {rows}: has changed since the run began" in said.err
    assert len(get_stored_rows(tmp_path)) == 1, "the first stage, which reads no file"
    rows.write_text(ONE)
    assert cli("run", recipe).code == 0
    (planned,) = make_plan(recipe, tmp_path).find_stages("rows")
    assert "1+1?" in (planned.folder.path / "rows.jsonl").read_text(), "not what was there in between"


def prepare_stage(recipe: Path, home: Path, name: str) -> Path:
    """A stage's folder as a run leaves it to the worker."""
    (planned,) = make_plan(recipe, home).find_stages(name)
    planned.folder.path.mkdir(parents=True, exist_ok=True)
    write_json(planned.folder.path / "stage.json", build_stage_job(planned))
    return planned.folder.path


def test_rows_edited_while_their_own_stage_runs_are_not_stored(
    tmp_path: Path, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl").write_text(ONE)
    folder = prepare_stage(write_recipe([FILE]), tmp_path, "rows")

    def import_editing_function(name: str) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            (tmp_path / "rows.jsonl").write_text(OTHER)
            (folder / "checkpoints").mkdir()
            return import_function(name)(*arguments)

        return run

    monkeypatch.setattr(worker, "import_function", import_editing_function)
    assert worker.run_stage(folder, tmp_path / "report.json", started=0.0) == 4
    assert "rows.jsonl: has changed since" in json.loads((tmp_path / "report.json").read_text())["message"]
    assert not (folder / "manifest.json").exists()
    assert not (folder / "checkpoints").exists(), "another run would go on from them"


def test_every_file_of_a_stage_is_known(tiny_model: Path, tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    """The reward file, what it imports, the model's folder, the DeepSpeed file of a training; by hand."""
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "judge.py").write_text("import helper\n\ndef judge(completion, gold):\n    return helper.VALUE\n")
    (tmp_path / "helper.py").write_text("VALUE = 1.0\n")
    (tmp_path / "zero.json").write_text("{}")
    sft = {"name": "sft", "kind": "sft", "from_model": "base", "from_data": ["traces"], "max_tokens": 64, "batch": 1}
    sft |= {"epochs": 1, "learning_rate": 1e-4, "runtime": {"deepspeed": "zero.json"}}
    traces = {**FIRST, "name": "traces", "builder": {**FIRST["builder"], "rows": "trace"}}
    recipe = write_recipe([FIRST, traces, sft, ROLLOUT], models={"base": {"path": "model"}})
    planned = {stage.name: stage for stage in make_plan(recipe, tmp_path).stages}
    model = {str(path) for path in (tmp_path / "model").iterdir()}
    assert planned["first"].outside == OutsideFiles({}, [])
    assert planned["rollout"].outside.digests.keys() == {
        str(tmp_path / "judge.py"),
        str(tmp_path / "helper.py"),
        *model,
    }
    assert planned["sft"].outside.digests.keys() == {str(tmp_path / "zero.json"), *model}
    outside, cache = planned["rollout"].outside, tmp_path / "none.json"
    verify_outside_files(outside, cache)
    for path in (tmp_path / "helper.py", tmp_path / "model" / "config.json"):
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        with pytest.raises(OutsideFileChanged, match=f"{path.name}: has changed"):
            verify_outside_files(outside, cache)
        path.unlink()
        with pytest.raises(OutsideFileChanged, match=f"{path.name}: can no longer be read"):
            verify_outside_files(outside, cache)
        path.write_bytes(content)
    (tmp_path / "model" / "generation_config.json.new").write_text("{}")
    with pytest.raises(OutsideFileChanged, match=r"generation_config\.json\.new: has come"):
        verify_outside_files(outside, cache)


def test_large_files_are_read_again_only_if_they_were_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside_files, "READ_AGAIN", 2)
    path = tmp_path / "weights"
    path.write_text("old")
    status = path.stat()
    identity = f"{path}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_ino}"
    write_json(tmp_path / "digests.json", {identity: "as the plan took it"})
    verify_outside_files(OutsideFiles({str(path): "as the plan took it"}, []), tmp_path / "digests.json")
    path.write_text("new")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(OutsideFileChanged):
        verify_outside_files(OutsideFiles({str(path): "as the plan took it"}, []), tmp_path / "digests.json")


def test_an_edit_that_is_undone_before_the_end_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "judge.py"
    path.write_text("1")
    now = [0.0]
    watch = OutsideFileWatch(OutsideFiles({str(path): outside_files.compute_sha256(path)}, []), lambda: now[0])
    assert not watch.has_changed()
    path.write_text("1")  # an editor's saving is no change
    now[0] = 2.0
    assert not watch.has_changed()
    path.write_text("2")
    assert not watch.has_changed(), "it looks once a second"
    now[0] = 4.0
    assert watch.has_changed()
    path.write_text("1")
    now[0] = 6.0
    assert watch.has_changed()
    assert watch.error is not None


@pytest.mark.slow(seconds=15)
def test_a_reward_edited_while_it_judges_stops_the_stage(
    tiny_model: Path, tmp_path: Path, write_recipe: Callable[..., Path], cli: Callable[..., Any]
) -> None:
    """The reward file edits itself when it is called, and would judge for minutes; the undone edit is noticed too."""
    text = (
        "import pathlib, time\n\ndef judge(completion, gold):\n    file = pathlib.Path(__file__)\n"
        "    old = file.read_text()\n    file.write_text(old + '# edited')\n    time.sleep(4)\n"
        "    file.write_text(old)\n    return 1.0\n"
    )
    (tmp_path / "judge.py").write_text(text)
    builder = {**FIRST["builder"], "n": 1}
    recipe = write_recipe(
        [{**FIRST, "builder": builder}, ROLLOUT], models={"base": {"path": str(tiny_model)}}, runtime={"device": "cpu"}
    )
    said = cli("run", recipe)
    assert said.code == 4
    assert f"stage 'rollout': {tmp_path / 'judge.py'}: has changed since the run began" in said.err
    assert not list(tmp_path.glob("store/rollout-*/manifest.json"))
    assert [path.name for path in tmp_path.glob("store/rollout-*/*")] == ["lease"]
