"""Problems made by reasoning_gym: puzzles, arithmetic, logic, graphs, in any number, each with a scorer of its own."""

import contextlib
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from random import Random
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from qwen_align.align.errors import DataError, RecipeError, StageError
from qwen_align.align.rows import Message, Mode, Problem, Row
from qwen_align.align.settings.base import Strict
from qwen_align.data_builders.sieve import Drops, Sources
from qwen_align.reward.reasoning_gym_task import NOT_INSTALLED

Split = Literal["train", "dev", "test"]

REWARD = "reasoning_gym"
INSTRUCTION = "Give the final answer between <answer> and </answer>, and nothing else between them."
REDRAWS = 1000  # items in a row that are duplicates or of another split before a build says the task is exhausted
_PROCESS = "qwen_align.data_builders.reasoning_gym_items"


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
        random = Random(f"reasoning_gym {self.split} {seed}")
        seen: set[str] = set()
        with _drawing(tasks, seed) as next_item:
            for index in range(self.n):
                [place] = random.choices(range(len(tasks)), [task.weight for task in tasks])
                for _ in range(REDRAWS):
                    row = self._problem(tasks[place], next_item(place))
                    if row.id not in seen and split_of(row.id) == self.split:
                        break
                else:
                    raise DataError(
                        f"reasoning_gym: task '{tasks[place].name}': no new question for row {index + 1} of {self.n} "
                        f"in split '{self.split}'; ask for fewer rows, more tasks or other settings"
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


@contextlib.contextmanager
def _drawing(tasks: list[GymTask], seed: int) -> Iterator[Callable[[int], dict[str, Any]]]:
    """What gives the next item of the task at a place; a process draws them, which ends with the context.

    Raises RecipeError for tasks that cannot be drawn from.
    """
    if importlib.util.find_spec("reasoning_gym") is None:
        raise RecipeError(NOT_INSTALLED)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", _PROCESS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "PYTHONHASHSEED": "0"},
        start_new_session=True,  # Ctrl-C is for the asker, whose end is the process's
    )

    def ask(asked: Any) -> Any:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise StageError("reasoning_gym: the process that draws items has ended; see its error above")
        answer = json.loads(line)
        if "refused" in answer:
            raise RecipeError(answer["refused"])
        return answer["item"]

    with process:
        try:
            ask({"tasks": [{"name": task.name, "settings": task.settings} for task in tasks], "seed": seed})
            yield ask
        finally:
            process.kill()
