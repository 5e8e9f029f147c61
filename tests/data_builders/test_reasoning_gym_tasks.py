"""reasoning_gym's tasks as problems: the same for the same seed, splits that share no question, golds that are paid."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from qwen_align.align.errors import DataError, RecipeError, StageError
from qwen_align.align.rows import Problem, parse_row, to_json_line
from qwen_align.data_builders.reasoning_gym_tasks import INSTRUCTION, GymTask, ReasoningGymTasks, assign_split
from qwen_align.data_builders.reasoning_gym_worker import UNREPEATABLE, create_item_streams
from qwen_align.data_builders.sieve import Drops, Sieve, sieve
from qwen_align.reward.reasoning_gym_guards import REFUSED_TASKS

pytest.importorskip("reasoning_gym", reason="the extra reasoning-gym is not installed")

TASKS: list[str | GymTask] = ["leg_counting", "spell_backward", "coin_flip", "gsm_symbolic"]


@pytest.fixture(scope="module")
def thirty() -> list[Problem]:
    """Rows of seed 1, drawn once: the process that draws takes a second to start."""
    return list(ReasoningGymTasks(tasks=TASKS, n=30).generate(1))


def test_rows_are_problems_of_the_tasks_and_pass_the_sieve(thirty: list[Problem]) -> None:
    rows = list(ReasoningGymTasks(tasks=TASKS, n=30).build({}, 1, Drops()))
    assert len(rows) == len({row.id for row in rows}) == 30
    drops = Drops()
    assert list(sieve(rows, Sieve(), drops)) == rows
    assert drops.counts == {}
    assert rows == thirty, "the same seed gives the same rows"
    for row in thirty:
        assert row.messages[0].content == f"{row.gold['entry']['question']}\n\n{INSTRUCTION}"
        assert row.gold["dataset"] == row.meta["task"] in TASKS
        assert row.source == f"reasoning_gym/{row.meta['task']}"
        assert parse_row(to_json_line(row), where="here") == row


@pytest.mark.slow(seconds=3)
def test_the_seed_decides_the_rows_and_a_smaller_n_is_a_beginning(thirty: list[Problem]) -> None:
    def lines(seed: int, own: int | None = None) -> list[str]:
        return [to_json_line(row) for row in ReasoningGymTasks(tasks=TASKS, n=12, seed=own).generate(seed)]

    beginning = [to_json_line(row) for row in thirty[:12]]
    assert lines(1) == beginning
    assert lines(2) != beginning
    assert lines(1, own=5) == lines(2, own=5)


LATER = """
import datetime, time

class OfItsKind(type):
    def __instancecheck__(cls, value):
        return isinstance(value, cls.__mro__[1])

class Date(datetime.date, metaclass=OfItsKind):
    @classmethod
    def today(cls):
        return datetime.date.fromtimestamp(time.time())

class Datetime(datetime.datetime, metaclass=OfItsKind):
    @classmethod
    def now(cls, tz=None):
        return Datetime.__mro__[1].fromtimestamp(time.time(), tz)

