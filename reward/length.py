"""Three rewards for length in tokens: DAPO's soft overlong punishment, the cosine reward and Kimi k1.5's length reward.

A bare string has no token count, so none of them has a verdict on one.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from qwen_align.align.rows import Completion, Message
from qwen_align.reward.base import BaseReward, Probe, is_right
from qwen_align.reward.verdict import Verdict

_NO_COUNT = Verdict(value=None, reason="no token count")
_NO_OUTCOME = Verdict(value=None, reason="no outcome")
Value = Annotated[float, Field(allow_inf_nan=False)]


class SoftOverlong(BaseReward):
    """A length penalty that is 0 up to L - C tokens, falls linearly to -1 at L tokens and stays at -1 beyond.

    R(y) = 0                      if |y| <= L - C
           ((L - C) - |y|) / C    if L - C < |y| <= L
           -1                     if L < |y|
    with L = `max_tokens` and C = `cache_tokens` (DAPO, arXiv:2503.14476, equation 13, and its 16,384 + 4,096 tokens).
    With C = 0 it is a step after L.
    """

    role: ClassVar[Literal["outcome", "shaping"]] = "shaping"
    needs_tokens: ClassVar[bool] = True
    kind: Literal["soft_overlong"] = "soft_overlong"
    max_tokens: int = Field(default=20_480, gt=0, description="tokens of a completion from which on the value is -1")
    cache_tokens: int = Field(
        default=4_096, ge=0, description="the last of max_tokens, over which the value falls from 0 to -1"
    )

    @model_validator(mode="after")
    def _check_cache_fits(self) -> "SoftOverlong":
        """Raises ValueError if `cache_tokens` is larger than `max_tokens`."""
        if self.cache_tokens > self.max_tokens:
            raise ValueError(
                f"cache_tokens is {self.cache_tokens} of max_tokens {self.max_tokens}; it is the last part of them"
            )
        return self

    def judge(self, completion: str | Completion, gold: Any = None) -> Verdict:
        """Judges one completion by its number of tokens. `gold` is ignored."""
        if isinstance(completion, str):
            return _NO_COUNT
        n_over = completion.n_tokens - (self.max_tokens - self.cache_tokens)
        if n_over <= 0:
            return Verdict(value=0.0, reason="not too long")
        if n_over > self.cache_tokens:
            return Verdict(value=-1.0, reason="too long")
        return Verdict(value=-n_over / self.cache_tokens, reason="nearly too long")

    def probes(self) -> list[Probe]:
        """Returns probe completions of several lengths, none of which gets a positive reward."""
        return [
            Probe("short", _make_completion(1), None, False),
            Probe("at the limit", _make_completion(self.max_tokens), None, False),
            Probe("padded beyond the limit", _make_completion(100 * self.max_tokens), None, False),
            Probe("no token count", "7", None, False),
        ]


class CosineLength(BaseReward):
    """A cosine reward over length, in which right answers earn more when short and wrong ones lose less when long.

    R(y) = vmax + (v0 - vmax) * (1 + cos(pi * |y| / L)) / 2, from v0 at no tokens to vmax at L = `max_tokens`, where
    (v0, vmax) is `right` for a right answer and `wrong` for a wrong one; `exceeded` from L on (Demystifying Long CoT,
    arXiv:2502.03373, appendix C.1). Beyond L the bare cosine would rise again and pay the longest texts.
    The values are TRL's `get_cosine_scaled_reward`'s; `exceeded` is the worst of them, as in the paper.
    """

    role: ClassVar[Literal["outcome", "shaping"]] = "shaping"
    needs_tokens: ClassVar[bool] = True
    needs_outcome: ClassVar[bool] = True
    kind: Literal["cosine_length"] = "cosine_length"
    max_tokens: int = Field(gt=0, description="tokens of a completion from which on the value is `exceeded`")
    right: list[Value] = Field(
        default=[1.0, 0.5], min_length=2, max_length=2, description="value of a right answer at 0 and at max_tokens"
    )
    wrong: list[Value] = Field(
        default=[-1.0, -0.5], min_length=2, max_length=2, description="value of a wrong answer at 0 and at max_tokens"
    )
    exceeded: Value = Field(default=-1.0, description="value of an answer of max_tokens or more, right or wrong")

    @property
    def bound(self) -> float:
        """Returns the largest absolute value among the reward's settings."""
        return max(map(abs, (*self.right, *self.wrong, self.exceeded)))

    @model_validator(mode="after")
    def _check_reward_order(self) -> "CosineLength":
        """Raises ValueError if the settings would reward a wrong, long or overlong answer more than a better one."""
        if min(self.right) <= max(self.wrong):
            raise ValueError(f"right {self.right} has to lie above wrong {self.wrong}, whatever the lengths")
        if self.exceeded > min(self.wrong):
            raise ValueError(f"exceeded is {self.exceeded}; at most {min(self.wrong)}, or running on would pay")
        if self.right[0] < self.right[1]:
            raise ValueError(f"right {self.right} would pay a right answer for being long; put the larger one first")
        return self

    def judge(self, completion: str | Completion, gold: Any = None) -> Verdict:
        """Judges one completion by its number of tokens and whether its outcome rewards call it right.

        `gold` is ignored.
        """
        if isinstance(completion, str):
            return _NO_COUNT
        right = is_right(completion)
        if right is None:
            return _NO_OUTCOME
        if completion.n_tokens >= self.max_tokens:
            return Verdict(value=self.exceeded, reason="too long")
        start, end = self.right if right else self.wrong
        share = (1 + math.cos(math.pi * completion.n_tokens / self.max_tokens)) / 2
        return Verdict(value=end + (start - end) * share, reason="right" if right else "wrong")

    def probes(self) -> list[Probe]:
        """Returns right and wrong probe answers of several lengths.

        Right ones within the length get a positive reward.
        """
        shortest, longest = 1, self.max_tokens - 1
        return [
            Probe("right and short", _make_completion(shortest, right=True), None, self.right[0] > 0),
            Probe("wrong and short", _make_completion(shortest, right=False), None, self.wrong[0] > 0),
            Probe("wrong and long", _make_completion(longest, right=False), None, self.wrong[1] > 0),
            Probe("right, padded to twice the limit", _make_completion(2 * self.max_tokens, right=True), None, False),
            Probe("wrong, padded to twice the limit", _make_completion(2 * self.max_tokens, right=False), None, False),
            Probe("not judged", _make_completion(shortest), None, False),
            Probe("no token count", "7", None, False),
        ]


