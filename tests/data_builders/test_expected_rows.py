"""What sources share besides formats: how many rows they have to have, a system message, rewards of one's own."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from qwen_align.align.errors import DataError
from qwen_align.align.rows import Row
from qwen_align.data_builders.local_file import LocalFile
from qwen_align.data_builders.sieve import Drops

GOOD = {"prompt": "1+1?", "gold": "2"}
BAD = {"prompt": "1+1?"}


def build_rows(folder: Path, given: list[Any], **settings: Any) -> tuple[list[Row], dict[str, int]]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in given), encoding="utf-8")
    drops = Drops()
    return list(LocalFile(path=path.as_posix(), **settings).build({}, 0, drops)), drops.counts


@pytest.mark.parametrize("rows", [[GOOD] * 3, [GOOD, BAD, GOOD], [BAD, GOOD, BAD]])
def test_rows_are_counted_with_bad_ones(tmp_path: Path, rows: list[Any]) -> None:
    made, dropped = build_rows(tmp_path, rows, rows="problem", on_bad_row="drop", expect_rows=3)
    assert len(made) + sum(dropped.values()) == 3


@pytest.mark.parametrize("n_rows", [0, 1, 2, 4])
def test_another_number_of_rows_is_an_error(tmp_path: Path, n_rows: int) -> None:
    with pytest.raises(DataError, match=rf"has {n_rows} rows, but expect_rows is 3: other data\?"):
        build_rows(tmp_path, [GOOD] * n_rows, rows="problem", expect_rows=3)


def test_a_line_that_cannot_be_read_is_a_row_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD) + "\n{broken\n", encoding="utf-8")
    settings = LocalFile(path=path.as_posix(), rows="problem", on_bad_row="drop", expect_rows=2)
    assert len(list(settings.build({}, 0, Drops()))) == 1


def test_typed_rows_can_be_expected(tmp_path: Path) -> None:
    row = {"row": "text", "id": "a", "text": "x"}
    assert len(build_rows(tmp_path, [row], rows="typed", expect_rows=1)[0]) == 1
    with pytest.raises(ValidationError, match="system: typed rows say everything themselves"):
        build_rows(tmp_path, [row], rows="typed", system="Be brief.")


@pytest.mark.parametrize(
    ("row", "settings", "roles"),
    [
        (GOOD, {"rows": "problem"}, ["system", "user"]),
        ({"prompt": "?", "answer": "!"}, {"rows": "chat"}, ["system", "user", "assistant"]),
        ({"question": "?", "solution": "!", "answer": "1"}, {"format": "limo"}, ["system", "user", "assistant"]),
        ({"question": "?", "answer": "1\n#### 1", "system": "Mine."}, {"format": "gsm8k"}, ["system", "user"]),
    ],
)
def test_a_system_message_opens_rows_that_bring_none(
    tmp_path: Path, row: dict[str, Any], settings: dict[str, Any], roles: list[str]
) -> None:
    ((made,), _) = build_rows(tmp_path, [row], system="Be brief.", **settings)
    assert not hasattr(made, "text")
    messages: Any = getattr(made, "messages")  # noqa: B009 - a text has none
    assert [turn.role for turn in messages] == roles
    assert messages[0].content == row.get("system", "Be brief.")


def test_a_row_may_be_judged_by_ones_own_reward(tmp_path: Path) -> None:
    ((made,), _) = build_rows(tmp_path, [GOOD], rows="problem", reward="python")
    assert made.model_dump()["reward"] == "python"
    with pytest.raises(ValidationError, match="'pyhton' is no reward"):
        build_rows(tmp_path, [GOOD], rows="problem", reward="pyhton")
