"""Leads a run on several nodes from node 0: waits for the others, has them run stages, and stops all when one is lost.

Node 0 alone holds the stages' leases, runs what needs one process, and keeps the run's folder and report. The others
plan the same recipe, and run their part of a stage when node 0 names its key (align/pipeline/follower.py). All that
goes between them is which stage, which attempt at it and the port of torch's store; how its processes exited; requests
to stop. Files go by the common home.

A stage whose node is lost, by the end of its connection or by silence, is killed on all nodes and begun again from its
checkpoint when the node is back. One that says an error itself ends the run on all nodes.
"""

import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

from qwen_align.align.errors import BY_EXIT_CODE, AlignError, StageError
from qwen_align.align.pipeline.launcher import Cause, Launcher, StageExit
from qwen_align.align.pipeline.machine_check import count_nodes
from qwen_align.align.pipeline.node_connection import Connection, Listener, make_secret
from qwen_align.align.pipeline.node_place import NodePlace, Rendezvous
from qwen_align.align.pipeline.node_plans import describe_difference, describe_plan
from qwen_align.align.pipeline.plan import Plan, PlannedStage
from qwen_align.align.store.files import write_json

ATTEMPT = "attempt"  # in stage.json: the attempt at the stage that the nodes work on
# A server's firmware and memory test take some 10 minutes after a crash; the other nodes stand idle for so long.
NODE_WAIT_S = 900.0
MOST_LOSSES = 20  # of nodes in one stage: more is no bad luck
GRACE_S = 5.0  # for this node's processes to say what has ended another node's, and for goodbyes
HELLO_S = 60.0


class _Node(NamedTuple):
    """Another node that has joined: its number, its machine's name and the connection to it."""

    number: int
    host: str
    connection: Connection

    @property
    def name(self) -> str:
        return f"node {self.number} ({self.host})"


