"""Runs a node's part of a run that node 0 leads: joins it, and runs stages that it names and this node has planned too.

It reads and writes nothing of the run but what a stage's processes do: no lock, no record, no report.
"""

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from qwen_align.align.errors import BY_EXIT_CODE, AlignError, Preempted, RecipeError
from qwen_align.align.pipeline.coordinator import ATTEMPT
from qwen_align.align.pipeline.launcher import Launcher, StageExit, uses_warm_server
from qwen_align.align.pipeline.lease_guard import RUN_LEASE
from qwen_align.align.pipeline.machine_check import count_nodes
from qwen_align.align.pipeline.node_connection import Connection, NotConnected, connect, read_secret
from qwen_align.align.pipeline.node_place import NodePlace, Rendezvous
from qwen_align.align.pipeline.node_plans import describe_plan, list_shared_stages
from qwen_align.align.pipeline.plan import Plan, PlannedStage, check_can_start
from qwen_align.align.pipeline.stage_job import build_stage_job
from qwen_align.align.store.files import read_json, to_canonical_json
from qwen_align.align.training.distributed import VISIBLE_WITHIN_S

ANSWER_S = 60.0


def follow(
    plan: Plan,
    rendezvous: Rendezvous,
    report_note: Callable[[str], None],
    *,
    wait_s: float,
    is_forced: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> None:
    """Runs this node's part of the stages of a plan until node 0 says that the run has ended.

    Raises the error with which it has ended there; Preempted when node 0 does not come within `wait_s`; RecipeError
    when it refuses this node. `is_forced`: stages that are stored may run again.
    """
    check_can_start(plan)
    node = _Follower(plan, rendezvous, report_note, wait_s, stop)
    with Launcher(report_note) as launcher:
        shared = [stage for stage in list_shared_stages(plan.stages) if is_forced or not stage.is_stored]
        if any(uses_warm_server(stage.stage) for stage in shared):
            launcher.start_warm_server()
        while connection := node.join(is_forced=is_forced):
            try:
                ended = node.serve(connection, launcher)
            finally:
                connection.close()
            if ended is not None:
                if ended.code != 0:
                    raise BY_EXIT_CODE.get(ended.code, BY_EXIT_CODE[4])(ended.message)
                return
            report_note(f"node 0 at {rendezvous.address} is gone; this node's processes of the stage have ended")


class _Follower:
    """A node that follows node 0."""

    def __init__(
        self,
        plan: Plan,
        rendezvous: Rendezvous,
        report_note: Callable[[str], None],
        wait_s: float,
        stop: Callable[[], bool],
    ) -> None:
        self._plan, self._rendezvous, self._report_note = plan, rendezvous, report_note
        self._wait_s, self._stop = wait_s, stop
        self._description = describe_plan(plan)

    def join(self, *, is_forced: bool) -> Connection | None:
        """Connects to node 0 and is accepted by it. Returns None where it is gone and all stages are stored."""
        began, reason, is_told = time.monotonic(), "", False
        while True:
            secret = read_secret(self._plan.home)
            try:
                if secret is None:
                    raise NotConnected(
                        f"{self._plan.home}: node 0 has not been here yet; do both have the same --home?"
                    )
                return self._introduce(connect(self._rendezvous.host, self._rendezvous.port, secret))
            except NotConnected as error:
                reason = str(error)
            if not is_forced and all(stage.is_stored for stage in self._plan.stages):
                self._report_note("all stages are stored")
                return None
            if self._stop():
                raise Preempted("stopped as asked; run again to go on")
            seconds = time.monotonic() - began
            if seconds > self._wait_s:
                raise Preempted(
                    f"node 0 did not come within {self._wait_s:g} s (--node-wait): {reason}. Start it, and run "
                    "again here"
                )
            if seconds > 5.0 and not is_told:
                is_told = True
                self._report_note(f"waiting for node 0, for up to {self._wait_s:g} s: {reason}")
            time.sleep(0.5)

    def _introduce(self, connection: Connection) -> Connection:
        """Tells node 0 what this node has planned. Raises RecipeError where it refuses this one.

        Raises NotConnected where it does not answer, or has such a node already.
        """
        number = self._rendezvous.node
        connection.send({"hello": number, "host": socket.gethostname(), "plan": self._description})
        deadline = time.monotonic() + ANSWER_S
        while (answer := connection.take()) is None:
            if connection.is_lost or time.monotonic() > deadline or self._stop():
                connection.close()
                raise NotConnected("node 0 has gone before it answered")
            time.sleep(0.02)
        if "accepted" in answer:
            self._report_note(f"node {number} has joined node 0 at {self._rendezvous.address}")
            return connection
        connection.close()
        if "refused" in answer:
            raise RecipeError(f"node 0 has refused this node: {answer['refused']}")
        raise NotConnected(str(answer.get("busy")))

    def serve(self, connection: Connection, launcher: Launcher) -> StageExit | None:
        """Runs what node 0 names until it says that the run has ended. Returns None where it is lost."""
        inbox = _Inbox(connection, self._stop)
        while True:
            inbox.read()
            if inbox.ended is not None:
                return inbox.ended
            if inbox.order is not None:
                order, inbox.order = inbox.order, None
                ended = self._run_order(order, inbox, launcher)
                said = {"code": ended.code, "message": ended.message, "cause": ended.cause}
                connection.send({"exit": order[ATTEMPT], **said})
            elif connection.is_lost:
                return None
            time.sleep(0.02)

    def _run_order(self, order: dict[str, Any], inbox: "_Inbox", launcher: Launcher) -> StageExit:
        """Runs this node's processes of the stage that node 0 has named, if this node has planned it too."""
        planned = {stage.key: stage for stage in list_shared_stages(self._plan.stages)}
        stage, port = planned.get(str(order["start"])), order.get("port")
        if stage is None or not isinstance(port, int) or self._rendezvous.node >= count_nodes(stage.stage):
            return StageExit(4, "node 0 has named a stage that this node has not planned")
        self._report_note(f"runs its part of stage '{stage.name}'")
        attempt = str(order[ATTEMPT])
        try:
            if not wait_for_files(stage, attempt, lambda: inbox.is_killed(attempt) or inbox.is_stopped(attempt)):
                return StageExit(4, "was ended before it began", "follows")
            place = NodePlace(self._rendezvous.node, count_nodes(stage.stage), self._rendezvous.host, port)
            return launcher.run_stage(
                stage.stage,
                stage.folder.path,
                lambda: inbox.is_stopped(attempt),
                place,
                lambda: inbox.is_killed(attempt),
            )
        except AlignError as error:  # such as a warm server that has died
            return StageExit(error.exit_code, str(error))
        except OSError as error:
            return StageExit(4, f"{error.filename or stage.folder.path}: {error.strerror or error}")


class _Inbox:
    """What node 0 has said and this node has not done yet. Passes on to node 0 that this node is asked to stop."""

    def __init__(self, connection: Connection, stop: Callable[[], bool]) -> None:
        self._connection, self._stop = connection, stop
        self._has_told_stop = False
        self._stopped = self._killed = ""  # the last attempts that were
        self.order: dict[str, Any] | None = None
        self.ended: StageExit | None = None

    def read(self) -> None:
        """Takes in the messages that have come."""
        if self._stop() and not self._has_told_stop:
            self._has_told_stop = True
            self._connection.send({"stop": True})
        while message := self._connection.take():
            if "start" in message and ATTEMPT in message:
                self.order = message
            elif "stop" in message:
                self._stopped = str(message["stop"])
            elif "kill" in message:
                self._killed = str(message["kill"])
            elif "end" in message:
                code = message["end"] if message["end"] in (0, *BY_EXIT_CODE) else 4
                self.ended = StageExit(code, f"node 0: {message.get('message')}")

    def is_stopped(self, attempt: str) -> bool:
        """Returns whether node 0 has asked an attempt at a stage to stop, as it does on all nodes at once."""
        self.read()
        return self._stopped == attempt

    def is_killed(self, attempt: str) -> bool:
        """Returns whether an attempt is to end at once: node 0 has said so, has ended or is lost."""
        self.read()
        return self._killed == attempt or self.ended is not None or self._connection.is_lost


def wait_for_files(stage: PlannedStage, attempt: str, is_over: Callable[[], bool]) -> bool:
    """Waits until this node sees what node 0 has written: the attempt's stage.json, and the files that the stage reads.

    Returns False where that is over before. Raises OSError where a file does not come, or says another stage.
    """
    path = stage.folder.path / "stage.json"
    deadline = time.monotonic() + VISIBLE_WITHIN_S
    missing: Path | None = path
    while missing is not None:
        missing = _find_missing(stage, path, attempt)
        if missing is not None:
            if is_over():
                return False
            if time.monotonic() > deadline:
                raise OSError(0, f"what node 0 has written is not seen here after {VISIBLE_WITHIN_S:g} s", str(missing))
            with suppress(OSError):
                os.listdir(missing.parent)  # which makes some clients of network file systems look again
            time.sleep(0.1)
    told = read_json(path)
    told = {name: value for name, value in told.items() if name not in (ATTEMPT, RUN_LEASE)}
    if to_canonical_json(told) != to_canonical_json(build_stage_job(stage)):
        raise OSError(0, "says another stage than this node has planned", str(path))
    return True


def _find_missing(stage: PlannedStage, path: Path, attempt: str) -> Path | None:
    """Returns a file that is not seen yet. Returns None where all are."""
    try:
        if read_json(path).get(ATTEMPT) != attempt:
            return path
    except (OSError, ValueError):
        return path
    for entry in stage.inputs.values():
        folder = Path(entry["folder"])
        manifest = folder / "manifest.json"
        if folder.parent != stage.folder.path.resolve().parent:
            continue  # a model from outside the store
        try:
            outputs: dict[str, str] = read_json(manifest).get("outputs", {})
        except (OSError, ValueError):
            return manifest
        for name in outputs:
            if not (folder / name).exists():
                return folder / name
    return None
