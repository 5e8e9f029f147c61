"""States of parameters that have not been updated yet are those with which their first update begins."""

import pytest
import torch
from torch import nn

from qwen_align.align.training.optimizer_states import fill_missing_states


def train(*, fill_after: int | None, fused: bool) -> list[list[torch.Tensor]]:
    """Three steps of AdamW, in the first of which the second parameter has no gradient; weights after each step."""
    torch.manual_seed(0)
    parameters = [nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2, 2))]
    groups = [{"params": parameters[:1], "weight_decay": 0.1}, {"params": parameters[1:], "lr": 0.02}]
    optimizer = torch.optim.AdamW(groups, lr=0.1, fused=fused)
    seen = []
    for step in range(3):
        if fill_after == step:
            fill_missing_states(optimizer)
            assert [float(optimizer.state[one]["step"]) for one in parameters] == [step, max(step - 1, 0)]
            assert [optimizer.state[one]["exp_avg"].shape for one in parameters] == [(3,), (2, 2)]
        for number, parameter in enumerate(parameters):
            parameter.grad = torch.randn(parameter.shape) if step or not number else None
        optimizer.step()
        seen.append([one.detach().clone() for one in parameters])
    return seen


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("fill_after", [0, 1, 2])
def test_training_goes_on_bit_for_bit(fill_after: int, fused: bool) -> None:
    untouched, filled = train(fill_after=None, fused=fused), train(fill_after=fill_after, fused=fused)
    for one, other in zip(untouched, filled, strict=True):
        assert all(torch.equal(left, right) for left, right in zip(one, other, strict=True))
