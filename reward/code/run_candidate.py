"""A completion's code run by the plan of its gold, and the verdict on it, all of it outside the candidate's cell."""

import json
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from qwen_align.reward.code.assertion_checks import NoValueError, Outcome
from qwen_align.reward.code.compare_outputs import lines
from qwen_align.reward.code.expression_evaluator import UnsupportedError
from qwen_align.reward.code.load_candidate import ENDS, SYNTAX_STATUS
from qwen_align.reward.code.plan_from_gold import Calls, Plan, Programs, Script, Trial
from qwen_align.reward.code.run_dataset_tests import CLOSED, UNREACHED, UNUSABLE
from qwen_align.reward.code.sandbox import Cell, Limits, Sandbox
from qwen_align.reward.code.socket_frames import ClosedError, Frames, TooLargeError, TooLateError
from qwen_align.reward.code.value_serialization import NotPlainError, decode, read, write

PASSED = "all tests passed"
_UNPAID = frozenset({"forged record", "exited early", UNREACHED, UNUSABLE})
_NO_VALUE = {"raised": "tests failed", "not plain": "value not plain data"}
_ENDED = {
    "signal": "crashed",
    "time limit": "time limit",
    "memory limit": "memory limit",
    "output limit": "output limit",
}
_MAX_BYTES = 16 << 20  # of all values of one candidate, which are held here until it is judged
_TOLD_BYTES = 1 << 20  # a line for each of the asserts that run
_END_S = 0.2  # for the sandbox to tell how a cell ended that has closed its channel


class Score(NamedTuple):
    """How many tests passed, of how many, and the reason why not all did."""

    passed: int
    n_tests: int
    reason: str


class _StoppedError(Exception):
    """The candidate ended, or broke the order of records, before its tests did; the message is the reason."""


def run(plan: Plan, texts: list[str], box: Sandbox, limits: Limits, *, partial: bool) -> Score:
    """How the code, the first of the texts that compiles, does under the plan; ends by the limits' deadline."""
    deadline = time.monotonic() + limits.time_limit_s
    runner = _Runner(plan, texts, box, limits, deadline, partial)
    work = plan.work
    if isinstance(work, Programs):
        return runner.programs(work)
    if isinstance(work, Script):
        return runner.script(work)
    try:
        return runner.calls(work)
    except UnsupportedError:
        if work.otherwise is None:
            raise
        return runner.script(work.otherwise)


