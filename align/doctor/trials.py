"""What one of several processes does in the trial of a shared folder, on whichever machine it runs.

A task is a message `{"do": NAME, ...}`, the answer `{"done": ...}` or `{"failed": TEXT}`. Files lie in one folder that
all of them see under the home, and are made, renamed and deleted with the functions that leases and results are.
"""

import os
import secrets
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qwen_align import __version__
from qwen_align.align.doctor.all_reduce import run_processes
from qwen_align.align.doctor.libraries import read_versions
from qwen_align.align.pipeline.node_connection import Connection
from qwen_align.align.store.lease_files import LeaseFiles
from qwen_align.align.store.process_identity import identify_process

PAUSE_S = 0.002  # between two looks
BLOCK = 1 << 16  # bytes of a file that is replaced: more than one page or network packet
_NO_TASK_S = 600.0  # longest wait for the next task; beyond any time limit of one
_SYNCED_BYTES = 1 << 20


class Trials:
    """One process's part in the trials of a folder."""

    def __init__(self, folder: Path, devices: Mapping[str, Any] | None = None) -> None:
        """Takes part in a folder. `devices`: what torch says of this machine, which is told to who asks."""
        self.folder, self._devices = folder, devices
        self._tasks: dict[str, Callable[..., Any]] = {
            "all_reduce": run_processes,
            "confirm": self.confirm,
            "create_all": self.create_all,
            "delete": self.delete,
            "describe": self.describe,
            "enter": self.enter,
            "look": self.look,
            "overwrite": self.overwrite,
            "read_while_replaced": self.read_while_replaced,
            "replace": self.replace,
            "say_time": time.time,
            "sync": self.sync,
            "wait_for": self.wait_for,
        }

    def answer(self, message: Mapping[str, Any]) -> dict[str, Any]:
        """Does a task and returns the answer."""
        task = {name: value for name, value in message.items() if name != "do"}
        try:
            return {"done": self._tasks[message["do"]](**task)}
        except OSError as error:
            return {"failed": f"{error.filename or self.folder}: {error.strerror or error}"}

    def describe(self) -> dict[str, Any]:
        """Returns what nodes of one run have to have alike, and this machine's name."""
        versions = {"qwen-align": __version__, **read_versions()}
        return {"host": identify_process().host, "versions": versions, "devices": self._devices}

    def enter(self, name: str) -> None:
        """Goes on in a folder of this one, the home. It may be seen late."""
        self.folder = self.folder / Path(name).name

    def create_all(self, name: str, first: int, count: int) -> list[int]:
        """Creates numbered files, each unless it is there, and returns the numbers of those that this call created."""
        files, content = LeaseFiles(self.folder), name.encode()
        return [number for number in range(first, first + count) if files.create(number, content)]

    def look(self, number: int) -> str | None:
        """Returns the content of a numbered file, None where it is not seen. It is asked for in both ways."""
        files = LeaseFiles(self.folder)
        content = files.read(number) if number in files.list_numbers() else None
        return None if content is None else content.decode()

    def overwrite(self, number: int, text: str) -> None:
        """Writes a numbered file, anew or in place as a heartbeat is."""
        files = LeaseFiles(self.folder)
        if not files.create(number, text.encode()):
            files.overwrite(number, text.encode(), lambda content: True)

    def delete(self, number: int) -> None:
        """Deletes a numbered file."""
        LeaseFiles(self.folder).remove(number)

    def confirm(self, number: int, text: str) -> bool:
        """Returns whether the server says that a numbered file with this content is there."""
        return LeaseFiles(self.folder).confirm(number, text.encode())

    def wait_for(self, number: int, text: str | None, limit_s: float) -> float | None:
        """Returns after how many seconds a numbered file is seen with a content, or gone. None: it is not in time."""
        began = time.monotonic()
        while self.look(number) != text:
            if time.monotonic() - began > limit_s:
                return None
            time.sleep(PAUSE_S)
        return time.monotonic() - began

    def replace(self, seconds: float) -> int:
        """Replaces a file by renaming others over it for a while, and returns how often."""
        path, count, deadline = self._locate_replaced(), 0, time.monotonic() + seconds
        while time.monotonic() < deadline or not count:
            partial = path.with_name(".replacing")
            partial.write_bytes(bytes([ord("a") + count % 26]) * BLOCK)
            partial.replace(path)
            count += 1
        return count

    def read_while_replaced(self, seconds: float) -> dict[str, int]:
        """Reads the file that another process replaces for a while, and counts how it was found.

        `whole`; `torn`: of two contents, or cut; `missing`; `stale`: NFS says that the file was replaced meanwhile.
        """
        counts: Counter[str] = Counter(whole=0, torn=0, missing=0, stale=0)
        path, deadline = self._locate_replaced(), time.monotonic() + seconds
        while time.monotonic() < deadline:
            counts[_read_state(path)] += 1
        return dict(counts)

    def _locate_replaced(self) -> Path:
        return self.folder / "replaced"

    def sync(self) -> float:
        """Writes a file, has it brought to disk as a checkpoint is, and returns the seconds that took."""
        path = self.folder / f".synced.{secrets.token_hex(8)}"
        began = time.monotonic()
        try:
            with path.open("wb") as file:
                file.write(os.urandom(_SYNCED_BYTES))
                file.flush()
                os.fsync(file.fileno())
            descriptor = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            return time.monotonic() - began
        finally:
            path.unlink(missing_ok=True)


def _read_state(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return "missing"
    except OSError:  # ESTALE
        return "stale"
    return "whole" if len(content) == BLOCK and content == content[:1] * BLOCK else "torn"


def serve(connection: Connection, trials: Trials) -> dict[str, Any] | None:
    """Does the tasks that come by a connection, until it is told that they are over. Returns that message.

    None: the other end has gone, or has nothing to do for too long.
    """
    deadline = time.monotonic() + _NO_TASK_S
    while time.monotonic() < deadline:
        message = connection.take()
        if message is None:
            if connection.is_lost:
                return None
            time.sleep(PAUSE_S)
            continue
        if message.get("do") == "end":
            return message
        connection.send(trials.answer(message))
        deadline = time.monotonic() + _NO_TASK_S
    return None
