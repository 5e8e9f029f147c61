"""Generates reasoning_gym problems, such as puzzles, arithmetic, logic and graphs."""

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
from qwen_align.reward.reasoning_gym_task import KEY_PACKAGES, NOT_INSTALLED

Split = Literal["train", "dev", "test"]

REWARD = "reasoning_gym"
INSTRUCTION = "Give the final answer between <answer> and </answer>, and nothing else between them."
MAX_REDRAWS = 1000  # items in a row that are duplicates or of another split before a build says the task is exhausted
_WORKER_MODULE = "qwen_align.data_builders.reasoning_gym_worker"


class GymTask(Strict):
    """The settings of a reasoning_gym task: its name, its weight among the tasks and its configuration."""

    name: str = Field(description="task's name in reasoning_gym")
    weight: float = Field(default=1.0, gt=0, description="weight of the task among the tasks")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="fields of the task's configuration, except seed and size"
    )

    @field_validator("settings")
    @classmethod
    def _check_settings(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Raises ValueError if a task's configuration sets seed or size, which the builder sets itself."""
        if builder_settings := sorted({"seed", "size"} & set(settings)):
            raise ValueError(f"{', '.join(builder_settings)}: the builder's own; set seed and n there")
        return settings


class ReasoningGymTasks(Strict):
    """A builder that generates problems of reasoning_gym tasks.

    Train, dev and test never share a question: the split is a hash of task and question, whatever seed and settings.
    `instruction` follows the question; "" leaves it out.
    """

    key_packages = KEY_PACKAGES

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    tasks: Annotated[list[str | GymTask], Field(min_length=1)] = Field(
        description="tasks by name, or with weight and configuration"
    )
    n: int = Field(gt=0, le=100_000_000, description="number of rows")
    split: Split = Field(default="train", description="which of three sets without common questions the rows are from")
    seed: int | None = Field(default=None, description="seed of the draws; null: the recipe's")
    instruction: str = Field(default=INSTRUCTION, description='text after every question; "" for none')
    mode: Mode | None = Field(default=None, description="thinking mode of the rows; null: the row's default")

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Generates the problem rows through the interface of every builder.

        It reads no other stage and drops nothing.
        """
        return self.generate(seed)

    def generate(self, seed: int) -> Iterator[Problem]:
        """Generates `n` distinct problems, the same for the same settings, seed and reasoning_gym version."""
        seed = seed if self.seed is None else self.seed
        tasks = [GymTask(name=task) if isinstance(task, str) else task for task in self.tasks]
        random = Random(f"reasoning_gym {self.split} {seed}")
        row_ids: set[str] = set()
        with _start_item_process(tasks, seed) as next_item:
            for index in range(self.n):
                [task_index] = random.choices(range(len(tasks)), [task.weight for task in tasks])
                for _ in range(MAX_REDRAWS):
                    row = self._make_problem(tasks[task_index], next_item(task_index))
                    if row.id not in row_ids and assign_split(row.id) == self.split:
                        break
                else:
                    raise DataError(
                        f"reasoning_gym: task '{tasks[task_index].name}': no new question for row {index + 1} of "
                        f"{self.n} in split '{self.split}'; ask for fewer rows, more tasks or other settings"
                    )
                row_ids.add(row.id)
                yield row

    def _make_problem(self, task: GymTask, entry: dict[str, Any]) -> Problem:
        """Makes the problem row of a generated reasoning_gym item."""
        question = entry["question"]
        prompt = f"{question}\n\n{self.instruction}" if self.instruction else question
        gold: dict[str, Any] = {"dataset": task.name, "entry": entry}
        if task.settings:
            gold["settings"] = task.settings
        return Problem(
            id=compute_content_id(task.name, question),
            messages=[Message(role="user", content=prompt)],
            gold=gold,
            reward=REWARD,
            mode=self.mode,
            source=f"reasoning_gym/{task.name}",
            meta={"task": task.name},
        )


def compute_content_id(task: str, question: str) -> str:
    """Hashes a task's name and a question to a stable row id. Equal questions of a task have equal ids."""
    return f"{task}-{hashlib.sha256(f'{task} {question}'.encode()).hexdigest()[:16]}"


def assign_split(row_id: str) -> Split:
    """Assigns a question to train, dev or test (8:1:1) by its row id."""
    tenth = int(row_id[-8:], 16) % 10
    return "test" if tenth == 0 else "dev" if tenth == 1 else "train"


@contextlib.contextmanager
def _start_item_process(tasks: list[GymTask], seed: int) -> Iterator[Callable[[int], dict[str, Any]]]:
    """Starts the process that generates reasoning_gym items, and yields a function for requesting them.

    The function returns the next item of a task, given the task's index. The process ends with the context.

    Raises RecipeError for tasks that cannot be drawn from.
    """
    if importlib.util.find_spec("reasoning_gym") is None:
        raise RecipeError(NOT_INSTALLED)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", _WORKER_MODULE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        env={**os.environ, "PYTHONHASHSEED": "0"},
        start_new_session=True,  # Ctrl-C goes to the build alone, which ends this process
    )

    def request_item(request: Any) -> Any:
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(request) + "\n")
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
            request_item({"tasks": [{"name": task.name, "settings": task.settings} for task in tasks], "seed": seed})
            yield request_item
        finally:
            process.kill()
