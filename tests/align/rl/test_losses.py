"""Losses against a token-by-token computation in float64, and what they mean."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwen_align.align.rl.losses import (
    POLICY_LOSSES,
    PPO_LOSS,
    StepTotals,
    compute_correction_weights,
    compute_policy_loss,
    compute_value_loss,
    estimate_kl,
    find_clipped_tokens,
)

LOSSES = {**POLICY_LOSSES, "ppo": PPO_LOSS}
KINDS = ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "ppo"]
CLIP = {"clip_low": 0.2, "clip_high": 0.28}


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    random = np.random.default_rng(seed)
    n_tokens = [6, 2, 4, 1, 5]
    mask = np.array([[float(t < n) for t in range(6)] for n in n_tokens])
    old = np.log(random.uniform(0.05, 1, size=mask.shape))
    return {
        "logps": torch.tensor(old + random.normal(0, 0.4, size=mask.shape)).requires_grad_(),
        "old_logps": torch.tensor(old),
        "advantages": torch.tensor(random.normal(size=mask.shape)),
        "mask": torch.tensor(mask),
    }


def by_hand(one: dict[str, torch.Tensor], kind: str) -> np.ndarray:
    logps, old, advantages, mask = (one[name].detach().numpy() for name in ("logps", "old_logps", "advantages", "mask"))
    found = np.zeros_like(mask)
    for row in range(len(mask)):
        n = int(mask[row].sum())
        ratios = [math.exp(logps[row, t] - old[row, t]) for t in range(n)]
        if kind == "gspo":
            ratios = [math.exp(sum(logps[row, t] - old[row, t] for t in range(n)) / n)] * n
        for t, ratio in enumerate(ratios):
            if kind == "cispo":
                found[row, t] = -min(ratio, 1.28) * advantages[row, t] * logps[row, t]
            else:
                held = min(max(ratio, 0.8), 1.28)
                found[row, t] = -min(ratio * advantages[row, t], held * advantages[row, t])
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_policy_loss_by_hand(kind: str, seed: int) -> None:
    one = batch(seed)
    found = compute_policy_loss(**one, loss=LOSSES[kind], **CLIP)
    torch.testing.assert_close(found.detach(), torch.tensor(by_hand(one, kind)))


@pytest.mark.parametrize("kind", ["grpo", "gspo", "cispo"])
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    one = batch(3)
    compute_policy_loss(**one, loss=LOSSES[kind], **CLIP).sum().backward()
    ours, step = one["logps"].grad, 1e-6
    assert ours is not None
    for row, t in ((0, 0), (0, 3), (2, 1), (4, 4)):
        sides = []
        for sign in (1, -1):
            moved = one["logps"].detach().clone()
            moved[row, t] += sign * step
            if kind == "cispo":  # its ratio is a weight, which does not move
                ratio = (one["logps"] - one["old_logps"]).detach().exp().clamp(max=1.28)
                sides.append((-(ratio * one["advantages"] * moved * one["mask"])).sum())
            else:
                sides.append(compute_policy_loss(**{**one, "logps": moved}, loss=LOSSES[kind], **CLIP).sum())
        assert ours[row, t].item() == pytest.approx(((sides[0] - sides[1]) / (2 * step)).item(), abs=1e-6)


def test_a_clipped_token_gets_no_gradient_and_cispo_gives_one_to_every_token() -> None:
    old = torch.zeros(1, 4, dtype=torch.float64)
    logps = torch.tensor([[0.5, -0.5, 0.5, -0.5]], dtype=torch.float64, requires_grad=True)  # ratios 1.65 and 0.61
    advantages, mask = torch.tensor([[1.0, -1.0, -1.0, 1.0]]).double(), torch.ones(1, 4).double()
    compute_policy_loss(logps, old, advantages, mask, loss=LOSSES["grpo"], **CLIP).sum().backward()
    assert logps.grad is not None
    assert (logps.grad[0, :2] == 0).all()
    assert (logps.grad[0, 2:] != 0).all()
    assert find_clipped_tokens(logps, old, advantages, mask, loss=LOSSES["grpo"], **CLIP).tolist() == [[1, 1, 0, 0]]
    logps.grad = None
    compute_policy_loss(logps, old, advantages, mask, loss=LOSSES["cispo"], **CLIP).sum().backward()
    torch.testing.assert_close(
        logps.grad, -torch.tensor([[1.28, 0.6065306597, 1.28, 0.6065306597]]).double() * advantages
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_positive_advantage_pushes_up_and_tokens_behind_a_completion_do_nothing(kind: str) -> None:
    one = batch()
    one["logps"] = one["old_logps"].clone().requires_grad_()
    compute_policy_loss(**one, loss=LOSSES[kind], **CLIP).sum().backward()
    gradient = one["logps"].grad
    assert gradient is not None
    assert (gradient[one["mask"] == 0] == 0).all()
    if kind != "gspo":
        on = one["mask"] == 1
        torch.testing.assert_close(gradient[on], -one["advantages"][on])
    else:  # the mean over the completion stands at each of its tokens
        mask = one["mask"]
        per_row = (one["advantages"] * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        torch.testing.assert_close(gradient, -per_row * mask)


def test_token_weights_sum_to_what_each_loss_is_a_mean_over() -> None:
    n_tokens = torch.tensor([3, 1, 6])
    totals = StepTotals(n_completions=5, n_tokens=20, max_tokens=8)
    grpo = LOSSES["grpo"].weigh_tokens(n_tokens, totals)
    torch.testing.assert_close(grpo * n_tokens, torch.full((3,), 1 / 5))  # every completion weighs the same
    torch.testing.assert_close(LOSSES["gspo"].weigh_tokens(n_tokens, totals), grpo)
    assert LOSSES["dr_grpo"].weigh_tokens(n_tokens, totals).tolist() == pytest.approx([1 / 40] * 3)
    for kind in ("dapo", "cispo", "ppo"):
        assert LOSSES[kind].weigh_tokens(n_tokens, totals).tolist() == pytest.approx([1 / 20] * 3)


def test_log_ratios_of_gspo_are_means_at_every_token() -> None:
    logps, old = torch.tensor([[1.0, 2.0, 9.0]]), torch.zeros(1, 3)
    mask = torch.tensor([[1.0, 1.0, 0.0]])
    assert LOSSES["gspo"].compute_log_ratios(logps, old, mask).tolist() == [[1.5, 1.5, 0.0]]
    assert LOSSES["dapo"].compute_log_ratios(logps, old, mask).tolist() == [[1.0, 2.0, 0.0]]


@given(st.floats(-5, 5), st.floats(-5, 5))
def test_kl_estimates(policy: float, reference: float) -> None:
    found = [
        estimate_kl(
            torch.tensor([[policy]], dtype=torch.float64), torch.tensor([[reference]], dtype=torch.float64), k
        ).item()
        for k in ("k1", "k2", "k3")
    ]
    apart = policy - reference
    assert found == pytest.approx([apart, apart**2 / 2, math.exp(-apart) - 1 + apart], rel=1e-9, abs=1e-12)
    assert found[2] >= 0


def test_kl_estimates_are_the_kl_on_average() -> None:
    random = np.random.default_rng(0)
    p, q = random.dirichlet(np.ones(6)), random.dirichlet(np.ones(6))
    true = float((p * np.log(p / q)).sum())
    logps, reference = torch.tensor(np.log(p)), torch.tensor(np.log(q))
    for estimator in ("k1", "k3"):
        assert float((torch.tensor(p) * estimate_kl(logps, reference, estimator)).sum()) == pytest.approx(true)


def test_the_weighted_k1_in_the_loss_has_the_gradient_of_the_kl() -> None:
    """Summed over all tokens with the policy's probabilities; k1 alone has none."""
    logits = torch.tensor([0.3, -0.2, 0.9, 0.1], dtype=torch.float64, requires_grad=True)
    reference = torch.log_softmax(torch.tensor([0.0, 0.5, -0.5, 0.2], dtype=torch.float64), 0)

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        (found,) = torch.autograd.grad(loss, logits)
        return found

    logps = torch.log_softmax(logits, 0)
    drawn_with = logps.detach().exp()
    ratio = (logps - logps.detach()).exp()
    true = gradient((logps.exp() * (logps - reference)).sum())
    logps = torch.log_softmax(logits, 0)
    ratio = (logps - logps.detach()).exp()
    torch.testing.assert_close(gradient((drawn_with * ratio * estimate_kl(logps, reference, "k1")).sum()), true)
    logps = torch.log_softmax(logits, 0)
    assert gradient((drawn_with * estimate_kl(logps, reference, "k1")).sum()).abs().max() < 1e-12


