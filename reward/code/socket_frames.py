"""Length-prefixed frames of bytes on a socket whose other end may be hostile."""

import socket
import struct
import time

from qwen_align.reward.code.value_serialization import MAX_BYTES

_LENGTH = struct.Struct(">I")
_MAX_FRAME = MAX_BYTES + 4096  # a value and the message around it
_CHUNK = 1 << 16


class ClosedError(Exception):
    """Raised where the other end closed the socket before a whole frame came."""


class TooLateError(Exception):
    """Raised where the deadline passed before a whole frame came or went."""


class TooLargeError(Exception):
    """Raised where the other end announces a frame larger than any honest one."""


class Frames:
    """Sends and receives frames over a stream socket, until a `time.monotonic()` deadline.

    Inside a cell there is no deadline: the cell is killed anyway.
    """

    def __init__(self, channel: socket.socket, deadline: float | None = None) -> None:
        self.channel = channel
        self.deadline = deadline
        self.n_bytes = 0
        self._buffer = bytearray()

    def send_frame(self, body: bytes) -> None:
        """Sends one frame; raises ClosedError, TooLateError."""
        try:
            self._set_timeout()
            self.channel.sendall(_LENGTH.pack(len(body)) + body)
        except TimeoutError:
            raise TooLateError from None
        except OSError:
            raise ClosedError from None

    def receive_frame(self) -> bytes:
        """Returns the next frame, waiting for it; raises ClosedError, TooLateError, TooLargeError."""
        while True:
            if (body := self.pop_buffered_frame()) is not None:
                return body
            self.read_into_buffer()

    def pop_buffered_frame(self) -> bytes | None:
        """Returns the next frame if all of it has been read, else None."""
        if len(self._buffer) < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack_from(self._buffer)
        if size > _MAX_FRAME:
            raise TooLargeError
        end = _LENGTH.size + size
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        return body

    def read_into_buffer(self) -> None:
        """Reads what the socket has, waiting for some."""
        try:
            self._set_timeout()
            data = self.channel.recv(_CHUNK)
        except TimeoutError:
            raise TooLateError from None
        except OSError:
            raise ClosedError from None
        if not data:
            raise ClosedError
        self.n_bytes += len(data)
        self._buffer += data

    def _set_timeout(self) -> None:
        """Sets the socket's time limit to what is left until the deadline."""
        if self.deadline is None:
            return
        left_s = self.deadline - time.monotonic()
        if left_s <= 0:
            raise TooLateError
        self.channel.settimeout(left_s)
