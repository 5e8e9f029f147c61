"""A completion's code run by the plan of its gold, and the verdict on it, all of it outside the candidate's cell."""

import selectors
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from qwen_align.reward.code.asserts import NoValueError, Outcome
from qwen_align.reward.code.compare import lines
from qwen_align.reward.code.evaluate import UnsupportedError
from qwen_align.reward.code.frames import ClosedError, Frames, TooLargeError, TooLateError
from qwen_align.reward.code.loading import SYNTAX_STATUS
from qwen_align.reward.code.plan import Calls, Plan, Programs, Script, Trial
from qwen_align.reward.code.sandbox import Cell, Limits, Sandbox
from qwen_align.reward.code.tested import TO_CANDIDATE
from qwen_align.reward.code.values import NotPlainError, decode, read, write

PASSED = "all tests passed"
_CHEATS = frozenset({"forged record", "exited early"})
_NO_VALUE = {"raised": "tests failed", "not plain": "value not plain data"}
_ENDS = frozenset({"syntax error", "function not defined", "crashed", "exited early", "memory limit"})
_ENDED = {
    "signal": "crashed",
    "time limit": "time limit",
    "memory limit": "memory limit",
    "output limit": "output limit",
}
_MAX_BYTES = 16 << 20  # of all values of one candidate, which are held here until it is judged
_END_S = 1.0  # for the sandbox to tell how a cell ended that has closed its channel


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
        """The score of test code in a cell of its own; both cells speak through here, and only the tests are heard."""
        tests_job = write({**work._asdict(), "partial": self.partial})
        with (
            self.box.start("candidate", self.job("serve"), self.left()) as cell,
            self.box.start("tests", tests_job, self.left()) as other,
        ):
            candidate, tests = Frames(cell.channel, self.deadline), Frames(other.channel, self.deadline)
            passed = failed = 0
            reason = PASSED
            try:
                if _record(candidate, cell) != ["ready"]:
                    raise _StoppedError("forged record")
                for said in _relayed(candidate, cell, tests, other):
                    passed += said == PASSED
                    failed += said != PASSED
                    reason = said if reason == PASSED else reason
            except _StoppedError as stop:
                return _stopped(str(stop), passed, max(work.n_tests, passed + failed))
        return Score(passed, passed + failed if reason == PASSED else max(work.n_tests, passed + failed), reason)

    def left(self) -> Limits:
        """The limits with what time is left."""
        return self.limits._replace(time_limit_s=max(0.01, self.deadline - time.monotonic()))


def _stopped(reason: str, passed: int, n_tests: int) -> Score:
    """The score of a candidate that ended before its tests did: less than all, and nothing for one that cheats."""
    if reason in _CHEATS:
        return Score(0, n_tests, reason)
    return Score(passed, max(n_tests, passed + 1), reason)


def _said(test: Trial, outcomes: Sequence[Outcome]) -> str:
    try:
        return PASSED if test.passes(outcomes) else "tests failed"
    except NoValueError as error:
        return str(error)


def _send(frames: Frames, cell: Cell, body: bytes) -> None:
    try:
        frames.send(body)
    except TooLateError:
        raise _StoppedError("time limit") from None
    except ClosedError:
        raise _StoppedError(_how(cell)) from None


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
        raise _StoppedError(record[1] if type(record[1]) is str and record[1] in _ENDS else "forged record")
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


def _relayed(candidate: Frames, cell: Cell, tests: Frames, other: Cell) -> Iterator[str]:
    """Passes frames on between the cells, unread, until the tests are done; gives what they tell of each test."""
    with selectors.DefaultSelector() as both:
        both.register(cell.channel, selectors.EVENT_READ, (candidate, cell))
        both.register(other.channel, selectors.EVENT_READ, (tests, other))
        while True:
            left = candidate.deadline - time.monotonic() if candidate.deadline is not None else None
            ready = both.select(left)
            if not ready:
                raise _StoppedError("time limit")
            for key, _ in ready:
                frames, whose = key.data
                _fill(frames, whose)
                while (body := _next(frames)) is not None:
                    if frames is candidate:
                        _send(tests, other, _not_ended(body))
                    elif body.startswith(TO_CANDIDATE):
                        _send(candidate, cell, body[len(TO_CANDIDATE) :])
                    elif (said := _told_by_tests(body)) is None:
                        return
                    else:
                        yield said


def _fill(frames: Frames, cell: Cell) -> None:
    try:
        frames.fill()
    except ClosedError:
        raise _StoppedError(_how(cell)) from None
    except TooLateError:
        raise _StoppedError("time limit") from None


def _next(frames: Frames) -> bytes | None:
    try:
        return frames.ready()
    except TooLargeError:
        raise _StoppedError("forged record") from None


def _not_ended(body: bytes) -> bytes:
    """The frame, unless it tells that the candidate ended."""
    if body.startswith(b'["end",'):
        told = body[len(b'["end","') : -len(b'"]')].decode("ascii", "replace")
        raise _StoppedError(told if told in _ENDS else "forged record")
    return body


def _told_by_tests(body: bytes) -> str | None:
    """What the tests' cell tells of a test; None when they are done."""
    match read(body):
        case ["test", passed, why]:
            return PASSED if passed else str(why)
        case ["done"]:
            return None
    raise _StoppedError("forged record")
