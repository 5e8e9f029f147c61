"""The command line as users meet it: its commands, its speed, its exit codes, and what it prints into a pipe."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qwen_align
from qwen_align.align.commands import shipped_recipes
from tests.clock import slowness

ROOT = Path(__file__).parents[1]
COMMANDS = ("run", "check", "show", "report", "runs", "recipes", "schema", "doctor", "engines", "prune")
DATA: dict[str, Any] = {
    "name": "data",
    "kind": "build_data",
    "builder": {"kind": "arithmetic", "rows": "problem", "n": 4, "steps": [1]},
}


@pytest.fixture(scope="module")
def command() -> str:
    """The installed console script."""
    found = shutil.which("qwen-align", path=str(Path(sys.executable).parent))
    assert found, "install the package: pip install -e ."
    return found


def cpu_seconds(*line: str) -> tuple[float, str]:
    """Processor time of a command, which on an idle machine is the time on the clock, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def test_help_comes_at_once(command: str) -> None:
    def seconds() -> float:
        took, said = cpu_seconds(command, "--help")
        assert all(f"\n    {name} " in said for name in COMMANDS)
        assert "75 preempted, run again to go on" in said
        return took

    assert any(seconds() < 0.3 for _ in range(5)), "best of five"


def test_check_of_the_quickstart_takes_under_two_seconds(command: str, tmp_path: Path) -> None:
    def seconds() -> float:
        took, said = cpu_seconds(command, "check", str(ROOT / "recipes" / "quickstart.yaml"), "--home", str(tmp_path))
        assert "21 stages, 21 to run" in said
        return took

    assert any(seconds() < 2 * slowness() for _ in range(3)), "best of three"


CHECKED = """
import collections, json, sys
calls = collections.Counter()

def count(owner, name):
    function = getattr(owner, name)
    def counted(*arguments, **options):
        calls[name] += 1
        return function(*arguments, **options)
    setattr(owner, name, staticmethod(counted) if isinstance(owner, type) else counted)

from qwen_align.align.rendering import renderer
from qwen_align.align.stages import checks
count(renderer.Renderer, "load")
count(checks, "build_rows")
from qwen_align.cli import main
code = main(["check", sys.argv[1], "--home", sys.argv[2]])
print(json.dumps({"code": code, "calls": calls, "modules": sorted(sys.modules)}), file=sys.stderr)
"""
# What takes long to import, and none of which `check` needs.
NOT_FOR_CHECK = (
    *("torch", "transformers", "trl", "peft", "accelerate", "datasets", "huggingface_hub"),
    *("numpy", "pandas", "scipy", "sympy", "mpmath", "langdetect", "jsonschema", "reasoning_gym"),
    *("asyncio", "multiprocessing", "unittest", "rich.table", "rich.progress"),
    *("qwen_align.align.reporting.html", "qwen_align.align.reporting.results", "qwen_align.align.pipeline.launcher"),
    *("qwen_align.align.generation.local", "qwen_align.align.stages.sft", "qwen_align.align.stages.evaluate"),
)


def test_check_imports_nothing_it_does_not_need_and_does_nothing_twice(tmp_path: Path) -> None:
    line = [sys.executable, "-c", CHECKED, str(ROOT / "recipes" / "quickstart.yaml"), str(tmp_path)]
    done = subprocess.run(line, capture_output=True, text=True, check=True)
    said = json.loads(done.stderr.splitlines()[-1])
    assert said["code"] == 0
    assert not set(NOT_FOR_CHECK) & set(said["modules"])
    n_built = sum(" build_data " in line and "unknown until" not in line for line in done.stdout.splitlines())
    assert said["calls"] == {"load": 1, "build_rows": n_built}, "one base model, and each stage's rows once"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(cli: Callable[..., Any], name: str) -> None:
    said = cli(name, "--help")
    assert said.code == 0
    assert said.out.startswith(f"usage: qwen-align {name} ")


