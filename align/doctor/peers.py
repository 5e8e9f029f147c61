"""The other processes in the doctor's trials: one beside this on one machine, or one on each other node of a run."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from qwen_align.align.doctor.trials import PAUSE_S, Trials, serve
from qwen_align.align.pipeline.node_connection import (
    SECRET,
    SILENCE_OF_OTHERS_S,
    Connection,
    Listener,
    NotConnected,
    connect,
    make_secret,
    read_secret,
)
from qwen_align.align.pipeline.node_place import Rendezvous

START_LIMIT_S = 30.0  # for a process without torch, which takes 0.3 s on a quiet machine
MEETING_S = 120.0  # for the same command to be typed on every node


class PeerLost(Exception):
    """The error for another process that has gone, gives no answer in time, or could not do its task."""


class Peer(NamedTuple):
    """Another process: what it is called, and the connection to it."""

    name: str
    connection: Connection

    def send(self, task: Mapping[str, Any]) -> None:
        """Gives the process a task; `receive` returns what came of it."""
        self.connection.send(task)

    def receive(self, limit_s: float) -> Any:
        """Returns what came of the task. Raises PeerLost where nothing did within the limit."""
        deadline = time.monotonic() + limit_s
        while (message := self.connection.take()) is None:
            if self.connection.is_lost:
                raise PeerLost(f"{self.name} has gone")
            if time.monotonic() > deadline:
                raise PeerLost(f"{self.name} gives no answer within {limit_s:.0f} s")
            time.sleep(PAUSE_S)
        if "failed" in message:
            raise PeerLost(f"{self.name}: {message['failed']}")
        return message["done"]

    def ask(self, task: Mapping[str, Any], limit_s: float) -> Any:
        """Gives the process a task and returns what came of it. Raises PeerLost."""
        self.send(task)
        return self.receive(limit_s)


def ask_all(peers: Sequence[Peer], tasks: Sequence[Mapping[str, Any]], own: Callable[[], Any], limit_s: float) -> Any:
    """Gives each peer a task, does one's own part meanwhile, and returns all that came of them, one's own first."""
    for peer, task in zip(peers, tasks, strict=True):
        peer.send(task)
    mine = own()
    return [mine, *(peer.receive(limit_s) for peer in peers)]


@contextlib.contextmanager
def start_peer_beside(folder: Path) -> Iterator[Peer]:
    """Starts a second process on this machine for the time of the `with` block."""
    here, there = _connect_here()
    line = [sys.executable, "-P", "-m", "qwen_align.align.doctor.peers", str(there.fileno()), str(folder)]
    with there:
        process = subprocess.Popen(line, pass_fds=[there.fileno()], stdout=subprocess.DEVNULL)
    connection = Connection(here, SILENCE_OF_OTHERS_S)
    try:
        yield Peer("a second process", connection)
    finally:
        connection.send({"do": "end"})
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        connection.close()


def _connect_here() -> tuple[socket.socket, socket.socket]:
    """Returns both ends of a connection on this machine; no other process gets in between."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = socket.create_connection(server.getsockname(), timeout=START_LIMIT_S)
        while True:
            there, address = server.accept()
            if address == here.getsockname():
                return here, there
            there.close()


@contextlib.contextmanager
def meet_nodes(home: Path, place: Rendezvous, wait_s: float = MEETING_S) -> Iterator[list[Peer]]:
    """Waits on node 0 for all other nodes, and is connected to them inside the `with` block.

    Raises PeerLost for those that are missing. Nodes that came are told so.
    """
    met: dict[int, Connection] = {}
    arrived: list[Connection] = []
    try:
        listener = Listener(place.host, place.port, make_secret(home), lambda one, address: arrived.append(one))
    except OSError as error:
        raise PeerLost(f"node 0 cannot listen at {place.address}: {error.strerror or error}") from None
    try:
        deadline = time.monotonic() + wait_s
        while len(met) < place.nodes - 1:
            for connection in arrived:
                message = connection.take()
                if message and isinstance(message.get("node"), int):
                    met[message["node"]] = connection
            if time.monotonic() > deadline:
                missing = ", ".join(str(node) for node in range(1, place.nodes) if node not in met)
                raise PeerLost(f"of {place.nodes} nodes {missing} did not come within {wait_s:.0f} s")
            time.sleep(PAUSE_S)
        yield [Peer(f"node {node}", met[node]) for node in sorted(met)]
    finally:
        listener.close()
        for connection in arrived:
            connection.send({"do": "end"})  # nothing, where it was told before
            connection.close()


def join_node_0(home: Path, place: Rendezvous, wait_s: float = MEETING_S) -> Connection:
    """Connects another node to node 0, once that listens. Raises PeerLost where it does not, with the reason."""
    deadline, reason = time.monotonic() + wait_s, ""
    while time.monotonic() < deadline:
        secret = read_secret(home)
        if secret is None:
            reason = f"{home.resolve() / SECRET}, which node 0 writes, is not seen: do both have the same --home?"
        else:
            try:
                connection = connect(place.host, place.port, secret)
            except NotConnected as error:
                reason = str(error)
            else:
                connection.send({"node": place.node})
                return connection
        time.sleep(0.2)
    raise PeerLost(f"no node 0 at {place.address} within {wait_s:.0f} s: {reason}")


if __name__ == "__main__":
    end = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(end.fileno(), False)
    serve(Connection(end, SILENCE_OF_OTHERS_S), Trials(Path(sys.argv[2])))
