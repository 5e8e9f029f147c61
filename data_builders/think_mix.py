"""Thinking-mode fusion: a model's own correct traces, direct answers under every no-thinking switch, and replay.

Qwen3's third stage (arXiv:2505.09388, section 4.3): the thinking half is sampled from the model that is to be
fused, so that its reasoning is kept, and part of it carries no flag, so that thinking stays the default.
"""

import re
from collections.abc import Iterator
from itertools import cycle
from random import Random
from typing import Literal, Self

from pydantic import Field, model_validator

from qwen_align.align.references import DataRef
from qwen_align.align.rows import Flag, Row
from qwen_align.align.strict import Strict
from qwen_align.data_builders.sieve import Drops, Sources

_FLAG_IN_TEXT = re.compile(r"(?<!\S)/(?:no_)?think(?!\S)")


class Switches(Strict):
    """How many in a round of non-thinking rows have each switch; a switch whose prompt is not trained is not obeyed.

    soft is `/no_think`, its empty block trained; hard is `enable_thinking=False`, its empty block in the prompt.
    """

    soft: int = Field(2, ge=0)
    hard: int = Field(1, ge=0)
    hard_under_think: int = Field(1, ge=0, description="the hard switch although the user asks to /think")

    @model_validator(mode="after")
    def _not_none(self) -> Self:
        if not self.round():
            raise ValueError("all switches are 0; give one of soft, hard, hard_under_think at least 1")
        return self

    def round(self) -> list[Flag | None]:
        """The flags of one round; the row's mode is no_think under each."""
        flags: list[Flag | None] = ["/no_think"] * self.soft
        return flags + [None] * self.hard + ["/think"] * self.hard_under_think


class ThinkMix(Strict):
    """Thinking rows from a rollout stage, non-thinking rows from chats, raw texts as replay, shuffled together.

    Thinking rows are completions that thought, stopped by themselves, are well formed and correct, the first
    `per_prompt` different ones of each prompt. `/think` is on `flagged_share` of them, the others are unflagged.
    """

    kind: Literal["think_mix"] = "think_mix"
    from_rollout: DataRef
    from_chats: DataRef
    from_texts: DataRef | None = None
    reward: str = Field("math_answer", description="whose verdict says that a completion is correct")
    correct_from: float = Field(1.0, description="reward of a correct completion")
    per_prompt: int = Field(1, ge=1)
    flagged_share: float = Field(0.4, ge=0, le=1)  # 2 in 5 kept the default thinking in the quickstart's prototype
    switches: Switches = Field(default_factory=Switches)
    thinking_share: float | None = Field(
        None, gt=0, lt=1, description="of thinking and non-thinking rows; the side that is too many is thinned out"
    )
    max_thinking: int | None = Field(None, ge=1)
    max_non_thinking: int | None = Field(None, ge=1)
    max_replay: int | None = Field(None, ge=1)

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """The mixed rows; the same for the same sources, settings and seed."""
        random = Random(f"think_mix {seed}")
        thinking = _drawn(self._traces(sources, drops), self.max_thinking, random, drops)
        chats = _drawn(self._chats(sources, drops), self.max_non_thinking, random, drops)
        replay = _drawn(self._texts(sources), self.max_replay, random, drops)
        if self.thinking_share is not None:
            odds = self.thinking_share / (1 - self.thinking_share)
            thinking = _drawn(thinking, round(len(chats) * odds), random, drops)
            chats = _drawn(chats, round(len(thinking) / odds), random, drops)
        n_flagged = round(len(thinking) * self.flagged_share)
        rows: list[Row] = [
            row.model_copy(update={"flag": "/think" if place < n_flagged else None})
            for place, row in enumerate(thinking)
        ]
        flags = cycle(self.switches.round())
        rows += [chat.model_copy(update={"mode": "no_think", "flag": next(flags)}) for chat in chats]
        rows += replay
        random.shuffle(rows)
        yield from rows
