"""Judges completions in threads while later completions are still being sampled."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from qwen_align.align.errors import StageError
from qwen_align.align.rows import Completion
from qwen_align.reward.base import count_cores
from qwen_align.reward.verdict import Verdict


class JudgedCompletion(NamedTuple):
    """A completion with its verdict.

    The verdict's value is None where the reward could not judge it.
    """

    completion: Completion
    verdict: Verdict


class Judge:
    """A thread pool that judges groups of completions, with one thread per core.

    `verdicts` gives one verdict for each completion of a prompt. What may hang, or runs a model's code, waits there in
    a process that the reward kills at its limit.
    """

    def __init__(self, verdicts: Callable[[list[Completion]], list[Verdict]]) -> None:
        self._verdicts = verdicts
        self._threads: ThreadPoolExecutor | None = None

    def submit_group(self, group: Sequence[Completion]) -> "Future[list[JudgedCompletion]]":
        """Starts judging all completions of a prompt and returns the future of their verdicts."""
        if self._threads is None:  # not before: threads do not survive a fork
            self._threads = ThreadPoolExecutor(count_cores(), thread_name_prefix="judge")
        return self._threads.submit(self._judge_group, list(group))

    def _judge_group(self, group: list[Completion]) -> list[JudgedCompletion]:
        """Judges the completions of a prompt and returns them with their verdicts."""
        verdicts = self._verdicts(group)
        if len(verdicts) != len(group):
            raise StageError(
                f"rewards: {len(verdicts)} verdicts for {len(group)} completions of '{group[0].prompt_id}'"
            )
        return [JudgedCompletion(completion, verdict) for completion, verdict in zip(group, verdicts, strict=True)]
