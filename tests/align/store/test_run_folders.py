"""The folders under runs/: a run keeps its own, no other run takes it unseen, and its record says how it was run."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import qwen_align
from qwen_align.align.errors import StageError
from qwen_align.align.store import run_folders
from qwen_align.align.store.files import read_json
from qwen_align.align.store.prune import prune_store
from qwen_align.align.store.run_folders import RunRequest, find_run_folder, read_record, write_run_folder

PLAIN = RunRequest("/recipes/a.yaml", (), False, "1")
CHANGED = replace(PLAIN, overrides=("stages.sft.epochs=2",))
OTHER_FILE = replace(PLAIN, recipe="/recipes/b.yaml")
EDITED = replace(PLAIN, digest="2")


def stage(home: Path, key: str) -> Path:
    """A finished stage in the store."""
    folder = home / "store" / f"sft-{key * 16}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"key": key * 64, "outputs": {}}))
    (folder / "lock").touch()
    return folder


def write(home: Path, request: RunRequest, key: str) -> str:
    return write_run_folder(home, "trial", request, {"sft": stage(home, key)}, "name: trial\n")


def find(home: Path, request: RunRequest, key: str) -> str:
    return find_run_folder(home, "trial", request, {"sft": stage(home, key)}).name


@pytest.mark.parametrize("other", [CHANGED, OTHER_FILE, replace(PLAIN, tiny=True), RunRequest()])
def test_another_run_of_the_name_has_a_folder_of_its_own(tmp_path: Path, other: RunRequest) -> None:
    assert write(tmp_path, PLAIN, "a") == ""
    note = write(tmp_path, other, "b")
    assert note == f"{tmp_path}/runs/trial is kept, as the run of /recipes/a.yaml; this run is {tmp_path}/runs/trial.2"
    assert write(tmp_path, other, "b") == "", "it is said once"
    assert find(tmp_path, PLAIN, "a") == "trial"
    assert find(tmp_path, other, "c") == "trial.2", "whatever its stages are by now"
    assert (tmp_path / "runs" / "trial" / "stages" / "sft").resolve() == stage(tmp_path, "a").resolve()
    assert list(prune_store(tmp_path, dry_run=True)) == [(stage(tmp_path, "c"), pytest.approx(0, abs=1e-3))]


def test_a_change_that_leaves_the_stages_as_they_are_is_the_same_run(tmp_path: Path) -> None:
    write(tmp_path, PLAIN, "a")
    request = replace(PLAIN, overrides=("runtime.processes=2",))
    assert find(tmp_path, request, "a") == "trial"
    assert write(tmp_path, request, "a") == ""
    assert find(tmp_path, PLAIN, "a") == "trial", "and back"


def test_an_edited_recipe_takes_over_its_folder_and_says_what_it_no_longer_links(tmp_path: Path) -> None:
    write(tmp_path, PLAIN, "a")
    note = replaced(tmp_path, EDITED, "b")
    assert "the recipe has changed; sft as made before is still in store/, but `qwen-align prune` would delete" in note
    assert write(tmp_path, EDITED, "b") == ""
    assert [folder.name for folder, _ in prune_store(tmp_path, dry_run=True)] == [f"sft-{'a' * 16}"]
    write(tmp_path, OTHER_FILE, "b")
    assert replaced(tmp_path, PLAIN, "a") == "", "sft-b is linked by the other run"
    assert replaced(tmp_path, EDITED, "b") == "", "nothing changes"


def replaced(home: Path, request: RunRequest, key: str) -> str:
    folders = {"sft": stage(home, key)}
    return run_folders.describe_replaced(home, find_run_folder(home, "trial", request, folders), folders)


def test_a_folder_that_was_let_go_of_is_free_again(tmp_path: Path) -> None:
    for number, request in enumerate((PLAIN, CHANGED, OTHER_FILE)):
        write(tmp_path, request, str(number))
    run = tmp_path / "runs" / "trial.2"
    run.rename(tmp_path / "runs" / "elsewhere")
    assert find(tmp_path, replace(PLAIN, tiny=True), "x") == "trial.2"
    assert find(tmp_path, OTHER_FILE, "x") == "trial.3"
    assert [path.name for path in run_folders.list_folders(tmp_path / "runs", "trial")] == ["trial", "trial.3"]


def test_a_folder_of_an_earlier_version_is_taken_over(tmp_path: Path) -> None:
    old = tmp_path / "runs" / "trial" / "stages"
    old.mkdir(parents=True)
    (old / "sft").symlink_to(stage(tmp_path, "a"))
    assert "sft as made before" in replaced(tmp_path, PLAIN, "b")
    assert write(tmp_path, PLAIN, "b") == ""
    assert find(tmp_path, PLAIN, "b") == "trial"


def test_the_record_says_how_it_was_run(tmp_path: Path) -> None:
    write(tmp_path, CHANGED, "a")
    folder = tmp_path / "runs" / "trial"
    raw = read_json(folder / "run.json")
    assert raw["recipe"] == "/recipes/a.yaml"
    assert raw["overrides"] == ["stages.sft.epochs=2"]
    assert (raw["tiny"], raw["home"], raw["version"]) == (False, str(tmp_path), qwen_align.__version__)
    assert (raw["ended"], raw["exit_code"]) == (None, None)
    run_folders.close_record(folder, 75)
    record = read_record(folder)
    assert record
    assert (record.request, record.exit_code) == (CHANGED, 75)
    assert record.ended
    assert record.ended >= record.started
    assert run_folders.format_request(CHANGED) == "/recipes/a.yaml --set stages.sft.epochs=2"
    assert run_folders.format_request(RunRequest("", ("a=[1, 2]",))) == "a recipe from Python --set 'a=[1, 2]'"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"recipe": 3}'])
def test_a_damaged_record_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.json").write_text(text)
    assert read_record(tmp_path) is None
    assert read_record(tmp_path / "absent") is None


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(StageError, match="cannot be written"):
        write(tmp_path, PLAIN, "a")


def test_a_project_that_is_moved_knows_its_runs(tmp_path: Path) -> None:
    home, recipe = tmp_path / "before" / "home", tmp_path / "before" / "a.yaml"
    home.mkdir(parents=True)
    write(home, replace(PLAIN, recipe=str(recipe)), "a")
    assert read_json(home / "runs" / "trial" / "run.json")["recipe"] == "../a.yaml"
    (tmp_path / "before").rename(tmp_path / "after")
    moved = tmp_path / "after"
    record = read_record(moved / "home" / "runs" / "trial")
    assert record
    assert record.request.recipe == str(moved / "a.yaml")
    assert write(moved / "home", record.request, "a") == ""
