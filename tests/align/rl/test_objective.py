"""What one update does: credit, loss, gradient and step together, on a small model."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from qwen_align.align.rendering.samples import Sample
from qwen_align.align.rl.actor import Actor, Critic
from qwen_align.align.rl.algorithm import Algorithm, build_grpo, build_ppo
from qwen_align.align.rl.assign_advantages import compute_mean_kl
from qwen_align.align.rl.controllers import RewardScale
from qwen_align.align.rl.micro_batches import PassLimits, iterate_micro_batches
from qwen_align.align.rl.objective import UpdateTerms, compute_loss, count_step_totals
from qwen_align.align.rl.ptx import RawTexts
from qwen_align.align.rl.rollouts import Rollouts
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.ppo import Ppo

N_PROMPT, N_TOKENS, MAX_TOKENS = [4] * 4 + [6] * 4, [5, 3, 7, 4, 6, 2, 5, 5], 8
SHARED = {
    "name": "rl",
    "from_model": "base",
    "from_data": ["problems"],
    "rewards": [{"kind": "math_answer"}],
    "steps": 1,
    "prompts_per_step": 2,
    "completions_per_prompt": 4,
    "sampling": {"temperature": 1.0, "max_tokens": MAX_TOKENS},
    "learning_rate": 1e-3,
}
KINDS: dict[str, dict[str, Any]] = {
    "grpo": {"kind": "grpo", "loss": "grpo"},
    "dr_grpo": {"kind": "grpo", "loss": "dr_grpo", "advantage_scale": "none"},
    "dapo": {"kind": "grpo", "loss": "dapo"},
    "gspo": {"kind": "grpo", "loss": "gspo"},
    "cispo": {"kind": "grpo", "loss": "cispo"},
    "rloo": {"kind": "grpo", "advantage": "rloo"},
    "reinforce++": {"kind": "grpo", "advantage": "reinforce++"},
    "kl in the reward": {"kind": "grpo", "kl": {"coefficient": 0.05, "apply_to": "reward", "estimator": "k1"}},
    "kl in the loss": {"kind": "grpo", "kl": {"coefficient": 0.05}},
    "ppo": {"kind": "ppo", "critic": {"learning_rate": 1e-3}},
    "ppo with a kl": {
        "kind": "ppo",
        "critic": {"learning_rate": 1e-3},
        "kl": {"coefficient": 0.05, "apply_to": "reward", "estimator": "k1"},
        "normalise_rewards": "running_mean_std",
    },
}


def spec_of(**settings: Any) -> Grpo | Ppo:
    kind = Ppo if settings["kind"] == "ppo" else Grpo
    return kind.model_validate({**SHARED, **settings})


def algorithm_of(spec: Grpo | Ppo) -> Algorithm:
    return build_ppo(spec) if isinstance(spec, Ppo) else build_grpo(spec)


def credit(rollouts: Rollouts, spec: Grpo | Ppo, kl_coefficient: float) -> None:
    algorithm_of(spec).assign_advantages(rollouts, kl_coefficient, RewardScale())


def actor_of(folder: Path, spec: Grpo | Ppo) -> Actor:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return Actor(model, 1.0, Critic(model.config.hidden_size) if isinstance(spec, Ppo) else None)


def rollouts_of(actor: Actor, rewards: list[float]) -> Rollouts:
    """Completions with the log-probs, reference and values that this actor gives them."""
    draw = torch.Generator().manual_seed(0)
    n_tokens = torch.tensor(N_TOKENS)
    zeros = torch.zeros(int(n_tokens.sum()))
    one = Rollouts(
        ids=torch.randint(5, actor.config.vocab_size, (sum(N_PROMPT) + sum(N_TOKENS),), generator=draw),
        n_prompt=torch.tensor(N_PROMPT),
        n_tokens=n_tokens,
        group=torch.tensor([0] * 4 + [1] * 4),
        reward=torch.tensor(rewards),
        truncated=torch.zeros(8, dtype=torch.bool),
        old_logps=zeros.clone(),
        sampled_logps=zeros.clone(),
        counts=torch.ones(8, dtype=torch.bool),
        advantages=zeros.clone(),
        values=zeros.clone(),
    )
    one.old_logps = logps(actor, one)
    one.reference_logps = one.old_logps.clone()
    return one


@torch.no_grad()
def logps(actor: Actor, one: Rollouts) -> torch.Tensor:
    whole = torch.zeros(8, max(N_TOKENS))
    for batch in iterate_micro_batches(one, range(8), max_rows=8):
        found = actor(batch).logps
        assert found is not None
        whole[batch.rows, : found.shape[1]] = found
    return one.flatten_tokens(whole)


def gradients(
    actor: Actor,
    one: Rollouts,
    spec: Grpo | Ppo,
    *,
    max_rows: int = 8,
    policy: bool = True,
    rows: Sequence[int] = range(8),
) -> float:
    """Leaves the gradients in the parameters and returns the loss."""
    totals = count_step_totals(one, list(rows), MAX_TOKENS)
    coefficient = spec.kl.coefficient if spec.kl else 0.0
    terms = UpdateTerms(
        on_policy=True,
        policy=policy,
        value=isinstance(spec, Ppo),
        kl_coefficient=coefficient,
        entropy_coefficient=spec.entropy.coefficient if spec.entropy else 0.0,
    )
    total = 0.0
    for batch in iterate_micro_batches(one, rows, max_rows=max_rows):
        scores = actor(batch, policy=policy, values=isinstance(spec, Ppo))
        loss, _ = compute_loss(scores, batch, one, totals, terms, algorithm_of(spec))
        loss.backward()
        total += loss.item()
    return total


@pytest.mark.parametrize("name", KINDS)
def test_a_better_reward_makes_a_completion_likelier_than_without_it(tiny_model: Path, name: str) -> None:
    """The same step twice, with one completion's reward raised: its log-prob has to end higher."""
    after = {}
    for reward in (0.0, 1.0):
        spec = spec_of(**KINDS[name])
        actor = actor_of(tiny_model, spec)
        one = rollouts_of(actor, [reward, 0.5, 0.2, 0.4, 0.1, 0.3, 0.9, 0.6])
        credit(one, spec, spec.kl.coefficient if spec.kl else 0.0)
        optimizer = torch.optim.SGD(actor.parameters(), lr=0.05)
        gradients(actor, one, spec)
        optimizer.step()
        after[reward] = float(one.split_by_completion(logps(actor, one))[0].sum())
    assert after[1.0] > after[0.0] + 1e-5


