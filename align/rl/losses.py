"""Computes the policy and value loss of each token and the weights of tokens.

Pure functions, and their tables. Everything is (B, T): B completions, T tokens, `mask` 1 on a completion's tokens in
the loss and 0 elsewhere. A step's loss is the sum over tokens of weight times loss, so it does not depend on how its
completions are cut into micro-batches or spread over devices: only the weights know the whole.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class StepTotals(NamedTuple):
    """The counts of completions and tokens by which the loss of an optimiser step is averaged.

    They are over all devices and micro-batches. Completions that are skipped because they train nothing are included,
    those without a verdict are not. `share` is that of a full step's groups: fewer of them move the model less, each as
    much as in a full step.
    """

    n_completions: int
    n_tokens: int  # in the loss
    max_tokens: int
    share: float = 1.0


def weigh_completions_equally(n_tokens: Tensor, totals: StepTotals) -> Tensor:
    """Returns the token weight of each completion for a mean over completions of their token means; (B,) -> (B,)."""
    return 1.0 / (n_tokens.clamp(min=1) * max(totals.n_completions, 1))


def weigh_by_max_tokens(n_tokens: Tensor, totals: StepTotals) -> Tensor:
    """Returns the same weight, 1 / (n_completions * max_tokens), for each completion's tokens; (B,) -> (B,)."""
    weight = 1.0 / (max(totals.n_completions, 1) * totals.max_tokens)
    return torch.full_like(n_tokens, weight, dtype=torch.float32)


def weigh_tokens_equally(n_tokens: Tensor, totals: StepTotals) -> Tensor:
    """Returns the token weight of each completion for a mean over all tokens in the loss; (B,) -> (B,)."""
    return torch.full_like(n_tokens, 1.0 / max(totals.n_tokens, 1), dtype=torch.float32)


def compute_token_log_ratios(logps: Tensor, old_logps: Tensor, mask: Tensor) -> Tensor:
    """Returns the log importance ratio of each token; (B, T)."""
    return (logps - old_logps) * mask