clock = time.time
time.time = lambda: clock() + 1000.3 * 86400
datetime.date, datetime.datetime = Date, Datetime
"""


def yield_lines_at_other_times(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tasks: list[str | GymTask], n: int
) -> Any:
    """The rows now, and as a process with other hashes makes them a thousand days later."""
    (folder / "sitecustomize.py").write_text(LATER)
    for environment in ({"PYTHONHASHSEED": "1"}, {"PYTHONHASHSEED": "2", "PYTHONPATH": str(folder)}):
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield [to_json_line(row) for row in ReasoningGymTasks(tasks=tasks, n=n).generate(3)]


@pytest.mark.slow(seconds=5)
def test_neither_hashes_nor_global_chance_nor_the_day_change_rows(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tasks: list[str | GymTask] = ["list_functions", "time_intervals", "isomorphic_strings", "polynomial_multiplication"]
    now, later = yield_lines_at_other_times(monkeypatch, tmp_path, tasks, 300)
    assert now == later


@pytest.mark.evidence
def test_every_task_gives_the_same_rows_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from reasoning_gym.factory import DATASETS

    tasks: list[str | GymTask] = [*sorted(set(DATASETS) - set(REFUSED_TASKS) - set(UNREPEATABLE))]
    now, later = yield_lines_at_other_times(monkeypatch, tmp_path, tasks, 12 * len(tasks))
    drawn = Counter(json.loads(line)["meta"]["task"] for line in now)
    assert len(drawn) == len(tasks) >= 103
    assert {json.loads(one)["meta"]["task"] for one, other in zip(now, later, strict=True) if one != other} == set()


def test_a_process_that_ends_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os\nos._exit(3)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(StageError, match="reasoning_gym: the process that draws items has ended"):
        next(ReasoningGymTasks(tasks=TASKS, n=1).generate(1))


@pytest.mark.slow(seconds=9)
def test_splits_share_no_question_whatever_the_seed() -> None:
    ids = {
        split: {row.id for seed in (1, 2) for row in ReasoningGymTasks(tasks=TASKS, n=40, split=split).generate(seed)}
        for split in ("train", "dev", "test")
    }
    assert not ids["train"] & ids["dev"]
    assert not ids["train"] & ids["test"]
    assert not ids["dev"] & ids["test"]
    assert all(assign_split(one) == split for split, found in ids.items() for one in found)


@pytest.mark.slow(seconds=3)
def test_weights_and_settings() -> None:
    tasks: list[str | GymTask] = [
        GymTask(name="leg_counting", weight=9.0, settings={"min_animals": 2, "max_animals": 2}),
        GymTask(name="spell_backward"),
    ]
    rows = list(ReasoningGymTasks(tasks=tasks, n=60, instruction="", mode="no_think").generate(1))
    legs = [row for row in rows if row.meta["task"] == "leg_counting"]
    assert 45 <= len(legs) <= 59
    for row in legs:
        assert row.gold["settings"] == {"min_animals": 2, "max_animals": 2}
        assert row.messages[0].content == row.gold["entry"]["question"]
        assert row.mode == "no_think"
    assert all("settings" not in row.gold for row in rows if row not in legs)


@pytest.mark.slow(seconds=3)
def test_a_task_without_new_questions_says_so() -> None:
    tasks: list[str | GymTask] = [GymTask(name="coin_flip", settings={"min_trials": 3, "max_trials": 3})]
    with pytest.raises(DataError, match="task 'coin_flip': no new question for row"):
        list(ReasoningGymTasks(tasks=tasks, n=500).generate(1))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (GymTask(name="leg_count"), r"'leg_count' is no task of reasoning_gym. Did you mean 'leg_counting'\?"),
        (GymTask(name="propositional_logic"), "'propositional_logic' is not used: its scorer pays any premise"),
        (GymTask(name="composite"), "'composite' is not used"),
        (GymTask(name="codeio"), "'codeio' is not used: it runs 3,002 snippets"),
        (GymTask(name="leg_counting", settings={"legs": 3}), "'leg_counting': settings .*legs"),
        (GymTask(name="leg_counting", settings={"min_animals": 9, "max_animals": 2}), "'leg_counting': settings"),
    ],
)
def test_a_recipe_that_cannot_be_built_says_why(task: GymTask, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        next(create_item_streams([{"name": task.name, "settings": task.settings}], 1)[0])


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("leg_count", r"'leg_count' is no task of reasoning_gym. Did you mean 'leg_counting'\?"),
        (GymTask(name="leg_counting", settings={"legs": 3}), "'leg_counting': settings .*legs"),
    ],
)
def test_why_a_recipe_cannot_be_built_comes_from_the_process_that_draws(task: str | GymTask, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        list(ReasoningGymTasks(tasks=[task], n=1).generate(1))


def test_seed_and_size_are_the_builders_own() -> None:
    with pytest.raises(ValidationError, match="seed, size: the builder's own"):
        GymTask(name="leg_counting", settings={"seed": 1, "size": 2})
