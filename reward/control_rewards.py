"""Control rewards for RL experiments: a random reward and a constant one.

Training moves a model even where the reward says nothing: on MATH-500, Qwen2.5-Math-7B gained 21.4 points from random
rewards and 29.1 from true ones (Spurious Rewards, arXiv:2506.10947), while other model families gained next to nothing.
A gain that a random reward brings too is no evidence for the reward under test. A constant reward gives every group
zero advantages, so whatever changes under it is the trainer's doing: the KL term, weight decay, a bug.
"""

import hashlib
from typing import Any, Literal

from pydantic import Field

from qwen_align.align.rows import Completion
from qwen_align.reward.base import BaseReward, Probe
from qwen_align.reward.verdict import Verdict

_DIGEST_BYTES = 8


class Random(BaseReward):
    """A control reward of 1.0 with probability `p`, else 0.0, which ignores what the completion says.

    The toss is a hash of seed, prompt, sample and text, so it is the same in any batch, process and order; of a bare
    string, of seed and text.
    """

    kind: Literal["random"] = "random"
    p: float = Field(default=0.5, ge=0, le=1, description="probability that a completion is paid 1")
    seed: int = Field(default=0, description="seed of the toss: another seed, another toss for the same completion")

    def judge(self, completion: str | Completion, gold: Any = None) -> Verdict:
        """Returns the pseudo-random verdict on one completion. `gold` is ignored."""
        if isinstance(completion, str):
            hashed: tuple[object, ...] = (self.seed, completion)
        else:
            hashed = (self.seed, completion.prompt_id, completion.sample, completion.text)
        digest = hashlib.blake2b(repr(hashed).encode(), digest_size=_DIGEST_BYTES).digest()
        heads = int.from_bytes(digest, "big") < self.p * 2 ** (8 * _DIGEST_BYTES)
        return Verdict(value=float(heads), reason="heads" if heads else "tails")

    def probes(self) -> list[Probe]:
        """Returns audit probes if `p` is 0 or 1, and none in between, where chance decides the reward."""
        texts = ("7", "") if self.p in (0.0, 1.0) else ()
        return [Probe(f"random, p = {self.p}: {text!r}", text, None, self.p == 1.0) for text in texts]


class Constant(BaseReward):
    """A control reward that gives the same `value` to every completion."""

    kind: Literal["constant"] = "constant"
    value: float = Field(default=1.0, ge=0, le=1, description="what every completion is paid")

    def judge(self, completion: str | Completion, gold: Any = None) -> Verdict:
        """Returns the constant verdict on a completion. `gold` is ignored."""
        return Verdict(value=self.value, reason="constant")

    def probes(self) -> list[Probe]:
        """Returns two probe completions, one of them empty, that get the same reward."""
        return [Probe(f"constant: {text!r}", text, None, self.value > 0) for text in ("7", "")]
