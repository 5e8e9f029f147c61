import math

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from qwen_align.align.generation.token_sampling import draw_uniforms, sample_tokens, select_candidates
from qwen_align.align.settings.sampling import Sampling

CUTS = {
    "top_p": {"top_p": 0.8},
    "top_k": {"top_k": 7},
    "min_p": {"min_p": 0.1},
    "thinking": {"temperature": 0.6, "top_p": 0.95, "top_k": 20},
    "direct": {"temperature": 0.7, "top_p": 0.8, "top_k": 20},
    "all": {"temperature": 1.3, "top_p": 0.9, "top_k": 12, "min_p": 0.05},
    "top_k beyond the vocabulary": {"top_k": 1000, "top_p": 0.5},
    "one token": {"top_k": 1},
    "hardly any mass": {"top_p": 1e-6},
    "only the best": {"min_p": 1.0},
}


def make_sampling(*, temperature=1.0, **cut):
    return Sampling(temperature=temperature, max_tokens=1, **cut)


def hf_kept(logits, sampling):
    """Where transformers' own warpers leave a finite score, in generate's order."""
    warpers = LogitsProcessorList()
    if sampling.temperature != 1:
        warpers.append(TemperatureLogitsWarper(sampling.temperature))
    if sampling.top_k:
        warpers.append(TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        warpers.append(TopPLogitsWarper(sampling.top_p))
    if sampling.min_p:
        warpers.append(MinPLogitsWarper(sampling.min_p))
    return warpers(None, logits).isfinite()


def kept(logits, sampling):
    ids, mask = select_candidates(logits / sampling.temperature, sampling)
    assert (ids.diff(dim=-1) > 0).all(), "ids must rise"
    return torch.zeros_like(logits, dtype=torch.bool).scatter(1, ids, mask)


@pytest.mark.parametrize("cut", CUTS)
def test_the_kept_tokens_are_those_of_transformers_warpers(cut):
    sampling = make_sampling(**CUTS[cut])
    spread = torch.tensor([0.1, 1.0, 4.0, 12.0]).repeat_interleave(100)[:, None]
    logits = torch.randn(400, 50, generator=torch.Generator().manual_seed(0)) * spread
    ours = kept(logits, sampling)
    assert torch.equal(ours, hf_kept(logits, sampling))
    assert ours.any(-1).all()


def make_tied_logits():
    """Steps of 1/2, as bfloat16 makes them: nearly every border falls on equal tokens."""
    return (torch.randn(300, 40, generator=torch.Generator().manual_seed(0)) * 4).round() / 2


@pytest.mark.parametrize("cut", ["top_k", "min_p"])
def test_ties_are_kept_or_cut_as_transformers_does(cut):
    logits, sampling = make_tied_logits(), make_sampling(**CUTS[cut])
    assert torch.equal(kept(logits, sampling), hf_kept(logits, sampling))


@pytest.mark.parametrize("cut", ["top_p", "all"])
def test_of_equal_tokens_top_p_keeps_as_many_as_transformers_and_the_lowest_ids(cut):
    logits, sampling = make_tied_logits(), make_sampling(**CUTS[cut])
    ours, theirs = kept(logits, sampling), hf_kept(logits, sampling)
    assert torch.equal(ours.sum(-1), theirs.sum(-1))
    assert torch.equal(logits.where(ours, 0).sort(-1).values, logits.where(theirs, 0).sort(-1).values)
    for row, mask in zip(logits, ours, strict=True):
        least = row[mask].min()
        tied = mask[row == least]
        assert torch.equal(tied, tied.sort(descending=True, stable=True).values)


@pytest.mark.parametrize("cut", [None, *CUTS])
def test_sampled_frequencies_match_the_exact_distribution(cut):
    sampling = make_sampling(**CUTS.get(cut, {}))
    logits = torch.tensor([[3.0, 2.5, 2.5, 1.0, 0.5, 0.0, -1.0, 2.0, -3.0, 1.5, 0.2, 0.1, -0.4]])
    if cut is None:
        expected = logits.double().softmax(-1)
    else:
        masked = (logits / sampling.temperature).masked_fill(~hf_kept(logits, sampling), -torch.inf)
        expected = masked.double().softmax(-1)
    n = 40_000
    keys = torch.arange(n) * 7919
    drawn = sample_tokens(logits.expand(n, -1), draw_uniforms(keys, 3), sampling)
    seen = np.bincount(drawn.tokens.numpy(), minlength=13)
    share = expected[0].numpy()
    assert seen[share == 0].sum() == 0
    open_ = share > 0
    chi_square = ((seen[open_] - n * share[open_]) ** 2 / (n * share[open_])).sum()
    degrees = int(open_.sum()) - 1
    # Wilson and Hilferty's normal approximation of the chi-square quantile, at z = 4: one false alarm in 30,000.
    limit = degrees * (1 - 2 / (9 * degrees) + 4 * math.sqrt(2 / (9 * degrees))) ** 3 if degrees else 0.0
    assert chi_square <= limit
    torch.testing.assert_close(drawn.sampled.double(), expected[0][drawn.tokens], atol=1e-6, rtol=1e-5)


def test_a_number_selects_the_token_whose_interval_holds_it():
    """Both sides of every border, without and with a cut that removes nothing."""
    probs = torch.tensor([0.5, 0.0, 0.25, 0.25])
    number = torch.tensor([0.0, 0.4999999, 0.5, 0.7499999, 0.75, 1 - 2.0**-52], dtype=torch.float64)
    for sampling in (make_sampling(), make_sampling(min_p=1e-9)):
        drawn = sample_tokens(probs.log().expand(6, -1), number, sampling)
        assert drawn.tokens.tolist() == [0, 0, 2, 2, 3, 3]


def test_rare_tokens_of_a_large_vocabulary_are_still_drawn():
    """150,000 tokens of 1e-9 each behind a sure one: float32 sums would never reach them."""
    logits = torch.full((1, 150_000), math.log(1e-9))
    logits[0, 0] = 0.0
    tail = 149_999e-9
    number = torch.tensor([1 - tail / 4], dtype=torch.float64)
    token = sample_tokens(logits, number, make_sampling()).tokens.item()
    assert token == pytest.approx(150_000 * 3 / 4, rel=1e-3)


def test_greedy_takes_the_likeliest_and_reports_the_policy_at_temperature_one():
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 5.0, 1.0]])
    drawn = sample_tokens(logits, torch.zeros(2, dtype=torch.float64), make_sampling(temperature=0.0, top_k=2))
    assert drawn.tokens.tolist() == [1, 0]
    torch.testing.assert_close(drawn.policy, logits.softmax(-1)[[0, 1], [1, 0]])
    assert drawn.sampled.tolist() == [1.0, 1.0]


