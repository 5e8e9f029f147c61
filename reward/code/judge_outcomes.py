"""Receives what a candidate's calls returned and evaluates the tests on it, in a cell of the tests' own.

One such cell judges one candidate after another. It runs no model-written code, but decoding values and evaluating
expressions on them can take any time and memory that the candidate likes: what is too much ends the cell, and with it
no more than one verdict.
"""

import socket
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

from qwen_align.reward.code.expression_evaluator import StepBudget, UnsupportedError
from qwen_align.reward.code.load_candidate import CLOSED, END_REASONS
from qwen_align.reward.code.numpy_values import ARRAY_TAG, nest_items
from qwen_align.reward.code.outcome_checks import CallOutcome, NoValueError, OutcomeTest, expects_json, unpack_tests
from qwen_align.reward.code.server_messages import MIB
from qwen_align.reward.code.socket_frames import ClosedError, Frames, TooLargeError
from qwen_align.reward.code.value_serialization import NotPlainError, decode_value, read_json, write_json

PASSED = "all tests passed"
MAX_REQUEST = 1 << 30  # bytes of a gold's packed tests, which the owner sends

_MAX_BYTES = 16 << 20  # of all values of one candidate, which are held until it is judged
_MAX_STEPS = 5_000_000  # for all tests of one candidate, about 5 s: MBPP's and HumanEval's take at most 238
_MAX_GROWTH_MIB = 128  # of a cell that goes on: one that has held more is replaced
_NO_VALUE = {"raised": "tests failed", "not plain": "value not plain data"}


class Request(NamedTuple):
    """What the owner asks of the judging cell about one candidate."""

    packed_tests: bytes
    partial: bool


class Judgement(NamedTuple):
    """How many tests a candidate passed, why the next failed, and why it stopped before the last, if it did."""

    n_passed: int
    reason: str
    stopped: str | None
    is_supported: bool = True


class _StoppedError(Exception):
    """Raised when the candidate's code ends or breaks the protocol before its tests are done.

    The message is the reason.
    """


def serve_judgements(channel: socket.socket) -> None:
    """Judges one candidate after another, until the owner closes the channel or this process has grown too large."""
    import pickle  # in this cell alone: each page the server holds is paid for again at every fork

    frames = Frames(channel, max_frame=MAX_REQUEST)
    start_mib = _get_peak_memory_mib()
    while True:
        try:
            body, file = frames.receive_frame_with_file()
        except ClosedError:
            return
        with socket.socket(fileno=file) as candidate:
            judgement = judge_candidate(Request(*pickle.loads(body)), Frames(candidate))
        has_grown = _get_peak_memory_mib() - start_mib > _MAX_GROWTH_MIB
        frames.send_frame(write_json([has_grown, *judgement]))
        if has_grown:
            return


def judge_candidate(request: Request, frames: Frames) -> Judgement:
    """Receives the outcomes of a candidate's calls and evaluates the tests on them as they come.

    Raises MemoryError.
    """
    reasons: list[str] = []
    stopped = None
    try:
        for reason in _judge_tests(unpack_tests(request.packed_tests), frames):
            reasons.append(reason)
            if reason != PASSED and not request.partial:
                break
    except UnsupportedError:
        return Judgement(0, PASSED, None, is_supported=False)
    except _StoppedError as stop:
        stopped = str(stop)
    return Judgement(reasons.count(PASSED), next((reason for reason in reasons if reason != PASSED), PASSED), stopped)


def _judge_tests(tests: list[OutcomeTest], frames: Frames) -> Iterator[str]:
    """Yields the reason of each test as soon as the candidate has answered the test's calls."""
    outcomes: list[CallOutcome] = []
    budget = StepBudget(_MAX_STEPS)
    reads_arrays = all(map(expects_json, tests))
    for test in tests:
        while len(outcomes) < test.n_outcomes:
            outcomes.append(_parse_outcome(_receive_record(frames), len(outcomes), reads_arrays=reads_arrays))
            if frames.n_bytes > _MAX_BYTES:
                raise _StoppedError("output limit")
        yield _judge_test(test, outcomes, budget)
    if _receive_record(frames) != ["done"]:
        raise _StoppedError("forged record")


def _judge_test(test: OutcomeTest, outcomes: list[CallOutcome], budget: StepBudget) -> str:
    """Evaluates one test on the calls' outcomes and returns its reason, such as "tests failed".

    Whatever an operation on the values raises fails the test, as it fails an assertion. Raises UnsupportedError for a
    test that cannot be evaluated, and MemoryError.
    """
    try:
        return PASSED if test.passes(outcomes, budget) else "tests failed"
    except NoValueError as error:
        return str(error)
    except (UnsupportedError, MemoryError):
        raise
    except Exception:  # noqa: BLE001 - see above
        return "tests failed"


def _receive_record(frames: Frames) -> Any:
    """Receives the candidate's next result record. Raises _StoppedError if the candidate has ended."""
    try:
        record = read_json(frames.receive_frame())
    except ClosedError:
        raise _StoppedError(CLOSED) from None
    except (TooLargeError, NotPlainError):
        raise _StoppedError("forged record") from None
    if type(record) is list and len(record) == 2 and record[0] == "end":
        raise _StoppedError(record[1] if type(record[1]) is str and record[1] in END_REASONS else "forged record")
    return record


def _nest_array(tree: dict[str, Any]) -> Any:
    """Returns a numpy array as nested lists, as JSON would hold it. Raises NotPlainError for anything else."""
    if ARRAY_TAG not in tree:
        raise NotPlainError("unknown tag")
    return nest_items(tree[ARRAY_TAG], decode_value)


def _refuse_array(tree: dict[str, Any]) -> Any:
    """Raises UnsupportedError for a numpy array, which test code in a cell can have as it is."""
    raise UnsupportedError("an array") if ARRAY_TAG in tree else NotPlainError("unknown tag")


def _parse_outcome(record: Any, number: int, *, reads_arrays: bool) -> CallOutcome:
    """Parses the outcome of a call from a record.

    Raises _StoppedError if the record is forged, and UnsupportedError for a numpy array unless they are read as lists.
    """
    types = [type(part) for part in record[:2]] if type(record) is list else []
    if types != [str, int] or record[1] != number:
        raise _StoppedError("forged record")
    if record[0] == "value" and len(record) == 3:
        try:
            return CallOutcome(decode_value(record[2], _nest_array if reads_arrays else _refuse_array))
        except NotPlainError:
            return CallOutcome(None, "value not plain data")
    if record[0] in _NO_VALUE and len(record) == 2:
        return CallOutcome(None, _NO_VALUE[record[0]])
    raise _StoppedError("forged record")


def _get_peak_memory_mib() -> float:
    """Returns the most memory that this process has held, in MiB."""
    import resource  # Unix has it alone; an owner on Windows imports this file too

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / 1024
