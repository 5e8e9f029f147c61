"""Numbers that follow what a run shows: the KL's and the entropy's coefficient, the scale of rewards.

Each is a small state that a checkpoint holds as JSON.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from qwen_align.align.settings.online_rl import Entropy, Kl

MOST_ERROR = 0.2  # arXiv:1909.08593, section 2.2: how far off the target counts at most


class CheckpointState:
    """Dataclasses whose fields go into a checkpoint as JSON and back."""

    def to_state(self) -> dict[str, Any]:
        """Returns the fields as JSON."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    def restore_state(self, state: dict[str, Any]) -> None:
        """Sets the fields to those of a checkpoint."""
        for each in fields(self):  # type: ignore[arg-type]
            setattr(self, each.name, state[each.name])


@dataclass
class KlCoefficient(CheckpointState):
    """The KL penalty's coefficient: fixed, or adapted to a target KL by at most a fifth of `n / horizon` a step."""

    value: float

    @classmethod
    def from_settings(cls, settings: Kl | None) -> Self:
        return cls(settings.coefficient if settings else 0.0)

    def adapt(self, settings: Kl | None, kl: float, n_completions: int) -> None:
        """Adapts the coefficient after a step whose completions were `kl` nats each from the reference, on average."""
        if settings and settings.target is not None:
            error = max(-MOST_ERROR, min(MOST_ERROR, kl / settings.target - 1))
            self.value *= 1 + error * n_completions / settings.horizon


@dataclass
class EntropyCoefficient(CheckpointState):
    """The entropy bonus's coefficient: fixed, or paid and growing only while the entropy is at or below a target."""

    value: float
    is_paid: bool = True

    @classmethod
    def from_settings(cls, settings: Entropy | None) -> Self:
        return cls(settings.coefficient if settings else 0.0)

    @property
    def effective_value(self) -> float:
        """The coefficient in the next update, 0 while the bonus is not paid."""
        return self.value if self.is_paid else 0.0

    def adapt(self, settings: Entropy | None, entropy: float) -> None:
        """Adapts the coefficient after an update whose tokens had this mean entropy, in nats."""
        if settings and settings.target is not None:
            self.is_paid = entropy <= settings.target
            changed = self.value + (settings.coefficient_delta if self.is_paid else -settings.coefficient_delta)
            self.value = max(
                0.0, min(changed, math.inf if settings.max_coefficient is None else settings.max_coefficient)
            )


@dataclass
class RewardScale(CheckpointState):
    """Running mean and deviation of all rewards so far (Chan, Golub and LeVeque's update, doi:10.2307/2683386)."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0  # summed squared distances from the mean

    def add_rewards(self, rewards: Iterable[float]) -> None:
        """Takes a step's rewards into mean and deviation."""
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
        """The sample standard deviation; 1 until there are two rewards that differ."""
        return math.sqrt(self.squares / (self.n - 1)) if self.n > 1 and self.squares > 0 else 1.0

    def normalise_reward(self, reward: float, how: str) -> float:
        """Returns the reward as it is, minus the running mean, or also over the running deviation."""
        if how == "none":
            return reward
        return (reward - self.mean) / (self.deviation if how == "running_mean_std" else 1.0)
