"""Credit by hand: whose reward counts against whose, and what leaving the reference costs at each token."""

from typing import Any

import pytest
import torch

from qwen_align.align.rl.algorithm import build_grpo, build_ppo
from qwen_align.align.rl.controllers import RewardScale
from qwen_align.align.rl.rollouts import Rollouts
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.ppo import Ppo

N_TOKENS = [2, 1, 3, 2, 1, 2]  # three completions of each of two prompts
REWARDS = [1.0, 0.0, 0.5, 3.0, 2.0, 2.5]
PRICE = 0.1
KL = {"coefficient": PRICE, "apply_to": "reward", "estimator": "k1"}
SETTINGS: dict[str, Any] = {
    "name": "rl",
    "from_model": "base",
    "from_data": ["problems"],
    "rewards": [{"kind": "math_answer"}],
    "steps": 1,
    "prompts_per_step": 2,
    "completions_per_prompt": 3,
    "sampling": {"temperature": 1.0, "max_tokens": 3},
    "learning_rate": 1e-3,
    "kl": KL,
}


def rollouts() -> Rollouts:
    """The policy finds its tokens likelier than the reference does: by 0.1, 0.2, 0.3, ... nats."""
    n = sum(N_TOKENS)
    return Rollouts(
        ids=torch.zeros(n + 6).long(),
        n_prompt=torch.ones(6).long(),
        n_tokens=torch.tensor(N_TOKENS),
        group=torch.tensor([0, 0, 0, 1, 1, 1]),
        reward=torch.tensor(REWARDS),
        truncated=torch.zeros(6, dtype=torch.bool),
        old_logps=torch.zeros(n),
        sampled_logps=torch.zeros(n),
        counts=torch.ones(6, dtype=torch.bool),
        advantages=torch.zeros(n),
        reference_logps=-0.1 * torch.arange(1, n + 1),
        values=torch.zeros(n),
    )


def credited(spec: Grpo | Ppo) -> Rollouts:
    one = rollouts()
    algorithm = build_ppo(spec) if isinstance(spec, Ppo) else build_grpo(spec)
    algorithm.assign_advantages(one, PRICE, RewardScale())
    return one


def priced() -> list[float]:
    """Each completion's reward less the price of its KL."""
    apart = iter(0.1 * place for place in range(1, sum(N_TOKENS) + 1))
    return [reward - PRICE * sum(next(apart) for _ in range(n)) for reward, n in zip(REWARDS, N_TOKENS, strict=True)]


def test_a_completion_is_compared_with_those_of_its_own_prompt() -> None:
    found = credited(Grpo.model_validate({**SETTINGS, "kind": "grpo", "advantage_scale": "none"}))
    rewards = priced()
    means = [sum(rewards[:3]) / 3] * 3 + [sum(rewards[3:]) / 3] * 3
    expected = [r - mean for r, mean, n in zip(rewards, means, N_TOKENS, strict=True) for _ in range(n)]
    assert found.advantages.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("gae_lambda", [0.0, 1.0])
def test_leaving_the_reference_costs_at_each_token(gae_lambda: float) -> None:
    """With values of 0 and lambda 0 the advantage is the token's own reward, with lambda 1 what is still to come."""
    settings = {"kind": "ppo", "critic": {"learning_rate": 1e-3}, "whiten_advantages": False, "gamma": 1.0}
    found = credited(Ppo.model_validate({**SETTINGS, **settings, "gae_lambda": gae_lambda}))
    expected, place = list[float](), 0
    for reward, n in zip(REWARDS, N_TOKENS, strict=True):
        own = [-PRICE * 0.1 * (place + token + 1) + (reward if token == n - 1 else 0.0) for token in range(n)]
        expected += [sum(own[token:]) for token in range(n)] if gae_lambda else own
        place += n
    assert found.advantages.tolist() == pytest.approx(expected, abs=1e-6)
