"""Builds the operators that DeepSpeed compiles on a CPU, before a stage's processes start. Nothing here imports torch.

DeepSpeed compiles them in the first process that asks, in TORCH_EXTENSIONS_DIR, and whoever comes meanwhile waits for
a file named `lock` to go. A process that was killed while it held it leaves the file behind, and every later one waits
for ever, without a word. So they are built here, under a lock that the system releases with its holder, in a folder of
their own that is renamed into place once they are whole; and files named `lock` that no process holds are removed. On
GPUs DeepSpeed needs none of these operators.
"""

import fcntl
import os
import platform
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from qwen_align.align.errors import Preempted, StageError
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.settings.strategy import read_deepspeed_file
from qwen_align.align.store.files import remove_tree

FOLDER = "TORCH_EXTENSIONS_DIR"  # torch's own variable
LOCK = "lock"  # what torch calls the file, in each operator's folder
OWN_LOCK = ".qwen-align.lock"
LOG = ".qwen-align.log"
UNFINISHED = ".qwen-align-unfinished"  # a folder, renamed when what is in it is built

# Where DeepSpeed's builders are: of processes' exchange in shared memory, of AdamW on a CPU.
BUILDERS = {
    "deepspeed_shm_comm": "deepspeed.ops.op_builder.cpu.comm:ShareMemCommBuilder",
    "cpu_adam": "deepspeed.ops.op_builder.cpu:CPUAdamBuilder",
}
_BUILD = (
    "import importlib, sys; from qwen_align.align.pipeline.process_lifetime import die_with_parent; die_with_parent(); "
    "module, name = sys.argv[1].split(':'); getattr(importlib.import_module(module), name)().load()"
)
_POLL_S = 0.2


def choose_operator_folder() -> str:
    """Returns the folder of compiled operators: the user's TORCH_EXTENSIONS_DIR, else one of our own.

    It is of this machine too: operators are compiled for its processor, and a home folder may be shared by several.
    """
    if given := os.environ.get(FOLDER):
        return given
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    versions = [f"{name}-{metadata.version(name)}" for name in ("torch", "deepspeed") if find_spec(name)]
    here = [platform.node() or "localhost", f"python-{platform.python_version()}", *versions]
    return str(cache / "qwen-align" / "operators" / "_".join(here))


def build_operator_environment() -> dict[str, str]:
    """Returns the environment variables with which DeepSpeed finds its operators, and the programs that build them."""
    if not find_spec("deepspeed"):
        return {}
    scripts = sysconfig.get_path("scripts")  # where `ninja` is, which deepspeed requires
    return {FOLDER: choose_operator_folder(), "PATH": os.pathsep.join([os.environ.get("PATH", ""), scripts])}


def list_operators(runtime: Runtime) -> list[str]:
    """Returns the operators that DeepSpeed compiles for a stage on a CPU.

    That for AdamW is of files of the user's own: our settings offload the state of PyTorch's optimiser.
    """
    operators = ["deepspeed_shm_comm"]
    if runtime.deepspeed is not None:
        content = read_deepspeed_file(runtime.deepspeed)
        offload = content.get("zero_optimization", {}).get("offload_optimizer") or {}
        if offload.get("device", "none") != "none" and content.get("zero_force_ds_cpu_optimizer", True):
            operators.append("cpu_adam")
    return operators


def find_missing_program(runtime: Runtime) -> str | None:
    """Returns the program that is missing on this machine to build what a stage's runtime needs, None if none is."""
    folder = Path(choose_operator_folder())
    if all(_is_built(folder, name) for name in list_operators(runtime)):
        return None
    path = build_operator_environment().get("PATH")
    compiler = os.environ.get("CXX") or "c++"
    return next((name for name in (compiler, "ninja") if shutil.which(name, path=path) is None), None)


def build_operators(
    runtime: Runtime,
    environment: Mapping[str, str],
    say: Callable[[str], None],
    poll_stop: Callable[[], bool] = lambda: False,
    builders: Mapping[str, str] = BUILDERS,
) -> None:
    """Builds the operators that a stage needs and that are not there yet, and removes what killed processes have left.

    `say` is told before a build. Raises StageError where it fails, Preempted where `poll_stop` returns true meanwhile.
    """
    folder = Path(environment[FOLDER])
    folder.mkdir(parents=True, exist_ok=True)
    with _hold_alone(folder / OWN_LOCK, say, poll_stop):
        remove_tree(folder / UNFINISHED)
        remove_stale_locks(folder)
        for name in list_operators(runtime):
            if not _is_built(folder, name):
                say(f"building DeepSpeed's operator {name} for this CPU, once; it takes about a minute")
                _build(name, builders[name], folder, environment, poll_stop)


def _is_built(folder: Path, name: str) -> bool:
    return (folder / name / f"{name}.so").exists()


def remove_stale_locks(folder: Path) -> None:
    """Removes the locks in a folder of operators that no process on this machine holds: torch would wait for ever."""
    for lock in folder.glob(f"*/{LOCK}"):
        if not is_held(lock):
            lock.unlink(missing_ok=True)


def is_held(lock: Path) -> bool:
    """Returns whether a process has a lock's file open, as torch does until it removes it.

    Processes of other users are not seen, nor those in other containers; a folder is of one user on one machine.
    """
    try:
        state = lock.stat()
    except FileNotFoundError:
        return True  # it has been released meanwhile
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            opened = descriptor.stat()
        except OSError:  # of another user, or closed meanwhile
            continue
        if (opened.st_dev, opened.st_ino) == (state.st_dev, state.st_ino):
            return True
    return False


@contextmanager
def _hold_alone(path: Path, say: Callable[[str], None], poll_stop: Callable[[], bool]) -> Iterator[None]:
    """Holds a file's lock inside a context manager. The system releases it where this process is killed."""
    with path.open("a") as file:
        has_said = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not has_said:
                    say("another run on this machine builds DeepSpeed's operators; waiting for it")
                has_said = True
                _stop_if_asked(poll_stop)
                time.sleep(_POLL_S)
        yield


def _build(
    name: str, builder: str, folder: Path, environment: Mapping[str, str], poll_stop: Callable[[], bool]
) -> None:
    """Builds one operator in a process of its own. Raises StageError with the end of its log where that fails."""
    log, unfinished = folder / LOG, folder / UNFINISHED
    unfinished.mkdir()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BUILD, builder],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**environment, FOLDER: str(unfinished)},
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                _stop_if_asked(poll_stop)
                time.sleep(_POLL_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode or not _is_built(unfinished, name):
        lines = log.read_text(errors="replace").strip().splitlines()
        raise StageError(
            f"DeepSpeed's operator {name} could not be built: {lines[-1] if lines else 'without a message'}; the whole "
            f"log is {log}"
        )
    remove_tree(folder / name)
    (unfinished / name).rename(folder / name)
    remove_tree(unfinished)


def _stop_if_asked(poll_stop: Callable[[], bool]) -> None:
    if poll_stop():
        raise Preempted("stopped as asked while DeepSpeed's operators were built; run again to go on")
