"""Token scores in tiles: those of whole logits, with their gradients, and never more logits than a tile."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from qwen_align.align.training import token_scores
from qwen_align.align.training.token_scores import score_tokens, sum_token_logps

N, H, V, TEMPERATURE = 23, 8, 50, 0.7
TILES = {"one tile": N * V, "several": 5 * V, "a token each": 1}


def build(*, bias: bool = False, trains_head: bool = True) -> tuple[Tensor, nn.Linear, Tensor]:
    torch.manual_seed(0)
    head = nn.Linear(H, V, bias=bias).requires_grad_(trains_head)
    return torch.randn(N, H, requires_grad=True), head, torch.randint(V, (N,))


def score_literally(hidden: Tensor, head: nn.Linear, tokens: Tensor) -> tuple[Tensor, Tensor]:
    log_probs = (head(hidden) / TEMPERATURE).log_softmax(-1)
    return log_probs[torch.arange(N), tokens], -(log_probs.exp() * log_probs).sum(-1)


def list_gradients(loss: Tensor, hidden: Tensor, head: nn.Linear) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [hidden, *(one for one in head.parameters() if one.requires_grad)]))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("trains_head", [True, False])
@pytest.mark.parametrize("tile", TILES)
def test_scores_and_gradients_are_those_of_whole_logits(
    tile: str, trains_head: bool, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_scores, "TILE", TILES[tile])
    hidden, head, tokens = build(bias=bias, trains_head=trains_head)
    for of_logps, of_entropies in ((1.0, 1.0), (1.0, 0.0), (0.0, 1.0)):
        found = score_tokens(hidden, head, tokens, TEMPERATURE, needs_entropies=of_entropies > 0)
        expected = score_literally(hidden, head, tokens)
        torch.testing.assert_close(found.logps, expected[0], atol=2e-6, rtol=1e-5)
        assert (found.entropies is not None) == (of_entropies > 0)
        weights = torch.randn(2, N)
        ours, theirs = torch.zeros(()), torch.zeros(())
        if of_logps:
            ours, theirs = ours + (found.logps * weights[0]).sum(), theirs + (expected[0] * weights[0]).sum()
        if found.entropies is not None:
            torch.testing.assert_close(found.entropies, expected[1], atol=2e-6, rtol=1e-5)
            ours, theirs = ours + (found.entropies * weights[1]).sum(), theirs + (expected[1] * weights[1]).sum()
        for one, two in zip(list_gradients(ours, hidden, head), list_gradients(theirs, hidden, head), strict=True):
            torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tile", TILES)
def test_mean_logits_and_the_likeliest_tokens_are_those_of_whole_logits(
    tile: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_scores, "TILE", TILES[tile])
    hidden, head, tokens = build(bias=True)
    logits = head(hidden) / TEMPERATURE
    tokens[::2] = logits.argmax(-1)[::2]
    found = score_tokens(hidden, head, tokens, TEMPERATURE, needs_logits=True)
    assert found.mean_logits is not None
    assert found.is_top1 is not None
    torch.testing.assert_close(found.mean_logits, logits.mean(-1), atol=2e-6, rtol=1e-5)
    assert found.is_top1.tolist() == (logits.argmax(-1) == tokens).tolist()
    assert not found.mean_logits.requires_grad


@pytest.mark.parametrize("tile", TILES)
def test_a_weighted_sum_and_its_gradients_are_those_of_the_scores(tile: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_scores, "TILE", TILES[tile])
    hidden, head, tokens = build(bias=True)
    weights = torch.randn(N)
    found = sum_token_logps(hidden, head, tokens, weights)
    expected = (head(hidden).log_softmax(-1)[torch.arange(N), tokens] * weights).sum()
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)
    for one, two in zip(
        list_gradients(3 * found, hidden, head), list_gradients(3 * expected, hidden, head), strict=True
    ):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-5)


class LargestLogits(TorchDispatchMode):
    """The most tokens whose logits any tensor held that an operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.n_tokens = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), settings: Any = None) -> Any:
        found = function(*arguments, **(settings or {}))
        for one in found if isinstance(found, tuple | list) else (found,):
            if isinstance(one, Tensor) and one.ndim == 2 and one.shape[1] == V and one.shape[0] != H:
                self.n_tokens = max(self.n_tokens, one.shape[0])
        return found


@pytest.mark.parametrize("trains_head", [True, False])
def test_no_more_logits_than_a_tile_are_held_forward_or_backward(
    trains_head: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_scores, "TILE", 5 * V)
    hidden, head, tokens = build(trains_head=trains_head)
    with LargestLogits() as seen:
        scores = score_tokens(hidden, head, tokens, TEMPERATURE)
        assert scores.entropies is not None
        (scores.logps.sum() + scores.entropies.sum()).backward()
        sum_token_logps(hidden, head, tokens, torch.ones(N)).backward()
    assert seen.n_tokens == 5
    with LargestLogits() as seen:
        score_literally(hidden, head, tokens)
    assert seen.n_tokens == N


def test_under_autocast_scores_are_those_of_logits_in_its_type() -> None:
    hidden, head, tokens = build()
    with torch.autocast("cpu", torch.bfloat16):
        found = score_tokens(hidden, head, tokens, TEMPERATURE)
        logits = head(hidden)
    assert logits.dtype == torch.bfloat16
    expected = (logits.float() / TEMPERATURE).log_softmax(-1)[torch.arange(N), tokens]
    torch.testing.assert_close(found.logps, expected, atol=1e-5, rtol=1e-5)
    gradient, weights = list_gradients(found.logps.sum(), hidden, head)
    assert gradient.dtype == weights.dtype == torch.float32
    for one, two in zip((gradient, weights), list_gradients(expected.sum(), hidden, head), strict=True):
        torch.testing.assert_close(one, two, atol=0.02 * two.abs().max().item(), rtol=0.0)  # 8 bits


def test_without_gradients_nothing_is_kept_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(token_scores, "TILE", V)
    monkeypatch.setattr(token_scores._Head, "multiply", fail)
    hidden, head, tokens = build(trains_head=False)
    with torch.no_grad():
        assert score_tokens(hidden, head, tokens, TEMPERATURE).logps.shape == (N,)
        assert sum_token_logps(hidden, head, tokens, torch.ones(N)).ndim == 0
    assert score_tokens(hidden[:0].detach(), head, tokens[:0], TEMPERATURE).logps.shape == (0,)
