"""Runs a completion's code by its gold's test plan and scores it from outside the sandbox."""

import json
import socket
import time
from typing import Any, NamedTuple

from qwen_align.reward.code.compare_outputs import equals_expected_output
from qwen_align.reward.code.judge_outcomes import PASSED
from qwen_align.reward.code.judging_cells import judge_in_cell
from qwen_align.reward.code.load_candidate import CLOSED, SYNTAX_STATUS
from qwen_align.reward.code.plan_from_gold import CallTests, Plan, ProgramTests, ScriptTests
from qwen_align.reward.code.run_dataset_tests import UNREACHED, UNUSABLE
from qwen_align.reward.code.sandbox import Cell, Limits, Sandbox
from qwen_align.reward.code.value_serialization import write_json

_UNPAID = frozenset({"forged record", "exited early", UNREACHED, UNUSABLE})
_REASON_OF_END = {
    "signal": "crashed",
    "time limit": "time limit",
    "memory limit": "memory limit",
    "output limit": "output limit",
}
_REPORT_BYTES = 1 << 20  # a line for each of the asserts that run
_END_LIMIT_S = 0.2  # for the sandbox to report how a cell ended that has closed its channel


class Score(NamedTuple):
    """A code score, with the number of passed tests, the number of tests, and the reason if not all passed."""

    n_passed: int
    n_tests: int
    reason: str


def run_candidate(plan: Plan, texts: list[str], sandbox: Sandbox, limits: Limits, *, partial: bool) -> Score:
    """Runs a candidate's code by its gold's test plan and returns its score. Ends by the limits' deadline."""
    deadline = time.monotonic() + limits.time_limit_s
    runner = _Runner(plan, texts, sandbox, limits, deadline, partial)
    work = plan.work
    if isinstance(work, ProgramTests):
        return runner.score_programs(work)
    if isinstance(work, ScriptTests):
        return runner.score_script(work)
    score = runner.score_calls(work)
    if score is not None:
        return score
    return Score(0, work.n_tests, "tests failed") if work.otherwise is None else runner.score_script(work.otherwise)


