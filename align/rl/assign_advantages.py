"""From verdicts to advantages: what each token of a step's completions is credited with."""

import torch
from torch import Tensor

from qwen_align.align.rl import losses
from qwen_align.align.rl.advantages import gae, group_advantages, leave_one_out, returns_to_go, whitened
from qwen_align.align.rl.controllers import RewardScale
from qwen_align.align.rl.rollouts import Rollouts
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.online_rl import OnlineRl
from qwen_align.align.settings.ppo import Ppo


def credit(rollouts: Rollouts, spec: Grpo | Ppo, kl_coefficient: float, scale: RewardScale) -> None:
    """Sets the advantages, and for PPO the returns; completions without a verdict are left out or get 0."""
    if isinstance(spec, Ppo):
        rollouts.counts = rollouts.counts & ~rollouts.reward.isnan()
        judged = rollouts.reward[~rollouts.reward.isnan()].tolist()
        scale.add(judged)
        rewards = torch.tensor([scale.normalise(one, spec.normalise_rewards) for one in rollouts.reward.tolist()])
        mask = rollouts.mask()
        per_token = _token_rewards(rollouts, rewards.nan_to_num(nan=0.0), spec, kl_coefficient)
        assert rollouts.values is not None
        values = rollouts.padded(rollouts.values)
        advantages, returns = gae(per_token, values, mask, gamma=spec.gamma, lambda_=spec.gae_lambda)
        rollouts.returns = rollouts.flat(returns)
        rollouts.advantages = rollouts.flat(whitened(advantages, mask) if spec.whiten_advantages else advantages)
    elif spec.advantage == "reinforce++":
        rollouts.counts = rollouts.counts & ~rollouts.reward.isnan()
        per_token = _token_rewards(rollouts, rollouts.reward.nan_to_num(nan=0.0), spec, kl_coefficient)
        rollouts.advantages = rollouts.flat(whitened(returns_to_go(per_token), rollouts.mask()))
    else:
        n_groups = int(rollouts.group.max()) + 1 if len(rollouts) else 0
        rewards = (rollouts.reward - _kl_of_completions(rollouts, spec, kl_coefficient)).view(n_groups, -1)
        found = (
            leave_one_out(rewards)
            if spec.advantage == "rloo"
            else group_advantages(rewards, scale=spec.advantage_scale)
        )
        rollouts.advantages = found.flatten().repeat_interleave(rollouts.n_tokens)


def reference_kl(rollouts: Rollouts, estimator: str) -> Tensor:
    """Of each token, of the policy that drew from the reference; (B, T), zeros behind completions."""
    assert rollouts.reference_logps is not None
    return rollouts.padded(losses.kl(rollouts.old_logps, rollouts.reference_logps, estimator))


def _token_rewards(rollouts: Rollouts, rewards: Tensor, spec: OnlineRl, kl_coefficient: float) -> Tensor:
    """The reward at each completion's last token, and the KL's price at every token; (B, T)."""
    per_token = torch.zeros(len(rollouts), int(rollouts.n_tokens.max()))
    per_token[torch.arange(len(rollouts)), rollouts.n_tokens - 1] = rewards
    if spec.kl and spec.kl.apply_to == "reward":
        per_token -= kl_coefficient * reference_kl(rollouts, spec.kl.estimator)
    return per_token


def _kl_of_completions(rollouts: Rollouts, spec: Grpo, kl_coefficient: float) -> Tensor:
    """What the KL takes off each completion's reward; (N,)."""
    if spec.kl and spec.kl.apply_to == "reward":
        return kl_coefficient * reference_kl(rollouts, spec.kl.estimator).sum(dim=1)
    return torch.zeros_like(rollouts.reward)
