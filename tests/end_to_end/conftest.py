"""What several files look at and takes a minute to train: made once in a test run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end import ladder


@pytest.fixture(scope="session")
def trained(made_once: Callable[..., Path]) -> Path:
    """The home of a run of every stage of ladder.py, uninterrupted, in one process."""

    def make(folder: Path) -> None:
        parts = (ladder.ADAPTERS, ladder.REWARDED, ladder.SCORED, [ladder.ENDED], ladder.PASSED_ON, ladder.SHARED)
        ladder.run(ladder.write_recipe(folder, *ladder.KINDS, *(one for part in parts for one in part)), folder)

    return made_once("trained", make)


@pytest.fixture(scope="session")
def trained_by_two(made_once: Callable[..., Path]) -> Path:
    """The home of a run in two gloo processes of each kind of stage and of those to be compared."""

    def make(folder: Path) -> None:
        kinds = [stage if stage is not ladder.GRPO else {**stage, "steps": 1} for stage in ladder.KINDS]
        ladder.run(ladder.write_recipe(folder, *kinds, *ladder.SHARED, processes=2), folder)

    return made_once("trained_by_two", make)
