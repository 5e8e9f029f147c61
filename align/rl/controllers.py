"""Adapts the KL coefficient, the entropy coefficient and the reward scale during training.

Each is a small state that a checkpoint holds as JSON.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from qwen_align.align.settings.online_rl import Entropy, Kl

MOST_ERROR = 0.2  # arXiv:1909.08593, section 2.2: how far off the target counts at most


class CheckpointState:
    """A base class of dataclasses whose fields are saved in a checkpoint as JSON."""

    def to_state(self) -> dict[str, Any]:
        """Returns the dataclass's fields as a JSON object for a checkpoint."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    def restore_state(self, state: dict[str, Any]) -> None:
        """Restores the dataclass's fields from a checkpoint's JSON object."""
        for each in fields(self):  # type: ignore[arg-type]
            setattr(self, each.name, state[each.name])


@dataclass
class KlCoefficient(CheckpointState):
    """The coefficient of the KL penalty, which is fixed or adapted to a target KL.

    A step changes it by at most a fifth of `n / horizon`.
    """

    value: float

    @classmethod
    def from_settings(cls, settings: Kl | None) -> Self:
        return cls(settings.coefficient if settings else 0.0)

    def adapt(self, settings: Kl | None, kl: float, n_completions: int) -> None:
        """Adapts the coefficient to a step's mean KL from the reference policy, in nats per completion."""
        if settings and settings.target is not None:
            error = max(-MOST_ERROR, min(MOST_ERROR, kl / settings.target - 1))
            self.value *= 1 + error * n_completions / settings.horizon


@dataclass
class EntropyCoefficient(CheckpointState):
    """The coefficient of the entropy bonus, which is fixed or adapted to a target entropy.

    With a target the bonus is paid, and its coefficient grows, only while the entropy is at or below it.
    """

    value: float
    is_paid: bool = True

    @classmethod
    def from_settings(cls, settings: Entropy | None) -> Self:
        return cls(settings.coefficient if settings else 0.0)

    @property
    def effective_value(self) -> float:
        """Returns the coefficient for the next update.

        It is 0 while the bonus is not paid.
        """
        return self.value if self.is_paid else 0.0

    def adapt(self, settings: Entropy | None, entropy: float) -> None:
        """Adapts the coefficient to an update's mean entropy, in nats per token."""
        if settings and settings.target is not None:
            self.is_paid = entropy <= settings.target
            changed = self.value + (settings.coefficient_delta if self.is_paid else -settings.coefficient_delta)
            self.value = max(
                0.0, min(changed, math.inf if settings.max_coefficient is None else settings.max_coefficient)
            )


@dataclass
class RewardScale(CheckpointState):
    """The running mean and standard deviation of all rewards of a run.

    Chan, Golub and LeVeque's update, doi:10.2307/2683386.
    """

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0  # summed squared distances from the mean

    def add_rewards(self, rewards: Iterable[float]) -> None:
        """Updates the running mean and deviation with the rewards of a step."""
        values = list(rewards)
        if not values:
            return
        mean = math.fsum(values) / len(values)
        squares = math.fsum((value - mean) ** 2 for value in values)
        total, difference = self.n + len(values), mean - self.mean
        self.squares += squares + difference * difference * self.n * len(values) / total
        self.mean += difference * len(values) / total
        self.n = total

    @property
    def deviation(self) -> float:
        """Returns the sample standard deviation of the rewards so far.

        It is 1 until there are two rewards that differ.
        """
        return math.sqrt(self.squares / (self.n - 1)) if self.n > 1 and self.squares > 0 else 1.0

    def normalise_reward(self, reward: float, how: str) -> float:
        """Normalises a reward by the running mean and deviation, as `how` says.

        With "none" it is unchanged; the mean is subtracted in every other case, and with "running_mean_std" the
        difference is divided by the deviation.
        """
        if how == "none":
            return reward
        return (reward - self.mean) / (self.deviation if how == "running_mean_std" else 1.0)
