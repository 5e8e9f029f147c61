"""Bands of difficulty: what counts as an attempt, where the published bands end, and what is wrong with a setting."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qwen_align.align.rows import Completion, Message, Problem, Row, RowError, Text
from qwen_align.data_builders.selection_inputs import Attempts, Tries, compute_rank_shares, get_prompt_id
from qwen_align.data_builders.selection_pass_rate import BANDS, PassRate
from qwen_align.data_builders.sieve import Drops
from qwen_align.reward.verdict import Verdict

QUESTION = [Message(role="user", content="?")]


def problem(row_id: str, **meta: Any) -> Problem:
    return Problem(id=row_id, messages=QUESTION, reward="math_answer", gold="1", source="toy", meta=meta)


def completion(prompt_id: str, sample: int, value: float | None, reward: str = "math_answer") -> Completion:
    verdicts = {reward: Verdict(value=value, reason="toy")}
    return Completion(
        prompt_id=prompt_id,
        sample=sample,
        prompt=QUESTION,
        text="1",
        finish_reason="stop",
        n_tokens=1,
        verdicts=verdicts,
    )


def sources(rows: Sequence[Row], sampled: Sequence[Row] = ()) -> Any:
    def read(of: Sequence[Row]) -> Iterator[Row]:
        return iter(of)

    return {"prompts": lambda: read(rows), "rollouts": lambda: read(sampled)}


def build_rows(
    rows: Sequence[Row], sampled: Sequence[Row] = (), **settings: Any
) -> tuple[list[Any], list[tuple[str, str, str]]]:
    drops = Drops()
    builder = PassRate.model_validate({"from_data": "prompts", **settings})
    kept = list(builder.build(sources(rows, sampled), 0, drops))
    return kept, [(drop.id, drop.reason, drop.detail) for drop in drops.rows]


BY_COUNT = {"column": "correct", "holds": "count"}


@pytest.mark.parametrize(
    ("band", "samples", "kept"),
    [
        ("limo", 32, [1, 2, 3]),
        ("qwen2_5_math", 8, [2, 3, 4, 5]),
        ("open_r1", 10, [2, 3, 4, 5, 6, 7, 8]),  # neither 0.1 nor 0.9 itself
        ("open_r1", 8, [1, 2, 3, 4, 5, 6, 7]),
        ({"min_correct": 0, "max_correct": 0}, 4, [0]),
        ({"above": 0.5}, 4, [3, 4]),
        ({"max_correct": 3, "above": 0.25}, 4, [2, 3]),
    ],
)
def test_bands(band: Any, samples: int, kept: list[int]) -> None:
    rows = [problem(f"{count}", correct=count) for count in range(samples + 1)]
    found, drops = build_rows(rows, attempts={**BY_COUNT, "samples": samples}, band=band)
    assert [int(row.id) for row in found] == kept
    for row_id, reason, _ in drops:
        assert reason == ("too hard" if int(row_id) < kept[0] else "too easy")
    assert len(found) + len(drops) == len(rows)


def test_bands_of_another_number_of_samples_are_not_applied() -> None:
    kept, drops = build_rows([problem("a", correct=2)], attempts={**BY_COUNT, "samples": 16}, band="limo")
    assert (kept, drops) == ([], [("a", "not 32 judged answers", "2 of 16 correct, mean 0.125")])


def test_from_rollouts() -> None:
    """Unjudged answers are no attempts; completions of other prompts are nobody's."""
    values = {"easy": [1.0, 1.0], "half": [1.0, 0.0, None], "hard": [0.0, 0.0], "unjudged": [None], "other": [1.0]}
    sampled = [completion(name, index, value) for name, found in values.items() for index, value in enumerate(found)]
    rows = [problem(name) for name in ("easy", "half", "hard", "unjudged", "unseen")]
    kept, drops = build_rows(rows, sampled, attempts={"from_rollout": "rollouts"}, band="open_r1")
    noted = {"pass_rate": {"n_correct": 1, "n_judged": 2, "mean": 0.5}}
    assert kept == [rows[1].model_copy(update={"meta": noted})]
    assert drops == [
        ("easy", "too easy", "2 of 2 correct, mean 1"),
        ("hard", "too hard", "0 of 2 correct, mean 0"),
        ("unjudged", "no judged answer", "in stage 'rollouts'"),
        ("unseen", "no judged answer", "in stage 'rollouts'"),
    ]


def test_two_filters_need_two_names() -> None:
    settings = {"attempts": {"column": "solved"}, "band": {"max_correct": 1}}
    once, _ = build_rows([problem("a", solved=True)], **settings)
    with pytest.raises(RowError, match="'a': meta has 'pass_rate' already"):
        build_rows(once, **settings)
    twice, _ = build_rows(once, **settings, note_as="by_the_larger_model")
    assert twice[0].meta.keys() == {"solved", "pass_rate", "by_the_larger_model"}


COLUMNS = [
    ({}, True, Tries(1, 1, 1.0)),
    ({}, False, Tries(0, 1, 0.0)),
    ({}, None, None),
    ({"holds": "rewards"}, [1, 0, None, 0.5], Tries(1, 3, 0.5)),
    ({"holds": "rewards"}, [True, False], Tries(1, 2, 0.5)),
    ({"holds": "rewards"}, [None], None),
    ({"holds": "rewards"}, [1e308, 1e308, None], Tries(2, 2, 1e308)),
    ({"holds": "rewards"}, [], None),
    ({"holds": "rewards", "correct_from": 0.5}, [0.5, 0.4], Tries(1, 2, 0.45)),
    ({"holds": "count", "samples": 4}, 3, Tries(3, 4, 0.75)),
    ({"holds": "share", "samples": 64}, 0.25, Tries(16, 64, 0.25)),
    ({"holds": "share", "samples": 64}, 1, Tries(64, 64, 1.0)),
]


