"""A damaged checkpoint is passed over and said, whatever is wrong with it, and never gone on from."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_align.align.errors import StageError
from qwen_align.align.store import integrity
from qwen_align.align.store.files import read_json, write_json
from qwen_align.align.training import checkpoints

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth", "more/state.json")


def make(home: Path, step: int, world_size: int = 1, strategy: str = "ddp") -> Path:
    """A checkpoint put in place as trainers do, and nothing else there."""
    folder = checkpoints.get_partial_folder(home, step)
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(f"{name} of step {step}".encode() * 100)
    digests = integrity.digest_files(folder, FILES)
    integrity.seal_folder(folder, digests, step=step, world_size=world_size, strategy=strategy)
    folder.rename(home / folder.name)
    return home / folder.name


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def in_seal(change: Callable[[dict[str, object]], object]) -> Callable[[Path], object]:
    """The damage that changes what complete.json says."""

    def damage(folder: Path) -> None:
        said = read_json(folder / integrity.COMPLETE)
        change(said)
        write_json(folder / integrity.COMPLETE, said)

    return damage


def forget_file(folder: Path) -> None:
    """The optimiser's file is gone, and so is every trace of it."""
    (folder / "optimizer.pt").unlink()
    in_seal(lambda said: said["files"].pop("optimizer.pt"))(folder)


def of_an_older_version(folder: Path) -> None:
    """Sizes instead of digests, and no seal."""
    sizes = {name: (folder / name).stat().st_size for name in FILES}
    (folder / integrity.COMPLETE).write_text(json.dumps({"files": sizes, "world_size": 1}))


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    **{f"{name} truncated": (lambda folder, name=name: truncate(folder / name), name) for name in FILES},
    **{f"{name} removed": (lambda folder, name=name: (folder / name).unlink(), f"{name} is missing") for name in FILES},
    **{f"{name} has a flipped byte": (lambda folder, name=name: flip(folder / name), name) for name in FILES},
    **{f"{name} is empty": (lambda folder, name=name: (folder / name).write_bytes(b""), name) for name in FILES},
    "two files swapped": (
        lambda folder: (
            (folder / "optimizer.pt").rename(folder / "kept"),
            (folder / "scheduler.pt").rename(folder / "optimizer.pt"),
            (folder / "kept").rename(folder / "scheduler.pt"),
        ),
        "is not what was written",
    ),
    "complete.json missing": (lambda folder: (folder / integrity.COMPLETE).unlink(), "complete.json is missing"),
    "complete.json cut": (lambda folder: truncate(folder / integrity.COMPLETE), "complete.json"),
    "complete.json empty": (lambda folder: (folder / integrity.COMPLETE).write_text(""), "complete.json"),
    "complete.json no object": (lambda folder: (folder / integrity.COMPLETE).write_text("[]"), "complete.json"),
    "complete.json has a flipped byte": (lambda folder: flip(folder / integrity.COMPLETE), ""),
    "complete.json lacks a file": (in_seal(lambda said: said["files"].popitem()), "complete.json"),
    "complete.json lacks a file that is gone": (forget_file, "complete.json"),
    "complete.json names another step": (in_seal(lambda said: said.update(step=9)), "complete.json"),
    "of an older version": (of_an_older_version, "complete.json"),
    "an empty folder": (empty, "complete.json is missing"),
    "renamed to a later step": (lambda folder: folder.rename(folder.with_name("checkpoint-12")), "holds step 10"),
    "half-renamed": (
        lambda folder: folder.rename(folder.with_name("checkpoint-10.tmp")),
        "checkpoint-10.tmp: its name has no step",
    ),
    "half-renamed without a step": (
        lambda folder: folder.rename(folder.with_name("checkpoint-")),
        "checkpoint-: its name has no step",
    ),
    "half-copied into itself": (
        lambda folder: (
            shutil.copytree(folder, folder.with_name("x")),
            empty(folder),
            (folder.with_name("x")).rename(folder / folder.name),
        ),
        "complete.json is missing",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_and_said(tmp_path: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    older, newer = make(tmp_path, 5), make(tmp_path, 10)
    damage(newer)
    found = checkpoints.find_newest_checkpoint(tmp_path)
    assert found.folder == older
    (said,) = found.damaged
    assert said.startswith(f"{tmp_path}/checkpoint-")
    assert message in said
    shutil.rmtree(older)
    assert checkpoints.find_newest_checkpoint(tmp_path) == checkpoints.ResumePoint(None, [said])


def test_the_newest_whole_one_is_taken_and_nothing_is_said(tmp_path: Path) -> None:
    assert checkpoints.find_newest_checkpoint(tmp_path / "none") == checkpoints.ResumePoint(None, [])
    make(tmp_path, 5)
    newer = make(tmp_path, 10)
    assert checkpoints.find_newest_checkpoint(tmp_path) == checkpoints.ResumePoint(newer, [])


def test_an_unfinished_one_is_no_damage_and_is_cleared_away(tmp_path: Path) -> None:
    folder = checkpoints.get_partial_folder(tmp_path, 5)
    folder.mkdir(parents=True)
    (folder / "optimizer.pt").write_text("half")
    assert checkpoints.find_newest_checkpoint(tmp_path) == checkpoints.ResumePoint(None, [])
    assert not folder.exists()


def test_one_of_another_number_of_processes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, 5, world_size=2)
    with pytest.raises(StageError, match=r"checkpoint-5: saved by 2 process\(es\), but this run has 1; run with"):
        checkpoints.find_newest_checkpoint(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert checkpoints.find_newest_checkpoint(tmp_path).step == 5


def test_finishing_one_deletes_the_others_damaged_ones_too(tmp_path: Path) -> None:
    make(tmp_path, 5)
    empty(make(tmp_path, 10))
    folder = checkpoints.get_partial_folder(tmp_path, 7)
    folder.mkdir(parents=True)
    (folder / "optimizer.pt").write_text("o")
    checkpoints.publish_checkpoint(tmp_path, 7, checkpoints.digest_own_files(folder), "ddp")
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-7"]
    assert checkpoints.find_newest_checkpoint(tmp_path).step == 7


@pytest.mark.parametrize("missing", ["optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth"])
def test_one_from_which_training_would_go_on_otherwise_is_not_sealed(tmp_path: Path, missing: str) -> None:
    for name in FILES:
        if name != missing:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"1")
    with pytest.raises(StageError, match=f"transformers saved no {missing}"):
        checkpoints._check_checkpoint_files(tmp_path)
    (tmp_path / missing).write_bytes(b"1")
    checkpoints._check_checkpoint_files(tmp_path)


def test_deepspeed_keeps_its_optimiser_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "latest").write_text("global_step1")
    checkpoints._check_checkpoint_files(tmp_path)
