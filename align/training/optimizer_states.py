"""Gives every trained parameter a state of the optimiser, which torch's distributed checkpoints need for loading."""

from typing import Any

import torch
from torch import nn


def fill_missing_states(optimizer: torch.optim.Optimizer) -> None:
    """Gives parameters that have not been updated yet the state with which their first update would begin: zeros.

    A critic's warm-up leaves the policy without one. A checkpoint of FSDP2's would then lack it, and loading asks for
    all; where no parameter has one, torch would make states of one step already done while it saves.
    """
    inner: Any = getattr(optimizer, "optimizer", optimizer)  # accelerate's wrapper holds it
    for group in inner.param_groups:
        missing = [one for one in group["params"] if one.requires_grad and not inner.state.get(one)]
        for parameter in missing:
            inner.state[parameter] = {
                name: torch.zeros_like(value) if value.dim() == 0 else torch.zeros_like(parameter)
                for name, value in _make_example(inner, group, parameter.device).items()
            }


def _make_example(optimizer: Any, group: dict[str, Any], device: torch.device) -> dict[str, torch.Tensor]:
    """Returns the state that an optimiser of this kind has of one number after a step without a gradient."""
    number = nn.Parameter(torch.zeros(1, device=device))
    number.grad = torch.zeros(1, device=device)
    example = type(optimizer)([{**group, "params": [number]}])
    example.step()
    state: dict[str, torch.Tensor] = example.state[number]
    return state
