"""Advantages against independent computations in float64, and what they mean."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen_align.align.rl.advantages import (
    EPSILON,
    compute_group_advantages,
    compute_rloo_advantages,
    estimate_gae,
    sum_later_rewards,
    whiten,
)

NAN = math.nan
REWARDS = [
    [1.0, 0.0, 0.0, 1.0],
    [0.25, 0.5, NAN, 1.0],
    [1.0, 1.0, 1.0, 1.0],
    [NAN, NAN, NAN, NAN],
    [0.5, NAN, NAN, NAN],
]
numbers = st.floats(-3, 3, allow_nan=False, width=32)
groups = st.integers(2, 5).flatmap(
    lambda n: st.lists(st.lists(st.one_of(numbers, st.just(NAN)), min_size=n, max_size=n), min_size=1, max_size=4)
)


def by_hand(rewards: list[list[float]], scale: str) -> list[list[float]]:
    """With Python's floats, a group after the other."""
    everything = [one for group in rewards for one in group if not math.isnan(one)]
    result = []
    for group in rewards:
        known = [one for one in group if not math.isnan(one)]
        mean = math.fsum(known) / len(known) if known else 0.0
        of = known if scale == "group" else everything
        centre = math.fsum(of) / len(of) if of else 0.0
        spread = math.sqrt(math.fsum((one - centre) ** 2 for one in of) / (len(of) - 1)) if len(of) > 1 else 0.0
        divisor = 1.0 if scale == "none" else spread + EPSILON
        result.append([0.0 if math.isnan(one) else (one - mean) / divisor for one in group])
    return result


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_group_advantages_by_hand(scale: str) -> None:
    found = compute_group_advantages(torch.tensor(REWARDS, dtype=torch.float64), scale)
    torch.testing.assert_close(found, torch.tensor(by_hand(REWARDS, scale), dtype=torch.float64))


@given(groups, st.sampled_from(["group", "batch", "none"]))
def test_group_advantages_of_any_rewards(rewards: list[list[float]], scale: str) -> None:
    found = compute_group_advantages(torch.tensor(rewards, dtype=torch.float64), scale)
    torch.testing.assert_close(found, torch.tensor(by_hand(rewards, scale), dtype=torch.float64), atol=1e-9, rtol=1e-9)
    assert found.isfinite().all()
    assert found.sum(dim=1).abs().max() < 1e-6 / EPSILON


@given(groups)
def test_leave_one_out_is_the_reward_over_the_others_mean(rewards: list[list[float]]) -> None:
    found = compute_rloo_advantages(torch.tensor(rewards, dtype=torch.float64)).tolist()
    for group, said in zip(rewards, found, strict=True):
        for place, reward in enumerate(group):
            others = [one for number, one in enumerate(group) if number != place and not math.isnan(one)]
            if math.isnan(reward) or not others:
                assert said[place] == 0
            else:
                assert said[place] == pytest.approx(reward - math.fsum(others) / len(others), abs=1e-9)


def test_a_better_completion_has_the_higher_advantage() -> None:
    rewards = torch.tensor([[0.1, 0.9, 0.5]])
    for found in (compute_group_advantages(rewards), compute_rloo_advantages(rewards)):
        assert found[0, 1] > found[0, 2] > found[0, 0]


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_returns_to_go(gamma: float) -> None:
    rewards = np.random.default_rng(0).normal(size=(3, 7))
    brute = [[sum(gamma ** (k - t) * row[k] for k in range(t, 7)) for t in range(7)] for row in rewards]
    torch.testing.assert_close(
        sum_later_rewards(torch.tensor(rewards), gamma), torch.tensor(brute, dtype=torch.float64)
    )
    assert sum_later_rewards(torch.zeros(2, 0)).shape == (2, 0)


@pytest.mark.parametrize(("gamma", "lambda_"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.97, 0.0)])
def test_gae_is_the_brute_force_sum(gamma: float, lambda_: float) -> None:
    random = np.random.default_rng(1)
    rewards, values = random.normal(size=(4, 9)), random.normal(size=(4, 9))
    lengths = [9, 4, 1, 6]
    mask = np.array([[float(t < n) for t in range(9)] for n in lengths])
    expected = np.zeros((4, 9))
    for row, n in enumerate(lengths):
        value = [*values[row, :n], 0.0]  # nothing is to come after the last token
        deltas = [rewards[row, t] + gamma * value[t + 1] - value[t] for t in range(n)]
        for t in range(n):
            expected[row, t] = sum((gamma * lambda_) ** (k - t) * deltas[k] for k in range(t, n))
    found, returns = estimate_gae(*map(torch.tensor, (rewards, values, mask)), gamma=gamma, lambda_=lambda_)
    torch.testing.assert_close(found, torch.tensor(expected))
    torch.testing.assert_close(returns, torch.tensor((expected + values) * mask))


def test_gae_with_lambda_one_is_the_return_minus_the_value_and_with_zero_one_step() -> None:
    rewards, values, mask = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.2, 0.4, 0.7]]), torch.ones(1, 3)
    whole, _ = estimate_gae(rewards, values, mask, gamma=1.0, lambda_=1.0)
    torch.testing.assert_close(whole, torch.tensor([[0.8, 0.6, 0.3]]))
    one_step, _ = estimate_gae(rewards, values, mask, gamma=1.0, lambda_=0.0)
    torch.testing.assert_close(one_step, torch.tensor([[0.2, 0.3, 0.3]]))


def test_what_lies_behind_a_completion_counts_nowhere() -> None:
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    rewards, values = torch.tensor([[0.0, 1.0, 9.0]]), torch.tensor([[0.1, 0.2, 7.0]])
    found, returns = estimate_gae(rewards, values, mask, gamma=1.0, lambda_=0.9)
    alone, _ = estimate_gae(rewards[:, :2], values[:, :2], mask[:, :2], gamma=1.0, lambda_=0.9)
    torch.testing.assert_close(found, torch.nn.functional.pad(alone, (0, 1)))
    assert returns[0, 2] == 0


def test_whitened_over_the_tokens_of_the_mask() -> None:
    values, mask = torch.randn(5, 6, dtype=torch.float64), (torch.rand(5, 6) > 0.4).double()
    found = whiten(values, mask)
    kept = values[mask.bool()]
    torch.testing.assert_close(found[mask.bool()], (kept - kept.mean()) / kept.std())
    assert (found[~mask.bool()] == 0).all()
    assert whiten(torch.ones(2, 2), torch.ones(2, 2)).abs().max() < 1e-3
