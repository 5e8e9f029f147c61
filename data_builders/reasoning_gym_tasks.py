"""Problems made by reasoning_gym: puzzles, arithmetic, logic, graphs, in any number, each with a scorer of its own."""

import contextlib
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator
from random import Random
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from qwen_align.align.errors import DataError, RecipeError
from qwen_align.align.rows import Message, Mode, Problem, Row
from qwen_align.align.strict import Strict, did_you_mean
from qwen_align.data_builders.sieve import Drops, Sources
from qwen_align.reward.reasoning_gym_guards import REFUSED
from qwen_align.reward.reasoning_gym_task import MISSING

Split = Literal["train", "dev", "test"]

REWARD = "reasoning_gym"
INSTRUCTION = "Give the final answer between <answer> and </answer>, and nothing else between them."
REDRAWS = 1000  # items in a row that are duplicates or of another split before a build says the task is exhausted
_CHUNK = 500  # reasoning_gym's own size; a data set of more is continued under another seed


class GymTask(Strict):
    """A task by its name in reasoning_gym, its share of the rows among the others' weights, and its configuration."""

    name: str
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    settings: dict[str, Any] = Field(default_factory=dict, description="fields of the task's config, but seed and size")

    @field_validator("settings")
    @classmethod
    def _builder_draws(cls, settings: dict[str, Any]) -> dict[str, Any]:
        if said := sorted({"seed", "size"} & set(settings)):
            raise ValueError(f"{', '.join(said)}: the builder's own; set seed and n there")
        return settings


class ReasoningGymTasks(Strict):
    """Settings of the generator; `build` yields the rows.

    Train, dev and test never share a question: the split is a hash of task and question, whatever seed and settings.
    `instruction` follows the question; "" leaves it out.
    """

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    tasks: Annotated[list[str | GymTask], Field(min_length=1)]
    n: int = Field(gt=0)
    split: Split = "train"
    seed: int | None = None
    instruction: str = INSTRUCTION
    mode: Mode | None = None

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """`generate`, as every builder is called; it reads no other stage and drops nothing."""
        return self.generate(seed)

    def generate(self, seed: int) -> Iterator[Problem]:
        """`n` distinct rows; the same for the same settings, seed and version of reasoning_gym."""
        seed = seed if self.seed is None else self.seed
        tasks = [GymTask(name=task) if isinstance(task, str) else task for task in self.tasks]
        _check_names([task.name for task in tasks])
        items = [_items(task, seed, place) for place, task in enumerate(tasks)]
        random = Random(f"reasoning_gym {self.split} {seed}")
        seen: set[str] = set()
        for index in range(self.n):
            [place] = random.choices(range(len(tasks)), [task.weight for task in tasks])
            for _ in range(REDRAWS):
                row = self._problem(tasks[place], next(items[place]))
                if row.id not in seen and split_of(row.id) == self.split:
                    break
            else:
                raise DataError(
                    f"reasoning_gym: task '{tasks[place].name}': no new question for row {index + 1} of {self.n} in "
                    f"split '{self.split}'; ask for fewer rows, more tasks or other settings"
                )
            seen.add(row.id)
            yield row

    def _problem(self, task: GymTask, entry: dict[str, Any]) -> Problem:
        question = entry["question"]
        asked = f"{question}\n\n{self.instruction}" if self.instruction else question
        gold: dict[str, Any] = {"dataset": task.name, "entry": entry}
        if task.settings:
            gold["settings"] = task.settings
        return Problem(
            id=content_id(task.name, question),
            messages=[Message(role="user", content=asked)],
            gold=gold,
            reward=REWARD,
            mode=self.mode,
            source=f"reasoning_gym/{task.name}",
            meta={"task": task.name},
        )


def content_id(task: str, question: str) -> str:
    """A stable id: equal questions of a task have equal ids."""
    return f"{task}-{hashlib.sha256(f'{task} {question}'.encode()).hexdigest()[:16]}"


def split_of(row_id: str) -> Split:
    """Eight in ten questions are for training, one for dev, one for test."""
    tenth = int(row_id[-8:], 16) % 10
    return "test" if tenth == 0 else "dev" if tenth == 1 else "train"


def _check_names(names: list[str]) -> None:
    if importlib.util.find_spec("reasoning_gym") is None:
        raise RecipeError(MISSING)
    from reasoning_gym.factory import DATASETS

    for name in names:
        if name in REFUSED:
            raise RecipeError(f"tasks: '{name}' is not used: {REFUSED[name]}")
        if name not in DATASETS:
            raise RecipeError(f"tasks: '{name}' is no task of reasoning_gym{did_you_mean(name, set(DATASETS))}")


def _items(task: GymTask, seed: int, place: int) -> Iterator[dict[str, Any]]:
    """Items of the task without end, as JSON holds them."""
    from reasoning_gym.factory import create_dataset

    chunk = 0
    while True:
        drawn = Random(f"reasoning_gym {task.name} {place} {seed} {chunk}").getrandbits(31)
        try:
            with _silence():
                items = create_dataset(task.name, **task.settings, seed=drawn, size=_CHUNK)
        except (AssertionError, TypeError, ValueError) as error:
            raise RecipeError(f"tasks: '{task.name}': settings {task.settings}: {error}") from error
        for number in range(_CHUNK):
            with _silence():
                item = json.dumps(items[number], default=_plain)
            yield json.loads(item)
        chunk += 1


def _plain(value: Any) -> Any:
    """A numpy number as Python's, anything else (gsm_symbolic's Fractions, which its scorer does not read) as text."""
    return value.item() if hasattr(value, "item") else str(value)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Some tasks print while they draw."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
