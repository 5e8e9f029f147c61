"""Provides the context a stage runs in: its folder, seed and runtime, its logs, progress and stop requests."""

import json
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from qwen_align.align.errors import Preempted
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.store.files import write_text

PROGRESS = "progress.json"
NOTES = "notes.jsonl"
NODES = "nodes"  # a folder: what the processes on each node but the first have written to their log
TRACKING = "tracking"  # a folder: how far each tracker has got
_LOGS = ("metrics.jsonl", "samples.jsonl", NOTES)

# What names of metrics begin with that are measured, and so differ between two runs of the same work.
MEASURED = ("time/", "speed/", "memory/")

PhaseName = Literal["load", "draw", "score", "update", "sync", "save"]


class Phase(NamedTuple):
    """What a stage is doing, for the message where it runs out of memory.

    step: optimiser step, from 1. rows: rows (or pairs, or completions) of the batch on this device; longest_row: the
    most tokens that one of them has or may get.
    """

    name: PhaseName
    step: int | None = None
    rows: int | None = None
    longest_row: int | None = None


LOADING = Phase("load")


@dataclass
class Context:
    """The context of a running stage: its seed, runtime and logs.

    Once `is_stop_requested()`, the stage saves what it has and raises Preempted.
    """

    out: Path
    seed: int
    runtime: Runtime
    is_main: bool = True
    phase: Phase = LOADING
    estimates_gib: dict[str, float] = field(default_factory=dict)  # of what a device holds, by phase, where known
    measured: dict[str, float] = field(default_factory=dict)  # for the manifest: figures that differ between two runs
    _is_asked_to_stop: bool = field(default=False, init=False)
    _started: float = field(default_factory=time.monotonic, init=False)
    _shown: float = field(default=0.0, init=False)
    _phase_shown: float = field(default=0.0, init=False)
    _progress: dict[str, Any] = field(default_factory=dict, init=False)  # reported last
    _first: tuple[int, int] | None = field(default=None, init=False)  # done and tokens when this process began

    @contextmanager
    def work_on(
        self, name: PhaseName, *, step: int | None = None, rows: int | None = None, longest_row: int | None = None
    ) -> Iterator[None]:
        """Sets the phase inside a `with` block. After an error it stays: it says where the error came from."""
        before, self.phase = self.phase, Phase(name, step, rows, longest_row)
        self._report_phase()
        yield
        self.phase = before

    def report_progress(self, done: int, total: int, tokens: int = 0, unit: str = "steps") -> None:
        """Writes the progress of the stage to progress.json. At most three times a second, from the main process."""
        now = time.monotonic()
        if not self.is_main or (now - self._shown < 0.3 and done < total):
            return
        self._shown = now
        self._first = self._first or (done, tokens)
        state = {
            "done": done,
            "total": total,
            "unit": unit,
            "seconds": now - self._started,
            "done_here": done - self._first[0],
            "tokens_here": tokens - self._first[1],
        }
        self._progress = state
        self._write_progress()

    def _report_phase(self) -> None:
        """Writes the phase to progress.json, for the message where the process is killed. As often as progress."""
        now = time.monotonic()
        if self.is_main and self._progress and now - self._phase_shown >= 0.3:
            self._phase_shown = now
            self._write_progress()

    def _write_progress(self) -> None:
        """Writes progress.json: what was reported last, with the present phase."""
        partial = self.out / f".{PROGRESS}"
        partial.write_text(json.dumps({**self._progress, "phase": self.phase._asdict()}))
        partial.replace(self.out / PROGRESS)

    def log_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Appends the metrics of one step to metrics.jsonl."""
        if self.is_main:
            with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(metrics, sort_keys=True) + "\n")

    def log_sample(self, step: int, sample: Mapping[str, Any]) -> None:
        """Appends a sample of `step` to samples.jsonl, for readers of the run."""
        if self.is_main:
            with (self.out / "samples.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **sample}, ensure_ascii=False, sort_keys=True) + "\n")

    def log_note(self, step: int, what: str, message: str) -> None:
        """Appends a message for the user to notes.jsonl. The run shows it at once; `what` is its topic."""
        if self.is_main:
            with (self.out / NOTES).open("a", encoding="utf-8") as file:
                note = {"step": step, "what": what, "message": message}
                file.write(json.dumps(note, ensure_ascii=False, sort_keys=True) + "\n")

    def truncate_logs(self, step: int) -> None:
        """Removes the logged lines of all steps after `step`, which a resumed stage will log again."""
        for name in _LOGS:
            path = self.out / name
            if self.is_main and path.exists():
                kept = [
                    line
                    for line in self._read_log(name)
                    if step and (logged := _parse_logged_step(line)) is not None and logged <= step
                ]
                write_text(path, "".join(kept))

    def read_logs_after(self, step: int) -> dict[str, list[str]]:
        """Returns the logged lines of all steps after `step` by file name, for a checkpoint that holds that work."""
        return {name: [line for line in self._read_log(name) if _is_logged_after(line, step)] for name in _LOGS}

    def restore_logs(self, lines: Mapping[str, list[str]]) -> None:
        """Appends lines that `read_logs_after` has returned, and `truncate_logs` has removed since."""
        for name, those in lines.items():
            if self.is_main and those:
                with (self.out / name).open("a", encoding="utf-8") as file:
                    file.writelines(those)

    def _read_log(self, name: str) -> list[str]:
        """Returns the lines of a log. There are none before it is begun."""
        path = self.out / name
        return path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True) if path.exists() else []

    def catch_stop_signals(self) -> None:
        """Installs signal handlers so that SIGTERM and SIGINT request a stop instead of ending the process."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request_stop)

    def _request_stop(self, *_: Any) -> None:
        """Records that a stop was requested, as a signal handler."""
        self._is_asked_to_stop = True

    def is_stop_requested(self) -> bool:
        """Returns whether the stage was asked to stop."""
        return self._is_asked_to_stop

    def stop_if_requested(self) -> None:
        """Raises Preempted if the stage was asked to stop. Called where everything done so far is on disk."""
        if self._is_asked_to_stop:
            raise Preempted("stopped as asked; run again to go on")


def _parse_logged_step(line: str) -> int | None:
    """Returns the step of a logged line. Returns None for half a line, which a kill or a full disk has left."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return None


def _is_logged_after(line: str, step: int) -> bool:
    """Returns whether a line was logged after a step."""
    logged = _parse_logged_step(line)
    return logged is not None and logged > step
