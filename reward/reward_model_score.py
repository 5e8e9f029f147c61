"""Rewards from a trained reward model: its plain score, and the score combined with a rule as in Qwen2.5-Math.

The settings are here; the scorer itself is a model, which a stage loads and binds (`align.scorer`).
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from pydantic import Field, PrivateAttr

from qwen_align.align.references import ScorerRef
from qwen_align.align.rows import Completion
from qwen_align.reward.base import BaseReward
from qwen_align.reward.math_answer import MathAnswer
from qwen_align.reward.verdict import Verdict

Score = Callable[[Sequence[Completion]], list[float]]


class Learned(BaseReward):
    """A reward that is the plain score of a reward model. It is any number, and higher is better."""

    kind: Literal["learned"] = "learned"
    from_scorer: ScorerRef = Field(description="the reward_model stage, or the model with is_scorer: true, that scores")
    _score: Score | None = PrivateAttr(None)

    def bind_scorer(self, score: Score) -> None:
        """Attaches the function that computes reward-model scores, one number for each completion.

        Safe in any thread.
        """
        self._score = score

    @property
    def is_bound(self) -> bool:
        """Returns whether a reward-model scorer has been attached."""
        return self._score is not None

    def judge(self, completion: str | Completion, gold: Any = None) -> Verdict:
        """Scores one completion row by the reward model and returns the score as a verdict."""
        if isinstance(completion, str):
            raise TypeError(f"{self.label} judges Completion rows: a scorer reads the prompt too")
        return self.judge_group([completion])[0]

    def judge_group(self, group: Sequence[Completion]) -> list[Verdict]:
        """Scores all completions of one prompt by the reward model and returns the scores as verdicts."""
        return [Verdict(value=score, reason="scored") for score in self._score_group(group)]

    def is_solved(self, verdict: Verdict) -> bool | None:
        """Returns None, because a reward-model score does not say whether the task was solved."""
        return None

    def _score_group(self, group: Sequence[Completion]) -> list[float]:
        """Computes the reward-model scores of a group of completions. Raises RuntimeError if no scorer is attached."""
        if self._score is None:
            raise RuntimeError(f"reward {self.label}: its scorer is not bound; a stage does that")
        return self._score(group)


class Qwen25Math(Learned):
    """A reward of sigmoid(0.5 * score) + (right - 1), which ranks every right answer above every wrong one.

    Right is what `rule` says, 1 or 0 (Qwen2.5-Math, arXiv:2409.12122).
    """

    kind: Literal["qwen2_5_math"] = "qwen2_5_math"  # type: ignore[assignment]
    rule: MathAnswer = Field(default=MathAnswer(), description="settings of the math_answer that says what is right")

    def judge_group(self, group: Sequence[Completion]) -> list[Verdict]:
        """Combines the reward-model score and the rule's verdict for all completions of one prompt."""
        rule_verdicts = [self.rule.judge(completion) for completion in group]
        return [self._shape_score(*pair) for pair in zip(rule_verdicts, self._score_group(group), strict=True)]

    def judge_gold(self, gold: Any) -> Verdict:
        """Returns the rule's verdict on a gold answer."""
        return self.rule.judge_gold(gold)

    def is_solved(self, verdict: Verdict) -> bool | None:
        """Returns whether the rule judged the answer right."""
        return self.rule.is_solved((verdict.parts or {})[self.rule.label])

    def _shape_score(self, rule_verdict: Verdict, score: float) -> Verdict:
        """Combines a reward-model score with the rule's verdict into one verdict."""
        parts = {self.rule.label: rule_verdict, "scorer": Verdict(value=score, reason="scored")}
        if rule_verdict.value is None:
            return Verdict(value=None, reason=rule_verdict.reason, parts=parts)
        value = 1 / (1 + math.exp(-max(-60.0, min(60.0, 0.5 * score)))) + (rule_verdict.value - 1)
        return Verdict(value=value, reason=rule_verdict.reason, parts=parts)
