"""Reads solutions from traces, chats, labelled answers and completions, and splits them into steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

from qwen_align.align.errors import DataError
from qwen_align.align.rows import Chat, Completion, Labelled, Message, Row, RowError, Trace
from qwen_align.data_builders.rollout_completions import get_verdict_value
from qwen_align.data_builders.sieve import Sources
from qwen_align.reward.settings import Reward, make_default_reward
from qwen_align.reward.thinking import strip_thinking

STEP_BREAK = "\n\n"  # Qwen2.5-Math-PRM (arXiv:2501.07301) splits there; GSM8K's and Math-Shepherd's steps are lines


class Solution(NamedTuple):
    """A solution of a question.

    `is_right` says whether its answer is correct, None if unknown.
    """

    id: str
    messages: list[Message]
    text: str
    gold: Any
    is_right: bool | None
    source: str
    meta: dict[str, Any]

    def split_steps(self, step_break: str) -> list[str]:
        """Splits the solution's text into steps at the given separator.

        None is blank; white space around a step goes.
        """
        return [step for part in self.text.split(step_break) if (step := part.strip())]


def read_solutions(
    sources: Sources, stage: str, reward: str | None = None, correct_from: float = 1.0
) -> list[Solution]:
    """Reads the solutions in a stage's rows in order, each with an id of its own.

    Raises RowError for rows that hold none. With `reward`, completions are right by its verdict and traces by judging
    their answers; labelled rows by their label; chats are not judged. Of a completion and a trace it is the answer, not
    the thinking, that is cut into steps.
    """

    def is_row_right(row: Completion | Trace) -> bool | None:
        if reward is None:
            return None
        if isinstance(row, Completion):
            value = get_verdict_value(row, reward)
        else:
            value = _get_reward(row).judge(row.answer, row.gold).value
        return None if value is None else value >= correct_from

    solution_of_id: dict[str, Solution] = {}
    for row in sources[stage]():
        if row.id in solution_of_id:
            raise RowError(f"stage '{stage}': id '{row.id}' occurs twice; every solution needs its own")
        solution_of_id[row.id] = _make_solution(row, stage, is_row_right)
    return list(solution_of_id.values())


def _get_reward(row: Trace) -> Reward:
    """Returns the reward that a trace names. Raises DataError if it is not one that can be made here."""
    try:
        return make_default_reward(row.reward)
    except ValueError as error:
        advice = "let it judge completions in a rollout, and read those"
        raise DataError(f"row '{row.id}': reward: {error}; {advice}") from None


def _make_solution(row: Row, stage: str, is_right: Callable[[Completion | Trace], bool | None]) -> Solution:
    """Makes a solution of a data row. Raises RowError for a row without one."""
    if isinstance(row, Completion):
        answer = strip_thinking(row.text) or ""
        return Solution(row.id, row.prompt, answer, row.gold, is_right(row), row.source, row.meta)
    if isinstance(row, Trace):
        return Solution(row.id, row.messages, row.answer, row.gold, is_right(row), row.source, row.meta)
    if isinstance(row, Labelled):
        return Solution(row.id, row.messages, row.completion.content, None, row.label, row.source, row.meta)
    if isinstance(row, Chat) and row.messages[-1].role == "assistant":
        *messages, reply = row.messages
        return Solution(row.id, messages, reply.content, None, None, row.source, row.meta)
    raise RowError(
        f"stage '{stage}': row '{row.id}' is a {row.row} row without a solution; traces, labelled rows, completions "
        "and chats that end with an answer have one"
    )
