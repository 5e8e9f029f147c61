"""Numbers that follow what a run shows: the KL's and the entropy's coefficient, the scale of rewards.

Each is a small state that a checkpoint holds as JSON.
"""

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from qwen_align.align.settings.online_rl import Entropy, Kl

MOST_ERROR = 0.2  # arXiv:1909.08593, section 2.2: how far off the target counts at most


class State:
    """State as JSON and back."""

    def state(self) -> dict[str, Any]:
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    def restore(self, state: dict[str, Any]) -> None:
        for one in fields(self):  # type: ignore[arg-type]
            setattr(self, one.name, state[one.name])


@dataclass
class KlCoefficient(State):
    """Fixed, or following a target: up by at most a fifth of `n / horizon` when the KL is above it, down when below."""

    value: float

    @classmethod
    def of(cls, settings: Kl | None) -> Self:
        return cls(settings.coefficient if settings else 0.0)

    def follow(self, settings: Kl | None, kl: float, n_completions: int) -> None:
        """After a step whose completions were `kl` nats each from the reference, on average."""
        if settings and settings.target is not None:
            error = max(-MOST_ERROR, min(MOST_ERROR, kl / settings.target - 1))
            self.value *= 1 + error * n_completions / settings.horizon


@dataclass
class EntropyCoefficient(State):
    """Fixed, or paid only at low entropy and growing there."""

    value: float
    is_paid: bool = True

    @classmethod
    def of(cls, settings: Entropy | None) -> Self:
        return cls(settings.coefficient if settings else 0.0)

    @property
    def paid(self) -> float:
        """What the bonus is multiplied with in the next update."""
        return self.value if self.is_paid else 0.0

    def follow(self, settings: Entropy | None, entropy: float) -> None:
        """After an update whose tokens had this mean entropy, in nats."""
        if settings and settings.target is not None:
            self.is_paid = entropy <= settings.target
            changed = self.value + (settings.coefficient_delta if self.is_paid else -settings.coefficient_delta)
            self.value = max(
                0.0, min(changed, math.inf if settings.max_coefficient is None else settings.max_coefficient)
            )


@dataclass
class RewardScale(State):
    """Mean and deviation of all rewards so far (Chan, Golub and LeVeque's update, doi:10.2307/2683386)."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0  # summed squared distances from the mean

    def add(self, rewards: Iterable[float]) -> None:
        values = list(rewards)
        if not values:
            return
        mean = math.fsum(values) / len(values)
        squares = math.fsum((value - mean) ** 2 for value in values)
        whole, apart = self.n + len(values), mean - self.mean
        self.squares += squares + apart * apart * self.n * len(values) / whole
        self.mean += apart * len(values) / whole
        self.n = whole

    @property
    def deviation(self) -> float:
        """Of a sample; 1 until there are two rewards that differ."""
        return math.sqrt(self.squares / (self.n - 1)) if self.n > 1 and self.squares > 0 else 1.0

    def normalise(self, reward: float, how: str) -> float:
        if how == "none":
            return reward
        return (reward - self.mean) / (self.deviation if how == "running_mean_std" else 1.0)
