"""Test code of a data set, run in its own cell; what it calls lives in the candidate's."""

import ast
import importlib
import sys
import types
from typing import Any

from qwen_align.reward.code.frames import Frames
from qwen_align.reward.code.peer import ForgedError, Peer
from qwen_align.reward.code.remote import RefusedError, Remote
from qwen_align.reward.code.values import write

TO_CANDIDATE = b"R"
"""Opens a frame that the owner passes on to the candidate; all others are for the owner."""

_PASSED, _FAILED = "_passed_", "_failed_"
_TOLD = f"try:\n    pass\nexcept BaseException as _error_:\n    {_FAILED}(_error_)\nelse:\n    {_PASSED}()"


class _Line:
    """The candidate, behind the owner of both cells."""

    def __init__(self, frames: Frames) -> None:
        self.frames = frames

    def send(self, body: bytes) -> None:
        self.frames.send(TO_CANDIDATE + body)

    def receive(self) -> bytes:
        return self.frames.receive()


class _Counts:
    """Tells the owner of each test that passed or failed."""

    def __init__(self, frames: Frames) -> None:
        self.frames = frames

    def passed(self) -> None:
        self.frames.send(write(["test", True, ""]))

    def failed(self, error: BaseException) -> None:
        """Tells of a test that raised; raises again what is not the test's to survive."""
        if isinstance(error, ForgedError | MemoryError):
            raise error
        refused = isinstance(error, RefusedError)
        self.frames.send(write(["test", False, "value not plain data" if refused else "tests failed"]))


def run_tests(job: dict[str, Any], frames: Frames) -> None:
    """Runs the tests of a job and tells its owner of each; ends with `done`, also where the test code itself fails."""
    counts = _Counts(frames)
    try:
        module = _module(job, Peer(_Line(frames)))
        if job["entry"] is None:
            _run_list(job, module, counts)
        else:
            _run_check(job, module, counts)
    except ForgedError:
        frames.send(write(["forged"]))
    except BaseException as error:  # noqa: BLE001 - test code may raise anything, and the verdict is then its failure
        counts.failed(error)
    frames.send(write(["done"]))


def _module(job: dict[str, Any], peer: Peer) -> types.ModuleType:
    module = types.ModuleType("tests")
    sys.modules["tests"] = module
    names = module.__dict__
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
