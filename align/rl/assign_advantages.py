"""Computes the advantage of each token of a step's completions from the verdicts on them."""

from collections.abc import Callable

import torch
from torch import Tensor

from qwen_align.align.rl import losses
from qwen_align.align.rl.advantages import (
    compute_group_advantages,
    compute_rloo_advantages,
    estimate_gae,
    sum_later_rewards,
    whiten,
)
from qwen_align.align.rl.controllers import RewardScale
from qwen_align.align.rl.rollouts import Rollouts
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.online_rl import OnlineRl
from qwen_align.align.settings.ppo import Ppo


def estimate_group_advantages(rollouts: Rollouts, settings: Grpo, kl_coefficient: float) -> Tensor:
    """Returns each token's GRPO advantage as a flat tensor.

    It is the completion's reward minus the mean of its group, divided by a standard deviation.
    """
    rewards_P_G = compute_group_rewards(rollouts, settings, kl_coefficient)
    return spread_over_tokens(
        rollouts, compute_group_advantages(rewards_P_G, scale=settings.loss_settings.advantage_scale)
    )


def estimate_rloo_advantages(rollouts: Rollouts, settings: Grpo, kl_coefficient: float) -> Tensor:
    """Returns each token's RLOO advantage as a flat tensor.

    It is the completion's reward minus the mean of the other rewards in its group.
    """
    return spread_over_tokens(
        rollouts, compute_rloo_advantages(compute_group_rewards(rollouts, settings, kl_coefficient))
    )


def estimate_reinforce_advantages(rollouts: Rollouts, settings: Grpo, kl_coefficient: float) -> Tensor:
    """Returns each token's return, whitened over the rollout batch, as a flat tensor (REINFORCE++).

    arXiv:2501.03262.
    """
    mask = rollouts.get_mask()
    rewards = compute_token_rewards(rollouts, rollouts.reward.nan_to_num(nan=0.0), settings, kl_coefficient)
    return rollouts.flatten_tokens(whiten(sum_later_rewards(rewards, mask=mask), mask))


AdvantageEstimator = Callable[[Rollouts, Grpo, float], Tensor]

ADVANTAGE_ESTIMATORS: dict[str, AdvantageEstimator] = {
    "group": estimate_group_advantages,
    "rloo": estimate_rloo_advantages,
    "reinforce++": estimate_reinforce_advantages,
}
"""The estimators that `grpo` offers, by their names in its settings.

Each takes rollouts, settings and the KL coefficient, and returns an advantage per token, flat.
"""


def assign_gae_advantages(rollouts: Rollouts, settings: Ppo, kl_coefficient: float, scale: RewardScale) -> None:
    """Sets the rollouts' advantages and returns by generalised advantage estimation, for PPO."""
    scale.add_rewards(rollouts.reward[~rollouts.reward.isnan()].tolist())
    rewards = torch.tensor(
        [scale.normalise_reward(reward, settings.normalise_rewards) for reward in rollouts.reward.tolist()]
    ).nan_to_num(nan=0.0)
    mask = rollouts.get_mask()
    token_rewards = compute_token_rewards(rollouts, rewards, settings, kl_coefficient)
    assert rollouts.values is not None
    values = rollouts.pad_tokens(rollouts.values)
    advantages, returns = estimate_gae(token_rewards, values, mask, gamma=settings.gamma, lambda_=settings.gae_lambda)
    rollouts.returns = rollouts.flatten_tokens(returns)
    rollouts.advantages = rollouts.flatten_tokens(
        whiten(advantages, mask) if settings.whiten_advantages else advantages
    )


def compute_group_rewards(rollouts: Rollouts, settings: OnlineRl, kl_coefficient: float) -> Tensor:
    """Returns the rewards of the completions as a (P, G) tensor, one row per prompt.

    The KL penalty is subtracted from them if the settings apply it to the reward.
    """
    n_groups = int(rollouts.group.max()) + 1 if len(rollouts) else 0
    penalties = torch.zeros_like(rollouts.reward)
    if settings.kl and settings.kl.apply_to == "reward":
        penalties = kl_coefficient * estimate_reference_kl(rollouts, settings.kl.estimator).sum(dim=1)
    return (rollouts.reward - penalties).view(n_groups, -1)


def compute_token_rewards(rollouts: Rollouts, rewards: Tensor, settings: OnlineRl, kl_coefficient: float) -> Tensor:
    """Returns the token rewards, which are 0 except at each completion's last token in the loss; (B, T).

    If the settings apply the KL penalty to the reward, it is subtracted at every token in the loss. A completion
    without a token in the loss gets neither.
    """
    in_loss = rollouts.pad_tokens(rollouts.loss_mask)
    per_token = torch.zeros(in_loss.shape)
    last = torch.where(in_loss, torch.arange(in_loss.shape[1]), -1).amax(dim=1)
    rows = (last >= 0).nonzero()[:, 0]
    per_token[rows, last[rows]] = rewards[rows]
    if settings.kl and settings.kl.apply_to == "reward":
        per_token -= kl_coefficient * estimate_reference_kl(rollouts, settings.kl.estimator)
    return per_token


def spread_over_tokens(rollouts: Rollouts, advantages_P_G: Tensor) -> Tensor:
    """Copies each completion's advantage to its tokens in the loss; (P, G) -> flat tensor.

    Its other tokens get 0.
    """
    advantages = advantages_P_G.flatten().repeat_interleave(rollouts.n_tokens)
    return advantages.masked_fill(~rollouts.loss_mask, 0.0)


def estimate_reference_kl(rollouts: Rollouts, estimator: str) -> Tensor:
    """Estimates each token's KL from the sampling policy to the reference policy; (B, T).

    It is 0 outside the loss masks.
    """
    return _compare_with_reference(rollouts.old_logps, rollouts, estimator)


def compute_mean_kl(logps: Tensor, rollouts: Rollouts) -> float:
    """Computes the mean KL of a policy from the reference over the tokens in the loss, in nats (k3).

    `logps` are the policy's, flat. Completions that the reference has not scored are left out.
    """
    kl = _compare_with_reference(logps, rollouts, "k3")
    scored = rollouts.get_mask() * ~kl.isnan()
    return float((kl.nan_to_num() * scored).sum() / scored.sum().clamp(min=1))


def _compare_with_reference(logps: Tensor, rollouts: Rollouts, estimator: str) -> Tensor:
    """Estimates each token's KL from a policy to the reference; (B, T), 0 outside the loss masks."""
    assert rollouts.reference_logps is not None
    per_token = losses.estimate_kl(logps, rollouts.reference_logps, estimator)
    return rollouts.pad_tokens(per_token.masked_fill(~rollouts.loss_mask, 0.0))
