"""Connects the nodes of a run: JSON messages over TCP between ends that know the secret in their common home.

What is trusted: whoever can read the home's secret, and the network between the nodes, as for torch's own connections,
which have no secret at all. Both ends prove that they know the secret before anything else is read (HMAC-SHA256 of the
other's fresh random number). Messages are plain data; what they may ask for is decided by those who read them.
"""

import contextlib
import hashlib
import hmac
import json
import os
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SECRET = "nodes.secret"  # in the home, for its owner alone
BEAT_S = 5.0
# How long an end may be silent. The others give node 0 up first: when it goes on, they have ended their processes. A
# machine whose memory is swapped, or whose disk hangs, was seen silent for some 10 s.
SILENCE_OF_NODE_0_S, SILENCE_OF_OTHERS_S = 30.0, 60.0
HANDSHAKE_S = 10.0
LONGEST_MESSAGE = 16 * 2**20  # bytes; a plan of ten thousand stages


class NotConnected(Exception):
    """The error for an end that cannot be reached, or that does not know the secret."""


def make_secret(home: Path) -> str:
    """Returns the secret of a home, which the first call makes. Only the user who made it can read it."""
    path = home / SECRET
    with contextlib.suppress(FileExistsError):
        home.mkdir(parents=True, exist_ok=True)
        partial = home / f".{SECRET}.{secrets.token_hex(8)}"
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
        try:
            os.link(partial, path)  # whole, and only if there is none
        finally:
            partial.unlink()
    return path.read_text(encoding="ascii")


def read_secret(home: Path) -> str | None:
    """Returns the secret of a home. Returns None while node 0 has not made it, or it is not seen here yet."""
    with contextlib.suppress(OSError):
        return (home / SECRET).read_text(encoding="ascii")
    return None


class Connection:
    """One end of a connection between two nodes, whose two threads read messages and say now and then that it lives.

    `silence_s`: how long the other end may say nothing.
    """

    def __init__(self, end: socket.socket, silence_s: float) -> None:
        end.settimeout(None)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket, self._silence_s = end, silence_s
        self._lock, self._is_closed, self._heard = threading.Lock(), threading.Event(), time.monotonic()
        self._messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        for work in (self._read, self._beat):
            threading.Thread(target=work, daemon=True).start()

    @property
    def is_lost(self) -> bool:
        """Returns whether the other end has gone, or has been silent for too long."""
        if not self._is_closed.is_set() and time.monotonic() - self._heard > self._silence_s:
            self.close()
        return self._is_closed.is_set()

    def send(self, message: Mapping[str, Any]) -> None:
        """Sends a message. Does nothing where the connection is lost, which `is_lost` says."""
        line = json.dumps(message).encode() + b"\n"
        try:
            with self._lock:
                self._socket.sendall(line)
        except OSError:
            self.close()

    def take(self) -> dict[str, Any] | None:
        """Returns the next message, or None where there is none now. Those that came before a loss are still there."""
        with contextlib.suppress(queue.Empty):
            return self._messages.get_nowait()
        return None

    def close(self) -> None:
        """Closes the connection, which the other end sees at once."""
        self._is_closed.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _read(self) -> None:
        """Reads messages until the connection ends. Beats are empty messages."""
        with contextlib.suppress(OSError, ValueError, RecursionError), self._socket.makefile("rb") as lines:
            while line := lines.readline(LONGEST_MESSAGE):
                self._heard = time.monotonic()
                message = json.loads(line)
                if isinstance(message, dict) and message:
                    self._messages.put(message)
        self.close()

    def _beat(self) -> None:
        while not self._is_closed.wait(BEAT_S):
            self.send({})


def connect(host: str, port: int, secret: str) -> Connection:
    """Connects to node 0. Raises NotConnected where it does not listen, or one of the two does not know the secret."""
    try:
        end = socket.create_connection((host, port), timeout=HANDSHAKE_S)
    except OSError as error:
        raise NotConnected(f"{host}:{port}: {error.strerror or error}") from None
    try:
        _shake_hands(end, secret, own="node", other="node 0")
    except (OSError, NotConnected) as error:
        end.close()
        raise NotConnected(f"{host}:{port}: {error}") from None
    return Connection(end, SILENCE_OF_NODE_0_S)


class Listener:
    """The socket at which node 0 listens for the other nodes. It ends with `close`."""

    def __init__(self, host: str, port: int, secret: str, on_connected: Callable[[Connection, str], None]) -> None:
        """Starts to listen. Raises OSError where that is not possible.

        `on_connected` gets each connection and the address it comes from, in a thread of its own.
        """
        self._secret, self._on_connected = secret, on_connected
        family, address = _find_own_address(host, port)
        self._socket = socket.create_server(address, family=family, reuse_port=False)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stops listening. Connections stay."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                end, address = self._socket.accept()
                threading.Thread(target=self._greet, args=(end, str(address[0])), daemon=True).start()

    def _greet(self, end: socket.socket, address: str) -> None:
        try:
            end.settimeout(HANDSHAKE_S)
            _shake_hands(end, self._secret, own="node 0", other="node")
        except (OSError, NotConnected):
            end.close()
            return
        self._on_connected(Connection(end, SILENCE_OF_OTHERS_S), address)


def _find_own_address(host: str, port: int) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Returns the address to listen at: the host's, or all where its own name leads only back to itself.

    Debian writes a machine's name into its /etc/hosts as 127.0.1.1.
    """
    family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    is_loopback = str(address[0]).startswith("127.") and host != address[0] and host != "localhost"
    return family, ("", port) if is_loopback else (str(address[0]), port)


def _shake_hands(end: socket.socket, secret: str, *, own: str, other: str) -> None:
    """Proves to the other end that this one knows the secret, and has it prove the same. Raises NotConnected else."""
    own_number = secrets.token_bytes(32)
    end.sendall(own_number)
    other_number = _read_exactly(end, 32)
    end.sendall(_sign(secret, own, other_number, own_number))
    if not hmac.compare_digest(_read_exactly(end, 32), _sign(secret, other, own_number, other_number)):
        raise NotConnected("it does not know the secret of this home; do both see the same --home?")


def _sign(secret: str, signer: str, *numbers: bytes) -> bytes:
    return hmac.digest(secret.encode(), signer.encode() + b"".join(numbers), hashlib.sha256)


def _read_exactly(end: socket.socket, n_bytes: int) -> bytes:
    """Reads so many bytes. Raises NotConnected where the other end has closed."""
    received = b""
    while len(received) < n_bytes:
        part = end.recv(n_bytes - len(received))
        if not part:
            raise NotConnected("closed the connection; do both see the same --home?")
        received += part
    return received
