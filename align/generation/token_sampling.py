"""Samples one token per row from logits, by random numbers that depend on the row alone."""

from typing import NamedTuple

import torch
from torch import Tensor

from qwen_align.align.settings.sampling import Sampling

# splitmix64 (Steele, Lea and Flood, OOPSLA 2014, doi:10.1145/2660193.2660195), its constants as signed integers.
_STEP = 0x9E3779B97F4A7C15 - 2**64
_MIX = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))


class SampledTokens(NamedTuple):
    """The sampled token ids with their probabilities before and after top-k, top-p and min-p; each (B,)."""

    tokens: Tensor
    policy: Tensor
    sampled: Tensor


def draw_uniforms(keys: Tensor, position: int) -> Tensor:
    """Draws the `position`-th uniform random number in [0, 1) of each key; (B,) int64 -> (B,) float64.

    52 bits, so that a number below 1 stays below 1 when it is multiplied by a total.
    """
    bits = keys + _to_signed_int64((position + 1) * _STEP)
    for shift, factor in _MIX:
        bits = (bits ^ _shift_right(bits, shift)) * factor
    return _shift_right(bits ^ _shift_right(bits, 31), 12).double() * 2.0**-52


def advance_key(key: int, n_drawn: int) -> int:
    """Returns the key whose first uniform random number is the one after the first `n_drawn` of `key`."""
    return _to_signed_int64(key + n_drawn * _STEP)


def sample_tokens(logits: Tensor, uniform: Tensor, sampling: Sampling) -> SampledTokens:
    """Samples one token per row from logits (B, V) by inverting the cumulative distribution at `uniform` (B,).

    Greedy takes the likeliest token, the lowest id among equals, and reports the policy at temperature 1.
    """
    logits = logits.float()
    if sampling.is_greedy:
        tokens = logits.argmax(-1)
        policy = logits.softmax(-1).gather(1, tokens[:, None])[:, 0]
        return SampledTokens(tokens, policy, torch.ones_like(policy))
    if sampling.temperature != 1:
        logits = logits / sampling.temperature
    probs = logits.softmax(-1)
    if not sampling.is_truncated:
        tokens = _invert_cumulative(probs, uniform)[0]
        policy = probs.gather(1, tokens[:, None])[:, 0]
        return SampledTokens(tokens, policy, policy)
    ids, kept = select_candidates(logits, sampling)
    probs = probs.gather(1, ids)
    indices, total = _invert_cumulative(probs * kept, uniform)
    policy = probs.gather(1, indices[:, None])[:, 0]
    return SampledTokens(ids.gather(1, indices[:, None])[:, 0], policy, (policy / total).float())


def select_candidates(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Returns token ids in rising order and a mask of those that top-k, top-p and min-p keep; both (B, M).

    `logits` are already over the temperature. Tokens tied at the k-th place all stay, as in transformers; of
    equal tokens at the border of top-p those with the lowest ids stay, where transformers takes any.
    """
    n_tokens = logits.shape[-1]
    if 0 < sampling.top_k < n_tokens:
        best = logits.topk(sampling.top_k)
        least = best.values[:, -1:]
        widest = int((logits >= least).sum(-1).max())
        if widest > sampling.top_k:  # some row has ties at the k-th place
            best = logits.topk(widest)
        ids = best.indices.sort(-1).values
        values = logits.gather(1, ids)
        kept = values >= least
    else:
        ids = torch.arange(n_tokens, device=logits.device).expand_as(logits)
        values, kept = logits, torch.ones_like(logits, dtype=torch.bool)
    if sampling.top_p < 1:
        falling, order = values.masked_fill(~kept, -torch.inf).sort(dim=-1, descending=True, stable=True)
        share = falling.softmax(-1).double()
        enough = share.cumsum(-1) - share >= sampling.top_p  # the likelier tokens alone
        kept = kept & ~torch.empty_like(enough).scatter_(1, order, enough)
    if sampling.min_p > 0:
        probs = values.softmax(-1)  # a share of the top probability, so the other cuts do not change it
        kept = kept & (probs >= sampling.min_p * probs.amax(-1, keepdim=True))
    return ids, kept


def _invert_cumulative(probs: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Returns each row's index at which the cumulative probabilities pass `uniform`, and their total; (B,).

    `uniform` is a share of the total.
    """
    # In float32 the sum over a large vocabulary would round its rare tokens away.
    cumulated = probs.cumsum(-1, dtype=torch.float64)
    total = cumulated[:, -1]
    indices = torch.searchsorted(cumulated, (uniform * total)[:, None], right=True)[:, 0]
    return indices.clamp_(max=probs.shape[-1] - 1), total  # past the end only if a logit is not a number


def _shift_right(bits: Tensor, by: int) -> Tensor:
    """Shifts int64 bits to the right and fills with zeros.

    Torch's own shift keeps the sign.
    """
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _to_signed_int64(number: int) -> int:
    """Returns the signed 64-bit integer with the same lowest 64 bits."""
    return (number + 2**63) % 2**64 - 2**63
