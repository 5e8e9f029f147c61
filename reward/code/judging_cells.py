"""Hands what a candidate returns to a cell that judges it, and takes the judgement back."""

import pickle
import socket
import time

from qwen_align.reward.code.judge_outcomes import Judgement, Request
from qwen_align.reward.code.sandbox import Cell, Limits, Sandbox, SandboxError
from qwen_align.reward.code.socket_frames import ClosedError, Frames, TooLateError
from qwen_align.reward.code.value_serialization import read_json

_LIFE_S = 1e6
"""Eleven days: a judging cell ends with its server, or by the deadline of one verdict."""
_ANSWER_S = 0.15  # beyond the deadline, at which the candidate is killed, for the cell to say that it has ended
_END_LIMIT_S = 0.2  # for the sandbox to report how a cell ended that has closed its channel


class JudgeEndedError(SandboxError):
    """Raised when a judging cell ends at work though it has not used up its memory, as by the machine's OOM killer."""


def judge_in_cell(
    sandbox: Sandbox,
    packed_tests: bytes,
    candidate: socket.socket,
    limits: Limits,
    deadline: float,
    *,
    partial: bool,
) -> Judgement | str:
    """Has a cell receive a candidate's records from its channel and evaluate the tests on them, until the deadline.

    Returns the judgement, or the reason why judging took too much: "time limit" or "memory limit". Raises SandboxError
    if the sandbox ends.
    """
    request = Request(packed_tests, partial)
    body = pickle.dumps(tuple(request))
    cell = _start_request(sandbox, candidate, body, limits, deadline)
    try:
        has_grown, *fields = read_json(Frames(cell.channel, deadline + _ANSWER_S).receive_frame())
    except TooLateError:
        cell.kill()
        return "time limit"
    except ClosedError:
        ended = cell.wait(time.monotonic() + _END_LIMIT_S)
        if ended.how == "memory limit":
            return "memory limit"
        raise JudgeEndedError("a cell that judges candidates ended at work") from None
    if has_grown:
        cell.kill()
    else:
        sandbox.idle_judges.setdefault(limits.memory_mib, []).append(cell)
    return Judgement(*fields)


def _start_request(sandbox: Sandbox, candidate: socket.socket, body: bytes, limits: Limits, deadline: float) -> Cell:
    """Sends a candidate's channel and the request to a judging cell that is idle, or to a new one."""
    while True:
        try:
            cell, is_new = sandbox.idle_judges.get(limits.memory_mib, []).pop(), False
        except IndexError:
            cell, is_new = sandbox.start_cell("judge", b"", Limits(_LIFE_S, limits.memory_mib)), True
        try:
            Frames(cell.channel, deadline).send_frame_with_file(body, candidate.fileno())
            return cell
        except (ClosedError, TooLateError, OSError):
            cell.kill()
            if is_new:
                raise SandboxError("a cell that judges candidates ended before its first") from None
