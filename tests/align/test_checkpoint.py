"""Checkpoints are whole or they do not count."""

from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_align.align import checkpoint
from qwen_align.align.errors import StageError

FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth")


def write(home: Path, step: int, *, without: str = "") -> Path:
    """A finished checkpoint, such as a trainer leaves it."""
    folder = home / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in FILES:
        if name != without:
            (folder / name).write_bytes(bytes(100))
    checkpoint._complete(folder)
    return folder


def test_the_newest_whole_one_counts(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path) is None
    write(tmp_path, 9)
    later = write(tmp_path, 10)
    assert checkpoint.newest(tmp_path) == later, "by number, not by name"


DAMAGE: dict[str, Callable[[Path], object]] = {
    "half a file": lambda folder: (folder / "model.safetensors").write_bytes(bytes(50)),
    "half an optimiser": lambda folder: (folder / "optimizer.pt").write_bytes(bytes(50)),
    "a file is missing": lambda folder: (folder / "model.safetensors").unlink(),
    "not said to be complete": lambda folder: (folder / checkpoint.COMPLETE).unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_one_is_passed_over(tmp_path: Path, damage: str) -> None:
    before = write(tmp_path, 1)
    DAMAGE[damage](write(tmp_path, 2))
    assert checkpoint.newest(tmp_path) == before


@pytest.mark.parametrize("needed", ["optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth"])
def test_one_from_which_training_would_go_on_otherwise_is_passed_over(tmp_path: Path, needed: str) -> None:
    write(tmp_path, 1, without=needed)
    assert checkpoint.newest(tmp_path) is None


def test_what_another_number_of_processes_saved_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(StageError, match=r"checkpoint-1: saved by 1 process\(es\), but this run has 2"):
        checkpoint.newest(tmp_path)
