"""Gives a model the attention implementation that a setting asks for, and tries whether it reads packed rows so.

Transformers passes what an attention function needs on through a model's layers, and not every architecture passes all
of it on: StableLM's loses the layout, and a completion would see none of its prompt, without an error. Architectures
with a table are held to by tests; any other model reads a few rows both ways first.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from qwen_align.align.errors import RecipeError
from qwen_align.align.models.packed_attention import (
    EAGER,
    AttentionSetting,
    can_pack,
    choose_attention,
    pack_completions,
    read_rows,
)
from qwen_align.align.models.tensor_table import ARCHITECTURES

# Two prompts and three completions; the first prompt is shared.
N_PROMPT, N_TOKENS, PROMPT_OF = [5, 3], [7, 2, 4], [0, 0, 1]

# Rounding moves hidden states by some units of the precision; a row that sees another, or not its prompt, by about
# their scale. The square root of the precision (3.5e-4 in fp32, 0.09 in bf16) lies between.
TOLERANCE_POWER = 0.5


def set_attention(model: PreTrainedModel, setting: AttentionSetting, device_type: str) -> None:
    """Sets the attention implementation of a model.

    `auto` leaves a model of an architecture that does not have it as it was loaded. What is saved of the model does not
    say it. Raises RecipeError for a setting that the architecture does not have.
    """
    try:
        use_attention(model, choose_attention(setting, device_type))
    except ValueError as error:
        if setting != "auto":
            raise RecipeError(f"runtime.attention: {setting}: {error}") from error


def use_attention(model: PreTrainedModel, name: str) -> None:
    """Gives a model a registered attention implementation, or the plain one where it does not read packed rows by it.

    Raises ValueError for one that its architecture does not have.
    """
    model.set_attn_implementation(name)
    is_known = model.config.get_text_config().model_type in ARCHITECTURES
    if not is_known and can_pack(model.config) and not reads_packed_rows(model):
        model.set_attn_implementation("eager" if name == EAGER else "sdpa")


@torch.no_grad()
def reads_packed_rows(model: PreTrainedModel) -> bool:
    """Returns whether a model computes of packed rows what it computes of each alone, by reading some 30 tokens."""
    n_ids = sum(N_PROMPT) + sum(N_TOKENS)
    ids = torch.arange(1, n_ids + 1, device=model.device).mul(17).remainder(model.config.get_text_config().vocab_size)
    rows = torch.split(ids, [*N_PROMPT, *N_TOKENS])
    prompts, completions = rows[: len(N_PROMPT)], rows[len(N_PROMPT) :]
    backbone = model.base_model
    was_training = backbone.training
    backbone.eval()
    try:
        alone = [_read_alone(backbone, prompt) for prompt in prompts]
        for prompt, completion in zip(PROMPT_OF, completions, strict=True):
            alone.append(_read_alone(backbone, torch.cat([prompts[prompt], completion]))[N_PROMPT[prompt] :])
        packed = read_rows(backbone, ids, pack_completions(N_PROMPT, N_TOKENS, PROMPT_OF))
    except Exception:  # noqa: BLE001 - whatever an architecture makes of a layout: its rows are padded then
        return False
    finally:
        backbone.train(was_training)
    expected = torch.cat(alone)
    tolerance = torch.finfo(expected.dtype).eps ** TOLERANCE_POWER * expected.abs().max()
    return bool((packed - expected).abs().max() <= tolerance)


def _read_alone(backbone: PreTrainedModel, ids: Tensor) -> Tensor:
    """Computes the hidden states of one row by itself; (N,) -> (N, H)."""
    states: Tensor = backbone(input_ids=ids[None], use_cache=False).last_hidden_state[0]
    return states
