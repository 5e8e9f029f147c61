"""Judging beside generation: a group is judged as soon as it is whole, while later ones are still being drawn."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from qwen_align.align.errors import StageError
from qwen_align.align.rows import Completion
from qwen_align.reward.base import count_cores
from qwen_align.reward.verdict import Verdict


class Judged(NamedTuple):
    """A completion and what it is worth; a value of None is no verdict."""

    row: Completion
    verdict: Verdict


class Judge:
    """Judges groups in threads, as many as there are cores.

    `verdicts` gives one verdict for each completion of a prompt. What may hang, or runs a model's code, waits there in
    a process that the reward kills at its limit.
    """

    def __init__(self, verdicts: Callable[[list[Completion]], list[Verdict]]) -> None:
        self._verdicts = verdicts
        self._threads: ThreadPoolExecutor | None = None

    def submit(self, group: Sequence[Completion]) -> "Future[list[Judged]]":
        """The verdicts on all completions of one prompt, when they are there."""
        if self._threads is None:  # not before: threads do not survive a fork
            self._threads = ThreadPoolExecutor(count_cores(), thread_name_prefix="judge")
        return self._threads.submit(self._judge, list(group))

    def _judge(self, group: list[Completion]) -> list[Judged]:
        verdicts = self._verdicts(group)
        if len(verdicts) != len(group):
            raise StageError(
                f"rewards: {len(verdicts)} verdicts for {len(group)} completions of '{group[0].prompt_id}'"
            )
        return [Judged(row, verdict) for row, verdict in zip(group, verdicts, strict=True)]


def check_judged(judged: Sequence[Judged], where: str) -> None:
    """Raises StageError when not one completion has a verdict: training would go on and learn nothing."""
    if judged and all(one.verdict.value is None for one in judged):
        (reason, n), *_ = Counter(one.verdict.reason for one in judged).most_common()
        raise StageError(
            f"{where}: none of {len(judged)} completions has a verdict; the most frequent reason: {reason} ({n}). "
            "Mend the reward, or the golds it cannot use"
        )
