"""The entry functions of a sandbox cell process, which runs a candidate's code or a data set's tests.

Nothing in a candidate's cell knows an expected output, and its word decides nothing.
The job of a cell is a file that only this cell reads: the server, whose memory every cell inherits, never does.
"""

import atexit
import builtins
import contextlib
import io
import json
import os
import random
import socket
import sys
import threading
import types
from collections.abc import Callable
from typing import Any, NoReturn

from qwen_align.reward.code.cell_rpc import EndedError, RpcPeer
from qwen_align.reward.code.judge_outcomes import serve_judgements
from qwen_align.reward.code.load_candidate import SYNTAX_STATUS, UnloadedError, find_function, load_module
from qwen_align.reward.code.run_dataset_tests import run_dataset_tests
from qwen_align.reward.code.server_messages import Entry
from qwen_align.reward.code.socket_frames import Frames
from qwen_align.reward.code.value_serialization import MAX_BYTES, NotPlainError, decode_value, encode_value, write_json

_STDIN, _OUTPUT = 0, 1


def run_candidate_cell(payload: bytes, channel: socket.socket) -> None:
    """Runs a candidate's code in its sandbox cell, to answer listed calls, to serve a test cell or as a program."""
    frames = Frames(channel)
    job = json.loads(payload)
    random.seed(0)  # cells are forks of one server: the same verdict in every run
    _complete_builtins()
    if job["mode"] == "program":
        _run_program(job)
    try:
        (_answer_calls if job["mode"] == "calls" else _serve_test_calls)(job, frames)
    except UnloadedError as error:
        frames.send_frame(write_json(["end", str(error)]))
    except MemoryError:
        frames.send_frame(write_json(["end", "memory limit"]))
    except SystemExit:
        frames.send_frame(write_json(["end", "exited early"]))
    except BaseException:  # noqa: BLE001 - whatever a candidate raises is its failure, and ours to report
        frames.send_frame(write_json(["end", "crashed"]))


def run_tests_cell(payload: bytes, channel: socket.socket) -> None:
    """Runs a data set's test code in its sandbox cell, against the candidate at the other end of the channel."""
    random.seed(0)
    sys.set_int_max_str_digits(0)
    sys.stdout = io.StringIO()  # what the tests print is no report
    run_dataset_tests(json.loads(payload), Frames(channel), _OUTPUT)


def _complete_builtins() -> None:
    """Adds what a Python that runs a script has and the isolated server has not: `exit`, `quit`, `/dev/stdin`."""
    open_file = builtins.open

    def open_with_stdin(file: Any, *args: Any, **kwargs: Any) -> Any:
        """Opens a file, and standard input by its name, for which the cell has no file."""
        return open_file(_STDIN if file == "/dev/stdin" else file, *args, **kwargs)

    sys.set_int_max_str_digits(0)  # the limits of time hold for long integers too
    if not hasattr(builtins, "exit"):
        vars(builtins).update(exit=sys.exit, quit=sys.exit, open=open_with_stdin)


class _NoOutput(io.RawIOBase):
    """A file that takes everything and keeps nothing: what a function prints is no result."""

    def writable(self) -> bool:
        """Returns True: the file can be written."""
        return True

    def write(self, data: Any) -> int:
        """Returns the number of bytes, which are dropped."""
        return len(memoryview(data).cast("B"))


def _drop_prints() -> None:
    """Makes what a candidate's function prints go nowhere, so that it meets no limit of output."""
    sys.stdout = io.TextIOWrapper(io.BufferedWriter(_NoOutput()), encoding="utf-8", errors="replace")


def run_judging_cell(payload: bytes, channel: socket.socket) -> None:
    """Judges what candidates return, one after another, in a sandbox cell that runs no code of theirs."""
    sys.set_int_max_str_digits(0)
    serve_judgements(channel)


ENTRIES: dict[Entry, Callable[[bytes, socket.socket], None]] = {
    "candidate": run_candidate_cell,
    "tests": run_tests_cell,
    "judge": run_judging_cell,
}


