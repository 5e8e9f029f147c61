"""The run's side of tracking: a process a tracker, told by a file what to follow and never waited for."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

from qwen_align.align.settings.tracking import Tracking
from qwen_align.align.store.files import read_json, write_json
from qwen_align.align.tracking.curve import Curve, Point
from qwen_align.align.tracking.setup import build_tracker_environment

FINISH_S = 30.0  # for all trackers together, at the end of a run
LEAVE_S = 5.0  # the same when a run fails or is asked to stop, which leaves little time on a shared machine


class TrackerClients:
    """A context manager around a run; leaving it waits for the trackers, but not long.

    Nothing here raises for a tracker's sake: what goes wrong is said once by `note`, and the tracker is left out.
    `folder`: where the trackers' files and logs go.
    """

    def __init__(self, tracking: Tracking, group: str, folder: Path, note: Callable[[str], None]) -> None:
        self._tracking, self._group, self._folder, self._note = tracking, group, folder, note
        self._senders: list[_TrackerClient] = []
        self._is_started = False

    def __enter__(self) -> Self:
        return self

    def begin(self, curve: Curve) -> None:
        """From now on the curve of this stage is followed; the first one starts the trackers."""
        if not self._is_started:
            self._is_started = True
            self._start_clients()
        self._send_order({"begin": {**curve._asdict(), "folder": str(curve.folder)}})

    def end(self, points: Sequence[Point] = (), *, is_whole: bool) -> None:
        """The stage that was begun has ended; `points` are what it has besides its metrics.jsonl."""
        self._send_order({"end": {"points": points, "is_whole": is_whole}})

    def look(self) -> None:
        """Notes the trackers that have failed since the last look; takes no time."""
        for sender in list(self._senders):
            code = sender.process.poll()  # before its word is read, which comes first
            if said := sender.said():
                self._handle_message(sender, said)
            elif code is not None:
                self._drop_client(sender, f"its process ended with code {code}")

    def _handle_message(self, sender: "_TrackerClient", said: "_TrackerMessage") -> None:
        if said.is_last:
            self._drop_client(sender, said.message)
        else:
            self._note(f"tracking: {sender.name}: {said.message}")

    def __exit__(self, kind: object, *_: object) -> None:
        deadline = time.monotonic() + (FINISH_S if kind is None else LEAVE_S)
        try:
            for sender in self._senders:
                sender.close_input()
            for sender in list(self._senders):
                self._wait_for_client(sender, max(0.0, deadline - time.monotonic()))
        finally:
            for sender in self._senders:
                sender.close()

    def _wait_for_client(self, sender: "_TrackerClient", seconds: float) -> None:
        try:
            code = sender.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._drop_client(sender, "did not finish in time and was ended")
            return
        if said := sender.said():
            self._handle_message(sender, said)
        elif code != 0:
            self._drop_client(sender, f"its process ended with code {code}")

    def _start_clients(self) -> None:
        for name in self._tracking.to:
            try:
                self._senders.append(_TrackerClient(name, self._tracking, self._group, self._folder))
            except OSError as error:
                self._note(f"tracking: {name}: cannot be started: {error}")

    def _send_order(self, order: dict[str, Any]) -> None:
        for sender in list(self._senders):
            try:
                sender.order(order)
            except OSError as error:
                self._drop_client(sender, str(error))

    def _drop_client(self, sender: "_TrackerClient", why: str) -> None:
        self._senders.remove(sender)
        sender.close()
        self._note_failure(sender, why)

    def _note_failure(self, sender: "_TrackerClient", why: str) -> None:
        self._note(
            f"tracking: {sender.name}: {why}; the run is not touched by it, "
            f"and metrics.jsonl holds every figure; log: {sender.log}"
        )


class _TrackerMessage(NamedTuple):
    """A tracker's word to people; after the last one it does nothing more."""

    message: str
    is_last: bool


class _TrackerClient:
    """One tracker's process; raises OSError when it cannot be started or told."""

    def __init__(self, name: str, tracking: Tracking, group: str, folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        (folder / name).mkdir(parents=True, exist_ok=True)
        self._scratch = tempfile.TemporaryDirectory(prefix="qwen-align-tracking-")
        self._home = Path(self._scratch.name)
        where = {"tracker": name, "project": tracking.project, "group": group}
        job = {"where": where, "tracking": tracking.model_dump(), "folder": str((folder / name).resolve())}
        write_json(self._home / "job.json", job)
        with self.log.open("a") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "qwen_align.align.tracking.tracker_process", str(self._home)],
                stdin=subprocess.PIPE,  # its end tells the process that the run is over, however it ended
                stdout=output,
                stderr=output,
                env=build_tracker_environment(name, tracking),
                start_new_session=True,
            )

    def order(self, order: dict[str, Any]) -> None:
        with (self._home / "orders.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(order) + "\n")

    def said(self) -> _TrackerMessage | None:
        """Its word to people, once."""
        path = self._home / "said.json"
        if not path.exists():
            return None
        said = _TrackerMessage(**read_json(path))
        path.unlink()
        return said

    def close_input(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()

    def close(self) -> None:
        """Ends the process and what it has started, if they are still there."""
        self.close_input()
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has left nothing behind
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._scratch.cleanup()