def compute_sequence_log_ratios(logps: Tensor, old_logps: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean log importance ratio of each completion, repeated at its tokens (GSPO); (B, T).

    arXiv:2507.18071, (7).
    """
    ratios = (logps - old_logps) * mask
    means = ratios.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    return means * mask


class PolicyTokens(NamedTuple):
    """The inputs of a policy loss: token tensors of shape (B, T) and the clip bounds of the importance ratio."""

    logps: Tensor
    ratios: Tensor
    advantages: Tensor
    mask: Tensor
    clip_low: float
    clip_high: float


def compute_clipped_surrogate(tokens: PolicyTokens) -> Tensor:
    """Returns PPO's clipped surrogate loss of each token; (B, T).

    arXiv:1707.06347, (7). The ratio has separate bounds above and below (DAPO, arXiv:2503.14476).
    """
    clipped = tokens.ratios.clamp(1 - tokens.clip_low, 1 + tokens.clip_high)
    return -torch.minimum(tokens.ratios * tokens.advantages, clipped * tokens.advantages) * tokens.mask


def compute_weighted_likelihood(tokens: PolicyTokens) -> Tensor:
    """Returns each token's log-likelihood loss, weighted by its clipped importance ratio (CISPO); (B, T).

    arXiv:2506.13585, (4). No gradient goes through the ratio, so that every token keeps its own.
    """
    weights = tokens.ratios.clamp(max=1 + tokens.clip_high).detach()
    return -weights * tokens.advantages * tokens.logps * tokens.mask


@dataclass(frozen=True)
class PolicyLoss:
    """A policy loss: its loss function per token, its token weights and its importance ratios.

    `clips_low`: the lower bound of the ratio holds too, for tokens with a negative advantage.
    """

    compute_token_loss: Callable[[PolicyTokens], Tensor]
    weigh_tokens: Callable[[Tensor, StepTotals], Tensor] = weigh_tokens_equally
    compute_log_ratios: Callable[[Tensor, Tensor, Tensor], Tensor] = compute_token_log_ratios
    clips_low: bool = True


POLICY_LOSSES: dict[str, PolicyLoss] = {
    "grpo": PolicyLoss(compute_clipped_surrogate, weigh_completions_equally),
    "dr_grpo": PolicyLoss(compute_clipped_surrogate, weigh_by_max_tokens),
    "dapo": PolicyLoss(compute_clipped_surrogate, weigh_tokens_equally),
    "gspo": PolicyLoss(compute_clipped_surrogate, weigh_completions_equally, compute_sequence_log_ratios),
    "cispo": PolicyLoss(compute_weighted_likelihood, weigh_tokens_equally, clips_low=False),
}
"""The losses that `grpo` offers, by their names in its settings."""

PPO_LOSS = PolicyLoss(compute_clipped_surrogate, weigh_tokens_equally)


def compute_policy_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    loss: PolicyLoss,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    """Returns the policy loss of each token, before token weights are applied; (B, T)."""
    ratios = loss.compute_log_ratios(logps, old_logps, mask).exp()
    return loss.compute_token_loss(PolicyTokens(logps, ratios, advantages, mask, clip_low, clip_high))


def find_clipped_tokens(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    loss: PolicyLoss,
    clip_low: float,
    clip_high: float,
) -> Tensor:
    """Returns 1 for each token whose importance ratio is clipped, else 0; (B, T).

    The bound that holds depends on the sign of the token's advantage.
    """
    ratio = loss.compute_log_ratios(logps, old_logps, mask).exp()
    high = (ratio > 1 + clip_high) & (advantages > 0)
    low = (ratio < 1 - clip_low) & (advantages < 0)
    beyond = high | low if loss.clips_low else high
    return beyond.to(mask.dtype) * mask


def estimate_k1(log_ratios: Tensor) -> Tensor:
    """Returns the k1 estimate of a token's KL: its log ratio.

    It is unbiased.
    """
    return log_ratios


def estimate_k2(log_ratios: Tensor) -> Tensor:
    """Returns the k2 estimate of a token's KL: half its squared log ratio.

    It has a small variance and is slightly biased.
    """
    return log_ratios.square() / 2


def estimate_k3(log_ratios: Tensor) -> Tensor:
    """Returns the k3 estimate of a token's KL: exp(-r) - 1 + r for log ratio r.

    It is unbiased, of small variance, and never negative.
    """
    return torch.expm1(-log_ratios) + log_ratios


KL_ESTIMATORS: dict[str, Callable[[Tensor], Tensor]] = {"k1": estimate_k1, "k2": estimate_k2, "k3": estimate_k3}
"""Estimators of the KL, from the policy's log-prob minus the reference's of each sampled token, by name.

http://joschu.net/blog/kl-approx.html
"""


def estimate_kl(logps: Tensor, reference_logps: Tensor, estimator: str) -> Tensor:
    """Estimates the KL from the policy to the reference policy at each token, in nats.

    Log-probs may have any shape.
    """
    return KL_ESTIMATORS[estimator](logps - reference_logps)


def compute_kl_loss(
    logps: Tensor,
    reference_logps: Tensor,
    old_logps: Tensor,
    mask: Tensor,
    *,
    estimator: str,
    importance_weighted: bool,
) -> Tensor:
    """Returns the KL penalty of each token as a term of the loss; (B, T).

    Its expected gradient is that of KL(policy || reference) for k2, of KL(reference || policy) for k3, and for k1 zero.
    Weighted by the token's importance ratio it is that of KL(policy || reference) for all three, whichever policy drew:
    the means of k1 and k3 are that KL, and the ratio's gradient belongs to them. The mean of k2 is not, only its
    gradient is, so its ratio has none.
    """
    kl = estimate_kl(logps, reference_logps, estimator) * mask
    if not importance_weighted:
        return kl
    ratios = compute_token_log_ratios(logps, old_logps, mask).exp()
    return kl * (ratios.detach() if estimator == "k2" else ratios)


def compute_value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float | None) -> Tensor:
    """Returns half the squared error of each token's value; (B, T).

    With `clip` the loss is the larger of two errors: that of the value, and that of the value clipped to within `clip`
    of the old one (PPO's reference code; Qwen 2023 had 0.15).
    """
    error = (values - returns).square()
    if clip is not None:
        held = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (held - returns).square())
    return error * mask / 2


def compute_correction_weights(
    policy_logps: Tensor, sampled_logps: Tensor, mask: Tensor, *, level: str, max_weight: float, above_max: str
) -> Tensor:
    """Returns importance weights that correct for tokens sampled from another distribution; (B, T).

    They have no gradient. `above_max`: weights above `max_weight` are cut to it ("truncate") or their tokens, or
    completions, are left out of the loss ("mask").
    """
    log_weights = (policy_logps - sampled_logps) * mask
    if level == "sequence":
        log_weights = log_weights.sum(dim=1, keepdim=True) * mask
    weights = log_weights.exp()
    is_truncated = above_max == "truncate"
    weights = weights.clamp(max=max_weight) if is_truncated else weights.masked_fill(weights > max_weight, 0.0)
    return (weights * mask).detach()
