"""Labels a model's own completions as correct or wrong: data for outcome reward models and for KTO."""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from qwen_align.align.references import DataRef
from qwen_align.align.rows import Completion, Labelled, Message, Row
from qwen_align.align.settings.base import Strict
from qwen_align.data_builders.rollout_completions import get_verdict_value, group_by_prompt, read_completions
from qwen_align.data_builders.sieve import Drops, Sources
from qwen_align.reward.thinking import split_turn


class Labels(Strict):
    """A builder that labels judged, finished and well-formed completions of a rollout as correct or wrong.

    Of equal completions of a prompt one is kept. With `both_sides_only` prompts whose completions are all correct or
    all wrong are dropped, as for Qwen2.5-Math's reward model (arXiv:2409.12122).
    """

    kind: Literal["labels"] = "labels"
    from_data: DataRef = Field(description="rollout stage with the completions")
    reward: str = Field(default="math_answer", min_length=1, description="reward whose verdict decides the label")
    correct_from: float = Field(default=1.0, description="lowest reward of a correct completion; below is wrong")
    both_sides_only: bool = Field(description="drop prompts whose completions are all correct or all wrong")

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Yields the labelled completions in the order of the prompts and their samples."""
        for rows in group_by_prompt(read_completions(sources[self.from_data], self.from_data)).values():
            labelled_of_text: dict[str, Labelled] = {}
            for row in rows:
                labelled = self._label_completion(row)
                if isinstance(labelled, str):
                    drops.add(labelled, row.id)
                elif row.text in labelled_of_text:
                    drops.add("duplicate", row.id, f"of {labelled_of_text[row.text].id}")
                else:
                    labelled_of_text[row.text] = labelled
            labels = {labelled.label for labelled in labelled_of_text.values()}
            for labelled in labelled_of_text.values():
                if self.both_sides_only and len(labels) < 2:
                    drops.add("all correct" if labelled.label else "all wrong", labelled.id)
                else:
                    yield labelled

    def _label_completion(self, row: Completion) -> Labelled | str:
        """Returns a completion as a labelled row, or the reason why it has no label."""
        value, turn = get_verdict_value(row, self.reward), split_turn(row.text)
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
