"""Sends and receives length-prefixed byte frames on a socket whose other end may be hostile."""

import socket
import struct
import time

from qwen_align.reward.code.value_serialization import MAX_BYTES

_LENGTH = struct.Struct(">I")
_MAX_FRAME = MAX_BYTES + 4096  # a value and the message around it
_CHUNK = 1 << 16


class ClosedError(Exception):
    """Raised when the other end closed the socket before a whole frame was received."""


class TooLateError(Exception):
    """Raised when the deadline passed before a whole frame was received or sent."""


class TooLargeError(Exception):
    """Raised when the other end announces a frame that exceeds the size limit."""


class Frames:
    """A stream socket that sends and receives length-prefixed frames until a `time.monotonic()` deadline.

    Inside a cell there is no deadline: the cell is killed anyway.
    """

    def __init__(self, channel: socket.socket, deadline: float | None = None, *, max_frame: int = _MAX_FRAME) -> None:
        self.channel = channel
        self.max_frame = max_frame
        self.deadline = deadline
        self.n_bytes = 0
        self._buffer = bytearray()

    def send_frame(self, body: bytes) -> None:
        """Sends one frame. Raises ClosedError if the socket closes and TooLateError at the deadline."""
        try:
            self._set_timeout()
            self.channel.sendall(_LENGTH.pack(len(body)) + body)
        except TimeoutError:
            raise TooLateError from None
        except OSError:
            raise ClosedError from None

    def send_frame_with_file(self, body: bytes, file: int) -> None:
        """Sends one frame with an open file to a process on the other end that waits for it.

        Raises ClosedError if the socket closes and TooLateError at the deadline.
        """
        frame = _LENGTH.pack(len(body)) + body
        try:
            self._set_timeout()
            n_sent = socket.send_fds(self.channel, [frame], [file])
            if n_sent < len(frame):
                self.channel.sendall(frame[n_sent:])
        except TimeoutError:
            raise TooLateError from None
        except OSError:
            raise ClosedError from None

    def receive_frame_with_file(self) -> tuple[bytes, int]:
        """Waits for the next frame that comes with an open file, and returns both. Raises as `receive_frame`."""
        data, files, _, _ = socket.recv_fds(self.channel, _CHUNK, 1)
        if not data:
            raise ClosedError
        self._buffer += data
        return self.receive_frame(), files[0]

    def receive_frame(self) -> bytes:
        """Waits for the next frame and returns its bytes. Raises ClosedError, TooLateError or TooLargeError."""
        while True:
            if (body := self.pop_buffered_frame()) is not None:
                return body
            self.read_into_buffer()

    def pop_buffered_frame(self) -> bytes | None:
        """Returns the next frame if it is already complete in the buffer, else None."""
        if len(self._buffer) < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack_from(self._buffer)
        if size > self.max_frame:
            raise TooLargeError
        end = _LENGTH.size + size
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        return body

    def read_into_buffer(self) -> None:
        """Waits for bytes on the socket and appends them to the buffer."""
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
        """Sets the socket's time limit to the time that remains until the deadline."""
        if self.deadline is None:
            return
        left_s = self.deadline - time.monotonic()
        if left_s <= 0:
            raise TooLateError
        self.channel.settimeout(left_s)