class Coordinator:
    """Node 0's side of a run on several nodes. As a context manager it tells the others how the run ended."""

    def __init__(self, plan: Plan, rendezvous: Rendezvous, wait_s: float, report_note: Callable[[str], None]) -> None:
        self._plan, self._rendezvous, self._wait_s, self._report_note = plan, rendezvous, wait_s, report_note
        self._own = describe_plan(plan)
        self._lock = threading.Lock()
        self._nodes: dict[int, _Node] = {}
        self._notes: list[str] = []  # from threads
        self._refused: dict[str, str] = {}  # by machine, the reason
        self._exits: dict[int, StageExit] = {}
        self._running = ""  # the attempt whose exits count
        self._is_asked_to_stop = False
        self._listener: Listener | None = None

    def __enter__(self) -> Self:
        """Starts to listen for the other nodes. Raises StageError where that is not possible."""
        try:
            secret = make_secret(self._plan.home)
            self._listener = Listener(self._rendezvous.host, self._rendezvous.port, secret, self._greet)
        except OSError as error:
            raise StageError(
                f"node 0 cannot listen at {self._rendezvous.address}: {error.strerror or error}; --rendezvous has to "
                "name this machine, and a port that is free here"
            ) from None
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        code = 0 if error is None else error.exit_code if isinstance(error, AlignError) else 4
        message = "" if error is None else str(error) if isinstance(error, AlignError) else "node 0 was interrupted"
        if self._listener:
            self._listener.close()
        with self._lock:
            nodes = list(self._nodes.values())
        for node in nodes:
            node.connection.send({"end": code, "message": message})
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline and not all(node.connection.is_lost for node in nodes):
            time.sleep(0.02)  # each closes when it has read that
        for node in nodes:
            node.connection.close()

    def poll_stop(self) -> bool:
        """Returns whether another node has been asked to stop. Tells what has happened meanwhile."""
        self._read_messages()
        with self._lock:
            notes, self._notes = self._notes, []
        for note in notes:
            self._report_note(note)
        return self._is_asked_to_stop

    def run_stage(
        self, launcher: Launcher, stage: PlannedStage, job: Mapping[str, Any], poll_stop: Callable[[], bool]
    ) -> StageExit:
        """Runs a stage on all its nodes and returns how it exited. It is begun again when a lost node is back.

        `job`: the content of its stage.json.
        """
        n_nodes = count_nodes(stage.stage)
        for _ in range(MOST_LOSSES):
            if (exit_ := self._wait_for_nodes(n_nodes, poll_stop)) is not None:
                return exit_
            with self._lock:
                nodes = [self._nodes[number] for number in range(1, n_nodes)]
            exit_ = self._attempt(launcher, stage, job, nodes, poll_stop)
            lost = [node.name for node in nodes if node.connection.is_lost]
            is_told = exit_.code == 0 or exit_.cause in ("memory", "said")
            if is_told or not lost:
                return exit_
            goes_on = "the stage was stopped on all nodes, and goes on when it is back"
            self._report_note(f"{', '.join(lost)} is gone: {goes_on}")
        return StageExit(4, f"its nodes were lost {MOST_LOSSES} times, the last time {', '.join(lost)}")

    def _attempt(
        self,
        launcher: Launcher,
        stage: PlannedStage,
        job: Mapping[str, Any],
        nodes: list[_Node],
        poll_stop: Callable[[], bool],
    ) -> StageExit:
        """Runs a stage once on its nodes, which have all joined, and returns what says most of how it ended."""
        attempt, port = secrets.token_hex(8), find_free_port()
        write_json(stage.folder.path / "stage.json", {**job, ATTEMPT: attempt})
        self._exits, self._running = {}, attempt
        for node in nodes:
            node.connection.send({"start": stage.key, ATTEMPT: attempt, "port": port})
        watch = _Watch(self, nodes, attempt, poll_stop)
        place = NodePlace(0, len(nodes) + 1, self._rendezvous.host, port)
        own = launcher.run_stage(stage.stage, stage.folder.path, watch.poll_stop, place, watch.poll_kill)
        self._wait_for_exits(nodes, attempt, is_over=own.code != 0)
        if own.code == 0 or (own.code == 75 and own.cause == "said"):
            return own
        others = [(node, self._exits[node.number]) for node in nodes if node.number in self._exits]
        failed = [(own.cause, 0, own.code, own.message)]
        failed += [
            (each.cause, node.number, each.code, f"on {node.name}: {each.message}")
            for node, each in others
            if each.code
        ]
        cause, _, code, message = min(failed, key=lambda each: (_CAUSES.index(each[0]), each[1]))
        if cause == "follows":  # any of them may be the one that the others follow from
            message = "; ".join(each[3] for each in failed)
        return StageExit(code, message, cause)

    def _wait_for_nodes(self, n_nodes: int, poll_stop: Callable[[], bool]) -> StageExit | None:
        """Waits until all nodes of a stage have joined. Returns an exit where one does not come, or at a stop."""
        began, is_told = time.monotonic(), False
        while missing := self._list_missing(n_nodes):
            names = ", ".join(f"node {number}" for number in missing)
            seconds = time.monotonic() - began
            if poll_stop():
                return StageExit(75, f"stopped as asked while waiting for {names}; run again to go on")
            if seconds > self._wait_s:
                refused = "".join(f"; {host} was refused: {reason}" for host, reason in self._refused.items())
                return StageExit(
                    75,
                    f"{names} did not come within {self._wait_s:g} s (--node-wait){refused}. Start the same command "
                    "there, and run again to go on",
                )
            if seconds > GRACE_S and not is_told:
                is_told = True
                self._report_note(f"waiting for {names} at {self._rendezvous.address}, for up to {self._wait_s:g} s")
            time.sleep(0.1)
        return None

    def _list_missing(self, n_nodes: int) -> list[int]:
        """Lists the nodes of a stage that have not joined, or are lost."""
        with self._lock:
            here = {number for number, node in self._nodes.items() if not node.connection.is_lost}
        return [number for number in range(1, n_nodes) if number not in here]

    def _wait_for_exits(self, nodes: list[_Node], attempt: str, *, is_over: bool) -> None:
        """Waits until the stage's processes have ended on the other nodes. They are killed when it is over."""
        deadline = time.monotonic() + (0.0 if is_over else GRACE_S)
        is_killed = False
        while any(node.number not in self._exits and not node.connection.is_lost for node in nodes):
            self._read_messages()
            if time.monotonic() > deadline and not is_killed:
                is_killed = True
                for node in nodes:
                    node.connection.send({"kill": attempt})
            time.sleep(0.02)
        self._read_messages()

    def _read_messages(self) -> None:
        """Takes in what the other nodes have said: how an attempt at a stage exited there, or that they are to stop."""
        with self._lock:
            nodes = list(self._nodes.values())
        for node in nodes:
            while message := node.connection.take():
                if message.get("stop"):
                    self._is_asked_to_stop = True
                elif self._running and message.get("exit") == self._running:
                    self._exits[node.number] = parse_exit(message)

    def list_failed(self) -> list[StageExit]:
        """Lists how the running stage has failed on other nodes so far. To be stopped as asked is no failure."""
        self._read_messages()
        return [each for each in self._exits.values() if each.code not in (0, 75)]

    # --- threads of connections

    def _greet(self, connection: Connection, address: str) -> None:
        """Lets a node join that has the same plan, and refuses it otherwise."""
        deadline = time.monotonic() + HELLO_S
        while (hello := connection.take()) is None:
            if connection.is_lost or time.monotonic() > deadline:
                return connection.close()
            time.sleep(0.02)
        number, host = hello.get("hello"), f"{hello.get('host')}, {address}"
        if not isinstance(number, int) or not 0 < number < self._rendezvous.nodes:
            return self._refuse(connection, host, f"{number} is no number of a node: 1 to {self._rendezvous.nodes - 1}")
        plan = hello.get("plan")
        if difference := describe_difference(plan if isinstance(plan, dict) else {}, self._own):
            return self._refuse(connection, host, f"node {number}: {difference}")
        with self._lock:
            former = self._nodes.get(number)
            is_taken = former is not None and not former.connection.is_lost
            if not is_taken:
                connection.send({"accepted": number})
                self._nodes[number] = _Node(number, host, connection)
                self._refused.pop(host, None)
                self._notes.append(f"node {number} ({host}) has joined")
        if former is not None and is_taken:
            connection.send({"busy": f"node {number} is here already, from {former.host}"})
        return None

    def _refuse(self, connection: Connection, host: str, reason: str) -> None:
        """Refuses a node, with the reason. Node 0 waits on: another may come in its place."""
        with self._lock:
            self._refused[host] = reason
            self._notes.append(f"refused a node from {host}: {reason}")
        connection.send({"refused": reason})


