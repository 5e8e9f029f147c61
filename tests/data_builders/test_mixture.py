"""Mixtures: the ratio, the caps, the order, and what is counted."""

from collections import Counter
from fractions import Fraction
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qwen_align.align.errors import DataError
from qwen_align.align.rows import Chat, Message, Row, RowError, Text
from qwen_align.data_builders.mixture import Mixture, apportion_total, interleave_evenly
from qwen_align.data_builders.sieve import Drops


def chats(name: str, n: int) -> list[Row]:
    asked = Message(role="user", content="q"), Message(role="assistant", content="a")
    return [Chat(id=f"{name}{number}", messages=list(asked)) for number in range(n)]


STAGES = {"a": chats("a", 30), "b": chats("b", 20), "c": chats("c", 10)}


def build_rows(*given: dict[str, Any], seed: int = 0, stages: dict[str, list[Row]] = STAGES, **settings: Any) -> Any:
    drops = Drops()
    mixture = Mixture.model_validate({"sources": [*given], **settings})
    rows = list(mixture.build({name: partial(iter, rows) for name, rows in stages.items()}, seed, drops))
    return rows, drops


def sources(rows: list[Any]) -> Counter[str]:
    return Counter(row.meta["mixture"] for row in rows)


A, B, C = ({"from_data": name} for name in "abc")


def test_without_weights_everything_is_there_once() -> None:
    rows, drops = build_rows(A, B, C)
    assert sources(rows) == {"a": 30, "b": 20, "c": 10}
    assert len({row.id for row in rows}) == 60
    assert drops.rows == []


def test_weights_make_the_largest_mixture_of_their_ratio_and_the_rest_is_counted() -> None:
    rows, drops = build_rows(A | {"weight": 0.2}, B | {"weight": 0.7}, C | {"weight": 0.1})
    assert sources(rows) == {"a": 6, "b": 19, "c": 3}
    assert drops.counts == {"over the share of 'a'": 24, "over the share of 'c'": 7, "over the share of 'b'": 1}
    assert len(rows) + len(drops.rows) == 60


def test_caps_and_a_number_of_rows() -> None:
    rows, drops = build_rows(A | {"max_rows": 10}, B, rows=15)
    assert sources(rows) == {"a": 5, "b": 10}
    assert drops.counts == {"over max_rows of 'a'": 20, "over the share of 'b'": 10, "over the share of 'a'": 5}


def test_small_sources_can_be_used_several_times() -> None:
    rows, drops = build_rows(A | {"weight": 1.0}, C | {"weight": 1.0, "times": 3}, seed=4)
    assert sources(rows) == {"a": 30, "c": 30}
    assert drops.rows == []
    assert Counter(row.id.partition("@")[2] for row in rows) == {"": 40, "2": 10, "3": 10}


def test_used_in_part_over_several_rounds_counts_no_row_that_is_there() -> None:
    rows, drops = build_rows(A, C | {"times": 3, "max_rows": 15})
    assert sources(rows) == {"a": 30, "c": 15}
    assert drops.rows == []


@given(st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_every_stretch_has_the_ratio_of_the_whole(counts: list[int]) -> None:
    order = [index for index, _ in interleave_evenly(counts)]
    assert Counter(order) == dict(enumerate(counts))
    for length in range(len(order) + 1):
        for index, count in enumerate(counts):
            expected = length * count / len(order)
            assert abs(order[:length].count(index) - expected) <= len(counts)
    for index, count in enumerate(counts):
        assert [number for one, number in interleave_evenly(counts) if one == index] == list(range(count))


@given(st.integers(0, 500), st.lists(st.fractions(Fraction(1, 50), 50), min_size=1, max_size=6))
def test_apportioning_loses_nothing_and_is_off_by_less_than_one(total: int, weights: list[Fraction]) -> None:
    counts = apportion_total(total, weights)
    assert sum(counts) == total
    assert all(abs(n - total * w / sum(weights)) < 1 for n, w in zip(counts, weights, strict=True))


def test_the_seed_decides_what_is_used_and_in_which_order() -> None:
    first, again, other = (build_rows(A | {"max_rows": 9}, B, seed=seed)[0] for seed in (0, 0, 1))
    assert first == again
    assert {row.id for row in first} != {row.id for row in other}
    assert [row.id for row in build_rows(C, seed=5)[0]] == ["c8", "c6", "c5", "c7", "c1", "c9", "c3", "c2", "c0", "c4"]


def test_one_row_less_changes_nothing_else() -> None:
    fewer = {**STAGES, "a": [row for row in STAGES["a"] if row.id != "a7"]}
    assert [row.id for row in build_rows(A, stages=fewer)[0]] == [row.id for row in build_rows(A)[0] if row.id != "a7"]


def test_without_shuffling_each_source_keeps_its_order() -> None:
    rows, _ = build_rows(A | {"max_rows": 4}, C | {"max_rows": 2}, shuffle=False)
    assert [row.id for row in rows] == ["a0", "c0", "a1", "a2", "c1", "a3"]


def test_equal_ids_need_a_prefix() -> None:
    stages: dict[str, list[Row]] = {"a": chats("x", 2), "b": chats("x", 2)}
    with pytest.raises(RowError, match=r"is in stage '.' and stage '.'; rows need ids of their own: set prefix_ids"):
        build_rows(A, B, stages=stages)
    assert sorted(row.id for row in build_rows(A, B, stages=stages, prefix_ids=True)[0]) == [
        "a:x0",
        "a:x1",
        "b:x0",
        "b:x1",
    ]


def test_what_a_row_says_of_its_source() -> None:
    rows, _ = build_rows(A | {"max_rows": 1}, note_as="from")
    assert rows[0].meta == {"from": "a"}
    assert build_rows(A | {"max_rows": 1}, note_as=None)[0][0].meta == {}
    assert build_rows({"from_data": "t"}, stages={"t": [Text(id="t", text="t")]})[0] == [Text(id="t", text="t")]
    noted = {"a": [row.model_copy(update={"meta": {"mixture": 1}}) for row in STAGES["a"]]}
    with pytest.raises(RowError, match="meta has 'mixture' already"):
        build_rows(A, stages=noted)


@pytest.mark.parametrize(
    ("given", "settings", "message"),
    [
        ([A, B], {"rows": 61}, "61 rows want 37 of stage 'a', which gives 30"),
        ([A | {"weight": 500.0}, B | {"weight": 1.0}], {}, "none falls to stage 'b'"),
        ([{"from_data": "none"}], {}, "stage 'none' has no row"),
    ],
)
def test_what_cannot_be_mixed(given: list[dict[str, Any]], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_rows(*given, stages={**STAGES, "none": []}, **settings)


@pytest.mark.parametrize(
    ("given", "message"),
    [([A, A], "'a' is named twice"), ([A | {"weight": 1.0}, B], "'b' has no weight"), ([], "at least 1 item")],
)
def test_wrong_settings_are_refused(given: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        build_rows(*given)