@pytest.mark.parametrize("name", KINDS)
def test_micro_batches_do_not_change_loss_or_gradient(tiny_model: Path, name: str) -> None:
    spec = spec_of(**KINDS[name])
    found = []
    for max_rows in (8, 1):
        actor = actor_of(tiny_model, spec)
        one = rollouts_of(actor, [1.0, 0.5, float("nan"), 0.4, 0.1, 0.3, 0.9, 0.6])
        one.counts[6] = False
        credit(one, spec, 0.05)
        loss = gradients(actor, one, spec, max_rows=max_rows)
        found.append((loss, {n: p.grad.clone() for n, p in actor.named_parameters() if p.grad is not None}))
    (one_loss, one_gradient), (other_loss, other_gradient) = found
    assert one_loss == pytest.approx(other_loss, abs=1e-6)
    for key, gradient in one_gradient.items():
        torch.testing.assert_close(gradient, other_gradient[key], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "gspo", "cispo", "kl in the loss"])
def test_completions_without_a_verdict_are_as_if_they_had_not_been_drawn(tiny_model: Path, name: str) -> None:
    """Loss, gradient and KL of a batch are those of its judged completions alone."""
    spec, found = spec_of(**KINDS[name]), []
    rewards = [1.0, float("nan"), 0.2, 0.4, 0.1, 0.3, float("nan"), 0.6]
    for rows in (list(range(8)), [row for row in range(8) if not math.isnan(rewards[row])]):
        actor = actor_of(tiny_model, spec)
        one = rollouts_of(actor, rewards)
        one.reference_logps = one.old_logps - torch.linspace(0.1, 0.9, len(one.old_logps))
        credit(one, spec, 0.0)
        loss = gradients(actor, one, spec, rows=rows)
        kl = compute_mean_kl(one.old_logps, one)
        found.append((loss, kl, {n: p.grad.clone() for n, p in actor.named_parameters() if p.grad is not None}))
        assert not one.counts[[1, 6]].any()
    (loss, kl, gradient), (judged_loss, judged_kl, judged_gradient) = found
    assert loss == pytest.approx(judged_loss, rel=1e-5, abs=1e-7)
    assert kl == judged_kl
    for key in gradient:
        torch.testing.assert_close(gradient[key], judged_gradient[key], atol=1e-6, rtol=1e-4)


def test_equal_rewards_move_nothing(tiny_model: Path) -> None:
    for name in ("grpo", "dapo", "gspo", "cispo", "rloo"):
        spec = spec_of(**KINDS[name])
        actor = actor_of(tiny_model, spec)
        one = rollouts_of(actor, [0.5] * 8)
        credit(one, spec, 0.0)
        assert one.select_trained_rows(without_signal=False) == []
        gradients(actor, one, spec)
        assert all(not p.grad.any() for p in actor.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("settings", "moves"),
    [
        ({}, False),
        ({"entropy": {"coefficient": 0.1}}, True),
        ({"kl": {"coefficient": 0.1, "apply_to": "reward", "estimator": "k1"}}, False),
        ({"kl": {"coefficient": 0.1}}, True),
        ({"kl": {"coefficient": 0.1, "include_zero_advantage": False}}, False),
    ],
)
def test_only_other_terms_move_what_has_no_advantage(tiny_model: Path, settings: dict[str, Any], moves: bool) -> None:
    spec = spec_of(kind="grpo", **settings)
    assert algorithm_of(spec).trains_without_advantage == moves
    actor = actor_of(tiny_model, spec)
    one = rollouts_of(actor, [0.5] * 8)
    one.reference_logps = one.old_logps - 0.1
    credit(one, spec_of(kind="grpo"), 0.0)
    gradients(actor, one, spec)
    is_left_out = settings.get("kl", {}).get("include_zero_advantage") is False
    assert any(p.grad.any() for p in actor.parameters() if p.grad is not None) == (moves or is_left_out)


