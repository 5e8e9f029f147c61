"""Selects prompts as LIMR does: those whose reward rises over training as the average prompt's does.

arXiv:2502.11886, p. 3-4; GAIR-NLP/LIMR at 98ebf1b, lim/lim_selection.py.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import fsum
from pathlib import Path
from typing import Any, Literal, Self, TypeGuard

from pydantic import Field, model_validator

from qwen_align.align.errors import DataError
from qwen_align.align.references import DataRef, OutsideFile
from qwen_align.align.rows import Row, RowError
from qwen_align.align.settings.base import Strict
from qwen_align.data_builders.bad_row_errors import shorten_repr
from qwen_align.data_builders.file_reader import check_file_suffix, read_source_rows
from qwen_align.data_builders.finite_numbers import parse_finite_float, to_finite_float
from qwen_align.data_builders.selection_inputs import (
    Attempts,
    Selectable,
    add_note_to_meta,
    join_user_turns,
    read_selectable_rows,
)
from qwen_align.data_builders.sieve import Drops, Sources


class Limr(Strict):
    """A builder that keeps the rows whose learning curve is close to the average learning curve.

    An alignment score that reaches `threshold` is close; it is noted in meta `limr`. What an epoch's accuracy is comes
    from one of three: `rewards_column`, a list in the row's meta with one entry an epoch, which is the list of the
    rewards of its samples (a reward of 1 is a right answer), its accuracy, or null if the prompt was not trained in
    that epoch; `from_rollouts`, a rollout stage for each checkpoint in turn; or scores that somebody computed before,
    in the row's meta (`score_column`), or in a file of objects with `prompt` and `score`, as the authors published them
    (`scores_file`), where a row's are those of its very question.
    """

    kind: Literal["limr"] = "limr"
    from_data: DataRef = Field(description="data stage whose rows are chosen from")
    rewards_column: str | None = Field(
        default=None, min_length=1, description="key of meta with a list of each epoch's rewards or accuracy"
    )
    from_rollouts: list[DataRef] | None = Field(
        default=None, min_length=1, description="rollout stages of the checkpoints, one for each epoch in turn"
    )
    reward: str = Field(default="math_answer", description="reward whose verdicts count in from_rollouts")
    score_column: str | None = Field(
        default=None, min_length=1, description="key of meta with an alignment score computed before"
    )
    scores_file: OutsideFile | None = Field(
        default=None, description="file of objects with prompt and score, computed before"
    )
    epochs: int | None = Field(
        default=None, ge=1, description="number of first epochs to use; null: all (LIMR looked at 21)"
    )
    threshold: float = Field(
        default=0.6, description="alignment score that a row has to reach"
    )  # the paper's; the script's own default is 0.2
    comparison: Literal["at_least", "above"] = Field(
        default="at_least",
        description="at_least is the authors' code, and gives the published 1,389 rows; above is the paper",
    )
    n: int | None = Field(
        default=None,
        ge=1,
        description="number of rows, the best of those that pass; an error if there are fewer; null: all",
    )

    @model_validator(mode="after")
    def _check_origin(self) -> Self:
        """Raises ValueError unless curves or scores come from exactly one origin, with its own settings."""
        curves = (self.rewards_column, self.from_rollouts)
        scores = (self.score_column, self.scores_file)
        if sum(origin is not None for origin in curves + scores) != 1:
            raise ValueError(
                "say where learning curves or scores are: rewards_column, from_rollouts, score_column or scores_file"
            )
        if self.scores_file is not None:
            check_file_suffix(self.scores_file)
        if curves == (None, None) and self.epochs is not None:
            raise ValueError("epochs: scores have none; leave it out")
        if self.from_rollouts is None and "reward" in self.model_fields_set:
            raise ValueError("reward: is for from_rollouts")
        if self.from_rollouts is not None and self.epochs is not None:
            raise ValueError("epochs: is as many as from_rollouts names; leave it out")
        return self

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Yields the selected rows. Raises DataError if there are fewer than `n`."""
        rows = read_selectable_rows(sources, self.from_data)
        scores = self.compute_scores(rows, sources)
        passing: list[str] = []
        for row in rows:
            score = scores.get(row.id)
            if score is None:
                drops.add("epochs missing" if self.rewards_column or self.from_rollouts else "no score", row.id)
            elif score > self.threshold or (self.comparison == "at_least" and score == self.threshold):
                passing.append(row.id)
            else:
                drops.add("learns unlike the average", row.id, f"{score:.4f}")
        if self.n is not None and len(passing) < self.n:
            raise DataError(f"limr: {len(passing)} rows pass, fewer than n: {self.n}; lower n or threshold")
        ranked = sorted(passing, key=lambda row_id: -scores[row_id])  # of equal ones the earlier stays first
        rank_of = {row_id: rank for rank, row_id in enumerate(ranked, start=1)}
        for row in rows:
            rank = rank_of.get(row.id)
            if rank is not None and self.n is not None and rank > self.n:
                drops.add("ranked below n", row.id, f"{scores[row.id]:.4f}, rank {rank}")
            elif rank is not None:
                yield add_note_to_meta(row, "limr", {"score": scores[row.id], "rank": rank})

    def compute_scores(self, rows: Sequence[Selectable], sources: Sources) -> dict[str, float]:
        """Returns the alignment score of each row by row id.

        Rows without one are left out. Raises RowError for a column that holds something else.
        """
        if self.score_column is not None:
            given = {row.id: _read_score(row, self.score_column) for row in rows}
            return {row_id: score for row_id, score in given.items() if score is not None}
        if self.scores_file is not None:
            score_of = _read_scores_file(Path(self.scores_file))
            return {row.id: score_of[question] for row in rows if (question := join_user_turns(row)) in score_of}
        curve_of = self._make_curve_reader(sources)
        return compute_alignment_scores({row.id: curve_of(row) for row in rows})

    def _make_curve_reader(self, sources: Sources) -> Callable[[Selectable], list[float | None]]:
        """Makes a function that returns the accuracy of a row's prompt in each epoch."""
        if self.from_rollouts is None:
            return lambda row: _read_curve(row, str(self.rewards_column), self.epochs)
        tries_readers = [
            Attempts(from_rollout=stage, reward=self.reward).make_reader(sources) for stage in self.from_rollouts
        ]

        def read_accuracies(row: Selectable) -> list[float | None]:
            tries_of_stages = [read_tries(row) for read_tries in tries_readers]
            return [None if tries is None else tries.n_correct / tries.n_judged for tries in tries_of_stages]

        return read_accuracies


