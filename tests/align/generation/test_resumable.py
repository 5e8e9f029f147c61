"""Parts of a rollout on disk: one that is not what was written is said, deleted, and drawn again."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_align.align.context import Context
from qwen_align.align.generation import resumable
from qwen_align.align.settings.runtime import Runtime

ROWS = '{"row": "completion"}\n' * 3
DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_text(ROWS[:-1]),
    "empty": lambda path: path.write_text(""),
    "flipped": lambda path: path.write_text(ROWS.replace("c", "C", 1)),
    "of another part": lambda path: path.write_text(ROWS * 2),
}


@pytest.fixture
def context(tmp_path: Path) -> Context:
    return Context(tmp_path, 0, Runtime())


def write(folder: Path) -> Path:
    path = folder / f"00000000-00000016.{hashlib.sha256(ROWS.encode()).hexdigest()[:16]}.jsonl"
    path.write_text(ROWS)
    return path


def test_a_whole_part_is_found_and_no_other(tmp_path: Path, context: Context) -> None:
    path = write(tmp_path)
    assert resumable.find_intact_part(tmp_path, 0, 16, context) == path
    assert resumable.find_intact_part(tmp_path, 16, 32, context) is None
    assert not (tmp_path / "notes.jsonl").exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_said_and_drawn_again(tmp_path: Path, context: Context, damage: str) -> None:
    path = write(tmp_path)
    DAMAGES[damage](path)
    assert resumable.find_intact_part(tmp_path, 0, 16, context) is None
    assert not path.exists()
    (note,) = (json.loads(line) for line in (tmp_path / "notes.jsonl").read_text().splitlines())
    assert note["what"] == "damaged part"
    assert str(path) in note["message"]
