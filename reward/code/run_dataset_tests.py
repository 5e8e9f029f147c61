"""Runs the test code of a data set in a sandbox cell of its own, separate from the candidate's cell."""

import ast
import importlib
import os
import sys
import types
from typing import Any

from qwen_align.reward.code.cell_rpc import EndedError, ForgedError, RpcPeer
from qwen_align.reward.code.collect_tests import REACHED
from qwen_align.reward.code.load_candidate import CLOSED, END_REASONS
from qwen_align.reward.code.remote_objects import RefusedError, RemoteObject
from qwen_align.reward.code.socket_frames import ClosedError, Frames, TooLargeError
from qwen_align.reward.code.value_serialization import NotPlainError, read_json, write_json

UNREACHED = "no test reached"
UNUSABLE = "unusable gold"
"""Told of tests that came to their end without an assertion, and never called the candidate."""

_PASSED, _FAILED = "_passed_", "_failed_"
_REPORTING = f"try:\n    pass\nexcept BaseException as _error_:\n    {_FAILED}(_error_)\nelse:\n    {_PASSED}()"


class _StoppedError(BaseException):
    """Raised when no further test can be run."""


class _TestReporter:
    """A reporter that writes to the owner's file which tests passed or failed."""

    def __init__(self, peer: RpcPeer, file: int) -> None:
        self.peer = peer
        self.file = file
        self.n_reached = 0
        self.n_failed = 0

    def count_evaluated_assertion(self) -> None:
        """Counts an assertion that was evaluated."""
        self.n_reached += 1

    def write_line(self, *words: Any) -> None:
        """Writes the given words as one line of JSON to the report file."""
        os.write(self.file, write_json(words) + b"\n")

    def report_passed(self) -> None:
        """Reports that a test ran to its end, as passed unless a remote call in it failed."""
        if self.peer.failure is None:
            self.write_line("test", True, "")
        else:
            self.report_failed(self.peer.failure)

    def report_failed(self, error: BaseException) -> None:
        """Reports that a test raised an exception. Raises _StoppedError if no other test can be run."""
        error = self.peer.failure or error
        if isinstance(error, ForgedError | EndedError):
            reason = "forged record" if isinstance(error, ForgedError) else str(error) or CLOSED
            self.write_line("stopped", reason)
            raise _StoppedError
        if isinstance(error, MemoryError | _StoppedError):
            raise error
        self.peer.failure = None
        self.n_failed += 1
        self.write_line("test", False, "value not plain data" if isinstance(error, RefusedError) else "tests failed")


def run_dataset_tests(job: dict[str, Any], frames: Frames, file: int) -> None:
    """Runs the tests of a job and writes a result line for each to a file, then `done` or `stopped`."""
    peer = RpcPeer(frames)
    reporter = _TestReporter(peer, file)
    try:
        _wait_for_candidate(frames, peer)
        module = _make_test_module(job, peer, reporter)
        if job["entry"] is None:
            _run_test_list(job, module, reporter)
        else:
            _run_check_function(job, module, reporter)
    except _StoppedError:
        return
    except BaseException as error:  # noqa: BLE001 - test code may raise anything, and the verdict is then its failure
        try:
            reporter.report_failed(error)
        except _StoppedError:
            return
    if job["tells"] and not reporter.n_reached + reporter.n_failed:
        reporter.write_line("stopped", UNREACHED if peer.n_calls else UNUSABLE)
        return
    reporter.write_line("done")


def _wait_for_candidate(frames: Frames, peer: RpcPeer) -> None:
    """Waits until the candidate's code is loaded in its process.

    Raises the common error of all tests if loading failed.
    """
    try:
        message = read_json(frames.receive_frame())
    except ClosedError:
        peer.failure = EndedError()
    except (NotPlainError, TooLargeError):
        peer.failure = ForgedError()
    else:
        if message != ["ready"]:
            ended = type(message) is list and len(message) == 2 and message[0] == "end" and message[1] in END_REASONS
            peer.failure = EndedError(message[1]) if ended else ForgedError()
    if peer.failure is not None:
        raise peer.failure


def _make_test_module(job: dict[str, Any], peer: RpcPeer, reporter: _TestReporter) -> types.ModuleType:
    """Creates the module that the tests run in, with remote objects for the candidate's names."""
    module = types.ModuleType("tests")
    sys.modules["tests"] = module
    names = module.__dict__
    names[REACHED] = reporter.count_evaluated_assertion
    names.update({name: importlib.import_module(name) for name in job["modules"]})
    remotes = {
        name: RemoteObject(peer.call_remote, ["name", name], of_class=name[:1].isupper()) for name in job["remote"]
    }
    names.update(remotes)
    for source in job["before"]:
        exec(source, names)
        names.update(remotes)  # a prompt ends in an empty function of the candidate's name
    return module


def _run_test_list(job: dict[str, Any], module: types.ModuleType, reporter: _TestReporter) -> None:
    """Runs tests given as a list of sources. Without partial credit, it stops at the first failure."""
    for source in job["tests"]:
        try:
            exec(source, module.__dict__)
        except BaseException as error:  # noqa: BLE001 - see run_tests
            reporter.report_failed(error)
            if not job["partial"]:
                return
        else:
            reporter.report_passed()


def _run_check_function(job: dict[str, Any], module: types.ModuleType, reporter: _TestReporter) -> None:
    """Runs the data set's `check(candidate)` function. For partial credit, each of its assertions counts as a test."""
    [source] = job["tests"]
    names = module.__dict__
    if job["partial"]:
        names.update({_PASSED: reporter.report_passed, _FAILED: reporter.report_failed})
        exec(compile(_wrap_assertions(ast.parse(source)), "<tests>", "exec"), names)
        names["check"](names[job["entry"]])
        return
    exec(source, names)
    names["check"](names[job["entry"]])
    reporter.report_passed()


def _wrap_assertions(tree: ast.Module) -> ast.Module:
    """Wraps each assertion of a test tree so that it reports whether it held and the tests go on if not."""
    counted: ast.Module = _AssertionWrapper().visit(tree)
    return ast.fix_missing_locations(counted)


class _AssertionWrapper(ast.NodeTransformer):
    """A syntax-tree transformer that wraps assertions so that each reports whether it held."""

    def visit_Try(self, node: ast.Try) -> ast.Try:
        """Leaves a `try` statement unchanged, because an `assert` in it may have to raise the exception it expects."""
        return node

    def visit_Assert(self, node: ast.Assert) -> ast.Try:
        """Wraps an `assert` statement in a `try` that reports whether it held."""
        [wrapped] = ast.parse(_REPORTING).body
        assert isinstance(wrapped, ast.Try)
        wrapped.body = [node]
        return wrapped
