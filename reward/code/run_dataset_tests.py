"""Test code of a data set, run in its own cell; what it calls lives in the candidate's."""

import ast
import importlib
import os
import sys
import types
from typing import Any

from qwen_align.reward.code.cell_rpc import EndedError, ForgedError, Peer
from qwen_align.reward.code.collect_tests import REACHED
from qwen_align.reward.code.load_candidate import ENDS
from qwen_align.reward.code.remote_objects import RefusedError, Remote
from qwen_align.reward.code.socket_frames import ClosedError, Frames, TooLargeError
from qwen_align.reward.code.value_serialization import NotPlainError, read, write

CLOSED = "closed"
"""Told of a candidate that ended without a word: its own cell knows how."""

UNREACHED = "no test reached"
UNUSABLE = "unusable gold"
"""Told of tests that came to their end without an assertion, and never called the candidate."""

_PASSED, _FAILED = "_passed_", "_failed_"
_TOLD = f"try:\n    pass\nexcept BaseException as _error_:\n    {_FAILED}(_error_)\nelse:\n    {_PASSED}()"


class _StoppedError(BaseException):
    """No further test can be run."""


class _Counts:
    """Tells the owner, on a file of its own, of each test that passed or failed."""

    def __init__(self, peer: Peer, file: int) -> None:
        self.peer = peer
        self.file = file
        self.n_reached = 0
        self.n_failed = 0

    def reach(self) -> None:
        """An assertion was evaluated."""
        self.n_reached += 1

    def tell(self, *words: Any) -> None:
        """One line of JSON."""
        os.write(self.file, write(words) + b"\n")

    def passed(self) -> None:
        """A test came to its end: it passed, if nothing it took for an answer was none."""
        if self.peer.trouble is None:
            self.tell("test", True, "")
        else:
            self.failed(self.peer.trouble)

    def failed(self, error: BaseException) -> None:
        """A test raised; raises _StoppedError where no other can be run."""
        error = self.peer.trouble or error
        if isinstance(error, ForgedError | EndedError):
            reason = "forged record" if isinstance(error, ForgedError) else str(error) or CLOSED
            self.tell("stopped", reason)
            raise _StoppedError
        if isinstance(error, MemoryError | _StoppedError):
            raise error
        self.peer.trouble = None
        self.n_failed += 1
        self.tell("test", False, "value not plain data" if isinstance(error, RefusedError) else "tests failed")


def run_tests(job: dict[str, Any], frames: Frames, file: int) -> None:
    """Runs the tests of a job and tells of each in the file, and then `done` or `stopped`."""
    peer = Peer(frames)
    counts = _Counts(peer, file)
    try:
        _wait_for(frames, peer)
        module = _module(job, peer, counts)
        if job["entry"] is None:
            _run_list(job, module, counts)
        else:
            _run_check(job, module, counts)
    except _StoppedError:
        return
    except BaseException as error:  # noqa: BLE001 - test code may raise anything, and the verdict is then its failure
        try:
            counts.failed(error)
        except _StoppedError:
            return
    if job["tells"] and not counts.n_reached + counts.n_failed:
        counts.tell("stopped", UNREACHED if peer.n_calls else UNUSABLE)
        return
    counts.tell("done")


def _wait_for(frames: Frames, peer: Peer) -> None:
    """Returns when the candidate's code is loaded; what it tells instead is the trouble that all tests have."""
    try:
        told = read(frames.receive())
    except ClosedError:
        peer.trouble = EndedError()
    except (NotPlainError, TooLargeError):
        peer.trouble = ForgedError()
    else:
        if told != ["ready"]:
            ended = type(told) is list and len(told) == 2 and told[0] == "end" and told[1] in ENDS
            peer.trouble = EndedError(told[1]) if ended else ForgedError()
    if peer.trouble is not None:
        raise peer.trouble


def _module(job: dict[str, Any], peer: Peer, counts: _Counts) -> types.ModuleType:
    module = types.ModuleType("tests")
    sys.modules["tests"] = module
    names = module.__dict__
    names[REACHED] = counts.reach
    names.update({name: importlib.import_module(name) for name in job["modules"]})
    remotes = {name: Remote(peer.call, ["name", name], of_class=name[:1].isupper()) for name in job["remote"]}
    names.update(remotes)
    for source in job["before"]:
        exec(source, names)
        names.update(remotes)  # a prompt ends in an empty function of the candidate's name
    return module


def _run_list(job: dict[str, Any], module: types.ModuleType, counts: _Counts) -> None:
    for source in job["tests"]:
        try:
            exec(source, module.__dict__)
        except BaseException as error:  # noqa: BLE001 - see run_tests
            counts.failed(error)
            if not job["partial"]:
                return
        else:
            counts.passed()


def _run_check(job: dict[str, Any], module: types.ModuleType, counts: _Counts) -> None:
    [source] = job["tests"]
    names = module.__dict__
    if job["partial"]:
        names.update({_PASSED: counts.passed, _FAILED: counts.failed})
        exec(compile(_counted(ast.parse(source)), "<tests>", "exec"), names)
        names["check"](names[job["entry"]])
        return
    exec(source, names)
    names["check"](names[job["entry"]])
    counts.passed()


def _counted(tree: ast.Module) -> ast.Module:
    """The tests with each assertion telling whether it held, and going on where not."""
    counted: ast.Module = _Counting().visit(tree)
    return ast.fix_missing_locations(counted)


class _Counting(ast.NodeTransformer):
    def visit_Try(self, node: ast.Try) -> ast.Try:
        """A `try` expects an exception, which `assert False` in it must be able to raise: it counts as a whole."""
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.Try:
        """The assertion in a `try` that tells."""
        [tried] = ast.parse(_TOLD).body
        assert isinstance(tried, ast.Try)
        tried.body = [node]
        return tried
