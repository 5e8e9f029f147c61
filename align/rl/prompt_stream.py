"""The prompts of a run in the order they are played: a stream without end that can be stopped and gone on with."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from qwen_align.align.errors import DataError
from qwen_align.align.generation.requests import Asked
from qwen_align.align.settings.online_rl import ByPassRate, ByVariance, PromptOrder


class Drawn(NamedTuple):
    """A prompt at its place in the stream, counted from 0: together they name a group's random numbers."""

    place: int
    asked: Asked

    @property
    def name(self) -> str:
        """The request's id; the same problem at another place is another draw."""
        return f"{self.asked.problem.id} at {self.place}"


@dataclass
class PromptStream:
    """Passes over the prompts, one after another, each in the order that `order` says."""

    asked: Sequence[Asked]
    order: PromptOrder
    seed: int
    variances: Mapping[str, float] = field(default_factory=dict)  # of each prompt's rewards, for variance_first
    place: int = 0
    passes: int = 0
    left: list[int] = field(default_factory=list)  # numbers of prompts, the next one first
    pass_rates: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.order, ByPassRate) and self.order.pass_rate_column:
            self.pass_rates = {one.problem.id: _noted_rate(one, self.order.pass_rate_column) for one in self.asked}

    def take(self, n: int) -> list[Drawn]:
        """The next `n` prompts; the last ones of a pass are followed by the first ones of the next."""
        drawn = []
        for _ in range(n):
            while not self.left:
                self.left = self._next_pass()
            drawn.append(Drawn(self.place, self.asked[self.left.pop(0)]))
            self.place += 1
        return drawn

    def note(self, problem_id: str, pass_rate: float) -> None:
        """What share of a prompt's completions was right this time."""
        self.pass_rates[problem_id] = pass_rate

    def _next_pass(self) -> list[int]:
        numbers = list(range(len(self.asked)))
        number, self.passes = self.passes, self.passes + 1
        if isinstance(self.order, ByVariance):
            return sorted(numbers, key=lambda one: -self.variances.get(self.asked[one].problem.id, 0.0))
        random.Random(f"{self.seed}:{number}").shuffle(numbers)
        if isinstance(self.order, ByPassRate) and (number + 1) % self.order.retry_every:
            low, high = self.order.pass_rate_range
            rates = [self.pass_rates.get(self.asked[one].problem.id) for one in numbers]
            kept = [one for one, rate in zip(numbers, rates, strict=True) if rate is None or low <= rate <= high]
            return kept or numbers  # when all are too easy or too hard, the pass is one that tries them again
        return numbers

    def state(self) -> dict[str, Any]:
        """Where the stream stands, as JSON."""
        return {
            "place": self.place,
            "passes": self.passes,
            "left": self.left,
            "pass_rates": self.pass_rates,
            "prompts": len(self.asked),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state` was taken; raises DataError if that was over other prompts."""
        if state["prompts"] != len(self.asked):
            raise DataError(f"the checkpoint is of {state['prompts']} prompts, and there are {len(self.asked)} now")
        self.place, self.passes = state["place"], state["passes"]
        self.left, self.pass_rates = list(state["left"]), dict(state["pass_rates"])


def _noted_rate(one: Asked, column: str) -> float:
    found = one.problem.meta.get(column)
    if isinstance(found, Mapping) and found.get("n_judged"):  # what the pass_rate builder notes
        found = found["n_correct"] / found["n_judged"]
    if not isinstance(found, int | float) or isinstance(found, bool) or not 0 <= found <= 1:
        raise DataError(
            f"prompt_sampler.pass_rate_column: problem '{one.problem.id}': meta '{column}' is {found!r:.60}; "
            "wanted: a share from 0 to 1, or what the pass_rate builder notes"
        )
    return float(found)


def variances(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The variance of each prompt's rewards, over all of its completions."""
    found = {}
    for prompt, rewards in values.items():
        mean = sum(rewards) / len(rewards)
        found[prompt] = sum((one - mean) ** 2 for one in rewards) / len(rewards)
    return found
