"""Starts the process of a stage: a fork of the warm server, a fresh process, or torchrun."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Self

from qwen_align.align.errors import StageError
from qwen_align.align.pipeline.graph import Stage
from qwen_align.align.pipeline.process_lifetime import PARENT
from qwen_align.align.pipeline.warm_server import NO_THREADS
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.stages.registry import STAGE_KINDS


class Ended(NamedTuple):
    """How a stage's process ended: exit code and, if not 0, what it said."""

    code: int
    message: str


class Launcher:
    """Runs stages one after another; a context manager, because it may hold a warm server."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None
        self._ready = False
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the launcher

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._server:
            assert self._server.stdin
            self._server.stdin.close()
            self._server.kill()
            self._server.wait()
        self._errors.close()

    def warm_up(self) -> None:
        """Starts the server's imports in the background."""
        if self._server is None:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "qwen_align.align.pipeline.warm_server"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env={**environment(), **NO_THREADS},
                start_new_session=True,  # Ctrl-C reaches the stage through us, once
            )

    def run(self, stage: Stage, folder: Path, watch: Callable[[], bool]) -> Ended:
        """Runs the stage and waits; `watch` is called a few times a second, true from it asks the stage to stop."""
        asked = Asked(watch)
        with tempfile.TemporaryDirectory(prefix="qwen-align-") as scratch:
            report = Path(scratch, "report.json")
            if uses_server(stage) or (not STAGE_KINDS[stage.kind].needs_torch and self._ready):
                code = self._run_in_server(stage, folder, report, asked)
            else:
                code = _run_fresh(command(stage, folder, report), folder / "log.txt", asked)
            said = json.loads(report.read_text()) if report.exists() else None
        if code < 0 and not asked.yes:
            return Ended(4, _ended_by(code))  # what others of the stage's processes say follows from it
        if said and said["code"] == 75 and not asked.yes:
            return Ended(4, "another process of the stage died and took this one along; the log says more")
        if said and said["code"] != 0:
            return Ended(said["code"], said["message"])  # torchrun's own exit code says less
        if code != 0 and asked.yes:
            return Ended(75, "stopped as asked before it had begun; run again to go on")
        return Ended(0, "") if code == 0 else Ended(4, _ended_by(code))

    def _run_in_server(self, stage: Stage, folder: Path, report: Path, asked: "Asked") -> int:
        self.warm_up()
        if not self._ready:
            self._answer(asked, None)
            self._ready = True
        assert self._server
        assert self._server.stdin
        request = {
            "folder": str(folder),
            "report": str(report),
            "log": str(folder / "log.txt"),
            "processes": processes_of(stage),
        }
        print(json.dumps(request), file=self._server.stdin, flush=True)
        pids = self._answer(asked, None)["pids"]

        def stop() -> None:
            for pid in pids:
                with suppress(ProcessLookupError):  # it has ended by itself
                    os.kill(pid, signal.SIGTERM)

        return int(self._answer(asked, stop)["exit"])

    def _answer(self, asked: "Asked", stop: Callable[[], None] | None) -> dict[str, Any]:
        assert self._server
        assert self._server.stdout
        while not select.select([self._server.stdout], [], [], 0.2)[0]:
            if stop:
                asked.once(stop)
            else:
                asked.watch()
        line = self._server.stdout.readline()
        if not line:
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or ["it was killed without a word"])[-1]
            raise StageError(f"the warm server, which imports torch, transformers and trl once, died: {last}")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer


class Asked:
    """Whether the stage was asked to stop, remembered; the asking is done once."""

    def __init__(self, watch: Callable[[], bool]) -> None:
        self.watch = watch
        self.yes = False

    def once(self, stop: Callable[[], None]) -> None:
        if self.watch() and not self.yes:
            self.yes = True
            stop()


def command(stage: Stage, folder: Path, report: Path) -> list[str]:
    """The command line that runs the stage in a process of its own, or in one a device through torchrun."""
    worker = ["-m", "qwen_align.align.pipeline.worker", str(folder), str(report)]
    processes = processes_of(stage)
    if processes == 1:
        return [sys.executable, *worker]
    # torchrun, which is to die with us as its workers die with it
    torchrun = (
        "from qwen_align.align.pipeline.process_lifetime import die_with_parent; die_with_parent(); "
        "from torch.distributed.run import main; main()"
    )
    return [sys.executable, "-c", torchrun, "--nproc_per_node", str(processes), "--standalone", *worker]


def processes_of(stage: Stage) -> int:
    """How many processes run the stage."""
    return 1 if STAGE_KINDS[stage.kind].is_single_process else stage.runtime.processes


def uses_server(stage: Stage) -> bool:
    """Whether the stage is forked from the warm server: on a CPU, but several processes of DeepSpeed."""
    runtime = stage.runtime
    is_torchruns = runtime.deepspeed is not None and processes_of(stage) > 1
    return STAGE_KINDS[stage.kind].needs_torch and not on_cuda(runtime) and not is_torchruns


def on_cuda(runtime: Runtime) -> bool:
    """Whether a GPU will be used, told without importing torch."""
    if runtime.device == "auto":
        return Path("/dev/nvidiactl").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
    return runtime.device == "cuda"


def environment() -> dict[str, str]:
    """The environment of a stage's process; what the user has set stands.

    OpenMP threads that spin while they wait make small models ten times slower on a machine that does anything else
    (measured: 800 completions of the embedded model in 31 s, and in 3.4 s when they sleep; 2 cores, load 3). GNU's spin
    a thousand times, some microseconds, first: a step of the quickstart's SFT then takes 0.85 of the time.
    """
    return {
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "1000",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **os.environ,
        PARENT: str(os.getpid()),
    }


def _run_fresh(line: list[str], log: Path, asked: Asked) -> int:
    with log.open("a") as output:
        process = subprocess.Popen(
            line, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment(), start_new_session=True
        )
    try:
        while (code := process.poll()) is None:
            asked.once(lambda: os.killpg(process.pid, signal.SIGTERM))
            time.sleep(0.02)
        return code
    finally:
        if process.poll() is None:  # we are leaving by an exception: nobody would watch it
            os.killpg(process.pid, signal.SIGKILL)


def _ended_by(code: int) -> str:
    if code >= 0:
        return f"the process ended with code {code} without a word"
    name = signal.Signals(-code).name
    hint = "; the system kills so when memory runs out: lower runtime.micro_batch" if name == "SIGKILL" else ""
    return f"the process was killed by {name}{hint}"
