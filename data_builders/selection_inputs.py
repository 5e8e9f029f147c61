"""Reads the inputs of data selection: candidate rows, their questions, and how often a model solved them."""

from collections.abc import Callable, Iterable
from math import fsum
from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from qwen_align.align.references import DataRef
from qwen_align.align.rows import Chat, Pair, Problem, RowError, Trace
from qwen_align.align.settings.base import Strict
from qwen_align.data_builders.bad_row_errors import shorten_repr
from qwen_align.data_builders.finite_numbers import to_finite_float
from qwen_align.data_builders.rollout_completions import get_verdict_value, read_completions
from qwen_align.data_builders.sieve import Sources

Selectable = Problem | Trace | Chat | Pair


class Tries(NamedTuple):
    """The number of a model's attempts at a prompt, the number that are correct, and their mean reward."""

    n_correct: int
    n_judged: int
    mean: float

    @property
    def description(self) -> str:
        """Returns the counts of a model's attempts as readable text."""
        return f"{self.n_correct} of {self.n_judged} correct, mean {self.mean:.4g}"


class Attempts(Strict):
    """Settings that say where a model's attempts at a prompt are recorded.

    They are a rollout's verdicts or a column of rows' `meta`. A column holds `correct` (true or false: one attempt),
    `rewards` (a list of numbers or booleans, null for an answer nobody could judge), the `count` of correct answers out
    of `samples`, or their `share` from 0 to 1. Answers without a verdict are no attempts. Completions are found by the
    row's id as their prompt's; a row made of completion `p#3` is found as `p`.
    """

    from_rollout: DataRef | None = Field(default=None, description="rollout stage whose verdicts are counted")
    reward: str = Field(default="math_answer", description="reward whose verdicts count")
    correct_from: float = Field(default=1.0, description="lowest reward of a correct answer")
    column: str | None = Field(default=None, min_length=1, description="key of the rows' meta that holds the attempts")
    holds: Literal["correct", "rewards", "count", "share"] = Field(
        default="correct",
        description="what the column holds: one verdict, rewards, a count or a share of correct answers",
    )
    samples: int | None = Field(default=None, ge=1, description="number of answers that a count or a share is of")

    @model_validator(mode="after")
    def _check_origin(self) -> Self:
        """Raises ValueError unless exactly one origin of the attempts is named, with its own settings."""
        if (self.from_rollout is None) == (self.column is None):
            raise ValueError("say where the attempts are: either from_rollout or column")
        idle_settings = {"holds", "samples"} if self.column is None else {"reward"}
        if idle_given := sorted(idle_settings & self.model_fields_set):
            raise ValueError(f"{', '.join(idle_given)}: is for {'column' if self.column is None else 'from_rollout'}")
        if (self.samples is None) == (self.holds in ("count", "share")):
            raise ValueError("samples: goes with a column that holds a count or a share, and only with one")
        return self

    @property
    def location(self) -> str:
        """Returns where a model's attempts are recorded, as text for error messages."""
        return f"stage '{self.from_rollout}'" if self.column is None else f"meta '{self.column}'"

    def make_reader(self, sources: Sources) -> Callable[[Selectable], Tries | None]:
        """Makes a function that returns the counts of a model's attempts at a row's prompt.

        The function returns None if there are no attempts. A rollout stage is read once, here.

        Raises RowError for verdicts that are not there and for columns that hold something else.
        """
        if self.from_rollout is None:
            return lambda row: self._read_column(row)
        values: dict[str, list[float]] = {}
        for completion in read_completions(sources[self.from_rollout], self.from_rollout):
            value = get_verdict_value(completion, self.reward)
            if value is not None:
                values.setdefault(completion.prompt_id, []).append(value)
        tries = {prompt_id: self._summarize_rewards(prompt_values) for prompt_id, prompt_values in values.items()}
        return lambda row: tries.get(row.id, tries.get(get_prompt_id(row.id)))

    def _summarize_rewards(self, values: list[float]) -> Tries:
        """Counts the correct answers among the rewards of a prompt's attempts and averages the rewards."""
        try:
            mean = fsum(values) / len(values)
        except OverflowError:  # each is a float, their sum is none
            mean = fsum(value / len(values) for value in values)
        return Tries(sum(value >= self.correct_from for value in values), len(values), mean)

    def _read_column(self, row: Selectable) -> Tries | None:
        """Reads the counts of attempts at a row's prompt from its meta.

        Returns None if there are none. Raises RowError for a value of another kind.
        """
        value = row.meta.get(str(self.column))
        if value is None:
            return None
        if self.holds == "correct" and isinstance(value, bool):
            return self._summarize_rewards([float(value)])
        if self.holds == "rewards" and isinstance(value, list) and all(_is_reward(reward) for reward in value):
            judged = [float(reward) for reward in value if reward is not None]
            return self._summarize_rewards(judged) if judged else None
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if self.samples is not None and is_number:
            if self.holds == "count" and isinstance(value, int) and 0 <= value <= self.samples:
                return Tries(value, self.samples, value / self.samples)
            if self.holds == "share" and 0 <= value <= 1:
                return Tries(round(value * self.samples), self.samples, float(value))
        expected = {"correct": "true or false", "rewards": "a list of rewards", "count": "a count", "share": "a share"}
        sample_hint = f" of {self.samples}" if self.samples else ""
        raise RowError(
            f"row '{row.id}': meta '{self.column}' is {shorten_repr(value)}, not {expected[self.holds]}{sample_hint}"
        )


