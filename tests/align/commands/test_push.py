"""`push` uploads the three files of a data folder and nothing else; a scripted stand-in is the hub."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest


class StandIn:
    """What `push` calls of HfApi, with HfApi's own signatures checked."""

    asked: list[tuple[str, dict[str, Any]]] = []  # noqa: RUF012
    fails: Exception | None = None

    def __init__(self, **_: Any) -> None:
        self.asked.clear()

    def create_repo(self, repo_id: str, **rest: Any) -> None:
        self._called("create_repo", repo_id=repo_id, **rest)

    def upload_folder(self, **given: Any) -> str:
        self._called("upload_folder", **given)
        return f"https://hub/datasets/{given['repo_id']}"

    def _called(self, name: str, **given: Any) -> None:
        inspect.signature(getattr(REAL, name)).bind(None, **given)
        if self.fails:
            raise self.fails
        self.asked.append((name, given))


REAL = huggingface_hub.HfApi


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub, "HfApi", StandIn)
    (tmp_path / "data").mkdir()
    for name in ("README.md", "rows.jsonl", "dropped.jsonl", "log.txt"):
        (tmp_path / "data" / name).write_text("x")
    return tmp_path / "data"


def test_card_rows_and_drops_are_uploaded(cli: Callable[..., Any], folder: Path) -> None:
    done = cli("push", folder, "--to", "me/sums", "--private")
    assert (done.code, done.out.strip()) == (0, "pushed: https://hub/datasets/me/sums")
    (made, repository), (sent, files) = StandIn.asked
    assert (made, sent) == ("create_repo", "upload_folder")
    assert repository == {"repo_id": "me/sums", "repo_type": "dataset", "private": True, "exist_ok": True}
    assert files["allow_patterns"] == ["README.md", "rows.jsonl", "dropped.jsonl"]
    assert files["folder_path"] == folder


def test_a_folder_without_rows_is_not_pushed(cli: Callable[..., Any], folder: Path) -> None:
    (folder / "rows.jsonl").unlink()
    StandIn.asked.clear()
    done = cli("push", folder, "--to", "me/sums")
    assert done.code == 3
    assert "holds no rows.jsonl" in done.err
    assert not StandIn.asked


def test_what_the_hub_refuses_is_told(cli: Callable[..., Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StandIn, "fails", ConnectionError("no route to the hub\nand more"))
    done = cli("push", folder, "--to", "me/sums")
    assert done.code == 2
    assert "me/sums: the hub refused it: no route to the hub" in done.err
