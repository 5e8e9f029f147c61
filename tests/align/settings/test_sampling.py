import warnings

import pytest
from pydantic import ValidationError

from qwen_align.align.settings.sampling import Sampling, SamplingSettings


@pytest.mark.parametrize(
    ("mode", "temperature", "top_p", "top_k"),
    [("think", 0.6, 0.95, 20), ("no_think", 0.7, 0.8, 20), (None, 0.7, 0.8, 20)],
)
def test_what_is_left_out_follows_the_mode(mode, temperature, top_p, top_k):
    drawn = SamplingSettings(max_tokens=64).resolve_for_mode(mode)
    assert drawn == Sampling(temperature=temperature, top_p=top_p, top_k=top_k, min_p=0.0, max_tokens=64)


def test_what_is_given_wins_over_the_mode_even_when_it_is_zero():
    drawn = SamplingSettings(temperature=0.0, top_p=1.0, top_k=0, min_p=0.1, max_tokens=9).resolve_for_mode("no_think")
    assert drawn == Sampling(temperature=0.0, top_p=1.0, top_k=0, min_p=0.1, max_tokens=9)


def test_a_policy_is_sampled_uncut_unless_asked():
    assert SamplingSettings(max_tokens=5).resolve_for_policy() == Sampling(temperature=1.0, max_tokens=5)
    assert SamplingSettings(temperature=0.8, top_k=3, max_tokens=5).resolve_for_policy().is_truncated
    assert not SamplingSettings(temperature=0.8, max_tokens=5).resolve_for_policy().is_truncated


def test_greedy_thinking_warns_and_says_what_to_do():
    with pytest.warns(UserWarning, match="leave temperature out"):
        SamplingSettings(temperature=0.0, max_tokens=5).resolve_for_mode("think")


@pytest.mark.parametrize(("temperature", "mode"), [(0.0, "no_think"), (0.0, None), (0.6, "think"), (None, "think")])
def test_nothing_else_warns(temperature, mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SamplingSettings(temperature=temperature, max_tokens=5).resolve_for_mode(mode)


def test_only_a_cut_that_bites_counts_as_one():
    assert Sampling(temperature=1.0, min_p=0.01, max_tokens=5).is_truncated
    assert Sampling(temperature=1.0, top_p=0.99, max_tokens=5).is_truncated
    assert not Sampling(temperature=1.0, max_tokens=5).is_truncated
    assert not Sampling(temperature=0.0, top_k=20, max_tokens=5).is_truncated, "greedy decoding looks at no cut"


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_k": -1},
        {"top_k": 1.5},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"max_tokens": 0},
        {"top_n": 3},
    ],
)
@pytest.mark.parametrize("kind", [Sampling, SamplingSettings])
def test_out_of_range_is_refused(kind, wrong):
    with pytest.raises(ValidationError):
        kind(**({"temperature": 1.0, "max_tokens": 5} | wrong))


def test_max_tokens_must_be_given():
    with pytest.raises(ValidationError, match="max_tokens"):
        SamplingSettings(temperature=1.0)