def _is_reward(value: Any) -> bool:
    """Returns whether a value is a reward: a number, a boolean or null."""
    return value is None or isinstance(value, bool) or to_finite_float(value) is not None


def read_selectable_rows(sources: Sources, stage: str) -> list[Selectable]:
    """Reads the rows of a stage from which a selection chooses.

    Raises RowError for the first that cannot be chosen or repeats an id.
    """
    rows: dict[str, Selectable] = {}
    for row in sources[stage]():
        if not isinstance(row, Selectable):
            raise RowError(
                f"stage '{stage}': row '{row.id}' is a {row.row} row; problem, trace, chat and pair rows can be chosen"
            )
        if row.id in rows:
            raise RowError(f"stage '{stage}': id '{row.id}' occurs twice; every row needs its own")
        rows[row.id] = row
    return list(rows.values())


def get_prompt_id(row_id: str) -> str:
    """Returns the prompt's id in a completion's id, such as `p` of `p#3`. Returns other ids as they are."""
    prompt_id, _, sample = row_id.rpartition("#")
    return prompt_id if prompt_id and sample.isascii() and sample.isdigit() else row_id


def join_user_turns(row: Selectable) -> str:
    """Joins the texts of all user turns of a row by line breaks."""
    return "\n".join(turn.content for turn in row.messages if turn.role == "user")


def add_note_to_meta(row: Selectable, key: str, note: object) -> Selectable:
    """Returns a row with a selection's note under a new key of its meta. Raises RowError if the key is taken."""
    if key in row.meta:
        raise RowError(f"row '{row.id}': meta has '{key}' already, from an earlier selection or a column of that name")
    return row.model_copy(update={"meta": {**row.meta, key: note}})


def compute_rank_shares(values: Iterable[float]) -> list[float]:
    """Returns each value's rank among all values, scaled from 0 for the lowest to 1 for the highest.

    Equal values share their middle. A lone value gets 0.5.
    """
    numbers = list(values)
    if len(numbers) == 1:
        return [0.5]
    n_equal: dict[float, int] = {}
    for value in numbers:
        n_equal[value] = n_equal.get(value, 0) + 1
    share: dict[float, float] = {}
    n_below = 0
    for value in sorted(n_equal):
        share[value] = (n_below + (n_equal[value] - 1) / 2) / (len(numbers) - 1)
        n_below += n_equal[value]
    return [share[value] for value in numbers]
