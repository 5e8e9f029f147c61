"""The local engine on the embedded model, many tokens of it: exactly the policy's distribution, in any batch."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from qwen_align.align.generation.engine import Generation, Request, compute_sample_key
from qwen_align.align.generation.local import LocalEngine
from qwen_align.align.generation.token_sampling import draw_uniforms
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.settings.sampling import Sampling
from qwen_align.data_builders.arithmetic import Arithmetic

FOLDER = Path(__file__).parents[3] / "recipes" / "tiny_base"
# What CI draws, and what `make evidence` does.
N_TOKENS = [pytest.param(10_000, marks=pytest.mark.slow(seconds=2)), pytest.param(50_000, marks=pytest.mark.evidence)]
N_ROWS = [pytest.param(1_000, marks=pytest.mark.slow(seconds=5)), pytest.param(10_000, marks=pytest.mark.evidence)]
SEEN_BIAS = {10_000: 1.1, 50_000: 1.05}  # exponents of a uniform number
LEAST_P = 1e-3  # of the test of uniformity; the seeds are fixed, so it passes or fails for good
NEAR_TIE = 1e-4  # of probability between a number and the border of two tokens' intervals


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def renderer():
    return Renderer.load(FOLDER)


def requests_for(renderer: Renderer, n: int, samples: int, sampling: Sampling) -> list[Request]:
    """Problems as the base knows them: raw text up to where its solution begins."""
    rows = Arithmetic(rows="text", n=n, steps=[2, 3], facts_share=0.0, direct_share=0.0).generate(3)
    prompts = [renderer.encode(row.text[: len(row.text) // 2]) for row in rows]
    return [Request(f"p{place}", ids, samples, sampling, seed=1) for place, ids in enumerate(prompts)]


def generated(model, renderer, requests, **settings) -> dict[tuple[str, int], Generation]:
    engine = LocalEngine(model, stop_ids=renderer.stop_ids, **settings)
    return {(one.request.id, one.sample): one for one in engine.generate(requests)}


@torch.no_grad()
def logits_of(model, *made: Generation) -> list[torch.Tensor]:
    """(T, V) of each, by a plain forward pass over prompts and completions, padded behind."""
    rows = [torch.tensor(one.request.prompt_ids + one.token_ids) for one in made]
    logits = model(input_ids=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)).logits
    starts = [len(one.request.prompt_ids) - 1 for one in made]
    return [found[start : start + len(one.token_ids)] for found, start, one in zip(logits, starts, made, strict=True)]


WAYS = {
    "free": (Sampling(temperature=1.0, max_tokens=60), []),
    "hot": (Sampling(temperature=1.3, max_tokens=60), [TemperatureLogitsWarper(1.3)]),
    "cut": (
        Sampling(temperature=0.9, top_k=20, top_p=0.9, min_p=0.02, max_tokens=60),
        [TemperatureLogitsWarper(0.9), TopKLogitsWarper(20), TopPLogitsWarper(0.9), MinPLogitsWarper(0.02)],
    ),
}


@pytest.mark.parametrize("n_tokens", N_TOKENS)
@pytest.mark.parametrize("way", WAYS)
def test_tokens_are_drawn_from_the_distribution(model, renderer, way: str, n_tokens: int) -> None:
    """Each token's place in its distribution, by transformers' logits and cuts, is uniform if the draw is exact."""
    sampling, warpers = WAYS[way]
    random = np.random.default_rng(0)
    places: list[float] = []
    made = list(generated(model, renderer, requests_for(renderer, n_tokens // 200, 8, sampling)).values())
    for start in range(0, len(made), 32):
        part = made[start : start + 32]
        for one, logits in zip(part, logits_of(model, *part), strict=True):
            probs = LogitsProcessorList(warpers)(None, logits).double().softmax(-1).numpy()
            tokens = np.array(one.token_ids)
            below = np.where(np.arange(probs.shape[1]) < tokens[:, None], probs, 0.0).sum(1)
            mine = probs[np.arange(len(tokens)), tokens]
            assert (mine > 0).all(), "a token that the cuts forbid was drawn"
            places += (below + random.random(len(tokens)) * mine).tolist()
    assert len(places) >= n_tokens
    assert kolmogorov_smirnov(np.array(places[:n_tokens])) > LEAST_P


def kolmogorov_smirnov(values: np.ndarray) -> float:
    """The probability of a sample at least as far from uniform; Kolmogorov's limit, good from a few dozen on."""
    ordered, n = np.sort(values), len(values)
    steps = np.arange(n)
    distance = max((ordered - steps / n).max(), ((steps + 1) / n - ordered).max())
    terms = [(-1) ** (k - 1) * np.exp(-2 * k * k * n * distance * distance) for k in range(1, 101)]
    return float(min(1.0, max(0.0, 2 * sum(terms))))


@pytest.mark.parametrize("n_tokens", SEEN_BIAS)
def test_the_test_of_uniformity_sees_a_small_bias(n_tokens: int) -> None:
    uniform = np.random.default_rng(1).random(n_tokens)
    assert kolmogorov_smirnov(uniform) > 0.01
    assert kolmogorov_smirnov(uniform ** SEEN_BIAS[n_tokens]) < LEAST_P


@pytest.mark.slow
def test_greedy_is_that_of_generate(model, renderer) -> None:
    requests = requests_for(renderer, 64, 1, Sampling(temperature=0.0, max_tokens=60))
    ours = generated(model, renderer, requests)
    width = max(len(one.prompt_ids) for one in requests)
    padded = [[renderer.pad_id] * (width - len(one.prompt_ids)) + one.prompt_ids for one in requests]
    theirs = model.generate(
        torch.tensor(padded),
        attention_mask=torch.tensor([[0] * (width - len(r.prompt_ids)) + [1] * len(r.prompt_ids) for r in requests]),
        do_sample=False,
        max_new_tokens=60,
        eos_token_id=renderer.stop_ids,
        pad_token_id=renderer.pad_id,
    )[:, width:].tolist()
    for request, row in zip(requests, theirs, strict=True):
        mine = ours[request.id, 0].token_ids
        assert mine == row[: len(mine)]
        assert len(mine) == 60 or mine[-1] in renderer.stop_ids


@pytest.mark.parametrize("n_rows", N_ROWS)
def test_rows_are_the_same_in_any_batch_but_for_near_ties(model, renderer, n_rows: int) -> None:
    requests = requests_for(renderer, n_rows // 8, 8, Sampling(temperature=1.0, max_tokens=40))
    small, large = (generated(model, renderer, requests, max_rows=rows) for rows in (96, 1024))
    assert len(small) == n_rows
    differing = [name for name, one in small.items() if one.token_ids != large[name].token_ids]
    assert len(differing) <= 0.005 * n_rows
    for name in differing:
        one, other = small[name], large[name]
        place = next(i for i, (a, b) in enumerate(zip(one.token_ids, other.token_ids, strict=False)) if a != b)
        (logits,) = logits_of(model, one)
        probs = logits[place].double().softmax(-1)
        low, high = sorted((one.token_ids[place], other.token_ids[place]))
        number = float(draw_uniforms(torch.tensor([compute_sample_key(one.request, one.sample)]), place)[0])
        borders = [float(probs[: token + 1].sum()) for token in range(low, high)]
        assert min(abs(number - one) for one in borders) < NEAR_TIE, f"{name} differs at {place} without a near tie"
