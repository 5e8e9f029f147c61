"""A layer's tape saves what autograd saves of transformers' own layer, byte for byte."""

import weakref
from contextlib import nullcontext

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from qwen_align.align.estimation.layer_tape import LayerNumerics, LayerShape, write_layer_tape

TOKENS = 48
CONFIG = {
    "vocab_size": 64,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": True,
}
SHAPE = LayerShape(hidden=96, queries=64, keys=32, inner=160, heads=4, head_dim=16, has_query_norm=True)
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK = 8


class Kept:
    """What autograd keeps in the place of a saved tensor, until it drops it."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor


def count_saved_by_autograd(dtype: torch.dtype, *, lora: bool, autocast: bool, dora: bool = False) -> int:
    """Bytes that autograd keeps of one layer's forward pass, weights and rotary tables left out, each storage once."""
    model: torch.nn.Module = Qwen3ForCausalLM(Qwen3Config(**CONFIG)).to(dtype)
    if lora:
        settings = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LINEAR, use_dora=dora)
        model = get_peft_model(model, settings).get_base_model()
    layer = model.model.layers[0]
    known = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    x = torch.randn(1, TOKENS, SHAPE.hidden, dtype=dtype, requires_grad=True) * 1
    kept: weakref.WeakSet[Kept] = weakref.WeakSet()

    def keep(tensor: torch.Tensor) -> Kept:
        kept.add(one := Kept(tensor))
        return one

    with torch.autocast("cpu", torch.bfloat16) if autocast else nullcontext():
        tables = model.model.rotary_emb(x, torch.arange(TOKENS)[None])
        known |= {table.untyped_storage().data_ptr() for table in tables}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one.tensor):
            output = layer(x, position_embeddings=tables, attention_mask=None)
    storages = {one.tensor.untyped_storage().data_ptr(): one.tensor.untyped_storage().nbytes() for one in kept}
    del output  # until here its graph was alive
    return sum(n_bytes for place, n_bytes in storages.items() if place not in known)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [False, True])
def test_a_layer_keeps_what_autograd_keeps(dtype: torch.dtype, lora: bool, autocast: bool) -> None:
    numerics = LayerNumerics(
        stored=dtype.itemsize,
        autocast=autocast,
        trains_base=not lora,
        adapter_ranks=dict.fromkeys(LINEAR, RANK) if lora else {},
    )
    traced = count_saved_by_autograd(dtype, lora=lora, autocast=autocast)
    # Autocast's copies of the adapters are counted with the whole model's (TrainedModel.cast_bytes).
    widths = {
        "q": (64, 96),
        "k": (32, 96),
        "v": (32, 96),
        "o": (96, 64),
        "g": (160, 96),
        "u": (160, 96),
        "d": (96, 160),
    }
    casts = 2 * RANK * sum(map(sum, widths.values())) if lora and autocast else 0
    assert write_layer_tape(SHAPE, numerics, TOKENS).count_saved() + casts == pytest.approx(traced, rel=0.005)


def test_dora_keeps_both_products() -> None:
    numerics = LayerNumerics(stored=4, autocast=False, adapter_ranks=dict.fromkeys(LINEAR, RANK), has_dora=True)
    without = write_layer_tape(SHAPE, numerics._replace(has_dora=False), TOKENS).count_saved()
    traced = count_saved_by_autograd(torch.float32, lora=True, autocast=False, dora=True)
    assert traced - without == pytest.approx(
        write_layer_tape(SHAPE, numerics, TOKENS).count_saved() - without, rel=0.05
    )


def test_a_pass_without_gradients_needs_far_less_than_one_with() -> None:
    tape = write_layer_tape(SHAPE, LayerNumerics(stored=2, autocast=False, trains_base=True), TOKENS)
    assert tape.find_forward_peak(keeps_saved=False) < 0.5 * tape.count_saved()
    assert tape.find_backward_peak(keeps_gradients=False) > tape.count_saved()
