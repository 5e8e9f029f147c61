"""How a stage's end is read: who asked it to stop, and who only died."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_align.align.context import Context
from qwen_align.align.pipeline import launcher
from qwen_align.align.pipeline.launcher import Launcher, StageExit, StopSignal
from qwen_align.align.pipeline.plan import plan as make_plan
from qwen_align.align.pipeline.process_lifetime import PARENT_VARIABLE
from qwen_align.align.settings.sft import Sft

DATA = {"name": "data", "kind": "build_data", "builder": {"kind": "arithmetic", "rows": "text", "n": 2, "steps": [1]}}


@pytest.fixture
def ended(
    tmp_path: Path, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[[int, dict[str, object] | None, bool], StageExit]:
    """What the launcher makes of a process with this exit code and report, which was or was not asked to stop."""

    def of(code: int, report: dict[str, object] | None, is_asked: bool) -> StageExit:
        def run(line: list[str], log: Path, asked: StopSignal, *_: object) -> int:
            asked.pass_on(lambda number: None)
            if report is not None:
                Path(line[-1]).write_text(json.dumps(report))
            return code

        monkeypatch.setattr(launcher, "run_fresh_process", run)
        (one,) = make_plan(write_recipe([DATA]), tmp_path).stages
        with Launcher() as started:
            return started.run_stage(one.stage, tmp_path, lambda: is_asked)

    return of


def test_a_stage_that_was_asked_and_saved_is_preempted(ended: Callable[..., StageExit]) -> None:
    assert ended(75, {"code": 75, "message": "after step 3"}, True) == StageExit(75, "after step 3")


def test_one_that_was_asked_before_it_listened_is_too(ended: Callable[..., StageExit]) -> None:
    assert ended(-signal.SIGTERM, None, True).code == 75


def test_torchrun_stopping_the_others_when_one_has_died_is_a_failure(ended: Callable[..., StageExit]) -> None:
    said = ended(1, {"code": 75, "message": "stopped as asked"}, False)
    assert said.code == 4
    assert "another process of the stage died" in said.message


def test_torchruns_own_code_says_less_than_the_stages(ended: Callable[..., StageExit]) -> None:
    assert ended(1, {"code": 3, "message": "no rows", "is_ours": True}, False) == StageExit(3, "no rows")
    assert ended(1, {"code": 4, "message": "peer closed"}, False) == StageExit(4, "peer closed", "follows")


@pytest.mark.parametrize("report", [None, {"code": 4, "message": "Connection closed by peer"}])
def test_a_kill_is_named(ended: Callable[..., StageExit], report: dict[str, object] | None) -> None:
    """Also that of one of several processes, whatever the first says of it."""
    said = ended(-signal.SIGKILL, report, False)
    assert said.code == 4
    assert "SIGKILL" in said.message
    assert "memory" in said.message


@pytest.mark.parametrize(
    ("kills", "cause"),
    [((0, 1), "most likely this one"), ((1, 1), "someone else"), ((None, None), "kills so when memory runs out")],
)
def test_a_kill_says_its_phase_and_what_to_turn(
    kills: tuple[int | None, int | None], cause: str, tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    settings = {"name": "sft", "kind": "sft", "from_model": "base", "from_data": ["data"], "learning_rate": 1e-4}
    sft = Sft.model_validate({**settings, "max_tokens": 64, "batch": 8, "epochs": 1.0})
    (one,) = make_plan(write_recipe([DATA]), tmp_path).stages
    stage = dataclasses.replace(one.stage, settings=sft)
    context = Context(tmp_path, 0, stage.runtime)
    context.report_progress(2, 9)
    with context.work_on("update", step=3, rows=8, longest_row=60):
        message = launcher.describe_kill(stage, tmp_path, *kills)
    assert "SIGKILL in or after the update phase of step 3" in message
    assert cause in message
    assert message.endswith("Set runtime.micro_batch: 4 (now 8)")
    (tmp_path / "progress.json").unlink()
    assert "in or after the load phase" in launcher.describe_kill(stage, tmp_path, *kills)


def test_the_process_that_ran_out_of_memory_is_heard_not_the_first(
    ended: Callable[..., StageExit], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The first process only says that the connection was lost."""
    run = launcher._read_report

    def read(report: Path, **told: bool) -> dict[str, object] | None:
        lack = {"code": 4, "message": "out of memory", "out_of_memory": True}
        report.with_suffix(".1.json").write_text(json.dumps(lack))
        return run(report, **told)

    monkeypatch.setattr(launcher, "_read_report", read)
    assert ended(1, {"code": 4, "message": "Connection closed by peer"}, False) == StageExit(
        4, "out of memory", "memory"
    )


def test_an_error_of_our_own_in_any_process_says_more_than_a_lost_connection_in_the_first(tmp_path: Path) -> None:
    report, other = tmp_path / "report.json", tmp_path / "report.3.json"

    def read(first: dict[str, object], third: dict[str, object], **told: bool) -> object:
        report.write_text(json.dumps(first))
        other.write_text(json.dumps(third))
        return (launcher._read_report(report, **told) or {})["message"]

    lost, saved = {"code": 4, "message": "peer closed"}, {"code": 75, "message": "saved"}
    own = {"code": 2, "message": "no such GPU", "is_ours": True}
    assert read(lost, own) == read(saved, own) == read(own, lost) == "no such GPU"
    assert read(lost, saved) == "peer closed"
    assert read(lost, saved, is_stopped=True) == "saved"
    assert read(lost, own, is_stopped=True) == "no such GPU"
    assert read(saved, lost) == "saved"
    report.unlink()
    assert launcher._read_report(report) == lost, "another node has no report of the main process"


def test_a_process_is_not_left_behind_by_an_exception(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    pids = tmp_path / "pid"

    def watch() -> bool:
        if pids.exists() and pids.read_text():
            raise Stopped
        return False

    program = f"import os, pathlib, time; pathlib.Path({str(pids)!r}).write_text(str(os.getpid())); time.sleep(60)"
    with pytest.raises(Stopped):
        launcher.run_fresh_process([sys.executable, "-c", program], tmp_path / "log", StopSignal(watch))
    with pytest.raises(ProcessLookupError):
        os.kill(int(pids.read_text()), 0)


def test_what_the_user_has_set_in_the_environment_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert launcher.build_environment()["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    assert launcher.build_environment().items() >= {"OMP_WAIT_POLICY": "ACTIVE", "GOMP_SPINCOUNT": "7"}.items()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel tells of a parent's end on Linux only")
def test_a_process_whose_parent_died_while_it_started_ends_too() -> None:
    program = (
        "from qwen_align.align.pipeline.process_lifetime import die_with_parent; die_with_parent(); print('alive')"
    )

    def said(parent: int) -> tuple[int, str]:
        environment = {**launcher.build_environment(), PARENT_VARIABLE: str(parent)}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        return done.returncode, done.stdout

    assert said(os.getpid()) == (0, "alive\n")
    assert said(2**22 + 1) == (128 + signal.SIGKILL, ""), "no process has this number"


@pytest.mark.slow
def test_the_warm_server_imports_nothing_of_the_working_folder_and_what_is_printed_is_no_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("random", "tty", "json"):
        (tmp_path / f"{name}.py").write_text("print('mine')\nraise ImportError('a file of the user')\n")
    site = tmp_path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("print('hello from this cluster')\n")
    monkeypatch.setenv("PYTHONPATH", str(site), prepend=os.pathsep)
    monkeypatch.chdir(tmp_path)
    with Launcher() as started:
        started.start_warm_server()
        assert started._read_answer(StopSignal(lambda: False), None)["ready"] > 0
