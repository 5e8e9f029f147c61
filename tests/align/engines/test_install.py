"""An installation is whole or not there: with real environments and pip, of two made-up wheels in a folder."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_align.align.engines import install, locks
from qwen_align.align.engines.catalogue import ENGINES, EngineBuild
from qwen_align.align.engines.environments import RECORD, examine_engine, find_engine_python, read_record
from qwen_align.align.engines.install import Installation, choose_device, examine_interpreter, install_engine
from qwen_align.align.errors import RecipeError, StageError
from qwen_align.align.store.lease import hold_lease
from qwen_align.tests.align.engines.made_up_index import write_lock, write_wheel

CHECK = "import made_up_engine, made_up_tensors; assert made_up_engine.__version__ == made_up_tensors.__version__"
PYTHON = ".".join(map(str, sys.version_info[:2]))
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of wheels that pip looks into, and nowhere else. The engine llama_cpp is a made-up one."""
    root, wheels, shipped = tmp_path / "engines", tmp_path / "wheels", tmp_path / "locks"
    for folder in (wheels, shipped):
        folder.mkdir()
    monkeypatch.setenv("QWEN_ALIGN_ENGINES", str(root))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setattr(locks, "FOLDER", shipped)
    monkeypatch.setattr(install, "_POLL_S", 0.02)
    fill(wheels, "1.0")
    return wheels


def fill(wheels: Path, version: str, text: str = "") -> list[Path]:
    """Puts a version of both packages into the folder, and has the lock say them and the catalogue the engine's."""
    script = {f"made_up_engine-{version}.data/scripts/made_up": "#!python\nimport made_up_engine; print('runs')\n"}
    made = [
        write_wheel(wheels, "made_up_engine", version, {"made_up_engine.py": f"__version__ = '{version}'\n", **script}),
        write_wheel(wheels, "made_up_tensors", version, {"made_up_tensors.py": f"{text}__version__ = '{version}'\n"}),
    ]
    write_lock(locks.FOLDER / f"llama_cpp-cpu-{get_interpreter().platform}-py{PYTHON.replace('.', '')}.txt", made)
    return made


def get_interpreter() -> install.Interpreter:
    return examine_interpreter(Path(sys.executable))


def run_installation(
    monkeypatch: pytest.MonkeyPatch,
    version: str = "1.0",
    *,
    disk_gib: float = 0.1,
    show: Callable[[int, int], None] = lambda done, of: None,
) -> list[str]:
    """Installs the made-up engine and returns what was said meanwhile."""
    build = EngineBuild((f"made_up_engine=={version}", "made_up_tensors"), CHECK, disk_gib, (PYTHON,))
    monkeypatch.setitem(ENGINES, "llama_cpp", {"cpu": build})  # type: ignore[arg-type]
    said: list[str] = []
    install_engine(Installation("llama_cpp", "cpu", get_interpreter(), said.append, show))
    return said


def list_names(index: Path) -> set[str]:
    """What there is in the folder of engines, beside leases."""
    root = index.parent / "engines"
    return {path.name for path in root.iterdir() if not path.name.startswith(".")} if root.exists() else set()