_CAUSES: tuple[Cause, ...] = ("memory", "said", "killed", "follows")


class _Watch:
    """Watches the other nodes while node 0's own processes of a stage run."""

    def __init__(
        self, coordinator: Coordinator, nodes: list[_Node], attempt: str, poll_stop: Callable[[], bool]
    ) -> None:
        self._coordinator, self._nodes, self._attempt, self._poll_stop = coordinator, nodes, attempt, poll_stop
        self._has_told_stop, self._failed_at = False, 0.0

    def poll_stop(self) -> bool:
        """Returns whether the stage is to stop, and tells the other nodes so once."""
        is_stopped = self._poll_stop()
        if is_stopped and not self._has_told_stop:
            self._has_told_stop = True
            for node in self._nodes:
                node.connection.send({"stop": self._attempt})
        return is_stopped

    def poll_kill(self) -> bool:
        """Returns whether node 0's processes are to end at once: another node is lost, or has failed a while ago."""
        if any(node.connection.is_lost for node in self._nodes):
            return True
        if not self._failed_at and self._coordinator.list_failed():
            self._failed_at = time.monotonic()
        return bool(self._failed_at) and time.monotonic() > self._failed_at + GRACE_S


def parse_exit(message: dict[str, Any]) -> StageExit:
    """Reads how a stage's processes exited on another node. What is not of the form counts as a failure."""
    code, cause = message.get("code"), message.get("cause")
    known = code if isinstance(code, int) and code in (0, *BY_EXIT_CODE) else 4
    by_name: dict[str, Cause] = {each: each for each in _CAUSES}
    return StageExit(known, str(message.get("message")), by_name.get(str(cause), "follows"))


def find_free_port() -> int:
    """Returns a TCP port that nobody listens at here."""
    with socket.create_server(("", 0)) as server:
        port: int = server.getsockname()[1]
        return port