class _Runner(NamedTuple):
    plan: Plan
    texts: list[str]
    box: Sandbox
    limits: Limits
    deadline: float
    partial: bool

    def job(self, mode: str, **more: Any) -> bytes:
        """What the candidate's cell is told: its code and what surrounds it, calls to answer, and no more."""
        plan = self.plan
        name = "__main__" if mode == "program" else "solution"
        around = {"before": plan.before, "prompt": plan.prompt, "entry": plan.entry}
        return write({"mode": mode, "name": name, "texts": self.texts, **around, **more})

    def calls(self, work: Calls) -> Score:
        """The score of calls whose values are compared here."""
        told: list[str] = []
        with self.box.start("candidate", self.job("calls", calls=work.calls), self.left()) as cell:
            try:
                for said in self.answers(work, Frames(cell.channel, self.deadline), cell):
                    told.append(said)
                    if said != PASSED and not self.partial:
                        break
            except _StoppedError as stop:
                return _stopped(str(stop), told.count(PASSED), len(work.tests))
        reason = next((said for said in told if said != PASSED), PASSED)
        return Score(told.count(PASSED), len(work.tests), reason)

    def answers(self, work: Calls, frames: Frames, cell: Cell) -> Iterator[str]:
        """The reasons of the tests, each as soon as the candidate has answered its calls."""
        outcomes: list[Outcome] = []
        for test in work.tests:
            while len(outcomes) < test.n_outcomes:
                outcomes.append(_outcome(_record(frames, cell), len(outcomes)))
                if frames.n_bytes > _MAX_BYTES:
                    raise _StoppedError("output limit")
            yield _said(test, outcomes)
        if _record(frames, cell) != ["done"]:
            raise _StoppedError("forged record")

    def programs(self, work: Programs) -> Score:
        """The score of a program run afresh for each input."""
        passed, reason = 0, PASSED
        for given, expected in zip(work.inputs, work.expected, strict=True):
            said = self.program(given, expected)
            if said == PASSED:
                passed += 1
                continue
            reason = said if reason == PASSED else reason
            if not self.partial or said in ("syntax error", "time limit"):
                break
        return Score(passed, len(work.inputs), reason)

    def program(self, given: str, expected: list[str]) -> str:
        """The reason of one run."""
        enough = max(self.limits.output_bytes, 2 * sum(map(len, expected)) + len(expected))
        limits = self.left()._replace(output_bytes=enough)
        with self.box.start("candidate", self.job("program"), limits, stdin=given.encode()) as cell:
            ended = cell.end(self.deadline)
            if ended.how != "exit":
                return _ENDED[ended.how]
            if ended.status != 0:
                return "syntax error" if ended.status == SYNTAX_STATUS else "crashed"
            return PASSED if lines(ended.output.decode("utf-8", "replace")) == expected else "tests failed"

    def script(self, work: Script) -> Score:
        """The score of test code in a cell of its own, which speaks with the candidate's, and alone is heard here."""
        tests_job = write({**work._asdict(), "partial": self.partial})
        one_end, other_end = socket.socketpair()
        with one_end, other_end:
            cell = self.box.start("candidate", self.job("serve"), self.left(), channel=one_end)
            limits = self.left()._replace(output_bytes=_TOLD_BYTES)
            with cell, self.box.start("tests", tests_job, limits, channel=other_end) as tests:
                ended = tests.end(self.deadline)
                said, stopped = _told(ended.output)
                stopped = _ENDED.get(ended.how, stopped)
                if stopped == CLOSED:
                    stopped = _how(cell)
        n_tests = max(work.n_tests, len(said))
        if stopped is not None:
            return _stopped(stopped, said.count(PASSED), n_tests)
        reason = next((one for one in said if one != PASSED), PASSED)
        return Score(said.count(PASSED), len(said) if reason == PASSED else n_tests, reason)

    def left(self) -> Limits:
        """The limits with what time is left."""
        return self.limits._replace(time_limit_s=max(0.01, self.deadline - time.monotonic()))


def _stopped(reason: str, passed: int, n_tests: int) -> Score:
    """The score of a candidate that ended before its tests did: less than all, and nothing for one that cheats."""
    if reason in _UNPAID:
        return Score(0, n_tests, reason)
    return Score(passed, max(n_tests, passed + 1), reason)


def _told(output: bytes) -> tuple[list[str], str | None]:
    """What the tests' cell tells: the reason of each test, and why they stopped before they were done."""
    said: list[str] = []
    for line in output.splitlines():
        try:
            told = json.loads(line)
        except ValueError:  # test code that wrote there itself
            return said, "crashed"
        match told:
            case ["test", passed, reason]:
                said.append(PASSED if passed else reason)
            case ["stopped", reason]:
                return said, str(reason)
            case ["done"]:
                return said, None
    return said, "crashed"


def _said(test: Trial, outcomes: Sequence[Outcome]) -> str:
    try:
        return PASSED if test.passes(outcomes) else "tests failed"
    except NoValueError as error:
        return str(error)


def _record(frames: Frames, cell: Cell) -> Any:
    """The candidate's next record; raises _StoppedError where it tells of its end or is gone."""
    try:
        record = read(frames.receive())
    except TooLateError:
        raise _StoppedError("time limit") from None
    except ClosedError:
        raise _StoppedError(_how(cell)) from None
    except (TooLargeError, NotPlainError):
        raise _StoppedError("forged record") from None
    if type(record) is list and len(record) == 2 and record[0] == "end":
        raise _StoppedError(record[1] if type(record[1]) is str and record[1] in ENDS else "forged record")
    return record


def _outcome(record: Any, number: int) -> Outcome:
    shape = [type(part) for part in record[:2]] if type(record) is list else []
    if shape != [str, int] or record[1] != number:
        raise _StoppedError("forged record")
    if record[0] == "value" and len(record) == 3:
        try:
            return Outcome(decode(record[2]))
        except NotPlainError:
            return Outcome(None, "value not plain data")
    if record[0] in _NO_VALUE and len(record) == 2:
        return Outcome(None, _NO_VALUE[record[0]])
    raise _StoppedError("forged record")


def _how(cell: Cell) -> str:
    ended = cell.end(time.monotonic() + _END_S)
    return _ENDED.get(ended.how, "exited early")
