"""Starts the process of a stage: a fork of the warm server, a new process, or torchrun."""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, Self

from qwen_align.align.context import LOADING, PROGRESS, Phase
from qwen_align.align.errors import AlignError, StageError
from qwen_align.align.pipeline.deepspeed_operators import build_operator_environment, build_operators
from qwen_align.align.pipeline.graph import Stage
from qwen_align.align.pipeline.kernel_kills import count_kernel_kills
from qwen_align.align.pipeline.machine_check import count_nodes, count_processes
from qwen_align.align.pipeline.node_place import ALONE, NodePlace
from qwen_align.align.pipeline.process_lifetime import PARENT_VARIABLE
from qwen_align.align.pipeline.strategy_check import trains_with_deepspeed
from qwen_align.align.pipeline.warm_server import NO_THREADS
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.stages.memory_advice import word_advice
from qwen_align.align.stages.registry import STAGE_KINDS

Cause = Literal["memory", "said", "killed", "follows"]


class StageExit(NamedTuple):
    """The exit of a stage's process: its exit code and, if not 0, its error message.

    `cause`: how much the message says of why the stage ended, best first, where the processes of several nodes each
    say something. "follows" may be only what the end of another process brought about.
    """

    code: int
    message: str
    cause: Cause = "said"


class Launcher:
    """A launcher that runs stages one after another. As a context manager it ends the warm server at exit.

    `on_note` is told what a stage has to wait for before it starts.
    """

    def __init__(self, on_note: Callable[[str], None] = lambda note: None) -> None:
        self._on_note = on_note
        self._server: subprocess.Popen[str] | None = None
        self._answers: IO[str] | None = None
        self._ready = False
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the launcher

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_warm_server()
        self._errors.close()

    def end_warm_server(self) -> None:
        """Kills the warm server, if there is one, and with it the stage that it has forked."""
        if self._server:
            assert self._server.stdin
            self._server.stdin.close()
            self._server.kill()
            self._server.wait()
        if self._answers:
            self._answers.close()
        self._server, self._answers, self._ready = None, None, False

    def start_warm_server(self) -> None:
        """Starts the warm server unless it is running. It imports its libraries in the background."""
        if self._server is None:
            reader, writer = os.pipe()
            self._answers = os.fdopen(reader, encoding="utf-8")
            self._server = subprocess.Popen(
                [sys.executable, "-P", "-m", "qwen_align.align.pipeline.warm_server", str(writer)],
                stdin=subprocess.PIPE,
                stdout=self._errors,  # what an imported library prints is no answer
                stderr=self._errors,
                pass_fds=[writer],
                text=True,
                env={**build_environment(), **NO_THREADS},
                start_new_session=True,  # Ctrl-C reaches the stage through the run, once
            )
            os.close(writer)

    def run_stage(
        self,
        stage: Stage,
        folder: Path,
        poll_stop: Callable[[], bool],
        place: NodePlace = ALONE,
        poll_kill: Callable[[], bool] = lambda: False,
    ) -> StageExit:
        """Runs a stage's processes on this machine, waits for them and returns how they exited.

        `poll_stop` is called a few times a second; once it returns true the stage is asked to stop, and once
        `poll_kill` does its processes are killed. `place`: this machine's among those that run the stage.
        """
        if compiles_operators(stage):
            try:
                build_operators(stage.runtime, build_environment(), self._on_note, poll_stop)
            except AlignError as error:
                return StageExit(error.exit_code, str(error))
        stop_signal, kills = StopSignal(poll_stop, poll_kill), count_kernel_kills()
        with tempfile.TemporaryDirectory(prefix="qwen-align-") as scratch:
            report = Path(scratch, "report.json")
            if uses_warm_server(stage) or (not STAGE_KINDS[stage.kind].needs_torch and self._ready):
                code = self._run_in_warm_server(stage, folder, report, stop_signal, place)
            else:
                command = build_command(stage, folder, report, place)
                code = run_fresh_process(command, place.locate_log(folder), stop_signal, place.name_interface())
            stage_report = _read_report(report, is_stopped=stop_signal.was_sent)
        if stage_report and "out_of_memory" in stage_report:  # what the others say follows from it
            return StageExit(stage_report["code"], stage_report["message"], "memory")
        if code != 0 and stop_signal.was_killed and not (stage_report and "is_ours" in stage_report):
            return StageExit(4, "its processes were ended with those of another node", "follows")
        if code == -signal.SIGKILL and not stop_signal.was_sent:
            return StageExit(4, describe_kill(stage, folder, kills, count_kernel_kills()), "killed")
        if code < 0 and not stop_signal.was_sent:
            return StageExit(4, _describe_exit(code), "killed")  # what the stage's others report follows from it
        if stage_report and stage_report["code"] == 75 and not stop_signal.was_sent:
            said = "another process of the stage died and took this one along; the log says more"
            return StageExit(4, said, "follows")
        if stage_report and stage_report["code"] != 0:
            cause: Cause = "said" if "is_ours" in stage_report or stage_report["code"] == 75 else "follows"
            return StageExit(stage_report["code"], stage_report["message"], cause)  # torchrun's own code says less
        if code != 0 and stop_signal.was_sent:
            return StageExit(75, "stopped as asked before it had begun; run again to go on")
        return StageExit(0, "") if code == 0 else StageExit(4, _describe_exit(code), "follows")

    def _run_in_warm_server(
        self, stage: Stage, folder: Path, report: Path, stop_signal: "StopSignal", place: NodePlace
    ) -> int:
        """Asks the warm server to fork the stage, waits for the stage and returns its exit status."""
        self.start_warm_server()
        if not self._ready:
            self._read_answer(stop_signal, None)
            self._ready = True
        assert self._server
        assert self._server.stdin
        request = {
            "folder": str(folder),
            "report": str(report),
            "log": str(place.locate_log(folder)),
            "processes": count_processes(stage),
            "place": place._asdict(),
            "is_group": needs_process_group(stage),
        }
        print(json.dumps(request), file=self._server.stdin, flush=True)
        pids = self._read_answer(stop_signal, None)["pids"]

        def send(number: int) -> None:
            for pid in pids:
                with suppress(ProcessLookupError):  # it has ended by itself
                    os.kill(pid, number)

        return int(self._read_answer(stop_signal, send)["exit"])

    def _read_answer(self, stop_signal: "StopSignal", send: Callable[[int], None] | None) -> dict[str, Any]:
        """Waits for the next message of the warm server and returns it.

        Raises StageError when the server has died.

        `send` sends the stage a signal; without it there is no stage yet that could be stopped.
        """
        assert self._answers
        while not select.select([self._answers], [], [], 0.2)[0]:
            if send:
                stop_signal.pass_on(send)
            else:
                stop_signal.poll_stop()
        line = self._answers.readline()
        if not line:
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or ["it was killed without a message"])[-1]
            raise StageError(f"the warm server, which imports torch, transformers and trl once, died: {last}")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer


