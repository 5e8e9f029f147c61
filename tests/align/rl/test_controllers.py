"""Numbers that follow a run: against the formulas, and through a checkpoint."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_align.align.rl.controllers import EntropyCoefficient, KlCoefficient, RewardScale
from qwen_align.align.settings.online_rl import Entropy, Kl


@pytest.mark.parametrize(("kl", "factor"), [(6.0, 1.002), (0.0, 0.998), (3.3, 1.001), (3.0, 1.0), (100.0, 1.002)])
def test_the_kls_coefficient_follows_its_target(kl: float, factor: float) -> None:
    settings = Kl(coefficient=0.04, apply_to="reward", target=3.0, horizon=1000)
    one = KlCoefficient.from_settings(settings)
    one.adapt(settings, kl, 10)
    assert one.value == pytest.approx(0.04 * factor)


def test_without_a_target_it_stays() -> None:
    settings = Kl(coefficient=0.04)
    one = KlCoefficient.from_settings(settings)
    one.adapt(settings, 99.0, 1000)
    assert one.value == 0.04
    assert KlCoefficient.from_settings(None).value == 0.0


def test_the_entropy_bonus_is_paid_at_low_entropy_alone_and_grows_there() -> None:
    settings = Entropy(coefficient=0.01, target=0.5, coefficient_delta=0.004, max_coefficient=0.016)
    one = EntropyCoefficient.from_settings(settings)
    found = []
    for entropy in (0.4, 0.5, 0.6, 0.9, 0.9, 0.9, 0.1):
        one.adapt(settings, entropy)
        found.append((round(one.value, 4), one.effective_value > 0))
    assert found == [
        (0.014, True),
        (0.016, True),
        (0.012, False),
        (0.008, False),
        (0.004, False),
        (0.0, False),
        (0.004, True),
    ]
    fixed = EntropyCoefficient.from_settings(Entropy(coefficient=0.01))
    fixed.adapt(Entropy(coefficient=0.01), 9.0)
    assert fixed.effective_value == 0.01


@given(st.lists(st.lists(st.floats(-5, 5), max_size=5), min_size=1, max_size=6))
def test_the_reward_scale_is_that_of_all_rewards_together(batches: list[list[float]]) -> None:
    one = RewardScale()
    for batch in batches:
        one.add_rewards(batch)
        one.restore_state(json.loads(json.dumps(one.to_state())))
    everything = np.array([value for batch in batches for value in batch])
    if len(everything):
        assert one.mean == pytest.approx(everything.mean(), abs=1e-9)
    if len(everything) > 1 and everything.std() > 1e-6:
        assert one.deviation == pytest.approx(everything.std(ddof=1), rel=1e-6)
        assert one.normalise_reward(2.0, "running_mean_std") == pytest.approx((2.0 - one.mean) / one.deviation)
    assert one.normalise_reward(2.0, "none") == 2.0
    assert one.normalise_reward(2.0, "running_mean") == pytest.approx(2.0 - one.mean)


def test_rewards_that_do_not_differ_are_not_blown_up() -> None:
    one = RewardScale()
    one.add_rewards([1.0, 1.0])
    assert one.deviation == 1.0
    assert one.normalise_reward(1.0, "running_mean_std") == 0.0
    assert math.isfinite(RewardScale().normalise_reward(math.nan, "none")) is False
