"""How a stage's end is read: who asked it to stop, and who only died."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_align.align.pipeline import launcher
from qwen_align.align.pipeline.launcher import Launcher, StageExit, StopSignal
from qwen_align.align.pipeline.plan import plan as make_plan
from qwen_align.align.pipeline.process_lifetime import PARENT_VARIABLE

DATA = {"name": "data", "kind": "build_data", "builder": {"kind": "arithmetic", "rows": "text", "n": 2, "steps": [1]}}


@pytest.fixture
def ended(
    tmp_path: Path, write_recipe: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[[int, dict[str, object] | None, bool], StageExit]:
    """What the launcher makes of a process with this exit code and report, which was or was not asked to stop."""

    def of(code: int, report: dict[str, object] | None, is_asked: bool) -> StageExit:
        def run(line: list[str], log: Path, asked: StopSignal) -> int:
            asked.stop_stage_once(lambda: None)
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
    assert ended(1, {"code": 3, "message": "no rows"}, False) == StageExit(3, "no rows")


@pytest.mark.parametrize("report", [None, {"code": 4, "message": "Connection closed by peer"}])
def test_a_kill_is_named(ended: Callable[..., StageExit], report: dict[str, object] | None) -> None:
    """Also that of one of several processes, whatever the first says of it."""
    said = ended(-signal.SIGKILL, report, False)
    assert said.code == 4
    assert "SIGKILL" in said.message
    assert "memory" in said.message


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
