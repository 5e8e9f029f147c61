"""MathAnswer on generated pairs that have to be compared as they are written: how many it gets wrong."""

import pytest

from qwen_align.reward.math_answer import MathAnswer
from tests.reward.math.literal_pairs import KINDS, generate_literal_pairs
from tests.reward.math.pair_registry import Pair

REWARD = MathAnswer()
PAID_SHARE = 1 / 1000
REFUSED_SHARE = 0.01
SIZES = [pytest.param(150, id="few"), pytest.param(5_000, id="many", marks=pytest.mark.evidence)]


def judge_pairs(pairs: list[Pair], value: float) -> list[str]:
    """Returns the pairs that get this verdict, as text for the reader of a failure."""
    verdicts = [(pair, REWARD.judge(rf"Thus it is $\boxed{{{pair.answer}}}$.", pair.gold)) for pair in pairs]
    return sorted({f"{pair.answer!r} for {pair.gold!r}: {v.reason}" for pair, v in verdicts if v.value == value})


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_unequal_pairs_are_not_paid(kind: str, n: int) -> None:
    pairs = generate_literal_pairs(kind, n, is_equal=False)
    paid = judge_pairs(pairs, 1.0)
    print(f"{kind}: {len(paid)} of {len(set(pairs))} unequal pairs paid", *paid, sep="\n")
    assert len(paid) <= PAID_SHARE * len(set(pairs))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("kind", KINDS)
def test_equal_pairs_are_paid(kind: str, n: int) -> None:
    pairs = generate_literal_pairs(kind, n, is_equal=True)
    unpaid = judge_pairs(pairs, 0.0) + [str(p) for p in set(pairs) if REWARD.judge_gold(p.gold).value != 1.0]
    print(f"{kind}: {len(unpaid)} of {len(set(pairs))} equal pairs refused", *unpaid, sep="\n")
    assert len(unpaid) <= REFUSED_SHARE * len(set(pairs))