class StopSignal:
    """The requests to stop, or to kill, the running stage, each passed on to it at most once."""

    def __init__(self, poll_stop: Callable[[], bool], poll_kill: Callable[[], bool] = lambda: False) -> None:
        self.poll_stop, self._poll_kill = poll_stop, poll_kill
        self.was_sent = self.was_killed = False

    def pass_on(self, send: Callable[[int], None]) -> None:
        """Sends the stage SIGTERM where it has been asked to stop, and SIGKILL where it is to end at once."""
        if self.poll_stop() and not self.was_sent:
            self.was_sent = True
            send(signal.SIGTERM)
        if self._poll_kill() and not self.was_killed:
            self.was_killed = True
            send(signal.SIGKILL)


def build_command(stage: Stage, folder: Path, report: Path, place: NodePlace = ALONE) -> list[str]:
    """Returns the command line that runs a stage in its own process, or one process per device through torchrun."""
    # Without -P a random.py or the like in the working folder would be imported in place of Python's.
    python = [sys.executable, "-P"]
    worker = [*python, "-m", "qwen_align.align.pipeline.worker", str(folder), str(report)]
    processes = count_processes(stage)
    if not needs_process_group(stage):
        return worker
    # torchrun has to end with this process, as its workers end with it.
    torchrun = (
        "from qwen_align.align.pipeline.process_lifetime import die_with_parent; die_with_parent(); "
        "from torch.distributed.run import main; main()"
    )
    meeting = ["--standalone"]
    if place.nodes > 1:
        meeting = ["--nnodes", str(place.nodes), "--node_rank", str(place.node), "--max_restarts", "0"]
        meeting += ["--master_addr", place.address, "--master_port", str(place.port)]
    return [*python, "-c", torchrun, "--nproc_per_node", str(processes), *meeting, "--no_python", *worker]


