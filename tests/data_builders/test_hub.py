"""Hub data sets through a stand-in for the library's door, and without a connection through the library itself."""

import os
import subprocess
import sys
from collections.abc import Iterator
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


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the library was asked for; it answers with ROWS."""
    said: list[Any] = []

    def load_dataset(*names: Any, **settings: Any) -> Iterator[dict[str, Any]]:
        said.append((names, settings))
        return iter(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return said


def hub(**settings: Any) -> Hub:
    return Hub.model_validate({"dataset": "openai/gsm8k", "revision": COMMIT, **settings})


def test_rows_of_a_revision(asked: list[Any]) -> None:
    rows = list(hub(name="main", split="test").build({}, 0, Drops()))
    assert [(row.id, row.gold) for row in rows if isinstance(row, Problem)] == [("gsm8k:1", "2"), ("gsm8k:2", "4")]
    assert asked == [(("openai/gsm8k", "main"), {"split": "test", "revision": COMMIT, "streaming": True})]


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
    def load_dataset(*names: Any, **settings: Any) -> None:
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=message):
        list(hub().build({}, 0, Drops()))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"revision": "main"}, "'main' moves, so the same recipe would give other rows tomorrow"),
        ({"revision": "refs/convert/parquet"}, "moves"),
        ({"revision": "abc1234"}, "a part of a commit's name; give all 40"),
        ({"revision": None}, "revision"),
        ({"dataset": "./here"}, "'./here' is no data set of the hub"),
        ({"dataset": "/tmp/here"}, "is no data set of the hub"),
        ({"dataset": "https://x.org/a"}, "is no data set of the hub"),
        ({"trust_remote_code": True}, "'trust_remote_code' is no setting here"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        hub(**settings)
    assert message in str(error.value)


def test_a_tag_is_a_revision() -> None:
    assert hub(revision="v1.0").revision == "v1.0"


OFFLINE = """
from qwen_align.data_builders.hub import Hub
from qwen_align.data_builders.sieve import Drops
try:
    list(Hub(dataset="openai/gsm8k", revision="a" * 40).build({}, 0, Drops()))
except ValueError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.slow
def test_offline_the_library_itself_ends_in_a_plain_error() -> None:
    home = {**os.environ, "HF_HUB_OFFLINE": "1"}
    said = subprocess.run([sys.executable, "-c", OFFLINE], env=home, capture_output=True, text=True, check=True).stdout
    assert said.startswith("DataError openai/gsm8k at aaaa")
    assert "the hub cannot be reached" in said