@pytest.mark.parametrize("clip", [None, 0.15])
def test_value_loss_by_hand(clip: float | None) -> None:
    random = np.random.default_rng(2)
    values, old, returns = (random.normal(size=(3, 4)) for _ in range(3))
    mask = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]], dtype=float)
    expected = np.zeros_like(values)
    for row in range(3):
        for t in range(4):
            error = (values[row, t] - returns[row, t]) ** 2
            if clip is not None:
                held = old[row, t] + min(max(values[row, t] - old[row, t], -clip), clip)
                error = max(error, (held - returns[row, t]) ** 2)
            expected[row, t] = error / 2 * mask[row, t]
    found = compute_value_loss(*map(torch.tensor, (values, old, returns, mask)), clip)
    torch.testing.assert_close(found, torch.tensor(expected))


def test_a_value_beyond_the_clip_on_the_way_to_its_return_gets_no_gradient() -> None:
    values = torch.tensor([[0.5, 0.1]], requires_grad=True)
    compute_value_loss(values, torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1, 2), 0.15).sum().backward()
    assert values.grad is not None
    assert values.grad[0, 0] == 0
    assert values.grad[0, 1] < 0


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("above_max", ["truncate", "mask"])
def test_correction_weights_by_hand(level: str, above_max: str) -> None:
    policy = torch.tensor([[0.0, -1.0, 0.5], [0.1, 0.2, 0.0]], dtype=torch.float64, requires_grad=True)
    sampled = torch.tensor([[-2.0, -1.0, 1.0], [0.0, 0.0, 9.0]], dtype=torch.float64)
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
    found = compute_correction_weights(policy, sampled, mask, level=level, max_weight=3.0, above_max=above_max)
    raw = [[math.exp(2.0), 1.0, math.exp(-0.5)], [math.exp(0.1), math.exp(0.2), 0.0]]
    if level == "sequence":
        raw = [[math.exp(1.5)] * 3, [math.exp(0.3)] * 2 + [0.0]]
    limit = 3.0 if above_max == "truncate" else 0.0
    expected = [[one if one <= 3.0 else limit for one in row] for row in raw]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert not found.requires_grad
