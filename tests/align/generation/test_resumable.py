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
    assert resumable.find_intact_part(tmp_path, resumable.Part(0, 16, 0, 4), context) == path
    assert resumable.find_intact_part(tmp_path, resumable.Part(16, 32, 0, 4), context) is None
    assert not (tmp_path / "notes.jsonl").exists()


@pytest.mark.parametrize("n_prompts", [0, 1, 2, 3, 5, 8, 48])
@pytest.mark.parametrize("n_processes", [1, 2, 7, 64])
@pytest.mark.parametrize("samples", [1, 4, 64])
def test_parts_are_shared_out_whatever_the_number_of_questions(n_prompts: int, n_processes: int, samples: int) -> None:
    size = max(1, -(-n_prompts // n_processes))
    parts = list(resumable.divide_into_parts(n_prompts, size, samples, n_processes))
    drawn = [
        (prompt, sample)
        for part in parts
        for prompt in range(part.start, part.stop)
        for sample in range(part.first, part.last)
    ]
    assert drawn == [(prompt, sample) for prompt in range(n_prompts) for sample in range(samples)], (
        "each once, in order"
    )
    assert len({part.name for part in parts}) == len(parts)
    most = max(sum(part.n_completions for part in parts[rank::n_processes]) for rank in range(n_processes))
    assert most <= 2 * max(1, -(-n_prompts * samples // n_processes)), "nobody draws twice as much as the mean"


def test_a_slice_is_not_taken_for_the_whole(tmp_path: Path, context: Context) -> None:
    path = write(tmp_path)
    part = resumable.Part(0, 1, 2, 4, is_slice=True)
    slice_ = path.rename(tmp_path / path.name.replace("00000000-00000016", "00000000-00000001_2-4"))
    assert resumable.find_intact_part(tmp_path, part, context) == slice_
    assert resumable.find_intact_part(tmp_path, resumable.Part(0, 1, 0, 4), context) is None
    assert resumable.find_part_size(tmp_path, 3) == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part_is_said_and_drawn_again(tmp_path: Path, context: Context, damage: str) -> None:
    path = write(tmp_path)
    DAMAGES[damage](path)
    assert resumable.find_intact_part(tmp_path, resumable.Part(0, 16, 0, 4), context) is None
    assert not path.exists()
    (note,) = (json.loads(line) for line in (tmp_path / "notes.jsonl").read_text().splitlines())
    assert note["what"] == "damaged part"
    assert str(path) in note["message"]