def compute_alignment_scores(curves: dict[str, list[float | None]]) -> dict[str, float]:
    """Computes how well each prompt's learning curve agrees with the average curve, at most 1.

    1 - sum (r_k - avg_k)^2 / sum (1 - avg_k)^2 over epochs k, where r is the prompt's accuracy and avg the mean over
    all prompts that are scored. An epoch a prompt was not trained in (None) takes the value of the next epoch, if that
    has one; prompts that still miss epochs are left out. Raises DataError if every prompt is solved in every epoch, or
    curves have different lengths.
    """
    lengths = {len(curve): prompt for prompt, curve in curves.items()}
    if len(lengths) > 1:
        curve_lengths = ", ".join(f"{length} epochs in '{prompt}'" for length, prompt in lengths.items())
        raise DataError(f"limr: learning curves differ in length: {curve_lengths}; set epochs to what all of them have")
    filled = {prompt: fill_missing_epochs(curve) for prompt, curve in curves.items()}
    complete = {
        prompt: [accuracy for accuracy in curve if accuracy is not None]
        for prompt, curve in filled.items()
        if None not in curve
    }
    if not complete:
        return {}
    average = [fsum(epoch) / len(complete) for epoch in zip(*complete.values(), strict=True)]
    total_room = _sum_squares(1 - mean for mean in average)
    if total_room == 0:
        raise DataError("limr: every prompt is solved in every epoch, so no curve tells prompts apart")
    return {
        prompt: 1 - _sum_squares(accuracy - mean for accuracy, mean in zip(curve, average, strict=True)) / total_room
        for prompt, curve in complete.items()
    }


def _sum_squares(values: Iterable[float]) -> float:
    """Returns the sum of the squares of the values."""
    return fsum(value * value for value in values)  # pow() is the platform's, and may round otherwise


def fill_missing_epochs(curve: Sequence[float | None]) -> list[float | None]:
    """Returns a learning curve with each missing epoch filled from the next epoch.

    Of a longer gap only the last epoch is filled.
    """
    return [
        curve[epoch + 1] if accuracy is None and epoch + 1 < len(curve) else accuracy
        for epoch, accuracy in enumerate(curve)
    ]


def _read_curve(row: Selectable, column: str, epochs: int | None) -> list[float | None]:
    """Reads the learning curve of a row's prompt from its meta. Raises RowError if there is none."""
    entries = row.meta.get(column)
    if not isinstance(entries, list) or not entries:
        raise RowError(f"row '{row.id}': meta '{column}' is {entries!r:.60}; wanted is a list with one entry an epoch")
    if epochs is not None and len(entries) < epochs:
        raise RowError(f"row '{row.id}': meta '{column}' has {len(entries)} epochs of {epochs}")
    return [_parse_accuracy(entry, row, column) for entry in entries[:epochs]]


def _parse_accuracy(entry: Any, row: Selectable, column: str) -> float | None:
    """Returns an epoch's accuracy, given as a list of rewards or as a number. Returns None if there is none."""
    if entry is None or entry == []:
        return None
    if isinstance(entry, list) and all(_is_number(reward) for reward in entry):
        return entry.count(1) / len(entry)
    if _is_number(entry) and 0 <= entry <= 1:
        return float(entry)
    expected = "wanted: rewards, an accuracy from 0 to 1, or null"
    raise RowError(f"row '{row.id}': meta '{column}': an epoch is {shorten_repr(entry)}; {expected}")


def _read_score(row: Selectable, column: str) -> float | None:
    """Reads the alignment score of a row from its meta.

    Returns None if there is none. Raises RowError for what is no number.
    """
    score = row.meta.get(column)
    if score is None:
        return None
    if _is_number(score):
        return float(score)
    raise RowError(
        f"row '{row.id}': meta '{column}' is {shorten_repr(score)}; a score is a number that a float can hold"
    )


def _read_scores_file(path: Path) -> dict[str, float]:
    """Reads a dict of alignment scores by prompt from a file.

    Raises RowError for a row that has none, or that scores a prompt otherwise than before.
    """
    scores: dict[str, float] = {}
    for location, row in read_source_rows(path):
        prompt, given_score = (row.get("prompt"), row.get("score")) if isinstance(row, dict) else (None, None)
        score = parse_finite_float(given_score)
        if not isinstance(prompt, str) or score is None:
            raise RowError(
                f"{location}: is {shorten_repr(row)}; wanted: an object with a text 'prompt' and a number 'score'"
            )
        if scores.setdefault(prompt, score) != score:
            raise RowError(f"{location}: scores a prompt {score} that was {scores[prompt]} before: {prompt:.60}")
    return scores


def _is_number(value: Any) -> TypeGuard[int | float]:
    """Returns whether a value is a finite number."""
    return to_finite_float(value) is not None
