"""The base class of every reward, with its settings, judging methods, machine checks and audit probes."""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from qwen_align.align.rows import Completion
from qwen_align.align.settings.base import Strict
from qwen_align.reward.verdict import Verdict, is_right_value

JUDGED_TOGETHER = 1024  # completions, so that rewards that wait for processes keep all cores busy
_n_judging = 1
UNJUDGED = Verdict(value=None, reason="batch deadline")


class Probe(NamedTuple):
    """A completion that an audit shows to a reward, with the expected outcome.

    `pays` says whether a sound reward pays it, which is to give a value above 0.
    """

    name: str
    completion: str | Completion
    gold: Any
    pays: bool


class BaseReward(Strict, ABC):
    """The base class of all rewards, which holds a reward's settings and judges completions.

    An outcome says whether the task was done, 1.0 for right and 0.0 for wrong, between them for partly; shaping
    rewards say how it was done. Their sum is `combine.judge_all`'s business.
    """

    role: ClassVar[Literal["outcome", "shaping"]] = "outcome"
    needs_outcome: ClassVar[bool] = False
    """Whether `completion.verdicts` must hold the verdicts of the outcome rewards, and of no others: see `is_right`."""
    needs_tokens: ClassVar[bool] = False
    """Whether the verdict depends on `completion.n_tokens`."""

    judges_gold: ClassVar[bool] = False
    """Whether the reward judges against golds of a form of its own, so that rows name it."""

    kind: str
    weight: float = Field(
        default=1.0, ge=-1e6, le=1e6, description="what this reward's value is multiplied with before rewards are added"
    )  # beyond the bounds sums would lose what they add
    gate: bool = Field(False, description="no outcome reward is paid unless this reward's value is at least 1")

    @property
    def is_outcome(self) -> bool:
        """Returns whether the reward judges if the task was solved (outcome) instead of how (shaping)."""
        return self.role == "outcome"

    @property
    def bound(self) -> float:
        """Returns the largest absolute value that the reward can give."""
        return 1.0

    @property
    def label(self) -> str:
        """Returns the name under which the reward's verdicts are stored."""
        return self.kind

    @abstractmethod
    def judge(self, completion: str | Completion, gold: Any = None) -> Verdict:
        """Judges one completion against a gold, by default the completion's own, and returns the verdict.

        Safe in any thread.
        """

    def judge_group(self, group: Sequence[Completion]) -> list[Verdict]:
        """Judges all completions of one prompt in one mode and returns their verdicts."""
        return [self.judge(completion) for completion in group]

    def judge_many(self, completions: Sequence[Completion], *, deadline: float | None = None) -> list[Verdict]:
        """Judges completions of any prompts and returns their verdicts in the same order.

        `deadline` is a `time.monotonic()`; what is not judged by then has no verdict (`UNJUDGED`).
        """
        groups: dict[tuple[str, str | None], list[int]] = {}
        for index, completion in enumerate(completions):
            groups.setdefault((completion.prompt_id, completion.mode), []).append(index)
        verdicts = [UNJUDGED] * len(completions)
        for indices in groups.values():
            if deadline is not None and time.monotonic() > deadline:
                break
            for index, verdict in zip(indices, self.judge_group([completions[i] for i in indices]), strict=True):
                verdicts[index] = verdict
        return verdicts

    def judge_gold(self, gold: Any) -> Verdict:
        """Judges a completion that states exactly the gold answer.

        Any verdict other than 1.0 makes the gold unusable.
        """
        return Verdict(value=1.0, reason="needs no gold")

    def is_solved(self, verdict: Verdict) -> bool | None:
        """Returns whether a verdict of this reward says that the task was solved.

        Returns None if the reward cannot tell.
        """
        return None if verdict.value is None or not self.is_outcome else is_right_value(verdict.value)

    def check_machine(self) -> None:
        """Raises RecipeError if this machine or the reward's settings make verdicts impossible."""

    def warm_up(self) -> None:
        """Starts in advance what the first verdict would otherwise wait for, such as worker processes."""

    def probes(self) -> list[Probe]:
        """Returns right and adversarial completions of the reward's domain, for `qwen-align audit reward`."""
        return []


def is_right(completion: str | Completion) -> bool | None:
    """Returns whether all outcome rewards judged a completion right.

    Returns None if one gave no verdict, or if there are none.
    """
    verdicts = {} if isinstance(completion, str) else completion.verdicts
    values = [verdict.value for verdict in verdicts.values()]
    if not values or None in values:
        return None
    return all(is_right_value(value) for value in values if value is not None)


def judge_in_threads(
    judge: Callable[[Completion], Verdict], completions: Sequence[Completion], deadline: float | None
) -> list[Verdict]:
    """Judges completions in parallel threads, one for each processor core, and returns the verdicts in order."""

    def judge_unless_late(completion: Completion) -> Verdict:
        is_late = deadline is not None and time.monotonic() > deadline
        return UNJUDGED if is_late else judge(completion)

    futures = [_get_thread_pool(os.getpid()).submit(judge_unless_late, row) for row in completions]
    wait(futures, None if deadline is None else max(0.0, deadline - time.monotonic()))
    return [future.result() if future.done() else UNJUDGED for future in futures]


@cache
def _get_thread_pool(pid: int) -> ThreadPoolExecutor:
    """Returns the thread pool that belongs to a process id.

    A forked child gets its own, because threads do not survive a fork.
    """
    return ThreadPoolExecutor(count_cores(), thread_name_prefix="reward")


def count_cores() -> int:
    """Returns how many processor cores this process may use: its share where it judges beside others on its machine."""
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, n_cores // _n_judging)


def share_cores(n_processes: int) -> None:
    """Tells rewards that so many processes on this machine judge at once. Called before anything is judged."""
    global _n_judging
    _n_judging = n_processes