def test_without_a_command_it_explains_itself(command: str) -> None:
    done = subprocess.run([command], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: qwen-align ")


@pytest.mark.parametrize(
    "arguments", [["rum"], ["check"], ["check", "a.yaml", "--sett", "x=1"], ["show", "a.yaml", "sft", "--rows", "two"]]
)
def test_wrong_arguments_are_the_users_fault(cli: Callable[..., Any], arguments: list[str]) -> None:
    said = cli(*arguments)
    assert said.code == 2
    assert "usage: qwen-align" in said.err


def test_a_recipe_runs_and_runs_no_more(command: str, tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    def run() -> str:
        line = [command, "run", write_recipe([DATA]).name]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    first, second = run().splitlines(), run().splitlines()
    assert [line.split()[:4] for line in first[:-2]] == [
        ["1/1", "data", "build_data", "started"],
        ["1/1", "data", "build_data", first[1].split()[3]],
    ]
    assert first[1].endswith(" s  rows 4")
    assert second[0].split() == ["1/1", "data", "build_data", "stored"]
    end = ["page:  runs/trial/report.html", "next:  qwen-align show recipe.yaml data"]
    assert first[-2:] == second[-2:] == end
    assert len(second) == 3
    assert all((tmp_path / "runs" / "trial" / f"report.{form}").exists() for form in ("md", "html", "json"))


def test_what_goes_into_a_pipe_has_no_colours_and_no_broken_lines(
    cli: Callable[..., Any], tmp_path: Path, write_recipe: Callable[..., Path], tiny_model: Path
) -> None:
    home = tmp_path / ("a_long_name_" * 10) / "[brackets] :smile:"
    home.mkdir(parents=True)
    said = cli("check", write_recipe([DATA], models={"base": {"path": str(tiny_model)}}), home=home)
    assert said.code == 0
    assert "\x1b" not in said.out
    assert said.out.splitlines()[-1] == f"1 stages, 1 to run; home: {home}"
    said = cli("check", home / "[none].yaml", home=home)
    assert said.err.startswith(f"qwen-align: {home / '[none].yaml'}: no such recipe")


def test_settings_are_overridden_one_by_one(cli: Callable[..., Any], write_recipe: Callable[..., Path]) -> None:
    changes = ["--set", "stages.data.builder.n=7", "--set", "stages.data.limit=6", "--set", "matrix={seed: [0, 1]}"]
    said = cli("check", write_recipe([DATA]), *changes)
    assert [line.split()[1::5] for line in said.out.splitlines()[:2]] == [["data.seed=0", "6"], ["data.seed=1", "6"]]


def test_recipes_are_listed_and_printed(cli: Callable[..., Any]) -> None:
    said = cli("recipes")
    names = [line.split()[0] for line in said.out.splitlines()]
    assert names == sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml"))
    assert all(len(line.split()) > 4 for line in said.out.splitlines()), "a line each, with what it is for"
    for name in names:
        assert cli("recipes", name).out == (ROOT / "recipes" / f"{name}.yaml").read_text(encoding="utf-8")
    assert cli("recipes", "quickstart.yaml").out == shipped_recipes.read_recipe("quickstart")
    said = cli("recipes", "quikstart")
    assert said == (2, "", "qwen-align: no shipped recipe is called 'quikstart'. Did you mean 'quickstart'?\n")


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "recipes").glob("*.yaml")))
def test_a_recipe_is_copied_with_all_that_it_needs(cli: Callable[..., Any], tmp_path: Path, name: str) -> None:
    said = cli("recipes", name, "--to", tmp_path / "mine")
    assert said.code == 0
    copied = sorted(path.relative_to(tmp_path / "mine").as_posix() for path in (tmp_path / "mine").rglob("*.*"))
    more = {
        "evidence": ["quickstart.yaml"],
        "extraction": ["extraction/reward.py", "extraction/test.jsonl", "extraction/train.jsonl"],
    }
    assert copied == sorted([f"{name}.yaml", *more.get(name, [])])
    for path in copied:
        assert (tmp_path / "mine" / path).read_bytes() == (ROOT / "recipes" / path).read_bytes()
        assert f"written: {tmp_path / 'mine' / path}\n" in said.out
    assert cli("recipes", name, "--to", tmp_path / "mine").code == 0, "the same files again"
    printed = cli("recipes", name)
    assert ("--to FOLDER" in printed.err) == (name in more)
    assert ("needs, and does not come with it: gsm8k/train.jsonl\n" in said.out) == (name == "gsm8k_smollm2")
    if name in more:
        checked = cli("check", tmp_path / "mine" / f"{name}.yaml")
        assert checked.code == 0, checked.err


