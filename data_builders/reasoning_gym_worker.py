"""Generates items of reasoning_gym tasks in a separate process, so that only the seed decides what they are.

`python -m qwen_align.data_builders.reasoning_gym_worker` reads lines of JSON and answers each with a line: the first
holds tasks and seed, the others the index of a task whose next item is wanted. An answer is `{"item": ...}`, or
`{"refused": why}`. It has to be started with PYTHONHASHSEED=0: some tasks iterate over sets.
"""

import json
import os
import random
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from qwen_align.align.errors import RecipeError
from qwen_align.align.settings.base import format_suggestion
from qwen_align.data_builders.seeded_draws import hash_to_number
from qwen_align.reward.reasoning_gym_guards import REFUSED_TASKS

UNREPEATABLE = {
    "codeio": "it runs 3,002 snippets, of which some look at the clock, draw what no seed decides or write files",
}
"""Tasks that would give other rows another time, and why; rows of them can be judged."""

_CHUNK_ITEMS = 500  # reasoning_gym's own size; a data set of more is continued under another seed


def main() -> None:
    """Answers requests for items from standard input with lines of JSON on standard output."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # some tasks print while they draw
    item_streams: list[Iterator[Any]] = []
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if item_streams:
                item = next(item_streams[request])
            else:
                item, item_streams = None, create_item_streams(request["tasks"], request["seed"])
            answer = {"item": item}
        except RecipeError as error:
            answer = {"refused": str(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def create_item_streams(tasks: Sequence[dict[str, Any]], seed: int) -> list[Iterator[dict[str, Any]]]:
    """Creates an endless iterator of items, as plain JSON values, for each reasoning_gym task.

    A task is given by `name` and `settings`. Raises RecipeError for a name that is no task's or that is not used.
    """
    from reasoning_gym.factory import DATASETS

    for name in (task["name"] for task in tasks):
        if name in REFUSED_TASKS or name in UNREPEATABLE:
            raise RecipeError(f"tasks: '{name}' is not used: {(REFUSED_TASKS | UNREPEATABLE)[name]}")
        if name not in DATASETS:
            raise RecipeError(f"tasks: '{name}' is no task of reasoning_gym{format_suggestion(name, set(DATASETS))}")
    return [_generate_items(task["name"], task["settings"], f"{index} {seed}") for index, task in enumerate(tasks)]


def _generate_items(name: str, settings: dict[str, Any], draw_key: str) -> Iterator[dict[str, Any]]:
    """Generates the items of a reasoning_gym task without end.

    Raises RecipeError for settings that the task cannot be made with.
    """
    from reasoning_gym.factory import create_dataset

    chunk = 0
    while True:
        seed = random.Random(f"reasoning_gym {name} {draw_key} {chunk}").getrandbits(31)
        try:
            _seed_global_generators(name, seed, "data set")
            dataset = create_dataset(name, **settings, seed=seed, size=_CHUNK_ITEMS)
            for number in range(_CHUNK_ITEMS):
                _seed_global_generators(name, seed, number)
                yield _remove_date(name, json.loads(json.dumps(dataset[number], default=_to_plain_value)))
        except Exception as error:  # the process is the boundary: a library's code may raise anything
            message = str(error) if isinstance(error, AssertionError | TypeError | ValueError) else repr(error)
            raise RecipeError(f"tasks: '{name}': settings {settings}: {message}") from error
        chunk += 1


def _seed_global_generators(*draw_key: object) -> None:
    """Seeds the global random generators of Python and numpy, from which some tasks draw."""
    import numpy

    random.seed(hash_to_number(*draw_key))
    numpy.random.seed(hash_to_number(*draw_key) % 2**32)


def _remove_date(name: str, item: dict[str, Any]) -> dict[str, Any]:
    """Removes the date from an item of the task time_intervals, which contains the day it was made."""
    metadata = item["metadata"]
    if name == "time_intervals" and metadata["task_type"].startswith("time"):
        times = {key: metadata[key].rpartition(" ")[2] for key in ("start_time", "end_time")}
        return {**item, "metadata": {**metadata, **times}}
    return item


def _to_plain_value(value: Any) -> Any:
    """Converts a numpy number to a Python number, and any other value to text.

    Text is what gsm_symbolic's Fractions become, which its scorer does not read.
    """
    return value.item() if hasattr(value, "item") else str(value)


if __name__ == "__main__":
    main()
