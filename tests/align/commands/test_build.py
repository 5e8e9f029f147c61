"""`build`: one data stage alone, with its card; and what is left when it fails: nothing."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from qwen_align.align.commands import build
from qwen_align.align.rows import read_rows
from qwen_align.data_builders import Arithmetic

Cli = Callable[..., Any]
SPEC = {"builder": {"kind": "arithmetic", "rows": "problem", "n": 20, "steps": [2]}, "licences": {"arithmetic": "mit"}}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "spec.yaml"
    path.write_text(yaml.safe_dump({**SPEC, **changes}))
    return path


def test_rows_drops_and_a_card(cli: Cli, tmp_path: Path) -> None:
    done = cli("build", write(tmp_path), "--out", tmp_path / "data")
    assert (done.code, done.out.splitlines()[0]) == (0, f"20 rows written: {tmp_path / 'data'}")
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == ["README.md", "dropped.jsonl", "rows.jsonl"]
    assert len(list(read_rows(tmp_path / "data" / "rows.jsonl"))) == 20
    _, front, body = (tmp_path / "data" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "mit"
    assert yaml.safe_load(front)["configs"] == [{"config_name": "default", "data_files": "rows.jsonl"}]
    assert hashlib.sha256((tmp_path / "data" / "rows.jsonl").read_bytes()).hexdigest() in body
    assert "| arithmetic | mit | 20 |" in body
    assert "Nothing was dropped." in body


def test_what_is_dropped_is_counted_on_the_card(cli: Cli, tmp_path: Path) -> None:
    rows = [{"prompt": f"1+{n}?", "gold": gold} for n, gold in enumerate(["1", "2", "?"])]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0]]))
    builder = {"kind": "local_file", "path": "rows.jsonl", "rows": "problem", "source": "mine|own"}
    done = cli("build", write(tmp_path, builder=builder, licences={}), "--out", tmp_path / "data")
    assert done.code == 0
    assert "        1  dropped: duplicate" in done.out
    card = (tmp_path / "data" / "README.md").read_text()
    assert "| duplicate | 1 |\n" in card
    assert "| unusable gold | 1 |\n" in card
    assert "| mine\\|own | not stated | 2 |" in card
    assert str(tmp_path) not in card


def test_the_same_settings_and_seed_give_the_same_bytes(cli: Cli, tmp_path: Path) -> None:
    for name, seed in (("one", 1), ("two", 1), ("other", 2)):
        assert cli("build", write(tmp_path), "--set", f"seed={seed}", "--out", tmp_path / name).code == 0
    one, two, other = (
        [(tmp_path / name / file).read_bytes() for file in ("rows.jsonl", "dropped.jsonl", "README.md")]
        for name in ("one", "two", "other")
    )
    assert one == two
    assert one[0] != other[0]


def test_rows_of_another_build_are_read_where_data_says(cli: Cli, tmp_path: Path) -> None:
    assert cli("build", write(tmp_path), "--out", tmp_path / "questions").code == 0
    sieve = {"contamination": [{"against": "held_out", "method": "same_words"}]}
    spec = write(tmp_path, sieve=sieve, data={"held_out": "questions"}, on_empty="pass_through")
    done = cli("build", spec, "--out", tmp_path / "clean")
    assert (done.code, done.out.splitlines()[0]) == (0, f"0 rows written: {tmp_path / 'clean'}"), done.err
    assert "       20  dropped: contaminated: held_out, same_words" in done.out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"builder": {"kind": "arithmetik"}}, "kind 'arithmetik' is unknown. Did you mean 'arithmetic'?"),
        ({"bilder": 1}, "'bilder' is no setting here. Did you mean 'builder'?"),
        ({"builder": {"kind": "pairs", "from_data": "draws"}}, "builder.from_data: no folder is given for 'draws'"),
        ({"builder": {"kind": "pairs", "from_data": "draws"}, "data": {"draws": "no"}}, "holds no rows.jsonl"),
        ({"data": {"held_out": "no"}}, "data.held_out: no setting refers to it\n"),
    ],
)
def test_wrong_settings_are_told_and_nothing_is_written(
    cli: Cli, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    done = cli("build", write(tmp_path, **changes), "--out", tmp_path / "data")
    assert done.code == 2
    assert said in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["spec.yaml"]


def test_a_build_that_fails_leaves_nothing(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "1+1?", "gold": "2"}\n{"prompt": 3}\n')
    builder = {"kind": "local_file", "path": "rows.jsonl", "rows": "problem"}
    done = cli("build", write(tmp_path, builder=builder), "--out", tmp_path / "data")
    assert done.code == 3
    assert "rows.jsonl:2: " in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl", "spec.yaml"]


TEXT = {"text": "Ann, 30, a baker", "label": "Ann"}
OWN_REWARD = {
    "kind": "local_file",
    "path": "rows.jsonl",
    "rows": "problem",
    "columns": {"prompt": "text", "gold": "label"},
    "reward": "python",
}


@pytest.mark.parametrize(
    ("settings", "gold"),
    [
        ({}, "Ann"),
        ({}, None),
        ({"columns": {"prompt": "text"}}, "missing"),
        ({"rows": "auto", "format": "prompt_gold", "columns": {"prompt": "text", "gold": "label"}}, None),
        ({"rows": "auto", "format": "prompt_gold", "columns": {"prompt": "text"}}, "missing"),
    ],
)
def test_a_reward_of_ones_own_needs_neither_golds_nor_a_setting(
    cli: Cli, tmp_path: Path, settings: dict[str, Any], gold: str | None
) -> None:
    row = {"text": TEXT["text"]} if gold == "missing" else {**TEXT, "label": gold}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    spec = write(tmp_path, builder={**OWN_REWARD, **settings}, licences={})
    done = cli("build", spec, "--out", tmp_path / "data")
    assert done.code == 0, done.err
    (made,) = [json.loads(line) for line in (tmp_path / "data" / "rows.jsonl").read_text().splitlines()]
    assert (made.get("gold"), made["reward"]) == (None if gold == "missing" else gold, "python")


def test_another_reward_still_needs_golds(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({**TEXT, "label": None}) + "\n")
    spec = write(tmp_path, builder={**OWN_REWARD, "reward": "math_answer"}, licences={})
    done = cli("build", spec, "--out", tmp_path / "data")
    assert done.code == 3
    assert "'label' is missing; a problem row has prompt and gold" in done.err


def test_a_typed_row_with_an_unknown_reward_is_a_bad_row(cli: Cli, tmp_path: Path) -> None:
    rows = [{**PROBLEM, "gold": "2"}, {**PROBLEM, "id": "q", "gold": "2", "reward": "nope"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    builder = {"kind": "local_file", "path": "rows.jsonl", "rows": "typed"}
    done = cli("build", write(tmp_path, builder=builder, licences={}), "--out", tmp_path / "data")
    assert done.code == 3
    assert "rows.jsonl:2: reward: 'nope' is no reward that rows can name" in done.err
    spec = write(tmp_path, builder={**builder, "on_bad_row": "drop"}, licences={})
    done = cli("build", spec, "--out", tmp_path / "data")
    assert (done.code, done.out.splitlines()[1]) == (0, "        1  dropped: unknown reward")


@pytest.mark.parametrize("content", [None, "{}"])
def test_a_tokenizer_that_is_none_is_told(cli: Cli, tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    rule = {"method": "qwen2.5", "against": "held_out", "tokenizer": "tokenizer.json"}
    assert cli("build", write(tmp_path), "--out", tmp_path / "questions").code == 0
    spec = write(tmp_path, sieve={"contamination": [rule]}, data={"held_out": "questions"})
    done = cli("build", spec, "--out", tmp_path / "clean")
    assert done.code == 3
    assert done.err.startswith(f"qwen-align: tokenizer: {tmp_path / 'tokenizer.json'}: ")


def test_what_a_builder_raises_for_its_settings_is_no_crash(cli: Cli, tmp_path: Path, monkeypatch: Any) -> None:
    def refuse(*_: Any) -> Any:
        raise ValueError("n: there are not so many")

    monkeypatch.setattr(Arithmetic, "build", refuse)
    done = cli("build", write(tmp_path), "--out", tmp_path / "data")
    assert (done.code, done.err) == (3, "qwen-align: n: there are not so many\n")


def test_a_folder_with_something_in_it_is_left_alone(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("mine")
    done = cli("build", write(tmp_path), "--out", tmp_path / "data")
    assert (done.code, [path.name for path in (tmp_path / "data").iterdir()]) == (2, ["mine.txt"])


def test_a_licence_of_a_source_that_no_row_has_is_refused(cli: Cli, tmp_path: Path) -> None:
    done = cli("build", write(tmp_path, licences={"arithmetics": "mit"}), "--out", tmp_path / "data")
    assert done.code == 3
    assert "licences: no row is of source 'arithmetics'. Did you mean 'arithmetic'?" in done.err
    assert not (tmp_path / "data").exists()
    stopped = cli("build", write(tmp_path, licences={"arithmetics": "mit"}, limit=2), "--out", tmp_path / "data")
    assert stopped.code == 0  # what was not read may be of it


def test_data_that_is_named_otherwise_is_told(cli: Cli, tmp_path: Path) -> None:
    assert cli("build", write(tmp_path), "--out", tmp_path / "questions").code == 0
    sieve = {"contamination": [{"against": "held_out", "method": "same_words"}]}
    spec = write(tmp_path, sieve=sieve, data={"held_out": "questions", "heldout": "questions"})
    done = cli("build", spec, "--out", tmp_path / "clean")
    assert done.code == 2
    assert "data.heldout: no setting refers to it. Did you mean 'held_out'?" in done.err


def test_texts_can_be_given_a_licence(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "books.jsonl").write_text('{"text": "Once upon a time."}\n')
    builder = {"kind": "local_file", "path": "books.jsonl", "source": "books"}
    done = cli("build", write(tmp_path, builder=builder, licences={"books": "cc0-1.0"}), "--out", tmp_path / "data")
    assert done.code == 0, done.err
    assert "| books | cc0-1.0 | 1 |" in (tmp_path / "data" / "README.md").read_text()


def test_a_licence_of_a_source_whose_rows_are_all_dropped_is_fine(cli: Cli, tmp_path: Path) -> None:
    rows = [{"row": "text", "id": "a", "text": "b"}, {**PROBLEM, "gold": "?"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    builder = {"kind": "local_file", "path": "rows.jsonl", "rows": "typed"}
    done = cli("build", write(tmp_path, builder=builder, licences={"lost": "mit"}), "--out", tmp_path / "data")
    assert done.code == 0, done.err
    assert "dropped: unusable gold" in done.out


PROBLEM = {
    "row": "problem",
    "id": "p",
    "messages": [{"role": "user", "content": "1+1?"}],
    "reward": "math_answer",
    "source": "lost",
}


def test_a_build_says_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Callable[..., Any]) -> None:
    """It showed nothing for half a minute."""
    monkeypatch.setattr(build, "SECONDS_BETWEEN_LINES", 0.0)
    (tmp_path / "spec.yaml").write_text("builder: {kind: arithmetic, rows: problem, n: 50, steps: [1]}\n")
    said = cli("build", tmp_path / "spec.yaml", "--out", tmp_path / "data")
    assert said.code == 0
    assert "building: 20 rows kept so far\n" in said.err
    assert "building" not in said.out


def test_two_builds_do_not_share_a_folder(tmp_path: Path, cli: Callable[..., Any]) -> None:
    (tmp_path / "spec.yaml").write_text("builder: {kind: arithmetic, rows: problem, n: 5, steps: [1]}\n")
    with build._hold_unfinished_folder(tmp_path / "data", print) as (unfinished, _):
        (unfinished / "rows.jsonl").write_text("of the first")
        said = cli("build", tmp_path / "spec.yaml", "--out", tmp_path / "data")
        assert (said.code, "another build is writing it" in said.err) == (2, True)
        assert (unfinished / "rows.jsonl").exists()
    assert cli("build", tmp_path / "spec.yaml", "--out", tmp_path / "data").code == 0


@pytest.mark.slow(seconds=4)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_build_that_is_ended_leaves_nothing(tmp_path: Path, number: int) -> None:
    (tmp_path / "spec.yaml").write_text("builder: {kind: arithmetic, rows: problem, n: 1000000, steps: [3]}\n")
    line = [
        sys.executable,
        "-m",
        "qwen_align.cli",
        "build",
        str(tmp_path / "spec.yaml"),
        "--out",
        str(tmp_path / "data"),
    ]
    # A shell with nohup ignores SIGHUP, and what it starts does too.
    process = subprocess.Popen(
        line, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: signal.signal(number, signal.SIG_DFL)
    )
    while not list(tmp_path.glob(".data.unfinished/*/.rows.jsonl")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, "Traceback" in said) == (128 + number, False)
    assert [path.name for path in tmp_path.iterdir()] == ["spec.yaml"]
