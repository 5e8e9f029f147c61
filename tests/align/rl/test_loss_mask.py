"""Tokens that a loss mask leaves out: as if cut from every sum, through storage, checkpoints and processes alike."""

import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_align.align.errors import Preempted
from qwen_align.align.generation.engine import Generation, Request
from qwen_align.align.generation.local import LocalEngine
from qwen_align.align.rl.actor import Scores
from qwen_align.align.rl.algorithm import Algorithm, build_grpo, build_ppo
from qwen_align.align.rl.assign_advantages import estimate_reference_kl
from qwen_align.align.rl.controllers import RewardScale
from qwen_align.align.rl.micro_batches import iterate_micro_batches
from qwen_align.align.rl.objective import UpdateTerms, compute_loss, count_step_totals
from qwen_align.align.rl.rollouts import Rollouts
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.ppo import Ppo
from qwen_align.align.settings.sampling import Sampling
from tests.align.rl import test_loop

N_PROMPT, MAX_TOKENS = 3, 8
# Which tokens are in the loss; the last completion has none, as when all of it was forced.
MASKS = ["1101", "0111011", "110", "1", "10100", "0111", "1111", "00"]
REWARDS = [1.0, 0.5, 0.2, 0.4, 0.1, 0.3, 0.9, 0.6]
KL_IN_REWARD = {"coefficient": 0.05, "apply_to": "reward", "estimator": "k1"}
CASES: dict[str, dict[str, Any]] = {
    "grpo": {"loss": "grpo", "kl": {"coefficient": 0.05, "importance_weighted": True}},
    "dr_grpo": {"loss": "dr_grpo", "advantage_scale": "none", "entropy": {"coefficient": 0.1}},
    "dapo": {
        "loss": "dapo",
        "kl": {"coefficient": 0.05, "estimator": "k2"},
        "importance_sampling_correction": {"level": "token"},
    },
    "gspo": {"loss": "gspo", "importance_sampling_correction": {"level": "sequence"}},
    "cispo": {
        "loss": "cispo",
        "kl": KL_IN_REWARD,
        "importance_sampling_correction": {"level": "sequence", "above_max": "mask"},
    },
    "rloo": {"advantage": "rloo", "kl": KL_IN_REWARD},
    "reinforce++": {"advantage": "reinforce++", "kl": KL_IN_REWARD},
    "ppo": {"kind": "ppo", "critic": {"learning_rate": 1e-3}, "kl": KL_IN_REWARD, "gamma": 0.9, "gae_lambda": 0.8},
    "ppo, not whitened": {"kind": "ppo", "critic": {"learning_rate": 1e-3, "clip": None}, "whiten_advantages": False},
}


def spec_of(name: str) -> Grpo | Ppo:
    settings = {
        "kind": "grpo",
        "name": "rl",
        "from_model": "base",
        "from_data": ["problems"],
        "rewards": [{"kind": "math_answer"}],
        "steps": 1,
        "prompts_per_step": 2,
        "completions_per_prompt": 4,
        "sampling": {"temperature": 1.0, "max_tokens": MAX_TOKENS},
        "learning_rate": 1e-3,
        **CASES[name],
    }
    return (Ppo if settings["kind"] == "ppo" else Grpo).model_validate(settings)


def algorithm_of(spec: Grpo | Ppo) -> Algorithm:
    return build_ppo(spec) if isinstance(spec, Ppo) else build_grpo(spec)


def rollouts_of(masks: Sequence[str], *, poison: float | None = None) -> Rollouts:
    """Random rollouts, with `poison` for everything that is said of tokens outside the loss, which are kept.

    Without a poison those tokens are cut out, and every token left is in the loss.
    """
    draw = torch.Generator().manual_seed(0)
    in_loss = torch.tensor([token == "1" for mask in masks for token in mask])

    def per_token(shift: float) -> torch.Tensor:
        values = torch.randn(len(in_loss), generator=draw) * 0.3 + shift
        return values[in_loss] if poison is None else values.masked_fill(~in_loss, poison)

    n_tokens = torch.tensor([mask.count("1") if poison is None else len(mask) for mask in masks])
    n, total = len(masks), int(n_tokens.sum())
    old_logps, sampled_logps, reference_logps, values = (per_token(shift) for shift in (-2.0, -2.0, -2.0, 0.0))
    return Rollouts(
        ids=torch.ones(n * N_PROMPT + total, dtype=torch.int64),
        n_prompt=torch.full((n,), N_PROMPT),
        n_tokens=n_tokens,
        group=torch.arange(n) // 4,
        reward=torch.tensor(REWARDS[:n]),
        truncated=torch.zeros(n, dtype=torch.bool),
        old_logps=old_logps,
        sampled_logps=sampled_logps,
        counts=torch.tensor([number != 2 for number in range(n)]),
        advantages=torch.zeros(total),
        reference_logps=reference_logps,
        values=values,
        loss_mask=torch.ones(total, dtype=torch.bool) if poison is None else in_loss,
    )