def test_half_the_groups_move_the_model_half_as_much(tiny_model: Path) -> None:
    spec = spec_of(**KINDS["dapo"])
    actor = actor_of(tiny_model, spec)
    one = rollouts_of(actor, [1.0, 0.5, 0.2, 0.4, 0.1, 0.3, 0.9, 0.6])
    credit(one, spec, 0.0)
    gradients(actor, one, spec)
    whole = {name: p.grad.clone() for name, p in actor.named_parameters()}
    actor.zero_grad()
    one.share = 0.5
    gradients(actor, one, spec)
    for name, parameter in actor.named_parameters():
        torch.testing.assert_close(parameter.grad, whole[name] / 2)


def test_the_entropy_bonus_has_the_gradient_of_the_mean_entropy(tiny_model: Path) -> None:
    spec = spec_of(kind="grpo", entropy={"coefficient": 0.3})
    actor = actor_of(tiny_model, spec)
    one = rollouts_of(actor, [0.5] * 8)
    gradients(actor, one, spec)
    ours = {name: p.grad.clone() for name, p in actor.named_parameters()}
    actor.zero_grad()
    total = torch.zeros(())
    for row in range(8):
        ids = torch.tensor([one.get_token_ids(row)])
        found = actor.causal_lm(input_ids=ids).logits[0, N_PROMPT[row] - 1 : -1].log_softmax(-1)
        total = total - (found.exp() * found).sum()
    (-0.3 * total / sum(N_TOKENS)).backward()
    for name, parameter in actor.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-6, rtol=1e-4)


def test_without_the_policys_loss_only_the_critic_gets_gradients(tiny_model: Path) -> None:
    spec = spec_of(**KINDS["ppo"])
    actor = actor_of(tiny_model, spec)
    actor.critic = Critic(actor.config.hidden_size, actor_of(tiny_model, spec).causal_lm.base_model)
    one = rollouts_of(actor, [1.0, 0.5, 0.2, 0.4, 0.1, 0.3, 0.9, 0.6])
    credit(one, spec, 0.0)
    gradients(actor, one, spec, policy=False)
    assert all(parameter.grad is None for _, parameter in actor.policy_parameters())
    assert any(parameter.grad is not None and parameter.grad.any() for _, parameter in actor.value_parameters())


@pytest.mark.parametrize("detached", [True, False])
def test_a_detached_head_leaves_the_trunk_alone(tiny_model: Path, detached: bool) -> None:
    spec = spec_of(kind="ppo", critic={"kind": "head", "learning_rate": 1e-3, "detached": detached})
    actor = actor_of(tiny_model, spec)
    actor.critic = Critic(actor.config.hidden_size, detached=detached)
    torch.nn.init.normal_(actor.critic.head.weight)
    one = rollouts_of(actor, [1.0, 0.5, 0.2, 0.4, 0.1, 0.3, 0.9, 0.6])
    credit(one, spec, 0.0)
    gradients(actor, one, spec, policy=False)
    trunk = [parameter.grad for _, parameter in actor.policy_parameters()]
    assert all(one is None or not one.any() for one in trunk) == detached


def test_ptx_adds_the_coefficient_times_the_language_models_gradient(tiny_model: Path) -> None:
    actor = actor_of(tiny_model, spec_of(**KINDS["grpo"]))
    texts = [[7, 8, 9, 10, 11], [5, 6], [12, 13, 14]]
    whole = RawTexts([Sample(ids, [True] * len(ids)) for ids in texts], batch=3, seed=0)
    numbers = whole.choose_texts(0)
    assert sorted(numbers) == [0, 1, 2]
    n_tokens = whole.count_loss_tokens(numbers)
    for batch in whole.pack_micro_batches(numbers, PassLimits(2)):
        (0.25 * whole.compute_loss(actor(batch, temperature=1.0), n_tokens)).backward()
    ours = {name: p.grad.clone() for name, p in actor.named_parameters()}
    actor.zero_grad()
    total = torch.zeros(())
    for ids in texts:
        row = torch.tensor([ids])
        total = total + actor.causal_lm(input_ids=row, labels=row).loss * (len(ids) - 1)
    (0.25 * total / sum(len(ids) - 1 for ids in texts)).backward()
    for name, parameter in actor.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, atol=1e-6, rtol=1e-4)


def test_texts_come_in_passes_whatever_step_is_asked_for() -> None:
    texts = RawTexts([Sample([1, 2], [True] * 2)] * 5, batch=2, seed=0)
    numbers = [number for step in range(5) for number in texts.choose_texts(step)]
    assert sorted(numbers[:5]) == sorted(numbers[5:]) == [0, 1, 2, 3, 4]
    assert texts.choose_texts(3) == numbers[6:8]
