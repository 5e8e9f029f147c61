"""Builds the description of an online RL algorithm (GRPO, PPO) from its settings.

The training loop asks nothing else to tell one algorithm from another.
"""

from collections.abc import Callable
from dataclasses import dataclass

from qwen_align.align.rl.assign_advantages import ADVANTAGE_ESTIMATORS, assign_gae_advantages
from qwen_align.align.rl.controllers import RewardScale
from qwen_align.align.rl.losses import POLICY_LOSSES, PPO_LOSS, PolicyLoss
from qwen_align.align.rl.rollouts import Rollouts
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.online_rl import OnlineRl
from qwen_align.align.settings.ppo import Critic, Ppo, Ptx


@dataclass(frozen=True)
class Algorithm:
    """An online RL algorithm: its settings, policy loss, advantage estimator and optional critic.

    `assign_advantages` sets the rollouts' advantages, and for a critic their returns, from verdicts, the KL coefficient
    and the scale of rewards so far. `max_prompts` bounds dynamic sampling; without it no group is replaced.
    """

    settings: OnlineRl
    policy_loss: PolicyLoss
    assign_advantages: Callable[[Rollouts, float, RewardScale], None]
    max_prompts: int | None = None
    critic: Critic | None = None
    ptx: Ptx | None = None

    @property
    def n_critic_updates(self) -> int:
        """Returns the number of optimiser steps at the start of training that train only the critic."""
        return self.critic.warmup_steps * self.settings.updates.count if self.critic else 0

    @property
    def trains_without_advantage(self) -> bool:
        """Returns whether a completion with zero advantage still trains the model, by value, KL or entropy loss."""
        kl = self.settings.kl
        has_kl = kl is not None and kl.apply_to == "loss" and kl.include_zero_advantage
        return self.critic is not None or self.settings.entropy is not None or has_kl

    @property
    def needs_reference_everywhere(self) -> bool:
        """Returns whether reference log-probs are also needed for completions that are not trained.

        So it is where the KL is in the reward or has a target, or where such completions train.
        """
        kl = self.settings.kl
        return kl is not None and (kl.apply_to == "reward" or kl.target is not None or self.trains_without_advantage)


def build_grpo(settings: Grpo) -> Algorithm:
    """Builds the GRPO algorithm, or the variant that the settings name."""
    estimate = ADVANTAGE_ESTIMATORS[settings.advantage]

    def assign_advantages(rollouts: Rollouts, kl_coefficient: float, scale: RewardScale) -> None:
        rollouts.advantages = estimate(rollouts, settings, kl_coefficient)

    dynamic = settings.dynamic_sampling
    return Algorithm(
        settings,
        POLICY_LOSSES[settings.loss],
        assign_advantages,
        max_prompts=dynamic.max_prompts if dynamic else None,
    )


def build_ppo(settings: Ppo) -> Algorithm:
    """Builds the PPO algorithm with its critic."""

    def assign_advantages(rollouts: Rollouts, kl_coefficient: float, scale: RewardScale) -> None:
        assign_gae_advantages(rollouts, settings, kl_coefficient, scale)

    return Algorithm(settings, PPO_LOSS, assign_advantages, critic=settings.critic, ptx=settings.ptx)