def needs_process_group(stage: Stage) -> bool:
    """Returns whether a stage's processes form a group: several do, and for DeepSpeed also one."""
    return count_processes(stage) * count_nodes(stage) > 1 or trains_with_deepspeed(stage)


def compiles_operators(stage: Stage) -> bool:
    """Returns whether DeepSpeed compiles operators for a stage: on a CPU."""
    return trains_with_deepspeed(stage) and not uses_cuda(stage.runtime)


def uses_warm_server(stage: Stage) -> bool:
    """Returns whether a stage is forked from the warm server.

    This is so on a CPU.
    """
    return STAGE_KINDS[stage.kind].needs_torch and not uses_cuda(stage.runtime)


def uses_cuda(runtime: Runtime) -> bool:
    """Returns whether a stage will use a CUDA GPU, without importing torch."""
    if runtime.device == "auto":
        return Path("/dev/nvidiactl").exists() and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
    return runtime.device == "cuda"


def build_environment() -> dict[str, str]:
    """Returns the environment variables of a stage's process.

    Variables that the user has set are kept.

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
        **build_operator_environment(),
        PARENT_VARIABLE: str(os.getpid()),
    }


def run_fresh_process(
    line: list[str], log: Path, stop_signal: StopSignal, variables: Mapping[str, str] | None = None
) -> int:
    """Runs a command with its output in `log` and returns its exit code. `variables` are added to its environment.

    The process is killed when an exception is raised.
    """
    with log.open("a") as output:
        process = subprocess.Popen(
            line,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=build_environment() | dict(variables or {}),
            start_new_session=True,
        )
    try:
        while (code := process.poll()) is None:
            stop_signal.pass_on(lambda number: os.killpg(process.pid, number))
            time.sleep(0.02)
        return code
    finally:
        if process.poll() is None:  # left by an exception: nobody would wait for it
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _read_report(report: Path, *, is_stopped: bool = False) -> dict[str, Any] | None:
    """Reads what a stage's processes on this machine report, and returns what says most of why it ended.

    That is a lack of memory in any of them, else an error in our own words, else what the main process says. Of a stage
    that was asked to stop it is that one has: the others then lose it where they wait for it.
    """
    paths = [report, *sorted(report.parent.glob(f"{report.stem}.*.json"))]
    reports: list[dict[str, Any]] = [json.loads(path.read_text()) for path in paths if path.exists()]
    for said in ("out_of_memory", "is_ours"):
        for each in reports:
            if said in each:
                return each
    saved = [each for each in reports if is_stopped and each["code"] == 75]
    return next(iter([*saved, *reports]), None)


def describe_kill(stage: Stage, folder: Path, kills_before: int | None, kills_after: int | None) -> str:
    """Returns the error message for a process that was killed by SIGKILL: the phase it was in, and what to turn.

    The system kills so when memory runs out. That is likely where nobody counts kills, and more so where their number
    has risen; another process may have been meant.
    """
    progress = folder / PROGRESS
    phase = Phase(**json.loads(progress.read_text())["phase"]) if progress.exists() else LOADING
    at = f"the {phase.name} phase" + (f" of step {phase.step:,}" if phase.step else "")
    advice = word_advice(stage.settings, stage.runtime, phase)
    if kills_before is None or kills_after is None:
        cause = "the system kills so when memory runs out"
    elif kills_after > kills_before:
        cause = "the kernel has killed a process meanwhile because memory ran out, most likely this one"
    else:
        cause = "the kernel has counted no process killed for want of memory meanwhile; someone else may have killed it"
    return f"the process was killed by SIGKILL in or after {at}; {cause}. {advice}"


def _describe_exit(code: int) -> str:
    """Returns the error message for a process that ended with an exit code but no report."""
    if code >= 0:
        return f"the process ended with code {code} without a message"
    return f"the process was killed by {signal.Signals(-code).name}"