class _Runner(NamedTuple):
    """A runner of one candidate's code, with its texts, plan, sandbox and limits."""

    plan: Plan
    texts: list[str]
    sandbox: Sandbox
    limits: Limits
    deadline: float
    partial: bool

    def write_job(self, mode: str, **more: Any) -> bytes:
        """Builds the serialised job of the candidate's sandbox cell, with its code, surrounding sources and calls."""
        plan = self.plan
        name = "__main__" if mode == "program" else "solution"
        around = {"before": plan.before, "prompt": plan.prompt, "entry": plan.entry, "asked": _list_asked_names(plan)}
        return write_json({"mode": mode, "name": name, "texts": self.texts, **around, **more})

    def score_calls(self, work: CallTests) -> Score | None:
        """Scores the candidate by making calls, whose values are judged in a cell of their own.

        Returns None if the tests cannot be evaluated on these values.
        """
        candidate_end, judge_end = socket.socketpair()
        with candidate_end, judge_end:
            job = self.write_job("calls", calls=work.calls)
            with self.sandbox.start_cell(
                "candidate", job, self.compute_remaining_limits(), channel=candidate_end
            ) as cell:
                judged = judge_in_cell(
                    self.sandbox, work.packed_tests, judge_end, self.limits, self.deadline, partial=self.partial
                )
                if isinstance(judged, str):
                    return _score_stopped(judged, 0, work.n_tests)
                if not judged.is_supported:
                    return None
                if judged.stopped is not None:
                    stopped = _find_end_reason(cell) if judged.stopped == CLOSED else judged.stopped
                    return _score_stopped(stopped, judged.n_passed, work.n_tests)
        return Score(judged.n_passed, work.n_tests, judged.reason)

    def score_programs(self, work: ProgramTests) -> Score:
        """Scores a program by running it afresh on each input."""
        n_passed, reason = 0, PASSED
        for stdin, expected in zip(work.inputs, work.expected, strict=True):
            run_reason = self.run_program(stdin, expected)
            if run_reason == PASSED:
                n_passed += 1
                continue
            reason = run_reason if reason == PASSED else reason
            if not self.partial or run_reason in ("syntax error", "time limit"):
                break
        return Score(n_passed, len(work.inputs), reason)

    def run_program(self, stdin: str, expected: list[str]) -> str:
        """Runs the program on one input, compares its output with the expected lines and returns the reason."""
        output_bytes = max(self.limits.output_bytes, 2 * sum(map(len, expected)) + len(expected))
        limits = self.compute_remaining_limits()._replace(output_bytes=output_bytes)
        with self.sandbox.start_cell("candidate", self.write_job("program"), limits, stdin=stdin.encode()) as cell:
            ended = cell.wait(self.deadline)
            if ended.how != "exit":
                return _REASON_OF_END[ended.how]
            if ended.status != 0:
                return "syntax error" if ended.status == SYNTAX_STATUS else "crashed"
            return (
                PASSED if equals_expected_output(ended.output.decode("utf-8", "replace"), expected) else "tests failed"
            )

    def score_script(self, work: ScriptTests) -> Score:
        """Scores the candidate by test code that runs in a separate sandbox cell and calls the candidate's cell."""
        tests_job = write_json({**work._asdict(), "partial": self.partial})
        candidate_end, tests_end = socket.socketpair()
        with candidate_end, tests_end:
            cell = self.sandbox.start_cell(
                "candidate", self.write_job("serve"), self.compute_remaining_limits(), channel=candidate_end
            )
            limits = self.compute_remaining_limits()._replace(output_bytes=_REPORT_BYTES)
            with cell, self.sandbox.start_cell("tests", tests_job, limits, channel=tests_end) as tests:
                ended = tests.wait(self.deadline)
                reasons, stopped = _read_reports(ended.output)
                stopped = _REASON_OF_END.get(ended.how, stopped)
                if stopped == CLOSED:
                    stopped = _find_end_reason(cell)
        n_tests = max(work.n_tests, len(reasons))
        if stopped is not None:
            return _score_stopped(stopped, reasons.count(PASSED), n_tests)
        reason = next((test_reason for test_reason in reasons if test_reason != PASSED), PASSED)
        return Score(reasons.count(PASSED), len(reasons) if reason == PASSED else n_tests, reason)

    def compute_remaining_limits(self) -> Limits:
        """Returns the resource limits, with the time limit reduced to the time that remains."""
        return self.limits._replace(time_limit_s=max(0.01, self.deadline - time.monotonic()))


def _list_asked_names(plan: Plan) -> list[str]:
    """Returns the names that a candidate's code has to define, or none if it is a program."""
    if isinstance(plan.work, CallTests):
        return sorted({name for name, _, _ in plan.work.calls})
    return plan.work.remote if isinstance(plan.work, ScriptTests) else []


def _score_stopped(reason: str, n_passed: int, n_tests: int) -> Score:
    """Returns the score of a candidate that ended before its tests did.

    It is below full marks, and zero for one that cheats.
    """
    if reason in _UNPAID:
        return Score(0, n_tests, reason)
    return Score(n_passed, max(n_tests, n_passed + 1), reason)


def _read_reports(output: bytes) -> tuple[list[str], str | None]:
    """Parses the output of a test cell and returns each test's reason, and why the tests stopped early."""
    reasons: list[str] = []
    for line in output.splitlines():
        try:
            report = json.loads(line)
        except (ValueError, RecursionError):  # test code that wrote there itself
            return reasons, "crashed"
        match report:
            case ["test", passed, reason]:
                reasons.append(PASSED if passed else reason)
            case ["stopped", reason]:
                return reasons, str(reason)
            case ["done"]:
                return reasons, None
    return reasons, "crashed"


def _find_end_reason(cell: Cell) -> str:
    """Returns the reason why a sandbox cell that closed its channel has ended."""
    ended = cell.wait(time.monotonic() + _END_LIMIT_S)
    return _REASON_OF_END.get(ended.how, "exited early")
