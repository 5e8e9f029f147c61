"""Checks a training run's metrics for known failures and says the likely cause and the setting to change."""

import math
from collections import deque
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from qwen_align.align.errors import StageError
from qwen_align.align.settings.online_rl import Watch, Watchdog

FIRST_STEPS = 5  # steps whose mean later ones are compared with
QUIET_STEPS = 50  # steps for which a watchdog that has given an alert is quiet


class Alert(NamedTuple):
    """A watchdog's warning: what goes wrong in training, its likely cause and what to change."""

    watchdog: Watchdog
    step: int
    message: str


# What a step tells the watchdogs, by the names that metrics.jsonl has.
Metrics = dict[str, float]


@dataclass
class Watchdogs:
    """A set of watchdogs that check the metrics of every training step.

    `to_state` goes into checkpoints.
    """

    settings: Watch
    streaks: dict[str, int] = field(default_factory=dict)  # steps in a row that agree
    last_alerts: dict[str, int] = field(default_factory=dict)  # the step of each watchdog's last alert
    first_values: dict[str, list[float]] = field(default_factory=dict)  # of entropy and length
    rewards: deque[float] = field(default_factory=lambda: deque(maxlen=FIRST_STEPS))
    best: dict[str, Any] | None = None  # held-out accuracy at its best, with the reward then

    def check_step(self, step: int, metrics: Metrics) -> list[Alert]:
        """Checks the metrics of a step and returns the watchdogs' alerts.

        Raises StageError for a metric that is not finite and for the alert of a watchdog that is to stop the stage.
        """
        self.require_finite(step, metrics)
        settings = self.settings
        self.rewards.append(metrics["reward"])
        for name in ("entropy", "completions/mean_tokens"):
            if name in metrics and len(self.first_values.setdefault(name, [])) < FIRST_STEPS:
                self.first_values[name].append(metrics[name])
        clipped, no_signal = metrics["completions/clipped_share"], metrics["groups/no_signal_share"]
        no_verdict = metrics["completions/no_verdict_share"]
        alerts = [
            self._alert_after_patience(
                "truncated",
                step,
                clipped > settings.truncated_share,
                f"{clipped:.0%} of the completions were cut at max_tokens, and a cut one seldom holds its answer. "
                "Raise sampling.max_tokens; if the model never stops, see whether its end token is the template's",
            ),
            self._alert_after_patience(
                "no_signal",
                step,
                no_signal > settings.no_signal_share,
                f"in {no_signal:.0%} of the groups all rewards are equal{_describe_equal(metrics)}, which trains "
                f"nothing: {_explain_equal(metrics)}. Take prompts that are solved sometimes (pass_rate), more "
                "completions_per_prompt, or dynamic_sampling",
            ),
            self._alert_after_patience(
                "no_verdict",
                step,
                no_verdict > settings.no_verdict_share,
                f"{no_verdict:.0%} of the completions have no verdict: golds the reward cannot use, or a reward that "
                "fails; samples.jsonl has the reasons",
            ),
            self._check_entropy(step, metrics),
            self._check_length(step, metrics),
            self._alert_after_patience(
                "update_kl",
                step,
                metrics.get("policy/kl", 0.0) > settings.update_kl,
                f"after its updates the policy is {metrics.get('policy/kl', 0.0):.2g} nats a token from the one that "
                "drew. Lower learning_rate, or make fewer updates of a batch",
            ),
            self._alert_after_patience(
                "engine_mismatch",
                step,
                metrics.get("mismatch/mean", 0.0) > settings.engine_mismatch,
                f"engine and trainer differ by {metrics.get('mismatch/mean', 0.0):.2g} nats a token on the same text: "
                "other precision or kernels, or weights that did not arrive. "
                "Set importance_sampling_correction, or sample in fp32",
            ),
            self._alert_after_patience(
                "skipped",
                step,
                metrics.get("skipped", 0.0) > 0,
                f"not one group had a signal{_describe_equal(metrics)}, so nothing was trained: "
                f"{_explain_equal(metrics)}. Take prompts that are solved sometimes",
            ),
        ]
        return self._stop_on_alerts([alert for alert in alerts if alert])

    def check_held_out(self, step: int, accuracy: float, stderr: float) -> list[Alert]:
        """Checks held-out accuracy and returns an alert if it falls while the reward rises."""
        reward = sum(self.rewards) / len(self.rewards) if self.rewards else -math.inf
        if self.best is None or accuracy >= self.best["accuracy"]:
            self.best = {"accuracy": accuracy, "stderr": stderr, "reward": reward, "step": step}
            return []
        error = math.hypot(stderr, self.best["stderr"])
        fell = self.best["accuracy"] - accuracy > self.settings.held_out_fall * error
        alert = self._alert_after_patience(
            "held_out",
            step,
            fell and reward > self.best["reward"],
            f"the reward rises ({self.best['reward']:.3g} to {reward:.3g}) while held-out accuracy falls "
            f"({self.best['accuracy']:.1%} at step {self.best['step']} to {accuracy:.1%}): the policy learns the "
            "reward and not the task. Read samples.jsonl, run `qwen-align audit reward`, stop earlier or add a kl",
            patience=1,
        )
        return self._stop_on_alerts([alert] if alert else [])

    def require_finite(self, step: int, metrics: Metrics) -> None:
        """Checks that all metrics are finite.

        Raises StageError for a metric that is NaN or infinite.
        """
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise StageError(f"step {step}: {name} is {value}; lower learning_rate or max_grad_norm")

    def _check_entropy(self, step: int, metrics: Metrics) -> Alert | None:
        """Returns an alert if the entropy is far below that of the first steps.

        Else returns None.
        """
        if "entropy" not in metrics or len(self.first_values["entropy"]) < FIRST_STEPS:
            return None
        start, now = sum(self.first_values["entropy"]) / FIRST_STEPS, metrics["entropy"]
        return self._alert_after_patience(
            "entropy",
            step,
            now < self.settings.min_entropy_share * start,
            f"entropy fell from {start:.3g} to {now:.3g} nats a token: the policy says the same thing every time and "
            "has stopped exploring. Raise clip_high, add entropy, or lower learning_rate",
        )

    def _check_length(self, step: int, metrics: Metrics) -> Alert | None:
        """Returns an alert if completions are far longer or shorter than in the first steps.

        Else returns None.
        """
        name = "completions/mean_tokens"
        if len(self.first_values[name]) < FIRST_STEPS:
            return None
        start, now = sum(self.first_values[name]) / FIRST_STEPS, metrics[name]
        ran, shrank = now > self.settings.length_factor * start, now * self.settings.length_factor < start
        return self._alert_after_patience(
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

    def _alert_after_patience(
        self, name: Watchdog, step: int, is_wrong: bool, message: str, *, patience: int | None = None
    ) -> Alert | None:
        """Returns an alert if a watchdog's condition has held for `patience` steps in a row.

        Returns None before that, and for some time after it has given an alert.
        """
        self.streaks[name] = self.streaks.get(name, 0) + 1 if is_wrong else 0
        if self.streaks[name] < (self.settings.patience_steps if patience is None else patience):
            return None
        if name in self.last_alerts and step - self.last_alerts[name] < QUIET_STEPS:
            return None
        self.last_alerts[name] = step
        return Alert(name, step, message)

    def _stop_on_alerts(self, alerts: list[Alert]) -> list[Alert]:
        """Returns the alerts unless one of them stops the stage.

        Raises StageError for an alert of a watchdog that is set to stop it.
        """
        for alert in alerts:
            if alert.watchdog in self.settings.stop_on:
                raise StageError(f"step {alert.step}: stopped by watchdog {alert.watchdog}: {alert.message}")
        return alerts

    def to_state(self) -> dict[str, Any]:
        """Returns the watchdogs' state as a JSON object for a checkpoint."""
        return {
            "rows": self.streaks,
            "said": self.last_alerts,
            "first": self.first_values,
            "rewards": list(self.rewards),
            "best": self.best,
        }

    def restore_state(self, state: dict[str, Any]) -> None:
        """Restores the watchdogs' state from the JSON object of a checkpoint."""
        self.streaks, self.last_alerts, self.first_values = state["rows"], state["said"], state["first"]
        self.rewards.clear()
        self.rewards.extend(state["rewards"])
        self.best = state["best"]


def _describe_equal(metrics: Metrics) -> str:
    """Returns in which share of the groups all rewards are 0, and in which all are 1, as ` (all 0 in 90%)`."""
    shares = {0: metrics.get("groups/all_zero_share", 0.0), 1: metrics.get("groups/all_one_share", 0.0)}
    parts = [f"all {value} in {share:.0%}" for value, share in shares.items() if share]
    return f" ({', '.join(parts)})" if parts else ""


def _explain_equal(metrics: Metrics) -> str:
    """Returns why the rewards of a group are all equal: all too low, or all too high."""
    zeros, ones = metrics.get("groups/all_zero_share", 0.0), metrics.get("groups/all_one_share", 0.0)
    is_easy = ones > zeros if ones != zeros else metrics["reward"] > 0.5
    return "the prompts are too easy" if is_easy else "the prompts are too hard, or the reward sees no answer"