class KimiLength(BaseReward):
    """A group-relative length reward, which favours short right answers among a prompt's completions.

    Wrong answers can only lose.

    With g = 1/2 - (|y| - min) / (max - min) over the group's lengths: g for a right answer, min(0, g) for a wrong one,
    0 for all where all are of one length (Kimi k1.5, arXiv:2501.12599, section 2.3.3). A completion that the outcomes
    have no verdict on gets none here, though its length counts.
    """

    role: ClassVar[Literal["outcome", "shaping"]] = "shaping"
    needs_tokens: ClassVar[bool] = True
    needs_outcome: ClassVar[bool] = True
    kind: Literal["kimi_length"] = "kimi_length"

    @property
    def bound(self) -> float:
        """Returns 0.5, the value for the shortest right answer of a group."""
        return 0.5

    def judge(self, completion: str | Completion, gold: Any = None) -> Verdict:
        """Judges one completion as a group of its own. `gold` is ignored."""
        return _NO_COUNT if isinstance(completion, str) else self.judge_group([completion])[0]

    def judge_group(self, group: Sequence[Completion]) -> list[Verdict]:
        """Judges the lengths of all completions of one prompt relative to each other."""
        lengths = [completion.n_tokens for completion in group]
        shortest, spread = min(lengths, default=0), max(lengths, default=0) - min(lengths, default=0)
        return [_judge_kimi_length(completion, shortest, spread) for completion in group]

    def probes(self) -> list[Probe]:
        """Returns single probe completions, which never get a positive reward because one completion is no group."""
        return [
            Probe("right, alone", _make_completion(9, right=True), None, False),
            Probe("wrong, alone", _make_completion(9, right=False), None, False),
            Probe("not judged", _make_completion(9), None, False),
            Probe("no token count", "7", None, False),
        ]


def _judge_kimi_length(completion: Completion, shortest: int, spread: int) -> Verdict:
    """Returns the length verdict on a completion, given the shortest length and the spread of lengths in its group."""
    right = is_right(completion)
    if right is None:
        return _NO_OUTCOME
    if spread == 0:
        return Verdict(value=0.0, reason="all of one length")
    gain = 0.5 - (completion.n_tokens - shortest) / spread
    return Verdict(value=gain if right else min(0.0, gain), reason="right" if right else "wrong")


def _make_completion(n_tokens: int, *, right: bool | None = None) -> Completion:
    """Makes a probe completion with a given number of tokens, marked as right, wrong or not judged."""
    verdicts = {} if right is None else {"outcome": Verdict(value=float(right), reason="given")}
    return Completion(
        prompt_id="probe",
        sample=0,
        prompt=[Message(role="user", content="3+4?")],
        text="7",
        finish_reason="stop",
        n_tokens=n_tokens,
        verdicts=verdicts,
    )