def test_a_lower_temperature_prefers_the_likely():
    logits = torch.tensor([[1.0, 0.0]]).expand(2000, -1)
    number = draw_uniforms(torch.arange(2000), 0)
    shares = [
        sample_tokens(logits, number, make_sampling(temperature=t)).tokens.eq(0).float().mean() for t in (2.0, 1.0, 0.3)
    ]
    assert shares == sorted(shares)
    assert shares[0] < shares[1] < shares[2]


def splitmix64(key, position):
    """The published generator, in Python's whole numbers."""
    word = 2**64 - 1
    z = (key + (position + 1) * 0x9E3779B97F4A7C15) & word
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & word
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & word
    return z ^ (z >> 31)


@pytest.mark.parametrize("position", [0, 1, 17, 40_000])
def test_uniforms_are_splitmix64(position):
    keys = [0, 1, -1, 1234567, -(2**63), 2**63 - 1]
    ours = draw_uniforms(torch.tensor(keys), position).tolist()
    assert ours == [(splitmix64(key % 2**64, position) >> 12) * 2.0**-52 for key in keys]


def test_splitmix64_gives_the_published_first_numbers():
    """Of seed 1234567, as on Rosetta Code's page "Pseudo-random numbers/Splitmix64"."""
    first = [splitmix64(1234567, position) for position in range(2)]
    assert first == [6457827717110365317, 3203168211198807973]


def test_uniforms_are_uniform_and_do_not_depend_on_their_neighbours():
    keys = torch.arange(100_000) * 31
    number = draw_uniforms(keys, 5)
    assert number.dtype == torch.float64
    assert 0 <= number.min() < number.max() < 1
    counts = torch.histc(number.float(), bins=50, min=0, max=1)
    assert ((counts - 2000) ** 2 / 2000).sum() < 49 + 4 * math.sqrt(2 * 49)
    assert torch.equal(draw_uniforms(keys[777:778], 5), number[777:778])
    assert abs(torch.corrcoef(torch.stack([number, draw_uniforms(keys, 6)]))[0, 1]) < 0.02
