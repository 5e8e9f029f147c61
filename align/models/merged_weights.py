"""Lists the weights of a policy with its adapters merged, without changing the policy."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from qwen_align.align.models.adapters import merge_layer
from qwen_align.align.models.bf16_weights import cast_state


@torch.no_grad()
def save_merged_weights(model: PreTrainedModel, folder: Path, dtype: torch.dtype, adapter: str) -> None:
    """Writes the weights of a model whole and in a precision, as a model folder in Hugging Face form.

    `adapter`: the one that is merged where the model has adapters. Merging in place and back would round the base.
    """
    state: dict[str, Tensor] = {}
    for name, weight in list_merged_weights(model, adapter):
        state |= cast_state(model, {name: weight.detach()}, dtype) if weight.dtype != dtype else {name: weight.detach()}
    model.save_pretrained(str(folder), state_dict=state)


def list_merged_weights(model: nn.Module, adapter: str) -> Iterator[tuple[str, Tensor]]:
    """Yields the names and weights of a model below its adapters, of tied ones the first; one layer at a time.

    Every layer with adapters is merged in a copy, in fp32: weights in bf16 are rounded as those of a merged model are.
    """
    seen: set[int] = set()
    merged: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, BaseTunerLayer) and not any(name.startswith(f"{above}.") for above in merged):
            merged[name] = module
    for name, weight in model.state_dict(keep_vars=True).items():
        if id(weight) not in seen and not any(name.startswith(f"{layer}.") for layer in merged):
            seen.add(id(weight))
            yield name, weight
    for name, module in merged.items():
        yield from _merge_in_copy(name, module, adapter)


def _merge_in_copy(name: str, layer: Any, adapter: str) -> Iterator[tuple[str, Tensor]]:
    """Yields the names and merged weights of a layer with adapters, which may have others below it."""
    merged = copy.deepcopy(layer)
    tuned = [(path, module) for path, module in merged.named_modules() if isinstance(module, BaseTunerLayer)]
    for path, module in reversed(tuned):
        merge_layer(module, f"{name}.{path}" if path else name, [adapter])
    for part, weight in merged.get_base_layer().state_dict(keep_vars=True).items():
        yield f"{name}.{part}", weight
