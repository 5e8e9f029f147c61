"""Watchdogs: what a run's figures say is going wrong, with the likely cause and the setting to change."""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from qwen_align.align.errors import StageError
from qwen_align.align.settings.online_rl import Watch, Watchdog

FIRST_STEPS = 5  # steps whose mean later ones are compared with
SAID_AGAIN_AFTER = 50  # steps for which a watchdog that has barked is quiet


class Bark(NamedTuple):
    """One warning."""

    watchdog: Watchdog
    step: int
    message: str


# What a step tells the watchdogs, by the names that metrics.jsonl has.
Figures = dict[str, float]


@dataclass
class Watchdogs:
    """Looks at every step's figures; `state` goes into checkpoints."""

    settings: Watch
    rows: dict[str, int] = field(default_factory=dict)  # steps in a row that agree
    said: dict[str, int] = field(default_factory=dict)  # the step of the last bark
    first: dict[str, list[float]] = field(default_factory=dict)
    rewards: deque[float] = field(default_factory=lambda: deque(maxlen=FIRST_STEPS))
    best: dict[str, Any] | None = None  # held-out accuracy at its best, with the reward then

    def look(self, step: int, figures: Figures) -> list[Bark]:
        """The warnings after a step; raises StageError for what is no number and for watchdogs told to stop."""
        self.check_numbers(step, figures)
        settings = self.settings
        self.rewards.append(figures["reward"])
        for name in ("entropy", "completions/mean_tokens"):
            if name in figures and len(self.first.setdefault(name, [])) < FIRST_STEPS:
                self.first[name].append(figures[name])
        clipped, no_signal = figures["completions/clipped_share"], figures["groups/no_signal_share"]
        no_verdict = figures["completions/no_verdict_share"]
        barks = [
            self._bark(
                "truncated",
                step,
                clipped > settings.truncated_share,
                f"{clipped:.0%} of the completions were cut at max_tokens, and a cut one seldom holds its answer. "
                "Raise sampling.max_tokens; if the model never stops, see whether its end token is the template's",
            ),
            self._bark(
                "no_signal",
                step,
                no_signal > settings.no_signal_share,
                f"in {no_signal:.0%} of the groups all rewards are equal, which trains nothing: the prompts are too "
                f"{'easy' if figures['reward'] > 0.5 else 'hard'}, or the reward sees no answer. Take prompts that are "
                "solved sometimes (pass_rate), more completions_per_prompt, or dynamic_sampling",
            ),
            self._bark(
                "no_verdict",
                step,
                no_verdict > settings.no_verdict_share,
                f"{no_verdict:.0%} of the completions have no verdict: golds the reward cannot use, or a reward that "
                "fails; samples.jsonl has the reasons",
            ),
            self._low_entropy(step, figures),
            self._length(step, figures),
            self._bark(
                "update_kl",
                step,
                figures.get("policy/kl", 0.0) > settings.update_kl,
                f"after its updates the policy is {figures.get('policy/kl', 0.0):.2g} nats a token from the one that "
                "drew. Lower learning_rate, or make fewer updates of a batch",
            ),
            self._bark(
                "engine_mismatch",
                step,
                figures.get("mismatch/mean", 0.0) > settings.engine_mismatch,
                f"engine and trainer differ by {figures.get('mismatch/mean', 0.0):.2g} nats a token on the same text: "
                "other precision or kernels, or weights that did not arrive. "
                "Set importance_sampling_correction, or sample in fp32",
            ),
            self._bark(
                "skipped",
                step,
                figures.get("skipped", 0.0) > 0,
                "not one group had a signal, so nothing was trained. Take prompts that are solved sometimes",
            ),
        ]
        return self._stopping([bark for bark in barks if bark])

    def look_held_out(self, step: int, accuracy: float, stderr: float) -> list[Bark]:
        """The warning after an evaluation beside training, if there is one to give."""
        reward = sum(self.rewards) / len(self.rewards) if self.rewards else -math.inf
        if self.best is None or accuracy >= self.best["accuracy"]:
            self.best = {"accuracy": accuracy, "stderr": stderr, "reward": reward, "step": step}
            return []
        error = math.hypot(stderr, self.best["stderr"])
        fell = self.best["accuracy"] - accuracy > self.settings.held_out_fall * error
        bark = self._bark(
            "held_out",
            step,
            fell and reward > self.best["reward"],
            f"the reward rises ({self.best['reward']:.3g} to {reward:.3g}) while held-out accuracy falls "
            f"({self.best['accuracy']:.1%} at step {self.best['step']} to {accuracy:.1%}): the policy learns the "
            "reward and not the task. Read samples.jsonl, run `qwen-align audit reward`, stop earlier or add a kl",
            patience=1,
        )
        return self._stopping([bark] if bark else [])

    def check_numbers(self, step: int, figures: Figures) -> None:
        """Raises StageError for a figure that is not finite."""
        for name, value in figures.items():
            if not math.isfinite(value):
                raise StageError(f"step {step}: {name} is {value}; lower learning_rate or max_grad_norm")

    def _low_entropy(self, step: int, figures: Figures) -> Bark | None:
        if "entropy" not in figures or len(self.first["entropy"]) < FIRST_STEPS:
            return None
        start, now = sum(self.first["entropy"]) / FIRST_STEPS, figures["entropy"]
        return self._bark(
            "entropy",
            step,
            now < self.settings.min_entropy_share * start,
            f"entropy fell from {start:.3g} to {now:.3g} nats a token: the policy says the same thing every time and "
            "has stopped exploring. Raise clip_high, add entropy, or lower learning_rate",
        )

    def _length(self, step: int, figures: Figures) -> Bark | None:
        name = "completions/mean_tokens"
        if len(self.first[name]) < FIRST_STEPS:
            return None
        start, now = sum(self.first[name]) / FIRST_STEPS, figures[name]
        ran, shrank = now > self.settings.length_factor * start, now * self.settings.length_factor < start
        return self._bark(
            "length",
            step,
            ran or shrank,
            f"completions went from {start:.0f} to {now:.0f} tokens. "
            + (
                "If accuracy did not follow, the loss pays for length: try dr_grpo, soft_overlong or repetition"
                if ran
                else "The policy has given up thinking, or found a reward that short answers get"
            ),
        )

    def _bark(
        self, name: Watchdog, step: int, is_wrong: bool, message: str, *, patience: int | None = None
    ) -> Bark | None:
        self.rows[name] = self.rows.get(name, 0) + 1 if is_wrong else 0
        if self.rows[name] < (self.settings.patience_steps if patience is None else patience):
            return None
        if name in self.said and step - self.said[name] < SAID_AGAIN_AFTER:
            return None
        self.said[name] = step
        return Bark(name, step, message)

    def _stopping(self, barks: list[Bark]) -> list[Bark]:
        for bark in barks:
            if bark.watchdog in self.settings.stop_on:
                raise StageError(f"step {bark.step}: stopped by watchdog {bark.watchdog}: {bark.message}")
        return barks

    def state(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "said": self.said,
            "first": self.first,
            "rewards": list(self.rewards),
            "best": self.best,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.rows, self.said, self.first = state["rows"], state["said"], state["first"]
        self.rewards.clear()
        self.rewards.extend(state["rewards"])
        self.best = state["best"]
