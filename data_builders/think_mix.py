"""Mixes data for thinking-mode fusion: correct traces, direct answers without thinking, and raw texts as replay.

Qwen3's third stage (arXiv:2505.09388, p. 11): the thinking half is sampled from the model that is to be
fused, so that its reasoning is kept, and part of it carries no flag, so that thinking stays the default.
"""

from collections.abc import Iterator, Sequence
from itertools import cycle
from random import Random
from typing import Literal, Self, TypeVar

from pydantic import Field, model_validator

from qwen_align.align.references import DataRef
from qwen_align.align.rows import Chat, Flag, Row, RowError, Text, Trace
from qwen_align.align.settings.base import Strict
from qwen_align.data_builders.completions_to_traces import convert_solved_completion
from qwen_align.data_builders.rollout_completions import group_by_prompt, read_completions
from qwen_align.data_builders.sieve import Drops, Sources
from qwen_align.data_builders.thinking_flag_mixing import MixedFlags
from qwen_align.data_builders.thinking_flags import has_thinking_flag
from qwen_align.reward.settings import RewardName

_Row = TypeVar("_Row", Trace, Chat, Text)


class Switches(Strict):
    """Settings of how often each switch that turns thinking off is used in non-thinking rows.

    The counts are those of one round of rows. A switch whose prompt is not trained is not obeyed.

    soft is `/no_think`, its empty block trained; hard is `enable_thinking=False`, its empty block in the prompt.
    """

    soft: int = Field(
        default=2, ge=0, description="rows in a round with /no_think, whose empty thinking block is trained"
    )
    hard: int = Field(
        default=1,
        ge=0,
        description="rows in a round with enable_thinking=False, whose empty thinking block is in the prompt",
    )
    hard_under_think: int = Field(
        default=1, ge=0, description="rows in a round with enable_thinking=False although the user asks to /think"
    )

    @model_validator(mode="after")
    def _check_any_switch(self) -> Self:
        """Raises ValueError if no switch is used."""
        if not self.list_round_flags():
            raise ValueError("all switches are 0; give one of soft, hard, hard_under_think at least 1")
        return self

    def list_round_flags(self) -> list[Flag | None]:
        """Lists the thinking flags (or None) of one round of non-thinking rows.

        The row's mode is no_think under each.
        """
        flags: list[Flag | None] = ["/no_think"] * self.soft
        return flags + [None] * self.hard + ["/think"] * self.hard_under_think