def losses_and_gradients(rollouts: Rollouts, spec: Grpo | Ppo, flat: Sequence[torch.Tensor]) -> tuple[Any, ...]:
    """Loss, figures, and the gradients of what the model says of each token, flat."""
    logps, entropies, values = (part.clone().requires_grad_() for part in flat)
    rows = list(range(len(rollouts)))
    scores = Scores(*(rollouts.pad_tokens(part, rows) for part in (logps, entropies, values)))
    terms = UpdateTerms(
        on_policy=False,
        policy=True,
        value=isinstance(spec, Ppo),
        kl_coefficient=spec.kl.coefficient if spec.kl else 0.0,
        entropy_coefficient=spec.entropy.coefficient if spec.entropy else 0.0,
    )
    (batch,) = iterate_micro_batches(rollouts, rows, max_rows=len(rows))
    ordered = Scores(*(part[batch.rows] for part in scores if part is not None))
    totals = count_step_totals(rollouts, rows, MAX_TOKENS)
    loss, sums = compute_loss(ordered, batch, rollouts, totals, terms, algorithm_of(spec))
    loss.backward()
    gradients = [torch.zeros_like(part) if part.grad is None else part.grad for part in (logps, entropies, values)]
    return loss.item(), {name: value.item() for name, value in sums.items()}, gradients


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("poison", [math.nan, -math.inf, 300.0])
def test_tokens_outside_the_loss_are_as_if_they_were_cut_out(name: str, poison: float) -> None:
    """What their log-probs, values and reference say must not matter, not even where it is no number."""
    spec, masks = spec_of(name), [*MASKS[:7], "01"]
    whole, cut = rollouts_of(masks, poison=poison), rollouts_of(masks)
    draw = torch.Generator().manual_seed(1)
    said = [torch.randn(len(whole.loss_mask), generator=draw) * 0.3 + shift for shift in (-2.0, 1.0, 0.0)]
    for rollouts in (whole, cut):
        algorithm_of(spec).assign_advantages(rollouts, 0.05, RewardScale())
    torch.testing.assert_close(whole.advantages[whole.loss_mask], cut.advantages)
    assert not whole.advantages[~whole.loss_mask].any()
    if whole.returns is not None:
        assert cut.returns is not None
        torch.testing.assert_close(whole.returns[whole.loss_mask], cut.returns)
    poisoned = [part.masked_fill(~whole.loss_mask, poison) for part in said]
    loss, sums, gradients = losses_and_gradients(whole, spec, poisoned)
    cut_loss, cut_sums, cut_gradients = losses_and_gradients(cut, spec, [part[whole.loss_mask] for part in said])
    assert loss == pytest.approx(cut_loss, abs=1e-6)
    assert sums == pytest.approx(cut_sums, abs=1e-5)
    assert sums["tokens"] == sum(mask.count("1") for number, mask in enumerate(masks) if number != 2)
    for gradient, cut_gradient in zip(gradients, cut_gradients, strict=True):
        torch.testing.assert_close(gradient[whole.loss_mask], cut_gradient, atol=1e-7, rtol=1e-5)
        assert (gradient[~whole.loss_mask] == 0).all()


@pytest.mark.parametrize("name", CASES)
def test_a_completion_without_a_token_in_the_loss_trains_nothing(name: str) -> None:
    spec = spec_of(name)
    rollouts = rollouts_of(MASKS, poison=9.0)
    algorithm_of(spec).assign_advantages(rollouts, 0.05, RewardScale())
    assert 7 not in rollouts.select_trained_rows(without_signal=False)
    said = [torch.randn(len(rollouts.loss_mask)) - 1 for _ in range(3)]
    loss, sums, _ = losses_and_gradients(rollouts, spec, said)
    assert math.isfinite(loss)
    assert all(math.isfinite(value) for value in sums.values())


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_the_kl_to_the_reference_is_zero_outside_the_loss(estimator: str) -> None:
    rollouts = rollouts_of(MASKS, poison=math.nan)
    apart = estimate_reference_kl(rollouts, estimator)
    in_loss = rollouts.pad_tokens(rollouts.loss_mask)
    assert (apart[~in_loss] == 0).all()
    assert (apart[in_loss] != 0).all()


def test_the_reward_is_credited_to_the_last_token_in_the_loss() -> None:
    """With values of 0 and lambda 0 an advantage is the token's own reward."""
    settings = {**spec_of("ppo, not whitened").model_dump(), "gae_lambda": 0.0, "rewards": [{"kind": "math_answer"}]}
    rollouts = rollouts_of(["110", "0100"], poison=5.0)
    rollouts.values = torch.zeros_like(rollouts.old_logps)
    algorithm_of(Ppo.model_validate(settings)).assign_advantages(rollouts, 0.0, RewardScale())
    assert rollouts.advantages.tolist() == [0, 1.0, 0, 0, 0.5, 0, 0]


