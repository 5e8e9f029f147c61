"""Starts and controls one process per tracker from the run.

A process reads its orders from a file and is never waited for.
"""

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
    """The tracker processes of a run.

    Leaving the `with` block waits for them, but not long.

    Nothing here raises for a tracker's sake: a failure is reported once by `note`, and the tracker is left out.
    `folder`: where the trackers' files and logs go.
    """

    def __init__(self, tracking: Tracking, group: str, folder: Path, note: Callable[[str], None]) -> None:
        self._tracking, self._group, self._folder, self._note = tracking, group, folder, note
        self._clients: list[_TrackerClient] = []
        self._is_started = False

    def __enter__(self) -> Self:
        return self

    def begin_curve(self, curve: Curve) -> None:
        """Orders the trackers to follow the training curve of a stage. The first call starts their processes."""
        if not self._is_started:
            self._is_started = True
            self._start_clients()
        self._send_order({"begin": {**curve._asdict(), "folder": str(curve.folder)}})

    def end_curve(self, points: Sequence[Point] = (), *, is_whole: bool) -> None:
        """Tells the trackers that the running stage has ended. `points` are those besides its metrics.jsonl."""
        self._send_order({"end": {"points": points, "is_whole": is_whole}})

    def check_trackers(self) -> None:
        """Reports the trackers' messages and failures since the last call, without waiting."""
        for client in list(self._clients):
            code = client.process.poll()  # before its message is read, which comes first
            if message := client.read_message():
                self._handle_message(client, message)
            elif code is not None:
                self._drop_client(client, f"its process ended with code {code}")

    def _handle_message(self, client: "_TrackerClient", message: "_TrackerMessage") -> None:
        """Reports a message of a tracker process. The tracker is dropped after its last message."""
        if message.is_last:
            self._drop_client(client, message.message)
        else:
            self._note(f"tracking: {client.name}: {message.message}")

    def __exit__(self, kind: object, *_: object) -> None:
        deadline = time.monotonic() + (FINISH_S if kind is None else LEAVE_S)
        try:
            for client in self._clients:
                client.close_input()
            for client in list(self._clients):
                self._wait_for_client(client, max(0.0, deadline - time.monotonic()))
        finally:
            for client in self._clients:
                client.kill()

    def _wait_for_client(self, client: "_TrackerClient", timeout_s: float) -> None:
        """Waits for a tracker process to finish and reports how it exited."""
        try:
            code = client.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._drop_client(client, "did not finish in time and was ended")
            return
        if message := client.read_message():
            self._handle_message(client, message)
        elif code != 0:
            self._drop_client(client, f"its process ended with code {code}")

    def _start_clients(self) -> None:
        """Starts a process for each tracker of the recipe."""
        for name in self._tracking.to:
            try:
                self._clients.append(_TrackerClient(name, self._tracking, self._group, self._folder))
            except OSError as error:
                self._note(f"tracking: {name}: cannot be started: {error}")

    def _send_order(self, order: dict[str, Any]) -> None:
        """Sends an order to all tracker processes. Processes that cannot be reached are dropped."""
        for client in list(self._clients):
            try:
                client.append_order(order)
            except OSError as error:
                self._drop_client(client, str(error))

    def _drop_client(self, client: "_TrackerClient", reason: str) -> None:
        """Ends a tracker's process and reports the reason."""
        self._clients.remove(client)
        client.kill()
        self._note_failure(client, reason)

    def _note_failure(self, client: "_TrackerClient", reason: str) -> None:
        """Reports that a tracker has failed and that the run itself goes on."""
        self._note(
            f"tracking: {client.name}: {reason}; the run is not touched by it, "
            f"and metrics.jsonl holds every figure; log: {client.log}"
        )


class _TrackerMessage(NamedTuple):
    """A message of a tracker process to the user. After the last one the process does nothing more."""

    message: str
    is_last: bool


class _TrackerClient:
    """A tracker's process and its files. Raises OSError when it cannot be started or given an order."""

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
                [sys.executable, "-P", "-m", "qwen_align.align.tracking.tracker_process", str(self._home)],
                stdin=subprocess.PIPE,  # its end tells the process that the run is over, however it ended
                stdout=output,
                stderr=output,
                env=build_tracker_environment(name, tracking),
                start_new_session=True,
            )

    def append_order(self, order: dict[str, Any]) -> None:
        """Appends an order to the file that the tracker process reads."""
        with (self._home / "orders.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(order) + "\n")

    def read_message(self) -> _TrackerMessage | None:
        """Returns the newest message of the tracker process to the user, or None. Each message is returned once."""
        path = self._home / "said.json"
        if not path.exists():
            return None
        message = _TrackerMessage(**read_json(path))
        path.unlink()
        return message

    def close_input(self) -> None:
        """Closes the input of the tracker process, which tells it that the run is over."""
        assert self.process.stdin
        self.process.stdin.close()

    def kill(self) -> None:
        """Kills the tracker process and its child processes if they are still running."""
        self.close_input()
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has left nothing behind
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._scratch.cleanup()
