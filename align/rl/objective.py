"""The loss of a micro-batch of completions, as its part of the whole optimiser step's, and what to log of it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from qwen_align.align.rl import losses
from qwen_align.align.rl.actor import Scores
from qwen_align.align.rl.rollouts import MicroBatch, Rollouts
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.ppo import Ppo


class Whole(NamedTuple):
    """What an optimiser step's loss is a mean over, on all devices: completions, and tokens that count.

    `share` is that of a full step's groups: fewer of them move the model less, each as much as in a full step.
    """

    n_rows: int
    n_tokens: int
    max_tokens: int
    share: float

    @classmethod
    def of(cls, rollouts: Rollouts, rows: list[int], max_tokens: int) -> "Whole":
        counted = rollouts.counts[rows]
        return cls(len(rows), int(rollouts.n_tokens[rows][counted].sum()), max_tokens, rollouts.share)


class Terms(NamedTuple):
    """How this update reads the completions.

    `on_policy`: the policy is the one that drew them, so its own log-probs are the old ones, to the last bit.
    `policy`, `value`: which of the two losses there are.
    """

    on_policy: bool
    policy: bool
    value: bool
    kl_coefficient: float
    entropy_coefficient: float


Sums = dict[str, Tensor]
"""Sums over tokens, to be summed over micro-batches and devices; `tokens` counts them."""


def loss_of(
    scores: Scores, batch: MicroBatch, rollouts: Rollouts, whole: Whole, terms: Terms, spec: Grpo | Ppo
) -> tuple[Tensor, Sums]:
    """The loss, a sum whose parts over all micro-batches and devices make up the optimiser step's, and its figures."""
    mask = rollouts.mask(batch.rows).to(batch.input_ids.device)
    loss, sums = torch.zeros((), device=mask.device), {"tokens": mask.sum()}
    if terms.policy:
        loss, sums = _policy(scores, batch, rollouts, whole, terms, spec)
    if terms.value:
        assert isinstance(spec, Ppo)
        assert scores.values is not None
        values, old, returns = scores.values.float(), *_of(batch, rollouts, "values", "returns")
        errors = losses.value_loss(values, old, returns, mask, spec.critic.clip)
        value_loss = errors.sum() / max(whole.n_tokens, 1)
        loss = loss + spec.critic.loss_weight * value_loss
        sums |= {"value/loss": errors.sum().detach()}
        sums |= {"value/squared_error": ((values - returns).square() * mask).sum().detach()}
        sums |= {"value/returns": (returns * mask).sum(), "value/squared_returns": (returns.square() * mask).sum()}
    return loss * whole.share, sums


def moves_without_advantage(spec: Grpo | Ppo) -> bool:
    """Whether a completion whose advantage is zero moves the model: a value is learnt, or KL or entropy has a price."""
    has_kl = spec.kl is not None and spec.kl.apply_to == "loss" and spec.kl.include_zero_advantage
    return isinstance(spec, Ppo) or spec.entropy is not None or has_kl


def _policy(
    scores: Scores, batch: MicroBatch, rollouts: Rollouts, whole: Whole, terms: Terms, spec: Grpo | Ppo
) -> tuple[Tensor, Sums]:
    assert scores.logps is not None
    assert scores.entropies is not None
    device, logps = batch.input_ids.device, scores.logps.float()
    mask = rollouts.mask(batch.rows).to(device)
    drawn_by, sampled_with, advantages = _of(batch, rollouts, "old_logps", "sampled_logps", "advantages")
    old = logps.detach() if terms.on_policy else drawn_by
    kind = spec.loss if isinstance(spec, Grpo) else "ppo"
    clip: dict[str, Any] = {"kind": kind, "clip_low": spec.clip_low, "clip_high": spec.clip_high}
    per_token = losses.policy_loss(logps, old, advantages, mask, **clip)
    if correction := spec.importance_sampling_correction:
        per_token = per_token * losses.correction_weights(
            old, sampled_with, mask, level=correction.level, most=correction.max_weight, beyond=correction.above_max
        )
    if spec.kl and spec.kl.apply_to == "loss":
        (reference,) = _of(batch, rollouts, "reference_logps")
        apart = losses.kl(logps, reference, spec.kl.estimator) * mask
        if spec.kl.importance_weighted:
            apart = apart * losses.log_ratios(logps, old, mask, kind).exp()
        per_token = per_token + terms.kl_coefficient * apart
    weights = losses.token_weights(
        rollouts.n_tokens[batch.rows].to(device),
        kind,
        n_rows=whole.n_rows,
        n_all_tokens=whole.n_tokens,
        max_tokens=whole.max_tokens,
    )
    loss = (per_token * weights[:, None]).sum()
    entropy = (scores.entropies.float() * mask).sum()
    if spec.entropy:
        loss = loss - terms.entropy_coefficient * entropy / max(whole.n_tokens, 1)
    with torch.no_grad():
        moved = losses.kl(old, logps, "k3")  # completions are the old policy's, so this is the KL from it
        sums = {
            "tokens": mask.sum(),
            "entropy": entropy.detach(),
            "clip_share": losses.is_clipped(logps, old, advantages, mask, **clip).sum(),
            "policy/kl": (moved * mask).sum(),
            "mismatch/mean": ((logps - drawn_by).abs() * mask).sum(),
        }
    return loss, sums


def _of(batch: MicroBatch, rollouts: Rollouts, *names: str) -> list[Tensor]:
    """What the rollouts say of the micro-batch's tokens, (B, T), on its device."""
    found = []
    for name in names:
        flat: Tensor | None = getattr(rollouts, name)
        assert flat is not None, name
        found.append(rollouts.padded(flat, batch.rows).to(batch.input_ids.device))
    return found
