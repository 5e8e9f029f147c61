"""What every reward is: its settings, and `judge`."""

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from qwen_align.align.rows import Completion
from qwen_align.align.settings.base import Strict
from qwen_align.reward.verdict import Verdict

JUDGED_TOGETHER = 1024  # completions, so that rewards that wait for processes keep all cores busy
UNJUDGED = Verdict(value=None, reason="batch deadline")


class Probe(NamedTuple):
    """A completion an audit shows to a reward; `pays` says whether a sound reward pays it (a value above 0)."""

    name: str
    completion: str | Completion
    gold: Any
    pays: bool


class BaseReward(Strict, ABC):
    """The settings of a reward, which judges completions.

    An outcome says whether the task was done, 1.0 for right and 0.0 for wrong, between them for partly; shaping
    rewards say how it was done. Their sum is `combine.judge_all`'s business.
    """

    role: ClassVar[Literal["outcome", "shaping"]] = "outcome"
    needs_outcome: ClassVar[bool] = False
    """Whether `completion.verdicts` must hold the verdicts of the outcomes, and of nothing else: see `is_right`."""
    needs_tokens: ClassVar[bool] = False
    """Whether the verdict depends on `completion.n_tokens`."""

    kind: str
    weight: Annotated[float, Field(ge=-1e6, le=1e6)] = 1.0  # beyond it sums would lose what they add
    gate: bool = Field(False, description="no outcome is paid unless this reward's value is 1")

    @property
    def is_outcome(self) -> bool:
        return self.role == "outcome"

    @property
    def bound(self) -> float:
        """The largest absolute value `judge` can give."""
        return 1.0

    @property
    def label(self) -> str:
        """The name verdicts are kept by."""
        return self.kind

    @abstractmethod
    def judge(self, completion: str | Completion, gold: Any = None) -> Verdict:
        """The verdict on one completion; without `gold`, against the completion's own. Safe in any thread."""

    def judge_group(self, group: Sequence[Completion]) -> list[Verdict]:
        """The verdicts on all completions of one prompt in one mode."""
        return [self.judge(one) for one in group]

    def judge_many(self, completions: Sequence[Completion], *, deadline: float | None = None) -> list[Verdict]:
        """The verdicts on completions of any prompts, in their order.

        `deadline` is a `time.monotonic()`; what is not judged by then has no verdict (`UNJUDGED`).
        """
        groups: dict[tuple[str, str | None], list[int]] = {}
        for place, one in enumerate(completions):
            groups.setdefault((one.prompt_id, one.mode), []).append(place)
        verdicts = [UNJUDGED] * len(completions)
        for places in groups.values():
            if deadline is not None and time.monotonic() > deadline:
                break
            for place, verdict in zip(places, self.judge_group([completions[p] for p in places]), strict=True):
                verdicts[place] = verdict
        return verdicts

    def judge_gold(self, gold: Any) -> Verdict:
        """The verdict on a completion that says exactly the gold: anything but 1.0 makes the gold unusable."""
        return Verdict(value=1.0, reason="needs no gold")

    def solved(self, verdict: Verdict) -> bool | None:
        """Whether a verdict of this reward says that the task was done; None where it does not speak of that."""
        return None if verdict.value is None or not self.is_outcome else verdict.value >= 1.0

    def check_here(self) -> None:
        """Raises RecipeError where this machine or the reward's settings make verdicts impossible."""

    def warm(self) -> None:
        """Start now what the first verdict would have to wait for."""

    def probes(self) -> list[Probe]:
        """Completions of the reward's own domain, golden and adversarial, for `qwen-align audit reward`."""
        return []


def is_right(completion: str | Completion) -> bool | None:
    """Whether every outcome says so, None where no outcome has judged or one of them has no verdict."""
    verdicts = {} if isinstance(completion, str) else completion.verdicts
    values = [verdict.value for verdict in verdicts.values()]
    if not values or None in values:
        return None
    return all(value >= 1.0 for value in values if value is not None)


def in_threads(
    judge: Callable[[Completion], Verdict], completions: Sequence[Completion], deadline: float | None
) -> list[Verdict]:
    """Verdicts of a `judge` that waits for a process, as many at a time as there are cores, in order."""

    def unless_late(one: Completion) -> Verdict:
        late = deadline is not None and time.monotonic() > deadline
        return UNJUDGED if late else judge(one)

    futures = [_threads(os.getpid()).submit(unless_late, one) for one in completions]
    wait(futures, None if deadline is None else max(0.0, deadline - time.monotonic()))
    return [future.result() if future.done() else UNJUDGED for future in futures]


@cache
def _threads(pid: int) -> ThreadPoolExecutor:
    """One pool a process: threads do not survive a fork."""
    return ThreadPoolExecutor(cores(), thread_name_prefix="reward")


def cores() -> int:
    """The processor cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
