"""Whatever a user has in files, options and terminals: a message and an exit code, never a traceback."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.commands import chat
from qwen_align.align.errors import RecipeError
from qwen_align.align.pipeline.plan import plan as make_plan
from qwen_align.align.reporting.results import LADDER_FIELDS
from qwen_align.align.store.files import compute_sha256
from qwen_align.reward.verdict import Verdict

DATA: dict[str, Any] = {
    "name": "problems",
    "kind": "build_data",
    "builder": {"kind": "arithmetic", "rows": "problem", "n": 4, "steps": [1]},
}
EVALUATE: dict[str, Any] = {
    "name": "measured",
    "kind": "evaluate",
    "from_model": "base",
    "from_data": ["problems"],
    "completions_per_prompt": 1,
    "sampling": {"temperature": 1.0, "max_tokens": 8},
}
RESULT = {
    "set": "problems",
    "switch": "default",
    "mode": None,
    "accuracy": 0.5,
    "stderr": 0.1,
    "n_questions": 1,
    "k": 1,
}
RESULT |= {"obeyed_share": None, "stopped_share": 1.0, "mean_tokens": 3.0}
RESULT = {**dict.fromkeys(LADDER_FIELDS, 0.5), **RESULT}
COMPLETION = {"prompt_id": "a", "text": "7", "prompt": [], "reward": "math_answer", "n_tokens": 1}
COMPLETION |= {"finish_reason": "stop", "verdicts": {"math_answer": {"value": 1.0, "reason": "equal"}}}


def is_clean(out: str, err: str) -> bool:
    return "Traceback" not in out + err and err.startswith("qwen-align: ")


@pytest.fixture
def stored(tiny_model: Path, tmp_path: Path, write_recipe: Callable[..., Path]) -> dict[str, Path]:
    """A run of data and an evaluation, stored as stages store it: the recipe, and the folder of each stage."""
    recipe = write_recipe([DATA, EVALUATE], models={"base": {"path": str(tiny_model)}})
    folders = {"recipe": recipe}
    for planned in make_plan(recipe, tmp_path).stages:
        folder = folders[planned.name] = planned.folder.path
        folder.mkdir(parents=True)
        summary: dict[str, Any] = {"rows": 4}
        if planned.name == "measured":
            summary = {"results": [RESULT]}
            (folder / "completions.jsonl").write_text(json.dumps(COMPLETION) + "\n")
            (folder / "questions.json").write_text(json.dumps({"means": [{"a": 0.5}]}))
        outputs = {path.name: compute_sha256(path) for path in folder.iterdir()}
        manifest = {"key": planned.key, "kind": planned.kind, "outputs": outputs, "summary": summary}
        manifest |= {"seconds": 1.0, "libraries": {}, "import_seconds": 0.5, "cpu_seconds": 1.0}
        manifest |= {"peak_rss_gib": 0.1, "disk_gib": 0.1}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "runs" / "trial").mkdir(parents=True)
    return folders


def change_manifest(folder: Path, **fields: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **fields}))


@pytest.mark.parametrize("command", ["report", "run"])
@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("manifest.json", lambda folder: (folder / "manifest.json").write_bytes(b"\xff\x00")),
        ("manifest.json", lambda folder: (folder / "manifest.json").write_text("[]")),
        ("manifest.json", lambda folder: (folder / "manifest.json").write_text("[" * 100_000)),
        ("manifest.json", lambda folder: change_manifest(folder, summary=7)),
        ("manifest.json", lambda folder: change_manifest(folder, libraries=[1])),
        ("manifest.json", lambda folder: change_manifest(folder, outputs="x")),
        ("damaged", lambda folder: change_manifest(folder, summary={})),
        ("damaged", lambda folder: change_manifest(folder, summary={"results": 3})),
        ("damaged", lambda folder: change_manifest(folder, summary={"results": [{}]})),
        ("completions.jsonl is missing", lambda folder: (folder / "completions.jsonl").unlink()),
        ("completions.jsonl is not what", lambda folder: (folder / "completions.jsonl").write_text("{")),
        ("questions.json is not what", lambda folder: (folder / "questions.json").write_text("[]")),
        ("questions.json is missing", lambda folder: (folder / "questions.json").unlink()),
        ("damaged", lambda folder: (folder / "notes.jsonl").write_text("[1]\n")),
        ("damaged", lambda folder: (folder / "metrics.jsonl").write_text('{"step": 1, "lo\n')),
        ("damaged", lambda folder: (folder / "metrics.jsonl").write_text('{"loss": 1}\n{"step": "x", "loss": []}\n')),
    ],
)
def test_a_damaged_stage_is_named(
    stored: dict[str, Path], cli: Callable[..., Any], command: str, name: str, damage: Callable[[Path], object]
) -> None:
    assert cli("report", stored["recipe"]).code == 0
    damage(stored["measured"])
    said = cli(command, stored["recipe"])
    assert said.code == 4
    assert is_clean(said.out, said.err)
    assert str(stored["measured"]) in said.err
    assert name in said.err
    assert "50.0" not in said.out, "no accuracy without what it was measured on"


@pytest.mark.parametrize(
    "override",
    [
        "report.title=!!int ''",
        "report.title=!!timestamp 2026-13-99",
        "report.title=!!python/name:os.system",
        'report.title="\\ud800"',
        'anchors={"\\udfff": 1}',
        f"seed={'9' * 5000}",
        f"seed=0x{'f' * 5000}",
        f"report.title={'[' * 3000}",
        "report=2026-01-01",
        "report.title={a: 1, a: 2}",
        "report.title=!!binary ===",
        "report.title=!!set {a}",
        "report.title=&a [*a]",
        "stages.problems.builder={kind: 2026-01-01}",
        "stages.problems.builder={? [1] : 2}",
        "1=2",
        "=",
    ],
)
@pytest.mark.parametrize("command", ["check", "run"])
def test_odd_yaml_is_refused(
    tmp_path: Path, write_recipe: Callable[..., Path], cli: Callable[..., Any], command: str, override: str
) -> None:
    said = cli(command, write_recipe([DATA]), "--set", override, home=tmp_path / "home")
    assert said.code == 2
    assert is_clean(said.out, said.err)
    assert len(said.err) < 1000
    assert not (tmp_path / "home").exists()


def test_a_date_is_text(tmp_path: Path, write_recipe: Callable[..., Path], cli: Callable[..., Any]) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(write_recipe([DATA]).read_text() + "report:\n  title: 2026-11-29\n")
    assert cli("check", path).code == 0


@pytest.mark.parametrize("out", [".", "..", "x/..", "", "/"])
def test_a_folder_that_is_there_is_refused_by_build(
    tmp_path: Path, cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "spec.yaml").write_text(json.dumps({"builder": DATA["builder"]}))
    monkeypatch.chdir(tmp_path / "in")
    said = cli("build", "spec.yaml", "--out", out)
    assert (said.code, is_clean(said.out, said.err)) == (2, True)
    assert "exists already and is not empty" in said.err
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["spec.yaml"]


@pytest.mark.parametrize(
    ("option", "value"), [("temperature", float("nan")), ("temperature", -1.0), ("top_p", 7.0), ("max_tokens", 0)]
)
def test_chat_refuses_what_cannot_be_sampled_with(option: str, value: float) -> None:
    with pytest.raises(RecipeError, match=f"--{option.replace('_', '-')}: Input should be"):
        chat.build_sampling_settings(**{"max_tokens": 8, option: value})


def test_half_characters_in_a_reason_are_escaped() -> None:
    """As an exception of a user's reward may have: `ValueError(text[:1])` of a cut emoji."""
    assert Verdict(value=None, reason="bad \ud83d").reason == "bad \\ud83d"


