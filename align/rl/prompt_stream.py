"""Draws the training prompts in order, as an endless stream whose state goes into checkpoints."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from qwen_align.align.errors import DataError
from qwen_align.align.generation.requests import RenderedProblem
from qwen_align.align.settings.online_rl import ByPassRate, ByVariance, PromptOrder


class PromptDraw(NamedTuple):
    """A prompt with its position in the prompt stream, counted from 0.

    Together they fix its completions' random numbers.
    """

    position: int
    rendered: RenderedProblem

    @property
    def request_id(self) -> str:
        """Returns the id of the prompt's generation request.

        The same problem at another position is sampled anew.
        """
        return f"{self.rendered.problem.id} at {self.position}"


@dataclass
class PromptStream:
    """An endless stream of training prompts that orders each pass over them as the settings say."""

    problems: Sequence[RenderedProblem]
    order: PromptOrder
    seed: int
    variances: Mapping[str, float] = field(default_factory=dict)  # of each prompt's rewards, for variance_first
    position: int = 0
    passes: int = 0
    left: list[int] = field(default_factory=list)  # indices of this pass's remaining prompts, the next one first
    pass_rates: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.order, ByPassRate) and self.order.pass_rate_column:
            column = self.order.pass_rate_column
            self.pass_rates = {each.problem.id: _read_pass_rate(each, column) for each in self.problems}

    def take_prompts(self, n: int) -> list[PromptDraw]:
        """Returns the next `n` prompts of the stream.

        The last ones of a pass are followed by the first ones of the next.
        """
        draws = []
        for _ in range(n):
            while not self.left:
                self.left = self._order_next_pass()
            draws.append(PromptDraw(self.position, self.problems[self.left.pop(0)]))
            self.position += 1
        return draws

    def record_pass_rate(self, problem_id: str, pass_rate: float) -> None:
        """Records the share of a prompt's completions that were right in the last step."""
        self.pass_rates[problem_id] = pass_rate

    def _order_next_pass(self) -> list[int]:
        """Returns the indices of the prompts of the next pass, in training order."""
        indices = list(range(len(self.problems)))
        number, self.passes = self.passes, self.passes + 1
        if isinstance(self.order, ByVariance):
            return sorted(indices, key=lambda index: -self.variances.get(self.problems[index].problem.id, 0.0))
        random.Random(f"{self.seed}:{number}").shuffle(indices)
        if isinstance(self.order, ByPassRate) and (number + 1) % self.order.retry_every:
            low, high = self.order.pass_rate_range
            rates = [self.pass_rates.get(self.problems[index].problem.id) for index in indices]
            kept = [index for index, rate in zip(indices, rates, strict=True) if rate is None or low <= rate <= high]
            return kept or indices  # when all are too easy or too hard, the pass is one that tries them again
        return indices

    def to_state(self) -> dict[str, Any]:
        """Returns the stream's position, pass and pass rates as a JSON object for a checkpoint."""
        return {
            "place": self.position,
            "passes": self.passes,
            "left": self.left,
            "pass_rates": self.pass_rates,
            "prompts": len(self.problems),
        }

    def restore_state(self, state: Mapping[str, Any]) -> None:
        """Restores the stream from the JSON object of a checkpoint.

        Raises DataError if it was taken with another number of prompts.
        """
        if state["prompts"] != len(self.problems):
            raise DataError(f"the checkpoint is of {state['prompts']} prompts, and there are {len(self.problems)} now")
        self.position, self.passes = state["place"], state["passes"]
        self.left, self.pass_rates = list(state["left"]), dict(state["pass_rates"])


def _read_pass_rate(rendered: RenderedProblem, column: str) -> float:
    """Reads a problem's pass rate from a column of its `meta`.

    Raises DataError if that holds no share.
    """
    value = rendered.problem.meta.get(column)
    if isinstance(value, Mapping) and value.get("n_judged"):  # what the pass_rate builder notes
        value = value["n_correct"] / value["n_judged"]
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise DataError(
            f"prompt_sampler.pass_rate_column: problem '{rendered.problem.id}': meta '{column}' is {value!r:.60}; "
            "wanted: a share from 0 to 1, or what the pass_rate builder notes"
        )
    return float(value)


def compute_reward_variances(rewards_by_prompt: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Returns the variance of the rewards of each prompt's completions."""
    variances = {}
    for prompt, rewards in rewards_by_prompt.items():
        mean = sum(rewards) / len(rewards)
        variances[prompt] = sum((reward - mean) ** 2 for reward in rewards) / len(rewards)
    return variances
