"""Frames on a socket, of a length and so many bytes; the other end may be hostile."""

import socket
import struct
import time

from qwen_align.reward.code.value_serialization import MAX_BYTES

_LENGTH = struct.Struct(">I")
_MAX_FRAME = MAX_BYTES + 4096  # a value and what is said of it
_CHUNK = 1 << 16


class ClosedError(Exception):
    """The other end is gone before a whole frame came."""


class TooLateError(Exception):
    """The deadline passed before a whole frame came or went."""


class TooLargeError(Exception):
    """The other end announces a frame larger than any honest one."""


class Frames:
    """Frames over a stream socket; `deadline` is a `time.monotonic()`, none inside a cell, which is killed anyway."""

    def __init__(self, channel: socket.socket, deadline: float | None = None) -> None:
        self.channel = channel
        self.deadline = deadline
        self.n_bytes = 0
        self._read = bytearray()

    def send(self, body: bytes) -> None:
        """Sends one frame."""
        try:
            self._wait()
            self.channel.sendall(_LENGTH.pack(len(body)) + body)
        except TimeoutError:
            raise TooLateError from None
        except OSError:
            raise ClosedError from None

    def receive(self) -> bytes:
        """The next frame."""
        while True:
            if (body := self.ready()) is not None:
                return body
            self.fill()

    def ready(self) -> bytes | None:
        """The next frame if all of it has been read, else None."""
        if len(self._read) < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack_from(self._read)
        if size > _MAX_FRAME:
            raise TooLargeError
        end = _LENGTH.size + size
        if len(self._read) < end:
            return None
        body = bytes(self._read[_LENGTH.size : end])
        del self._read[:end]
        return body

    def fill(self) -> None:
        """Reads what there is, waiting for some."""
        try:
            self._wait()
            data = self.channel.recv(_CHUNK)
        except TimeoutError:
            raise TooLateError from None
        except OSError:
            raise ClosedError from None
        if not data:
            raise ClosedError
        self.n_bytes += len(data)
        self._read += data

    def _wait(self) -> None:
        if self.deadline is None:
            return
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TooLateError
        self.channel.settimeout(left)
