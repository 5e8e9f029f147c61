"""reasoning_gym's tasks as problems: the same for the same seed, splits that share no question, golds that are paid."""

import pytest
from pydantic import ValidationError

from qwen_align.align.errors import DataError, RecipeError
from qwen_align.align.rows import parse_row, to_line
from qwen_align.data_builders.reasoning_gym_tasks import INSTRUCTION, GymTask, ReasoningGymTasks, split_of
from qwen_align.data_builders.sieve import Drops, Sieve, sieve

pytest.importorskip("reasoning_gym", reason="the extra reasoning-gym is not installed")

TASKS: list[str | GymTask] = ["leg_counting", "spell_backward", "coin_flip", "gsm_symbolic"]


def test_rows_are_problems_of_the_tasks_and_pass_the_sieve() -> None:
    rows = list(ReasoningGymTasks(tasks=TASKS, n=30).build({}, 1, Drops()))
    assert len(rows) == len({row.id for row in rows}) == 30
    drops = Drops()
    assert list(sieve(rows, Sieve(), drops)) == rows
    assert drops.counts == {}
    for row in ReasoningGymTasks(tasks=TASKS, n=30).generate(1):
        assert row.messages[0].content == f"{row.gold['entry']['question']}\n\n{INSTRUCTION}"
        assert row.gold["dataset"] == row.meta["task"] in TASKS
        assert row.source == f"reasoning_gym/{row.meta['task']}"
        assert parse_row(to_line(row), where="here") == row


def test_the_same_seed_gives_the_same_rows() -> None:
    def lines(seed: int, own: int | None = None) -> list[str]:
        return [to_line(row) for row in ReasoningGymTasks(tasks=TASKS, n=12, seed=own).generate(seed)]

    assert lines(1) == lines(1)
    assert lines(1) != lines(2)
    assert lines(1, own=5) == lines(2, own=5)


def test_a_smaller_n_is_a_beginning() -> None:
    few, many = (list(ReasoningGymTasks(tasks=TASKS, n=n).generate(1)) for n in (5, 15))
    assert many[:5] == few


def test_splits_share_no_question_whatever_the_seed() -> None:
    ids = {
        split: {row.id for seed in (1, 2) for row in ReasoningGymTasks(tasks=TASKS, n=40, split=split).generate(seed)}
        for split in ("train", "dev", "test")
    }
    assert not ids["train"] & ids["dev"]
    assert not ids["train"] & ids["test"]
    assert not ids["dev"] & ids["test"]
    assert all(split_of(one) == split for split, found in ids.items() for one in found)


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


def test_a_task_without_new_questions_says_so() -> None:
    tasks: list[str | GymTask] = [GymTask(name="coin_flip", settings={"min_trials": 3, "max_trials": 3})]
    with pytest.raises(DataError, match="task 'coin_flip': no new question for row"):
        list(ReasoningGymTasks(tasks=tasks, n=500).generate(1))


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("leg_count", r"'leg_count' is no task of reasoning_gym. Did you mean 'leg_counting'\?"),
        ("propositional_logic", "'propositional_logic' is not used: its scorer pays any premise"),
        ("composite", "'composite' is not used"),
        (GymTask(name="leg_counting", settings={"legs": 3}), "'leg_counting': settings .*legs"),
        (GymTask(name="leg_counting", settings={"min_animals": 9, "max_animals": 2}), "'leg_counting': settings"),
    ],
)
def test_a_recipe_that_cannot_be_built_says_why(task: str | GymTask, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        list(ReasoningGymTasks(tasks=[task], n=1).generate(1))


def test_seed_and_size_are_the_builders_own() -> None:
    with pytest.raises(ValidationError, match="seed, size: the builder's own"):
        GymTask(name="leg_counting", settings={"seed": 1, "size": 2})
