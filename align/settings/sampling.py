"""Defines how tokens are sampled: `SamplingSettings` as written in a recipe, `Sampling` as used by an engine."""

import warnings

from pydantic import Field

from qwen_align.align.rows import Mode
from qwen_align.align.settings.base import Strict

MAX_TOKENS = 16_777_216  # sixteen times the longest context of any Qwen model
MAX_COMPLETIONS = 65_536  # of a prompt

# (temperature, top_p, top_k) by mode, for what a recipe leaves out: Qwen3 technical report, arXiv:2505.09388,
# section "Post-training Evaluation". A prompt without a mode is answered directly, so it takes the second.
DEFAULTS: dict[Mode | None, tuple[float, float, int]] = {
    "think": (0.6, 0.95, 20),
    "no_think": (0.7, 0.8, 20),
    None: (0.7, 0.8, 20),
}


class Sampling(Strict):
    """The settings by which an engine samples the next token: temperature, then top-k, top-p and min-p truncation.

    Temperature 0 takes the likeliest token and makes the three cuts idle. `top_p` 1, `top_k` 0 and `min_p` 0
    cut nothing. A completion has at most `max_tokens` tokens, the stop token included.
    """

    temperature: float = Field(ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    min_p: float = Field(default=0.0, ge=0, le=1)
    max_tokens: int = Field(ge=1, le=MAX_TOKENS)

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0

    @property
    def is_truncated(self) -> bool:
        """Returns whether top-k, top-p or min-p truncates the sampling distribution."""
        return not self.is_greedy and (self.top_p < 1 or self.top_k > 0 or self.min_p > 0)


class SamplingSettings(Strict):
    """Settings of how tokens are sampled. Defaults depend on the use: evaluation or RL."""

    temperature: float | None = Field(
        default=None,
        ge=0,
        description="logits are divided by it; 0 = greedy; null = 0.6 thinking, 0.7 otherwise; RL needs one above 0",
    )
    top_p: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="sample from the likeliest tokens that together have this probability; 1 = all; null = 0.95 "
        "thinking, 0.8 otherwise, and 1 in RL",
    )
    top_k: int | None = Field(
        default=None, ge=0, description="sample from this many likeliest tokens; 0 = all; null = 20, and 0 in RL"
    )
    min_p: float = Field(
        default=0.0, ge=0, le=1, description="leave out tokens below this share of the likeliest token's probability"
    )
    max_tokens: int = Field(ge=1, le=MAX_TOKENS, description="longest completion in tokens, the stop token included")

    def resolve_for_mode(self, mode: Mode | None) -> Sampling:
        """Returns the sampling settings with Qwen3's recommended defaults for a thinking mode.

        Greedy sampling in thinking mode raises a warning.

        Greedy thinking warns.
        """
        temperature, top_p, top_k = DEFAULTS[mode]
        sampling = self._fill_defaults(temperature, top_p, top_k)
        if mode == "think" and sampling.is_greedy:
            warnings.warn(
                "sampling: temperature 0 in thinking mode: Qwen3 loops without end when it thinks greedily; "
                "leave temperature out (0.6), or sample several completions and average",
                stacklevel=2,
            )
        return sampling

    def resolve_for_policy(self) -> Sampling:
        """Returns the sampling settings with temperature 1 and no truncation as defaults.

        This is the very distribution that RL trains.
        """
        return self._fill_defaults(1.0, 1.0, 0)

    def _fill_defaults(self, temperature: float, top_p: float, top_k: int) -> Sampling:
        """Returns the sampling settings with missing values replaced by the given defaults."""
        return Sampling(
            temperature=temperature if self.temperature is None else self.temperature,
            top_p=top_p if self.top_p is None else self.top_p,
            top_k=top_k if self.top_k is None else self.top_k,
            min_p=self.min_p,
            max_tokens=self.max_tokens,
        )