@pytest.mark.parametrize(("settings", "value", "tries"), COLUMNS)
def test_columns(settings: dict[str, Any], value: Any, tries: Tries | None) -> None:
    attempts = Attempts.model_validate({"column": "solved", **settings})
    found = attempts.make_reader({})(problem("a", solved=value))
    assert (found is None) == (tries is None)
    assert found is None or found == pytest.approx(tries)


@pytest.mark.parametrize(
    ("settings", "value", "message"),
    [
        ({}, "yes", "'yes', not true or false"),
        ({}, 1, "1, not true or false"),
        ({"holds": "rewards"}, [1, "0"], "not a list of rewards"),
        ({"holds": "rewards"}, [float("nan")], "not a list of rewards"),
        ({"holds": "rewards"}, [1, int("9" * 400)], "not a list of rewards"),
        ({"holds": "share", "samples": 4}, int("9" * 400), "not a share of 4"),
        ({"holds": "count", "samples": 4}, int("9" * 400), "not a count of 4"),
        ({"holds": "count", "samples": 4}, 5, "5, not a count of 4"),
        ({"holds": "count", "samples": 4}, 0.5, "0.5, not a count of 4"),
        ({"holds": "count", "samples": 4}, True, "True, not a count of 4"),
        ({"holds": "share", "samples": 4}, 1.5, "1.5, not a share of 4"),
    ],
)
def test_columns_that_hold_something_else(settings: dict[str, Any], value: Any, message: str) -> None:
    attempts = Attempts.model_validate({"column": "solved", **settings})
    with pytest.raises(RowError, match="row 'a': meta 'solved' is") as caught:
        attempts.make_reader({})(problem("a", solved=value))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("attempts", "message"),
    [
        ({}, "either from_rollout or column"),
        ({"column": "a", "from_rollout": "b"}, "either from_rollout or column"),
        ({"from_rollout": "b", "samples": 3}, "samples: is for column"),
        ({"column": "a", "reward": "math_answer"}, "reward: is for from_rollout"),
        ({"column": "a", "holds": "count"}, "goes with a column that holds a count"),
        ({"column": "a", "samples": 3}, "goes with a column that holds a count"),
    ],
)
def test_attempts_from_nowhere(attempts: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Attempts.model_validate(attempts)


@pytest.mark.parametrize(
    ("band", "message"),
    [
        ({}, "needs a bound"),
        ({"samples": 4}, "needs a bound"),
        ({"min_correct": 3, "max_correct": 2}, "above max_correct"),
        ({"above": 0.5, "below": 0.5}, "no mean reward"),
        ({"min_correct": 5, "samples": 4}, "never so many"),
        ("lima", "'open_r1', 'qwen2_5_math' or 'limo'"),
    ],
)
def test_impossible_bands(band: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PassRate.model_validate({"from_data": "a", "attempts": {"column": "b"}, "band": band})


@pytest.mark.parametrize(
    ("rows", "sampled", "message"),
    [
        ([Text(id="a", text="t")], [], "row 'a' is a text row"),
        ([problem("a")], [problem("a")], "row 'a' is a problem row"),
        ([problem("a")], [completion("a", 0, 1.0, "format")], "no verdict of 'math_answer' but of format"),
        ([problem("a"), problem("a")], [], "id 'a' occurs twice"),
    ],
)
def test_wrong_rows(rows: list[Row], sampled: list[Row], message: str) -> None:
    with pytest.raises(RowError, match=message):
        build_rows(rows, sampled, attempts={"from_rollout": "rollouts"}, band="open_r1")


@pytest.mark.parametrize(
    ("row_id", "prompt_id"), [("p#3", "p"), ("p#3#0", "p#3"), ("p", "p"), ("p#", "p#"), ("p#x", "p#x"), ("#3", "#3")]
)
def test_prompt_of(row_id: str, prompt_id: str) -> None:
    assert get_prompt_id(row_id) == prompt_id


def test_a_row_is_found_by_its_whole_id_first() -> None:
    sampled = [completion("p", 0, 0.0), completion("p#1", 0, 1.0)]
    read = Attempts.model_validate({"from_rollout": "rollouts"}).make_reader(sources([], sampled))
    assert read(problem("p#1")) == Tries(1, 1, 1.0)
    assert read(problem("p#2")) == Tries(0, 1, 0.0)


@given(st.lists(st.integers(-3, 3), min_size=2))
def test_rank_shares(values: list[int]) -> None:
    """A value's place is the share of the others below it, equal ones counted half."""
    shares = compute_rank_shares(map(float, values))
    for index, value in enumerate(values):
        others = values[:index] + values[index + 1 :]
        below = sum(1.0 if other < value else 0.5 if other == value else 0.0 for other in others)
        assert shares[index] == pytest.approx(below / len(others))


def test_the_bands_are_the_published_ones() -> None:
    assert {name: band.model_dump(exclude_none=True) for name, band in BANDS.items()} == {
        "open_r1": {"above": 0.1, "below": 0.9},
        "qwen2_5_math": {"min_correct": 2, "max_correct": 5, "samples": 8},
        "limo": {"min_correct": 1, "max_correct": 3, "samples": 32},
    }