def test_an_error_that_nobody_expected_is_one_line_and_a_file(
    write_recipe: Callable[..., Path], cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("wh\udcffat")

    monkeypatch.setattr("qwen_align.align.pipeline.plan.plan", fail)
    said = cli("check", write_recipe([DATA]))
    assert said.code == 4
    assert len(said.err.splitlines()) == 1
    assert "KeyError" in said.err
    file = Path(said.err.split()[-1])
    assert "Traceback (most recent call last)" in file.read_text()
    file.unlink()


def run_command(*arguments: object, home: Path, **options: Any) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-m", "qwen_align.cli", *map(str, arguments), "--home", str(home)]
    return subprocess.run(line, text=True, check=False, **{"capture_output": True, **options})


@pytest.mark.slow(seconds=4)
def test_a_terminal_that_knows_ascii_alone(tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    recipe = write_recipe([{**DATA, "licences": {"arithmetic": "é"}}], report={"title": "测试"})
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    for command in ("check", "run", "report"):
        said = run_command(command, recipe, home=tmp_path, env=environment)
        assert (said.returncode, said.stderr) == (0, "")
    said = run_command("check", tmp_path / "没有.yaml", home=tmp_path, env=environment)
    assert (said.returncode, "Traceback" in said.stderr) == (2, False)


@pytest.mark.slow(seconds=4)
def test_a_run_whose_output_nobody_reads_goes_on(tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    """`run | head -1`: the stages are all made, standard error says a word, the exit code is the run's."""
    stages = [{**DATA, "name": f"data{number}", "seed": number} for number in range(3)]
    read, write = os.pipe()
    os.close(read)
    said = run_command(
        "run", write_recipe(stages), home=tmp_path, capture_output=False, stdout=write, stderr=subprocess.PIPE
    )
    os.close(write)
    assert said.returncode == 0
    assert said.stderr == "qwen-align: nobody reads the output any more; the run goes on without it\n"
    assert len(list(tmp_path.glob("store/*/manifest.json"))) == 3


@pytest.mark.slow(seconds=4)
@pytest.mark.parametrize("command", [["schema"], ["recipes"], ["recipes", "quickstart"]])
def test_other_commands_end_quietly_when_nobody_reads(tmp_path: Path, command: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    said = run_command(*command, home=tmp_path, capture_output=False, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (said.returncode, said.stderr) == (0, "")


@pytest.mark.parametrize("command", [["check"], ["show"]])
def test_stored_rows_that_are_no_text_are_named(
    tmp_path: Path, write_recipe: Callable[..., Path], cli: Callable[..., Any], tiny_model: Path, command: list[str]
) -> None:
    recipe = write_recipe([DATA, EVALUATE], models={"base": {"path": str(tiny_model)}})
    planned = make_plan(recipe, tmp_path).stages[0]
    planned.folder.path.mkdir(parents=True)
    (planned.folder.path / "manifest.json").write_text(json.dumps({"key": planned.key, "summary": {"rows": 1}}))
    (planned.folder.path / "rows.jsonl").write_bytes(b"\xff\xfe\x00\n")
    said = cli(*command, recipe, *(["problems"] if command == ["show"] else []))
    assert (said.code, is_clean(said.out, said.err)) == (3, True)
    assert f"{planned.folder.path / 'rows.jsonl'}:1: " in said.err
