"""Hub data sets: through a stand-in for the library's door, and through the library itself on a hub of our own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import datasets
import pytest
from pydantic import ValidationError

from qwen_align.align.errors import DataError
from qwen_align.align.rows import Problem, RowError
from qwen_align.data_builders.hub import Hub
from qwen_align.data_builders.sieve import Drops

COMMIT = "a" * 40
ROWS = [{"question": "1+1?", "answer": "1+1=2\n#### 2"}, {"question": "2+2?", "answer": "2+2=4\n#### 4"}]


class Builder:
    """What the library gives for a data set: ROWS, of the commit it found."""

    hash = COMMIT

    def as_streaming_dataset(self, split: str) -> Iterator[dict[str, Any]]:
        return iter([{**row, "split": split} for row in ROWS])


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the library was asked for."""
    requests: list[Any] = []

    def load(*names: Any, **settings: Any) -> Builder:
        requests.append((names, settings))
        return Builder()

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    return requests


def hub(**settings: Any) -> Hub:
    return Hub.model_validate({"dataset": "openai/gsm8k", "revision": COMMIT, **settings})


def test_rows_of_a_revision(asked: list[Any]) -> None:
    rows = list(hub(name="main", split="test", keep_columns=["split"]).build({}, 0, Drops()))
    found = [(row.id, row.gold, row.meta["split"]) for row in rows if isinstance(row, Problem)]
    assert found == [("gsm8k:1", "2", "test"), ("gsm8k:2", "4", "test")]
    assert asked == [(("openai/gsm8k", "main"), {"revision": COMMIT})]


def test_another_revision_than_was_asked_for_is_refused(asked: list[Any]) -> None:
    with pytest.raises(DataError, match=f"has no such revision; the library offers {COMMIT}, which is not"):
        list(hub(revision="b" * 40).build({}, 0, Drops()))


def test_a_wrong_row_is_named(asked: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROWS", [*ROWS, {"question": "3+3?", "answer": None}])
    with pytest.raises(RowError, match=rf"openai/gsm8k at {COMMIT}, train: row 3: 'answer' is null"):
        list(hub().build({}, 0, Drops()))
    drops = Drops()
    assert len(list(hub(on_bad_row="drop").build({}, 0, drops))) == 2
    assert drops.counts == {"missing field": 1}


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ConnectionError("Couldn't reach it"), "the hub cannot be reached .Couldn't reach it.; connect, unset"),
        (FileNotFoundError("no such data set\nmore"), "cannot be read: no such data set$"),
        (ValueError("Unknown split"), "cannot be read: Unknown split"),
    ],
)
def test_what_the_library_refuses_is_said_plainly(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    def load(*names: Any, **settings: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset_builder", load)
    with pytest.raises(DataError, match=message):
        list(hub().build({}, 0, Drops()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"revision": "abc1234"}, "a part of a commit's name, or not in small letters; give all 40"),
        ({"revision": "A" * 40}, "not in small letters; give all 40 hex digits (on its page of the hub: Files and v"),
        ({"revision": "a b"}, "'a b' is no revision: give a commit's 40 hex digits"),
        ({"revision": "../main"}, "is no revision"),
        ({"revision": None}, "revision"),
        ({"dataset": "./here"}, "'./here' is no data set of the hub"),
        ({"dataset": "/tmp/here"}, "is no data set of the hub"),
        ({"dataset": "https://x.org/a"}, "is no data set of the hub"),
        ({"trust_remote_code": True}, "'trust_remote_code' is no setting: no code of a model or data set is run"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        hub(**settings)
    assert message in str(error.value)


@pytest.mark.parametrize("revision", ["v1.0", "main", "refs/convert/parquet"])
def test_a_branch_or_tag_is_a_revision(revision: str) -> None:
    assert hub(revision=revision).revision == revision


BUILD = """
import json, sys
from qwen_align.data_builders.hub import Hub
from qwen_align.data_builders.sieve import Drops
for settings in json.loads(sys.argv[1]):
    try:
        rows = [[row.id, row.gold] for row in Hub.model_validate(settings).build({}, 0, Drops())]
    except ValueError as error:
        rows = f"{type(error).__name__} {error}"
    print("said", json.dumps(rows))
"""


def run_library_offline(settings: list[dict[str, Any]], **environment: str) -> list[Any]:
    """What the builder gives in a process of its own, as the library reads its environment once."""
    env = {**os.environ, **environment}
    line = [sys.executable, "-c", BUILD, json.dumps(settings)]
    done = subprocess.run(line, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(one.removeprefix("said ")) for one in done.stdout.splitlines() if one.startswith("said ")]


@pytest.mark.slow
def test_offline_the_library_itself_ends_in_a_plain_error(tmp_path: Path) -> None:
    settings = {"dataset": "openai/gsm8k", "revision": COMMIT}
    [message] = run_library_offline([settings], HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path))
    assert message.startswith("DataError openai/gsm8k at aaaa")
    assert "the hub cannot be reached" in message


class TinyHub(BaseHTTPRequestHandler):
    """One data set `o/d` of one file at COMMIT, by the paths of the hub's interface that the library asks for."""

    file = "".join(json.dumps(row) + "\n" for row in ROWS).encode()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        entry = {"type": "file", "oid": "b" * 40, "size": len(self.file), "path": "test.jsonl"}
        if path == f"/api/datasets/o/d/revision/{COMMIT}":
            info = {"id": "o/d", "sha": COMMIT, "private": False, "tags": [], "siblings": [{"rfilename": "test.jsonl"}]}
            self._send(200, json.dumps(info).encode())
        elif path == f"/api/datasets/o/d/tree/{COMMIT}":
            self._send(200, json.dumps([entry]).encode())
        elif path == f"/datasets/o/d/resolve/{COMMIT}/test.jsonl":
            self._send(200, self.file)
        else:
            self._send(404, b"")

    def do_HEAD(self) -> None:
        self.do_GET()

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), "ETag": '"e"', "X-Repo-Commit": COMMIT}
        for name, value in {**headers, **({"X-Error-Code": "EntryNotFound"} if status == 404 else {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.mark.slow
def test_the_library_itself_on_a_hub_of_our_own(tmp_path: Path) -> None:
    """Both ways to read; and a revision the hub does not have is not answered with the one in the cache."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), TinyHub)
    Thread(target=server.serve_forever, daemon=True).start()
    there = {"dataset": "o/d", "split": "test", "revision": COMMIT}
    asked = [there, {**there, "streaming": False}, {**there, "revision": "c" * 40}, {**there, "revision": "v2"}]
    asked.append({**there, "split": "train"})
    try:
        endpoint = f"http://127.0.0.1:{server.server_port}"
        outputs = run_library_offline(asked, HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path), HF_HUB_OFFLINE="0")
    finally:
        server.shutdown()
        server.server_close()
    rows = [["d:1", "2"], ["d:2", "4"]]
    assert outputs[:2] == [rows, rows]
    assert all(f"the library offers {COMMIT}, which is not what the recipe names" in one for one in outputs[2:4])
    assert "Bad split: train" in outputs[4]
