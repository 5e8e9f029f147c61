"""Losses of the policy and of the value, a number a token, and how tokens are weighed. Pure functions.

Everything is (B, T): B completions, T tokens, `mask` 1 on a completion's tokens and 0 behind them. A step's loss is the
sum over tokens of weight times loss, so it does not depend on how its completions are cut into micro-batches or spread
over devices: only the weights know the whole.
"""

import torch
from torch import Tensor


def token_weights(n_tokens: Tensor, kind: str, *, n_rows: int, n_all_tokens: int, max_tokens: int) -> Tensor:
    """The weight of each token of completions with so many tokens, (B,) -> (B,).

    `n_rows` and `n_all_tokens` are of all the completions that the loss is a mean over, those of other micro-batches
    and devices, and those that are skipped because they train nothing, included.
    """
    if kind in ("grpo", "gspo"):
        return 1.0 / (n_tokens.clamp(min=1) * max(n_rows, 1))
    if kind == "dr_grpo":
        return torch.full_like(n_tokens, 1.0 / (max(n_rows, 1) * max_tokens), dtype=torch.float32)
    return torch.full_like(n_tokens, 1.0 / max(n_all_tokens, 1), dtype=torch.float32)


def log_ratios(logps: Tensor, old_logps: Tensor, mask: Tensor, kind: str) -> Tensor:
    """Log of how much likelier the policy is now to say each token, or, for gspo, the whole, by token; (B, T).

    gspo (arXiv:2507.18071, (7)): the mean over the completion's tokens stands at each of them.
    """
    ratios = (logps - old_logps) * mask
    if kind == "gspo":
        means = ratios.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        return means * mask
    return ratios


def policy_loss(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, *, kind: str, clip_low: float, clip_high: float
) -> Tensor:
    """The loss of each token, to be weighed and summed; (B, T).

    The clipped surrogate (PPO, arXiv:1707.06347, (7)), with bounds of their own above and below (DAPO). cispo instead
    bounds the ratio from above, lets no gradient through it, and so keeps every token's (arXiv:2506.13585, (4)).
    """
    ratio = log_ratios(logps, old_logps, mask, kind).exp()
    if kind == "cispo":
        return -ratio.clamp(max=1 + clip_high).detach() * advantages * logps * mask
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratio * advantages, clipped * advantages) * mask


def is_clipped(
    logps: Tensor, old_logps: Tensor, advantages: Tensor, mask: Tensor, *, kind: str, clip_low: float, clip_high: float
) -> Tensor:
    """Which tokens' ratio is beyond the bound that holds for their advantage's sign; (B, T) of 0 and 1."""
    ratio = log_ratios(logps, old_logps, mask, kind).exp()
    high = (ratio > 1 + clip_high) & (advantages > 0)
    low = (ratio < 1 - clip_low) & (advantages < 0)
    beyond = high if kind == "cispo" else high | low
    return beyond.to(mask.dtype) * mask


def kl(logps: Tensor, reference_logps: Tensor, estimator: str) -> Tensor:
    """An estimate of the KL from the policy to the reference for each token; (B, T), nats.

    k1 is unbiased, k2 of small variance, k3 both and never negative (http://joschu.net/blog/kl-approx.html).
    """
    apart = logps - reference_logps
    if estimator == "k1":
        return apart
    if estimator == "k2":
        return apart.square() / 2
    return torch.expm1(-apart) + apart


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float | None) -> Tensor:
    """Half the squared error of each token's value; (B, T).

    With `clip` the larger of that and the error of the value held within `clip` of what it was: moving further pays
    nothing (PPO's reference code; Qwen 2023 had 0.15).
    """
    error = (values - returns).square()
    if clip is not None:
        held = old_values + (values - old_values).clamp(-clip, clip)
        error = torch.maximum(error, (held - returns).square())
    return error * mask / 2


def correction_weights(
    policy_logps: Tensor, sampled_logps: Tensor, mask: Tensor, *, level: str, most: float, beyond: str
) -> Tensor:
    """Importance weights for tokens drawn from another distribution than the policy's; (B, T), no gradient.

    `beyond`: weights above `most` are cut to it ("truncate") or their tokens, or completions, train nothing ("mask").
    """
    apart = (policy_logps - sampled_logps) * mask
    if level == "sequence":
        apart = apart.sum(dim=1, keepdim=True) * mask
    weights = apart.exp()
    weights = weights.clamp(max=most) if beyond == "truncate" else weights.masked_fill(weights > most, 0.0)
    return (weights * mask).detach()
