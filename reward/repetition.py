"""The `repetition` reward, which penalises a completion for repeated n-grams."""

import re
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from qwen_align.align.rows import Completion
from qwen_align.reward.base import BaseReward, Probe
from qwen_align.reward.verdict import Verdict

# A Chinese or Japanese character is a unit of its own, since nothing separates their words.
_UNITS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]|[^\W\u3040-\u30ff\u3400-\u9fff]+")


class Repetition(BaseReward):
    """A penalty for the share of n-grams that occurred before, 0 for none and near `max_penalty` for an endless loop.

    R(y) = p * (1 - distinct / all) over the n-grams of the token ids if the completion has them, else of its words in
    lower case and its Chinese characters; fewer than n units have no n-gram and cost nothing. The rule is that of
    Demystifying Long CoT (arXiv:2502.03373); n = 3 and p = -1 are TRL's `get_repetition_penalty_reward` and open-r1's
    `repetition_n_grams`. Every long text repeats short n-grams, so for thousands of tokens take a larger n, such as
    the paper's 40. Linear in the text, whatever n.
    """

    role: ClassVar[Literal["outcome", "shaping"]] = "shaping"
    kind: Literal["repetition"] = "repetition"
    n: int = Field(default=3, ge=1, description="length of the n-grams, in tokens, or in words where there are none")
    max_penalty: float = Field(
        default=-1.0, le=0, allow_inf_nan=False, description="value where nearly all n-grams are repeats"
    )

    @property
    def bound(self) -> float:
        """Returns the largest absolute penalty, that of an endless loop."""
        return abs(self.max_penalty)

    def judge(self, completion: str | Completion, gold: Any = None) -> Verdict:
        """Judges how repetitive one completion is, by its token ids or else its words. `gold` is ignored."""
        units: Sequence[Hashable]
        if isinstance(completion, Completion) and completion.token_ids is not None:
            units = completion.token_ids
        else:
            units = split_words(completion if isinstance(completion, str) else completion.text)
        share = compute_repeated_share(units, self.n)
        if share is None:
            return Verdict(value=0.0, reason="too short to repeat")
        return Verdict(value=self.max_penalty * share if share else 0.0, reason="repeats" if share else "no repeats")

    def probes(self) -> list[Probe]:
        """Returns probe texts with and without repeats, none of which gets a positive reward."""
        return [
            Probe("no repeats", "Three and four make seven.", None, False),
            Probe("empty", "", None, False),
            Probe("a loop", "so it is 7, " * 200, None, False),
            Probe("a loop of one character", "七" * 500, None, False),
        ]


def split_words(text: str) -> list[str]:
    """Splits a text into lower-case words without punctuation. Each Chinese or Japanese character is a word."""
    return _UNITS.findall(text.lower())


def compute_repeated_share(units: Sequence[Hashable], n: int) -> float | None:
    """Computes the share of n-grams that occurred before, in [0, 1). Returns None if there is no n-gram."""
    if len(units) < n:
        return None
    # A gram of width a + b is named by its first and its last part of width a, so names double in width: exact,
    # unlike a rolling hash, and n steps of work become log n.
    grams: Sequence[Hashable] = units
    width = 1
    while width < n:
        step = min(width, n - width)
        names: dict[tuple[Hashable, Hashable], int] = {}
        grams = [names.setdefault(pair, len(names)) for pair in zip(grams, grams[step:], strict=False)]
        width += step
    return 1 - len(set(grams)) / len(grams)
