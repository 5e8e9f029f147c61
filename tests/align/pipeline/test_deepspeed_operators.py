"""DeepSpeed's operators are built once, before a stage starts; a lock that a killed process has left is removed."""

import fcntl
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from qwen_align.align.errors import Preempted, StageError
from qwen_align.align.pipeline import deepspeed_operators
from qwen_align.align.pipeline.deepspeed_operators import build_operators
from qwen_align.align.settings.runtime import Runtime

NAME = "deepspeed_shm_comm"
# A builder that does what DeepSpeed's does: takes torch's lock, waits while there is one, compiles, removes it.
BUILDER = """
import os, pathlib, sys, time
class Builder:
    def load(self):
        folder = pathlib.Path(os.environ["TORCH_EXTENSIONS_DIR"], "deepspeed_shm_comm")
        folder.mkdir(parents=True, exist_ok=True)
        while (folder / "lock").exists():
            time.sleep(0.05)
        held = os.open(folder / "lock", os.O_CREAT | os.O_EXCL)
        (folder / "shm.o").write_text("half")
        time.sleep(float(os.environ.get("BUILD_S", "0")))
        if "FAILS" in os.environ:
            sys.exit("c++: error: no such file")
        (folder / "deepspeed_shm_comm.so").write_text("built")
        os.close(held)
        (folder / "lock").unlink()
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of builds into a folder of operators, with the builder above as a module `made`."""
    (tmp_path / "made.py").write_text(BUILDER)
    paths = [str(tmp_path), *(path for path in sys.path if path)]
    return {**os.environ, "TORCH_EXTENSIONS_DIR": str(tmp_path / "operators"), "PYTHONPATH": os.pathsep.join(paths)}


def build(environment: dict[str, str], **more: object) -> list[str]:
    """Builds with the builder above; returns what was said."""
    said: list[str] = []
    build_operators(Runtime(), environment, said.append, builders={NAME: "made:Builder"}, **more)  # type: ignore[arg-type]
    return said


def test_an_operator_is_built_once_and_said_to_be(environment: dict[str, str], tmp_path: Path) -> None:
    assert build(environment) == [f"building DeepSpeed's operator {NAME} for this CPU, once; it takes about a minute"]
    assert (tmp_path / "operators" / NAME / f"{NAME}.so").read_text() == "built"
    assert build(environment) == []


def test_a_lock_that_a_killed_process_has_left_is_removed_and_one_that_is_held_is_not(
    environment: dict[str, str], tmp_path: Path
) -> None:
    left, held = (tmp_path / "operators" / name / "lock" for name in (NAME, "other"))
    for lock in (left, held):
        lock.parent.mkdir(parents=True)
        lock.touch()
    with held.open():
        build(environment)
        assert not left.exists()
        assert held.exists()
    build(environment)
    assert not held.exists()


def test_a_build_that_was_killed_in_the_middle_is_made_again(environment: dict[str, str], tmp_path: Path) -> None:
    code = (
        "import os; from qwen_align.align.pipeline.deepspeed_operators import build_operators; "
        "from qwen_align.align.settings.runtime import Runtime; "
        f"build_operators(Runtime(), dict(os.environ), print, builders={{'{NAME}': 'made:Builder'}})"
    )
    unfinished = tmp_path / "operators" / deepspeed_operators.UNFINISHED / NAME / "shm.o"
    slow = {**environment, "BUILD_S": "60"}
    first = subprocess.Popen([sys.executable, "-c", code], env=slow, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not unfinished.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.kill()
    first.wait()
    began = time.monotonic()
    assert len(build(environment)) == 1
    assert time.monotonic() - began < 30
    assert not unfinished.parents[1].exists()
    assert (tmp_path / "operators" / NAME / f"{NAME}.so").exists()


def test_a_second_run_waits_for_the_first_and_says_so(environment: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "operators"
    folder.mkdir()
    with (folder / deepspeed_operators.OWN_LOCK).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        timer = threading.Timer(0.5, lambda: fcntl.flock(file, fcntl.LOCK_UN))
        timer.start()
        said = build(environment)
        timer.join()
    assert said[0] == "another run on this machine builds DeepSpeed's operators; waiting for it"
    assert len(said) == 2


def test_a_build_that_fails_says_why(environment: dict[str, str]) -> None:
    with pytest.raises(StageError, match=rf"{NAME} could not be built: c\+\+: error: no such file; the whole log is "):
        build({**environment, "FAILS": "1"})


def test_a_run_that_is_stopped_meanwhile_stops(environment: dict[str, str]) -> None:
    began = time.monotonic()
    with pytest.raises(Preempted):
        build({**environment, "BUILD_S": "60"}, poll_stop=lambda: time.monotonic() > began + 0.5)
    assert time.monotonic() - began < 30


def test_the_folder_is_of_this_machine_and_these_versions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = Path(deepspeed_operators.choose_operator_folder())
    assert folder.is_relative_to(tmp_path / "qwen-align")
    assert "torch-" in folder.name
    monkeypatch.setattr(deepspeed_operators.platform, "node", lambda: "another")
    assert Path(deepspeed_operators.choose_operator_folder()) != folder
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/elsewhere")
    assert deepspeed_operators.choose_operator_folder() == "/elsewhere"


def test_a_file_that_offloads_the_optimiser_needs_its_operator_too(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text('{"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}}}')
    assert deepspeed_operators.list_operators(Runtime.model_validate({"deepspeed": str(path)})) == [NAME, "cpu_adam"]
    offloaded = {"strategy": "zero3", "offload": "optimizer"}
    assert deepspeed_operators.list_operators(Runtime.model_validate(offloaded)) == [NAME]


def test_a_compiler_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(deepspeed_operators.shutil, "which", lambda name, path=None: None if name == "c++" else name)
    assert deepspeed_operators.find_missing_program(Runtime()) == "c++"
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / f"{NAME}.so").touch()
    assert deepspeed_operators.find_missing_program(Runtime()) is None