@pytest.mark.slow(seconds=15)
def test_an_installation_is_whole_or_not_there(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gone through, repeated, refused over a file of other bytes, replaced, removed: each time there is one or none."""
    (index.parent / "engines" / "llama_cpp.unfinished").mkdir(parents=True)
    (index.parent / "engines" / "llama_cpp.unfinished" / "leftover").touch()

    shown: list[tuple[int, int]] = []
    said = run_installation(monkeypatch, show=lambda done, of: shown.append((done, of)))
    assert shown == sorted(shown)
    assert {of for _, of in shown} == {4}  # each package is fetched and installed
    assert shown[-1][0] >= 2
    assert said[0].startswith("llama_cpp: made_up_engine 1.0 for cpu, 2 packages for Python ")
    assert said[-1].startswith("llama_cpp: made_up_engine 1.0 for cpu, Python ")
    folder = index.parent / "engines" / "llama_cpp"
    assert find_engine_python("llama_cpp") == folder / "bin" / "python"
    assert not {"leftover", "tmp"} & {path.name for path in folder.iterdir()}
    assert read_versions(folder) == {"made_up_engine": "1.0", "made_up_tensors": "1.0"}
    # Scripts name the final folder.
    assert subprocess.run([folder / "bin" / "made_up"], capture_output=True, text=True, check=True).stdout == "runs\n"
    assert list_names(index) == {"llama_cpp", "llama_cpp.log"}

    made = (folder / RECORD).stat().st_mtime_ns
    assert run_installation(monkeypatch) == [f"llama_cpp: installed already, of this lock: {folder}"]
    assert (folder / RECORD).stat().st_mtime_ns == made

    _, tensors = fill(index, "2.0")
    locked = tensors.read_bytes()
    assert examine_engine("llama_cpp").state == "outdated"
    write_wheel(index, "made_up_tensors", "2.0", {"made_up_tensors.py": "__version__ = '2.0'  # and something more\n"})
    with pytest.raises(
        StageError, match=r"made_up_tensors==2\.0 .*another file than the lock has a hash of; it was not"
    ):
        run_installation(monkeypatch, "2.0")
    assert list_names(index) == {"llama_cpp", "llama_cpp.log"}
    assert read_versions(folder)["made_up_engine"] == "1.0"  # the old one, whole
    subprocess.run([folder / "bin" / "python", "-P", "-c", CHECK], check=True)

    tensors.write_bytes(locked)
    run_installation(monkeypatch, "2.0")
    assert read_versions(folder)["made_up_engine"] == "2.0"
    assert list_names(index) == {"llama_cpp", "llama_cpp.log"}
    assert install.remove_engine("llama_cpp", lambda message: None)
    assert not install.remove_engine("llama_cpp", lambda message: None)
    assert list_names(index) == set()


def read_versions(folder: Path) -> dict[str, str]:
    record = read_record(folder)
    assert record
    return record.versions


def test_an_installation_that_is_killed_leaves_nothing_that_counts_or_goes_on(index: Path) -> None:
    """It is killed while its first program is at work in the unfinished folder; that one ends with it."""
    reached, interpreter = index.parent / "reached", index.parent / "slow_python"
    interpreter.write_text(f'#!/bin/sh\nmkdir -p "$4"\ntouch "$4/leftover"\necho $$ > {reached}\nexec sleep 300\n')
    interpreter.chmod(0o755)
    script = (
        "import sys; from pathlib import Path; from qwen_align.align.engines import install, locks; "
        "locks.FOLDER = Path(sys.argv[1]); here = install.examine_interpreter(Path(sys.executable)); "
        "slow = here._replace(path=Path(sys.argv[2])); "
        "install.install_engine(install.Installation('llama_cpp', 'cpu', slow, print))"
    )
    command = [sys.executable, "-c", script, str(locks.FOLDER), str(interpreter)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not (reached.exists() and reached.read_text()):
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    until = time.monotonic() + 30
    while is_running(int(reached.read_text())):
        assert time.monotonic() < until
        time.sleep(0.02)
    assert list_names(index) == {"llama_cpp.unfinished", "llama_cpp.log"}
    assert examine_engine("llama_cpp").state == "not installed"


def is_running(number: int) -> bool:
    """Whether a process is there and has not ended."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_check_that_fails_is_told_by_its_last_words(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an interpreter that is there, where a whole environment takes seconds."""
    root = index.parent / "engines"
    root.mkdir()
    installation = Installation("llama_cpp", "cpu", get_interpreter(), print)
    installation.log.touch()
    with pytest.raises(StageError, match=r"llama_cpp: not installed: ZeroDivisionError: .*; log: .*llama_cpp\.log"):
        install._run(installation, [sys.executable, "-c", "1 / 0"])
    assert "Traceback" in installation.log.read_text()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    install._run(installation, [sys.executable, "-c", "import os; assert 'PYTHONPATH' not in os.environ"])


def test_too_little_room_is_refused_before_anything_is_written(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(2**40, 2**40 - 2**29, 2**29))
    with pytest.raises(StageError, match=r"llama_cpp: 3 GiB are needed in .*, and 0\.5 GiB are free; name another"):
        run_installation(monkeypatch, disk_gib=3.0)
    assert list_names(index) == set()


def test_two_installations_of_one_engine_do_not_meet(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (index.parent / "engines").mkdir()
    with (
        hold_lease(index.parent / "engines" / ".llama_cpp.lease"),
        pytest.raises(StageError, match=r"engine llama_cpp: .* is installing or removing it; wait for it"),
    ):
        run_installation(monkeypatch)
    assert list_names(index) == set()


def test_a_torch_for_cpus_that_no_index_offers_is_explained(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    shipped = Installation("vllm", "cpu", get_interpreter()._replace(version="3.11.7", platform="linux_x86_64"), print)
    said = "ERROR: No matching distribution found for torch==2.13.0+cpu (from -r requirements.txt (line 3))"
    message = install._word_failure(shipped, said)
    assert "pip's indexes do not offer torch 2.13.0+cpu: builds for CPUs are on PyTorch's own index" in message
    assert "PIP_EXTRA_INDEX_URL" in message


def test_a_device_is_chosen_by_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "_HOST_GPU", tmp_path / "nvidiactl")
    assert choose_device("vllm", "auto") == "cpu"
    (tmp_path / "nvidiactl").touch()
    assert choose_device("vllm", "auto") == "cuda"
    assert choose_device("vllm", "cpu") == "cpu"
    assert choose_device("llama_cpp", "auto") == "cpu"
    with pytest.raises(RecipeError, match="engine llama_cpp: there is none for cuda; there is one for cpu"):
        choose_device("llama_cpp", "cuda")


def test_an_interpreter_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"--python .*none: no Python that runs"):
        examine_interpreter(tmp_path / "none")
    assert get_interpreter().minor == PYTHON