# --- storage


def test_a_mask_survives_storage_and_a_file_without_one_has_every_token_in_the_loss(tmp_path: Path) -> None:
    rollouts = rollouts_of(MASKS, poison=0.0)
    rollouts.save(tmp_path / "rollouts.safetensors")
    again = Rollouts.load(tmp_path / "rollouts.safetensors")
    assert torch.equal(again.loss_mask, rollouts.loss_mask)
    tensors = load_file(tmp_path / "rollouts.safetensors")
    del tensors["loss_mask"]
    save_file(tensors, tmp_path / "earlier.safetensors")
    earlier = Rollouts.load(tmp_path / "earlier.safetensors")
    assert earlier.loss_mask.tolist() == [True] * sum(map(len, MASKS))
    assert torch.equal(earlier.old_logps, rollouts.old_logps)


def test_a_generation_has_a_mask_as_long_as_its_tokens() -> None:
    request = Request("p", [1], 1, Sampling(temperature=1.0, max_tokens=2), seed=0)
    assert Generation(request, 0, [5, 6], [-1.0, -1.0], [-1.0, -1.0], "stop").loss_mask == [True, True]
    with pytest.raises(ValueError, match=r"request 'p', sample 0: a loss mask of 1 for 2 tokens"):
        Generation(request, 0, [5, 6], [-1.0, -1.0], [-1.0, -1.0], "stop", [False])


# --- the loop

LOOP = {**test_loop.GRPO, "steps": 2, "updates": {"minibatches": 2}, "kl": {"coefficient": 0.05}}
LOOPS = {
    "several updates": LOOP,
    "a step ahead": {**test_loop.GRPO, "steps": 3, "async_steps": 1},
    "ppo": {**test_loop.PPO, "steps": 2, "updates": {"minibatches": 2}, "kl": KL_IN_REWARD},
}


def mask_every_third(generate: Any) -> Any:
    def generate_masked(self: LocalEngine, requests: Sequence[Request]) -> Iterator[Generation]:
        for generation in generate(self, requests):
            mask = [position % 3 != 1 for position in range(len(generation.token_ids))]
            yield dataclasses.replace(generation, loss_mask=mask)

    return generate_masked


@pytest.mark.slow(seconds=8)
@pytest.mark.parametrize("name", LOOPS)
def test_stopped_and_resumed_keeps_the_mask(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(LocalEngine, "generate", mask_every_third(LocalEngine.generate))
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    test_loop.run(whole, tiny_model, LOOPS[name])
    with pytest.raises(Preempted):
        test_loop.run(stopped, tiny_model, LOOPS[name], stop=True)
    (checkpoint,) = (stopped / "out" / "checkpoints").glob("checkpoint-1")
    if name == "a step ahead":
        (group, *_) = json.loads((checkpoint / "pending.json").read_text())["groups"]
        masks = [generation[5] for generation in group["generations"]]
        assert all(is_own == (position % 3 != 1) for mask in masks for position, is_own in enumerate(mask))
    else:
        assert not Rollouts.load(checkpoint / "rollouts.safetensors").loss_mask.all()
    test_loop.run(stopped, tiny_model, LOOPS[name])
    assert test_loop.digest(stopped) == test_loop.digest(whole)
    metrics = test_loop.without_times(test_loop.lines(whole, "metrics.jsonl"))
    assert test_loop.without_times(test_loop.lines(stopped, "metrics.jsonl")) == metrics
    assert all(0.2 < line["completions/masked_share"] < 0.4 for line in metrics if "reward" in line)
    monkeypatch.undo()
    unmasked = tmp_path / "unmasked"
    test_loop.run(unmasked, tiny_model, LOOPS[name])
    assert test_loop.digest(unmasked) != test_loop.digest(whole), "the mask changes what is trained"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["several updates", "ppo"])
def test_two_processes_equal_one_with_a_mask(tiny_model: Path, tmp_path: Path, name: str) -> None:
    starter = test_loop.Starter()
    try:
        for processes in (1, 2):
            folder = tmp_path / str(processes)
            test_loop.prepare(folder, tiny_model, LOOPS[name], processes=processes)
            job = json.loads((folder / "job.json").read_text())
            (folder / "job.json").write_text(json.dumps({**job, "mask_every": 3}))
            assert starter.start(folder) == 0
    finally:
        starter.end()
    one, two = (test_loop.lines(tmp_path / str(processes), "metrics.jsonl") for processes in (1, 2))
    assert len(one) == len(two) == 4
    for left, right in zip(one, two, strict=True):
        for metric in ("loss", "entropy", "reward", "value/loss", "kl", "policy/kl", "completions/masked_share"):
            assert (metric in left) == (metric in right)
            assert left.get(metric, 0.0) == pytest.approx(right.get(metric, 0.0), abs=1e-5), (left["step"], metric)