def _load_functions(job: dict[str, Any]) -> types.ModuleType:
    """Loads the candidate's code, which may exit once it has defined what is asked for, as a script does at its end."""
    try:
        return load_module(job)
    except SystemExit:
        module = sys.modules[job["name"]]
        if not any(name in vars(module) for name in (*job.get("asked", ()), "Solution")):
            raise
        return module


def _answer_calls(job: dict[str, Any], frames: Frames) -> None:
    """Makes all calls listed in a job one after another and sends a record of each result."""
    _drop_prints()
    module = _load_functions(job)
    for number, (name, args, kwargs) in enumerate(job["calls"]):
        frames.send_frame(_make_call_record(number, find_function(module, name), args, kwargs))
    frames.send_frame(write_json(["done"]))


def _make_call_record(number: int, function: Any, args: Any, kwargs: Any) -> bytes:
    """Calls a function and returns a serialised record of its value or of why there is none."""
    try:
        value = function(*decode_value(args), **decode_value(kwargs))
        record = write_json(["value", number, encode_value(value)])
        return record if len(record) <= MAX_BYTES else write_json(["not plain", number])
    except NotPlainError:
        return write_json(["not plain", number])
    except (MemoryError, SystemExit):
        raise
    except BaseException:  # noqa: BLE001 - a call that raises anything else is a record like any other
        return write_json(["raised", number])


def _serve_test_calls(job: dict[str, Any], frames: Frames) -> None:
    """Answers remote calls from the test code's sandbox cell until that cell ends."""
    _drop_prints()
    module = _load_functions(job)
    frames.send_frame(write_json(["ready"]))
    with contextlib.suppress(EndedError):  # the tests are done
        RpcPeer(frames, lambda name: find_function(module, name)).serve_calls()


def _run_program(job: dict[str, Any]) -> NoReturn:
    """Runs the candidate's code as a program and exits with its status."""
    status = 0
    try:
        load_module(job)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except UnloadedError:
        status = SYNTAX_STATUS
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()  # programs of contests write their output there
    sys.stdout.flush()
    os._exit(status & 0xFF)


def warm_up() -> None:
    """Does work once before forking that every sandbox cell would repeat, such as initialising the parser (1 ms)."""
    stdout = sys.stdout
    for mode in ("calls", "serve"):
        cell_end, our_end = socket.socketpair()
        job = {"mode": mode, "name": "solution", "texts": [_SAMPLE], "before": []}
        calls = [["f", encode_value(([1.5, 2],)), encode_value({})]]
        cell = threading.Thread(target=run_candidate_cell, args=(write_json({**job, "calls": calls}), cell_end))
        cell.start()
        if mode == "serve":
            empty_job = {"before": [], "entry": None, "remote": ["f"], "modules": [], "partial": True, "tells": False}
            run_tests_cell(write_json({**empty_job, "tests": ["for x in [1.5]:\n    assert f([x, 2])"]}), our_end)
        else:
            frames = Frames(our_end)
            while frames.receive_frame() != write_json(["done"]):
                continue
        our_end.close()
        cell.join()
        cell_end.close()
    sys.stdout = stdout
    sys.modules.pop("solution")
    sys.modules.pop("tests")


_SAMPLE = '''
import math
from typing import List

class Node:
    """A node."""
    def __init__(self, value, *rest, left=None, **more):
        self.value, self.left = value, left

def f(values: List[float], start: int = 0) -> str:
    """Doc."""
    total, seen = start, {}
    for at, one in enumerate(values[1:]):
        if one and not at % 2 or at in seen:
            total += math.sqrt(abs(one)) if isinstance(one, float) else -1
        while total > 10:
            total //= 2
            continue
    try:
        found = sorted({x for x in map(str, values)}, key=lambda x: (len(x), x))[::-1]
    except (ValueError, TypeError) as error:
        raise RuntimeError(f"{error!r}") from None
    with open("/dev/null") as nothing:
        pass
    return ", ".join([*found, f"{total:.2f}"])

assert f([2.5, 3, "a"])
'''
