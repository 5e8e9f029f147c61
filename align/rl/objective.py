"""Computes the loss of a micro-batch of completions and the sums for its metrics."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from qwen_align.align.rl import losses
from qwen_align.align.rl.actor import Scores
from qwen_align.align.rl.algorithm import Algorithm
from qwen_align.align.rl.losses import StepTotals
from qwen_align.align.rl.micro_batches import MicroBatch
from qwen_align.align.rl.rollouts import Rollouts


class UpdateTerms(NamedTuple):
    """The terms in the loss of an update (policy, value, KL, entropy) and their coefficients.

    `on_policy`: the policy is the one that sampled, so its own log-probs are the old ones, to the last bit.
    `policy`, `value`: which of the two losses there are.
    """

    on_policy: bool
    policy: bool
    value: bool
    kl_coefficient: float
    entropy_coefficient: float


Sums = dict[str, Tensor]
"""Sums over tokens, to be summed over micro-batches and devices; `tokens` counts them."""


def count_step_totals(rollouts: Rollouts, rows: list[int], max_tokens: int) -> StepTotals:
    """Counts the completions and tokens by which the loss of an optimiser step is averaged."""
    counted = rollouts.counts[rows]
    n_tokens = int(rollouts.n_loss_tokens[rows][counted].sum())
    return StepTotals(int(rollouts.is_judged[rows].sum()), n_tokens, max_tokens, rollouts.share)


def compute_loss(
    scores: Scores,
    batch: MicroBatch,
    rollouts: Rollouts,
    totals: StepTotals,
    terms: UpdateTerms,
    algorithm: Algorithm,
) -> tuple[Tensor, Sums]:
    """Returns a micro-batch's part of the optimiser step's loss, and the sums for its metrics.

    The parts of all micro-batches and devices add up to the loss.
    """
    mask = rollouts.get_mask(batch.rows).to(batch.input_ids.device)
    loss, sums = torch.zeros((), device=mask.device), {"tokens": mask.sum()}
    if terms.policy:
        loss, sums = _compute_policy_terms(scores, batch, rollouts, totals, terms, algorithm)
    if terms.value:
        assert algorithm.critic is not None
        assert scores.values is not None
        values = scores.values.float().masked_fill(mask == 0, 0.0)
        old, returns = _pad_to_batch(batch, rollouts, mask, "values", "returns")
        errors = losses.compute_value_loss(values, old, returns, mask, algorithm.critic.clip)
        value_loss = errors.sum() / max(totals.n_tokens, 1)
        loss = loss + algorithm.critic.loss_weight * value_loss
        sums |= {"value/loss": errors.sum().detach()}
        sums |= {"value/squared_error": ((values - returns).square() * mask).sum().detach()}
        sums |= {"value/returns": (returns * mask).sum(), "value/squared_returns": (returns.square() * mask).sum()}
    return loss * totals.share, sums


def _compute_policy_terms(
    scores: Scores,
    batch: MicroBatch,
    rollouts: Rollouts,
    totals: StepTotals,
    terms: UpdateTerms,
    algorithm: Algorithm,
) -> tuple[Tensor, Sums]:
    """Returns the policy's part of the loss, with its KL and entropy terms, and the sums for its metrics."""
    assert scores.logps is not None
    assert scores.entropies is not None
    settings, policy_loss = algorithm.settings, algorithm.policy_loss
    mask = rollouts.get_mask(batch.rows).to(batch.input_ids.device)
    # Set to 0 before any arithmetic: times 0 afterwards, what overflows at a forced token would be NaN.
    logps, entropies = (part.float().masked_fill(mask == 0, 0.0) for part in (scores.logps, scores.entropies))
    drawn_by, sampled_with, advantages = _pad_to_batch(
        batch, rollouts, mask, "old_logps", "sampled_logps", "advantages"
    )
    old = logps.detach() if terms.on_policy else drawn_by
    bounds = settings.loss_settings
    clip: dict[str, Any] = {"loss": policy_loss, "clip_low": bounds.clip_low, "clip_high": bounds.clip_high}
    per_token = losses.compute_policy_loss(logps, old, advantages, mask, **clip)
    correction_weights = mask
    if correction := settings.importance_sampling_correction:
        correction_weights = losses.compute_correction_weights(
            old,
            sampled_with,
            mask,
            level=correction.level,
            max_weight=correction.max_weight,
            above_max=correction.above_max,
        )
        per_token = per_token * correction_weights
    if settings.kl and settings.kl.apply_to == "loss":
        (reference,) = _pad_to_batch(batch, rollouts, mask, "reference_logps")
        weighted = settings.kl.importance_weighted
        kl = losses.compute_kl_loss(
            logps, reference, old, mask, estimator=settings.kl.estimator, importance_weighted=weighted
        )
        if weighted:  # the importance ratio is that to the distribution drawn from
            kl = kl * correction_weights
        per_token = per_token + terms.kl_coefficient * kl
    weights = policy_loss.weigh_tokens(rollouts.n_loss_tokens[batch.rows].to(mask.device), totals)
    loss = (per_token * weights[:, None]).sum()
    entropy = entropies.sum()
    if settings.entropy:
        loss = loss - terms.entropy_coefficient * entropy / max(totals.n_tokens, 1)
    with torch.no_grad():
        moved = losses.estimate_kl(old, logps, "k3")  # completions are the old policy's, so this is the KL from it
        sums = {
            "tokens": mask.sum(),
            "entropy": entropy.detach(),
            "clip_share": losses.find_clipped_tokens(logps, old, advantages, mask, **clip).sum(),
            "policy/kl": (moved * mask).sum(),
            "mismatch/mean": ((logps - drawn_by).abs() * mask).sum(),
        }
    return loss, sums


def _pad_to_batch(batch: MicroBatch, rollouts: Rollouts, mask: Tensor, *names: str) -> list[Tensor]:
    """Returns the named fields of the rollouts, padded to the micro-batch's rows; (B, T) each.

    They are 0 outside the loss.
    """
    padded = []
    for name in names:
        flat: Tensor | None = getattr(rollouts, name)
        assert flat is not None, name
        padded.append(rollouts.pad_tokens(flat, batch.rows).to(batch.input_ids.device).masked_fill(mask == 0, 0.0))
    return padded
