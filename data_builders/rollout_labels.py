"""A model's own completions with a thumb up or down: data for outcome reward models and for KTO."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from qwen_align.align.references import DataRef
from qwen_align.align.rows import Completion, Labelled, Message, Row
from qwen_align.align.settings.base import Strict
from qwen_align.data_builders.rollout_completions import by_prompt, completions, verdict_value
from qwen_align.data_builders.sieve import Drops, Sources
from qwen_align.reward.thinking import split_turn


class Labels(Strict):
    """Every judged, finished and well-formed completion with whether it is correct, equal texts of a prompt once.

    With `both_sides_only` prompts whose completions are all correct or all wrong are dropped, as for Qwen2.5-Math's
    reward model (arXiv:2409.12122).
    """

    kind: Literal["labels"] = "labels"
    from_data: DataRef
    reward: str = Field(default="math_answer", min_length=1, description="label of the verdict that counts")
    correct_from: float = Field(default=1.0, description="reward of a correct completion; below is wrong")
    both_sides_only: bool

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Rows in the order of the prompts and their samples."""
        for rows in by_prompt(completions(sources[self.from_data], self.from_data)).values():
            found: dict[str, Labelled] = {}
            for row in rows:
                one = self._labelled(row)
                if isinstance(one, str):
                    drops.add(one, row.id)
                elif row.text in found:
                    drops.add("duplicate", row.id, f"of {found[row.text].id}")
                else:
                    found[row.text] = one
            sides = {one.label for one in found.values()}
            for one in found.values():
                if self.both_sides_only and len(sides) < 2:
                    drops.add("all correct" if one.label else "all wrong", one.id)
                else:
                    yield one

    def _labelled(self, row: Completion) -> Labelled | str:
        value, turn = verdict_value(row, self.reward), split_turn(row.text)
        if value is None:
            return "no verdict"
        if row.finish_reason == "length":
            return "cut at the length limit"
        if isinstance(turn, str):
            return "malformed turn"
        return Labelled(
            id=row.id,
            messages=row.prompt,
            completion=Message(role="assistant", content=turn.answer, thinking=turn.thinking),
            label=value >= self.correct_from,
            mode=row.mode,
            flag=row.flag,
            source=row.source,
            meta=row.meta,
        )
