"""Activations in host memory: the same gradients, what is moved and what is not."""

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from qwen_align.align.training.activation_offloading import ActivationOffloading, offload_activations

INPUT = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))


def build_model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32), nn.Linear(32, 1))


def compute_gradients(model: nn.Sequential, *, recompute: bool = False) -> list[torch.Tensor]:
    model.zero_grad()
    hidden = checkpoint(model[:3], INPUT, use_reentrant=False) if recompute else model[:3](INPUT)
    torch.autograd.backward(model[3](hidden).square().mean())
    return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


def test_gradients_are_the_same_also_where_activations_are_recomputed() -> None:
    model = build_model()
    expected = compute_gradients(model)
    assert len(expected) == 6
    for recompute in (False, True):
        with offload_activations(model, is_asked=True):
            actual = compute_gradients(model, recompute=recompute)
        assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))


def test_activations_are_moved_and_weights_are_not() -> None:
    model = build_model()
    offloading = ActivationOffloading(model)
    with offloading:
        hidden = model[0](INPUT)
        loss = model[2](model[1](hidden)).square().sum()
    # INPUT (of the first layer), its output (of GELU), GELU's (of the next layer), and that one's (of the square).
    assert offloading.n_moved == 4
    hidden.data.zero_()  # the backward pass reads the copy
    torch.autograd.backward(loss)
    gradient = model[2].weight.grad
    assert gradient is not None
    expected = build_model()
    torch.autograd.backward(expected[2](expected[1](expected[0](INPUT))).square().sum())
    assert torch.equal(gradient, expected[2].weight.grad)


def test_nothing_is_moved_unless_it_is_asked_for() -> None:
    model = build_model()
    assert not isinstance(offload_activations(model, is_asked=False), ActivationOffloading)
