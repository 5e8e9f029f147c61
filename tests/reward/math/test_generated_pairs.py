"""MathAnswer on generated pairs: how many unequal ones it pays, how many equal ones it refuses."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen_align.reward.math_answer import MathAnswer
from tests.reward.math import expression_pairs, number_pairs, structure_pairs, text_answer_pairs
from tests.reward.math.pair_registry import EQUAL, UNEQUAL, Pair

REWARD = MathAnswer()
PAID_SHARE = 1 / 1000
REFUSED_SHARE = 0.02
SIZES = [
    pytest.param(5, id="few"),
    pytest.param(100, id="some", marks=pytest.mark.slow(seconds=10)),
    pytest.param(250, id="many", marks=pytest.mark.evidence),
]


def generate_pairs(table: dict[str, st.SearchStrategy[Pair]], n_each: int) -> list[Pair]:
    """Generates the same different pairs at every call, `n_each` of a kind or as many as it has."""
    generated: dict[Pair, None] = {}

    for strategy in table.values():

        @settings(
            max_examples=n_each, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
        )
        @given(strategy)
        def keep(pair: Pair) -> None:
            generated.setdefault(pair)

        keep()
    return list(generated)


def list_pairs_with_verdict(pairs: list[Pair], value: float) -> list[str]:
    """Returns the pairs that get this verdict, as text for the reader of a failure."""
    verdicts = [(pair, REWARD.judge(rf"Thus it is $\boxed{{{pair.answer}}}$.", pair.gold)) for pair in pairs]
    return [f"{pair.kind}: {pair.answer!r} for {pair.gold!r}: {v.reason}" for pair, v in verdicts if v.value == value]


def test_every_kind_is_in_both_tables() -> None:
    makers = (
        number_pairs.make_integer,
        expression_pairs.make_polynomials,
        structure_pairs.make_matrix,
        text_answer_pairs.make_word,
    )
    assert {maker.__name__.removeprefix("make_") for maker in makers} <= EQUAL.keys() == UNEQUAL.keys()


@pytest.mark.parametrize("n_each", SIZES)
def test_unequal_pairs_are_not_paid(n_each: int) -> None:
    pairs = generate_pairs(UNEQUAL, n_each)
    paid = list_pairs_with_verdict(pairs, 1.0)
    print(f"{len(paid)} of {len(pairs)} unequal pairs paid", *paid, sep="\n")
    assert len(paid) <= PAID_SHARE * len(pairs)


@pytest.mark.parametrize("n_each", SIZES)
def test_equal_pairs_are_not_refused(n_each: int) -> None:
    pairs = generate_pairs(EQUAL, n_each)
    unpaid = list_pairs_with_verdict(pairs, 0.0) + [
        f"unusable {pair}" for pair in pairs if REWARD.judge_gold(pair.gold).value != 1.0
    ]
    print(f"{len(unpaid)} of {len(pairs)} equal pairs refused", *unpaid, sep="\n")
    assert len(unpaid) <= REFUSED_SHARE * len(pairs)