class ThinkMix(Strict):
    """A builder that shuffles thinking rows of a rollout, non-thinking chat rows and raw texts together.

    The texts are replay. Thinking rows are completions that thought, stopped by themselves, are well formed and
    correct, the first `per_prompt` different ones of each prompt. `/think` is on `flagged_share` of them, the others
    are unflagged.
    """

    kind: Literal["think_mix"] = "think_mix"
    from_rollout: DataRef = Field(description="rollout stage with the completions that become thinking rows")
    from_chats: DataRef = Field(description="data stage with the chats that become non-thinking rows")
    from_texts: DataRef | None = Field(default=None, description="data stage with raw texts for replay; null: none")
    reward: RewardName = Field(
        default="math_answer", description="reward whose verdict says whether a completion is correct"
    )
    correct_from: float = Field(default=1.0, description="lowest reward of a correct completion")
    per_prompt: int = Field(default=1, ge=1, description="most thinking rows for a prompt")
    flagged_share: float = Field(
        default=0.4, ge=0, le=1, description="share of thinking rows with the flag /think"
    )  # our choice, tried in the quickstart
    switches: Switches = Field(default=Switches(), description="how non-thinking rows switch thinking off")
    mixed_flags: MixedFlags = Field(default=MixedFlags(), description="shares of rows with harder cases of flags")
    thinking_share: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="share of thinking rows among thinking and chat rows; the side that has too many is cut",
    )
    max_thinking: int | None = Field(default=None, ge=1, description="most thinking rows; null: no limit")
    max_non_thinking: int | None = Field(default=None, ge=1, description="most non-thinking rows; null: no limit")
    max_replay: int | None = Field(default=None, ge=1, description="most raw texts; null: no limit")

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Yields the mixed rows, the same for the same sources, settings and seed."""
        random = Random(f"think_mix {seed}")
        thinking = _shuffle_and_cap(self._read_traces(sources, drops), self.max_thinking, random, drops)
        chats = _shuffle_and_cap(self._read_chats(sources, drops), self.max_non_thinking, random, drops)
        replay = _shuffle_and_cap(self._read_texts(sources), self.max_replay, random, drops)
        thinking, chats = self._balance_modes(thinking, chats, drops)
        n_flagged = round(len(thinking) * self.flagged_share)
        flagged: list[Trace | Chat] = [
            row.model_copy(update={"flag": "/think" if index < n_flagged else None})
            for index, row in enumerate(thinking)
        ]
        flagged += [
            row.model_copy(update={"flag": flag})
            for row, flag in zip(chats, cycle(self.switches.list_round_flags()), strict=False)
        ]
        rows: list[Row] = [*self.mixed_flags.mix_flags(flagged, chats, seed)]
        if rows:
            rows += replay
        else:
            for text in replay:
                drops.add("nothing to mix with", text.id)
        random.shuffle(rows)
        yield from rows

    def _read_traces(self, sources: Sources, drops: Drops) -> list[Trace]:
        """Reads the thinking rows: the first correct completions of each prompt."""
        traces: list[Trace] = []
        for rows in group_by_prompt(read_completions(sources[self.from_rollout], self.from_rollout)).values():
            trace_of_text: dict[str, Trace] = {}
            for row in rows:
                converted = convert_solved_completion(row, self.reward, self.correct_from)
                if isinstance(converted, str):
                    drops.add(converted, row.id)
                elif row.text in trace_of_text:
                    drops.add("duplicate", row.id, f"of {trace_of_text[row.text].id}")
                elif len(trace_of_text) == self.per_prompt:
                    drops.add("over per_prompt", row.id)
                else:
                    trace_of_text[row.text] = converted
            traces += trace_of_text.values()
        return traces

    def _read_chats(self, sources: Sources, drops: Drops) -> list[Chat]:
        """Reads the non-thinking rows. Chats with thinking, without a reply or with flags are dropped."""
        chats = []
        for row in sources[self.from_chats]():
            if not isinstance(row, Chat):
                raise RowError(
                    f"stage '{self.from_chats}': row '{row.id}' is a {row.row} row; from_chats takes chat rows"
                )
            if any(turn.thinking for turn in row.messages):
                drops.add("chat with thinking", row.id)
            elif row.messages[-1].role != "assistant":
                drops.add("chat without a reply", row.id)
            elif has_thinking_flag(row.messages):
                drops.add("flag in the prompt's text", row.id)
            else:
                chats.append(row.model_copy(update={"mode": "no_think"}))
        return chats

    def _read_texts(self, sources: Sources) -> list[Text]:
        """Reads the raw texts that are used as replay."""
        if self.from_texts is None:
            return []
        texts = []
        for row in sources[self.from_texts]():
            if not isinstance(row, Text):
                raise RowError(f"stage '{self.from_texts}': row '{row.id}' is a {row.row} row; from_texts takes texts")
            texts.append(row)
        return texts

    def _balance_modes(self, thinking: list[Trace], chats: list[Chat], drops: Drops) -> tuple[list[Trace], list[Chat]]:
        """Drops thinking or non-thinking rows until their ratio is that of the settings.

        Returns neither if one is empty. One mode alone would unteach the other.
        """
        if not thinking or not chats:
            missing = "no non-thinking row" if thinking else "no thinking row"
            dropped: list[Trace | Chat] = [*thinking, *chats]
            for row in dropped:
                drops.add(f"{missing} to mix with", row.id)
            return [], []
        if self.thinking_share is None:
            return thinking, chats
        odds = self.thinking_share / (1 - self.thinking_share)
        if len(thinking) > len(chats) * odds:
            return _keep_first_rows(thinking, max(1, round(len(chats) * odds)), drops), chats
        return thinking, _keep_first_rows(chats, max(1, round(len(thinking) / odds)), drops)


def _shuffle_and_cap(rows: Sequence[_Row], cap: int | None, random: Random, drops: Drops) -> list[_Row]:
    """Returns at most `cap` of the rows in a random order. Rows beyond it are dropped."""
    drawn = random.sample(rows, len(rows))
    return drawn if cap is None else _keep_first_rows(drawn, cap, drops)


def _keep_first_rows(rows: list[_Row], n: int, drops: Drops) -> list[_Row]:
    """Returns the first `n` rows and drops the others."""
    for row in rows[n:]:
        drops.add("over the cap", row.id)
    return rows[:n]
