"""Gathers the trained weights of a model whose strategy divides them, one at a time, in the process that saves them.

No other process ever holds more than one whole weight.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qwen_align.align.models.bf16_weights import cast_state
from qwen_align.align.training.distributed import is_main_process, wait_for_all


def save_gathered_model(trainer: Any, model: Any, folder: Path, **arguments: Any) -> None:
    """Saves a trainer's model, or a part of it, as a model folder or an adapter folder in Hugging Face form.

    Every process has to call it; the main one writes. `arguments`: further ones of `save_pretrained`.
    """
    state = gather_state(trainer, model)
    if is_main_process():
        model.save_pretrained(str(folder), state_dict=state, **arguments)
    wait_for_all()


def gather_state(trainer: Any, model: nn.Module) -> dict[str, Tensor]:
    """Returns the weights of a trainer's model, or of a part of it, in the main process; an empty one in others.

    Every process has to call it. Weights that DeepSpeed trains are its fp32 ones, of which the model holds copies in
    another precision. Of tied weights there is the first; of a model with adapters there is what is trained. They are
    cast to the trainer's `handed_on_dtype`. What is whole already is not copied.
    """
    dtype: torch.dtype | None = trainer.handed_on_dtype
    is_adapted = hasattr(model, "peft_config")
    state: dict[str, Tensor] = {}
    for name, weight in _list_weights_once(model):
        if is_adapted and not weight.requires_grad:
            continue
        whole = _gather_weight(weight)
        if is_main_process():
            is_cast = dtype is not None and dtype != whole.dtype
            state |= cast_state(model, {name: whole}, dtype) if is_cast and dtype else {name: whole}
        del whole
    return state


def _list_weights_once(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields the names and tensors of a model's state, of tied ones the first."""
    seen: set[int] = set()
    for name, weight in model.state_dict(keep_vars=True).items():
        if id(weight) not in seen:
            seen.add(id(weight))
            yield name, weight


@torch.no_grad()
def _gather_weight(weight: Tensor) -> Tensor:
    """Returns a weight as a whole, in each process; on the CPU where it has been divided."""
    from torch.distributed.tensor import DTensor

    if isinstance(weight, DTensor):
        return weight.full_tensor().cpu()
    if hasattr(weight, "ds_id") or hasattr(weight, "_hp_mapping"):
        return _gather_from_deepspeed(weight)
    return weight.detach()


def _gather_from_deepspeed(weight: Any) -> Tensor:
    """Returns a whole weight of a model that DeepSpeed trains, in each process: its fp32 one where it is trained."""
    from deepspeed import zero
    from deepspeed.utils import safe_get_full_fp32_param

    if weight.requires_grad:
        trained: Tensor = safe_get_full_fp32_param(weight)
        return trained.detach().cpu()
    if hasattr(weight, "ds_id"):
        with zero.GatheredParameters([weight]):
            frozen: Tensor = weight.detach().cpu().clone()
        return frozen
    return weight.detach()  # type: ignore[no-any-return]