def test_a_copy_overwrites_nothing(cli: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "extraction").mkdir()
    mine = tmp_path / "extraction" / "train.jsonl"
    mine.write_text("mine")
    said = cli("recipes", "extraction", "--to", tmp_path)
    assert said.code == 2
    assert f"{mine}: exists already and is another file" in said.err
    assert mine.read_text() == "mine"
    assert not (tmp_path / "extraction.yaml").exists()
    assert "say which recipe" in cli("recipes", "--to", tmp_path).err


def test_the_version_is_printed(command: str) -> None:
    said = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    assert said == f"qwen-align {qwen_align.__version__}\n"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_unicode_stops_nothing(
    command: str, tmp_path: Path, write_recipe: Callable[..., Path], encoding: str
) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding}

    def call(*arguments: str) -> bytes:
        line = [command, *arguments]
        return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, check=True).stdout

    assert call("recipes", "s1").decode() == shipped_recipes.read_recipe("s1"), "a file's bytes are what they are"
    for folder in ("é → 中",):
        (tmp_path / folder).mkdir()
        assert b"1 stages, 1 to run" in call("check", write_recipe([DATA]).name, "--home", folder)


def test_the_schema_is_json_and_names_the_settings(cli: Callable[..., Any]) -> None:
    schema = json.loads(cli("schema").out)
    assert {"name", "seed", "models", "runtime", "matrix", "stages", "report"} <= set(schema["properties"])


def test_a_report_of_nothing_says_so(
    cli: Callable[..., Any], tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    said = cli("report", write_recipe([DATA]))
    assert said.code == 0
    assert "nothing has run yet" in said.out
    assert not (tmp_path / "runs").exists()


def test_a_reader_that_leaves_ends_it_quietly(command: str) -> None:
    line = f"{command} schema | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{\n", "")


def test_it_runs_as_a_module_from_anywhere(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "qwen_align.cli", "recipes"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "quickstart" in done.stdout


TRACES: dict[str, Any] = {**DATA, "name": "traces", "builder": {**DATA["builder"], "rows": "trace", "n": 48}}
SFT: dict[str, Any] = {
    "name": "sft",
    "kind": "sft",
    "from_model": "base",
    "from_data": ["traces"],
    "max_tokens": 200,
    "batch": 2,
    "epochs": 1,
    "learning_rate": 1e-3,
}


@pytest.mark.slow(seconds=30)
def test_a_run_into_a_pipe_says_how_it_goes_and_is_remembered(
    command: str, tmp_path: Path, write_recipe: Callable[..., Path], tiny_model: Path
) -> None:
    recipe = write_recipe([TRACES, SFT], models={"base": {"path": str(tiny_model)}}, runtime={"device": "cpu"}).name

    def call(*arguments: str, **more: Any) -> list[str]:
        line = [command, *arguments]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True, **more)
        return done.stdout.splitlines()

    said = call("run", recipe, "--set", "stages.sft.epochs=2")
    shown = [line for line in said if line.startswith("  sft: ")]
    figures = r"loss [\d.]+  grad norm [\d.]+  peak GiB [\d.]+"
    assert re.fullmatch(rf"  sft: \d+/48 steps(  ETA 0:\d\d)?  {figures}(  [\d,]+ tok/s)?", shown[0])
    assert re.search(rf"sft +\d+\.\d s  {figures}; samples 48, steps 48", "\n".join(said))
    assert said[-3:] == [
        "model: runs/trial/stages/sft/model",
        "page:  runs/trial/report.html",
        f"next:  qwen-align chat {recipe} sft",
    ]
    assert (tmp_path / "runs" / "trial" / "stages" / "sft" / "model" / "config.json").exists()
    chatted = call("chat", recipe, "sft", "--max-tokens", "4", input="hello")
    assert chatted[0].endswith(": --set stages.sft.epochs=2")
    stopped = subprocess.Popen(
        [command, "run", recipe, "--set", "stages.sft.epochs=2000"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert stopped.stdout
    page = tmp_path / "runs" / "trial.2" / "report.html"
    has_curve = False
    while stopped.poll() is None and not has_curve:
        time.sleep(0.2)
        has_curve = page.exists() and 'aria-label="loss"' in page.read_text(encoding="utf-8")
    assert has_curve, "its curve is on the page while it runs"
    stopped.terminate()
    _, errors = stopped.communicate()
    assert stopped.returncode == 75
    assert errors.splitlines()[-1] == f"next: qwen-align run {recipe} --set stages.sft.epochs=2000"
    assert [line.split()[3:5] for line in call("runs")] == [["2/2", "stages"], ["1/2", "stages,"]]
