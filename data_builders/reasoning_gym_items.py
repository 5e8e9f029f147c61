"""Items of reasoning_gym's tasks, made in a process of its own in which hashes, chance and the clock decide nothing.

`python -m qwen_align.data_builders.reasoning_gym_items` reads lines of JSON and answers each with a line: the first
holds tasks and seed, the others the place of a task whose next item is wanted. An answer is `{"item": ...}`, or
`{"refused": why}`. It has to be started with PYTHONHASHSEED=0: some tasks iterate over sets.
"""

import json
import os
import random
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from qwen_align.align.errors import RecipeError
from qwen_align.align.settings.base import did_you_mean
from qwen_align.data_builders.seeded_draws import stable_number
from qwen_align.reward.reasoning_gym_guards import REFUSED_TASKS

UNREPEATABLE = {
    "codeio": "it runs 3,002 snippets, of which some look at the clock, draw what no seed decides or write files",
}
"""Tasks that would give other rows another time, and why; rows of them can be judged."""

_CHUNK = 500  # reasoning_gym's own size; a data set of more is continued under another seed


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # some tasks print while they draw
    sources: list[Iterator[Any]] = []
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if sources:
                item = next(sources[asked])
            else:
                item, sources = None, items(asked["tasks"], asked["seed"])
            answer = {"item": item}
        except RecipeError as error:
            answer = {"refused": str(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def items(tasks: Sequence[dict[str, Any]], seed: int) -> list[Iterator[dict[str, Any]]]:
    """For each task, of `name` and `settings`, its items without end, as JSON holds them.

    Raises RecipeError for a name that is no task's or that is not used.
    """
    from reasoning_gym.factory import DATASETS

    for name in (task["name"] for task in tasks):
        if name in REFUSED_TASKS or name in UNREPEATABLE:
            raise RecipeError(f"tasks: '{name}' is not used: {(REFUSED_TASKS | UNREPEATABLE)[name]}")
        if name not in DATASETS:
            raise RecipeError(f"tasks: '{name}' is no task of reasoning_gym{did_you_mean(name, set(DATASETS))}")
    return [_items(task["name"], task["settings"], f"{place} {seed}") for place, task in enumerate(tasks)]


def _items(name: str, settings: dict[str, Any], drawn_by: str) -> Iterator[dict[str, Any]]:
    """Raises RecipeError for settings that the task cannot be made with."""
    from reasoning_gym.factory import create_dataset

    chunk = 0
    while True:
        seed = random.Random(f"reasoning_gym {name} {drawn_by} {chunk}").getrandbits(31)
        try:
            _settle(name, seed, "data set")
            made = create_dataset(name, **settings, seed=seed, size=_CHUNK)
            for number in range(_CHUNK):
                _settle(name, seed, number)
                yield _undated(name, json.loads(json.dumps(made[number], default=_plain)))
        except Exception as error:  # the process is the boundary: a library's code may raise anything
            said = str(error) if isinstance(error, AssertionError | TypeError | ValueError) else repr(error)
            raise RecipeError(f"tasks: '{name}': settings {settings}: {said}") from error
        chunk += 1


def _settle(*drawn_by: object) -> None:
    """Seeds what some tasks draw from beside the generator of their own."""
    import numpy

    random.seed(stable_number(*drawn_by))
    numpy.random.seed(stable_number(*drawn_by) % 2**32)


def _undated(name: str, item: dict[str, Any]) -> dict[str, Any]:
    """The item without the day it was made on, which time_intervals notes beside times of day."""
    metadata = item["metadata"]
    if name == "time_intervals" and metadata["task_type"].startswith("time"):
        times = {key: metadata[key].rpartition(" ")[2] for key in ("start_time", "end_time")}
        return {**item, "metadata": {**metadata, **times}}
    return item


def _plain(value: Any) -> Any:
    """A numpy number as Python's, anything else (gsm_symbolic's Fractions, which its scorer does not read) as text."""
    return value.item() if hasattr(value, "item") else str(value)


if __name__ == "__main__":
    main()
