"""Computes advantages: how much better a completion or token did than expected.

Pure functions. P prompts of a step, G completions a prompt, B completions in all, T their longest length. A reward that
is NaN is no verdict: it is in no mean, and its completion's advantage is 0.
"""

import torch
from torch import Tensor

EPSILON = 1e-4  # beside a standard deviation, as TRL's GRPO has it: a group of nearly equal rewards must not explode


def compute_group_advantages(rewards_P_G: Tensor, scale: str = "group") -> Tensor:
    """Returns each reward minus the mean of its group, divided by a standard deviation; (P, G) -> (P, G).

    `scale`: "group", the group's own (DeepSeekMath, arXiv:2402.03300); "batch", that of all rewards; "none"
    (Dr. GRPO, arXiv:2503.20783). Deviations are of a sample (n - 1). A group of equal rewards gets zeros.
    """
    centred = rewards_P_G - rewards_P_G.nanmean(dim=1, keepdim=True)
    if scale == "group":
        centred = centred / (_compute_deviation(rewards_P_G, dim=1) + EPSILON)
    elif scale == "batch":
        centred = centred / (_compute_deviation(rewards_P_G.flatten()[None], dim=1) + EPSILON)
    return centred.nan_to_num(nan=0.0)


def compute_rloo_advantages(rewards_P_G: Tensor) -> Tensor:
    """Returns each reward minus the mean of the other rewards in its group (RLOO); (P, G) -> (P, G).

    arXiv:2402.14740. A completion without others in its group gets 0.
    """
    judged = ~rewards_P_G.isnan()
    known = rewards_P_G.nan_to_num(nan=0.0)
    others = judged.sum(dim=1, keepdim=True) - judged.to(known.dtype)
    mean = (known.sum(dim=1, keepdim=True) - known) / others.clamp(min=1)
    return torch.where(judged & (others > 0), known - mean, torch.zeros_like(known))


def sum_later_rewards(rewards: Tensor, gamma: float = 1.0, mask: Tensor | None = None) -> Tensor:
    """Returns the discounted sum of the rewards from each token to the end of its row; (B, T) -> (B, T).

    Tokens where `mask` is 0 are cut out: they have no reward, take no step of discount, and are 0 in the result.
    """
    in_loss = torch.ones_like(rewards, dtype=torch.bool) if mask is None else mask > 0
    sums = torch.zeros_like(rewards)
    later = torch.zeros_like(rewards[:, 0]) if rewards.shape[1] else None
    for position in reversed(range(rewards.shape[1])):
        assert later is not None
        later = torch.where(in_loss[:, position], rewards[:, position] + gamma * later, later)
        sums[:, position] = later
    return sums * in_loss


def estimate_gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lambda_: float
) -> tuple[Tensor, Tensor]:
    """Returns generalised advantage estimates and the returns, which are advantage + value; (B, T) each.

    arXiv:1506.02438, (16): A_t = sum_l (gamma * lambda)^l delta_{t+l}, delta_t = r_t + gamma * V_{t+1} - V_t. `values`
    are of the states before each token; after a completion's last token nothing is to come. `mask` is 1 on the tokens
    in the loss. Others count nowhere and are 0 in the result: behind a completion, and also between its tokens, where
    the step goes from one token in the loss to the next, as if nothing lay between them.
    """
    rewards, values = rewards * mask, values * mask
    advantages = torch.zeros_like(rewards)
    n_tokens = rewards.shape[1]
    later = next_value = torch.zeros(len(rewards), dtype=rewards.dtype)
    for position in reversed(range(n_tokens)):
        in_loss = mask[:, position] > 0
        estimate = rewards[:, position] + gamma * next_value - values[:, position] + gamma * lambda_ * later
        later = torch.where(in_loss, estimate, later)
        next_value = torch.where(in_loss, values[:, position], next_value)
        advantages[:, position] = later
    return advantages * mask, (advantages + values) * mask


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Scales the values under a mask to mean 0 and standard deviation 1; (B, T) -> (B, T).

    Values where the mask is 0 become 0.
    """
    n = mask.sum().clamp(min=1)
    mean = (values * mask).sum() / n
    variance = ((values - mean).square() * mask).sum() / (n - 1).clamp(min=1)
    return (values - mean) * mask / (variance.sqrt() + 1e-8)  # only against 0 / 0


def _compute_deviation(values: Tensor, dim: int) -> Tensor:
    """Returns the sample standard deviation of the values that are not NaN, along a dimension.

    It is 0 where there are fewer than two.
    """
    n = (~values.isnan()).sum(dim=dim, keepdim=True)
    squares = (values - values.nanmean(dim=dim, keepdim=True)).square().nansum(dim=dim, keepdim=True)
    return (squares / (n - 1).clamp(min=1)).sqrt()
