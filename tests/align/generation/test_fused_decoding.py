import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from qwen_align.align.generation import fused_decoding
from qwen_align.align.generation.column_cache import ColumnCache
from qwen_align.align.generation.fused_decoding import build_decoding_step, can_be_fused

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Of the twelve positions that are decoded, eight lie beyond the original four.
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 4}
MODELS = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=True)),
    "qwen3, wide heads, biases": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16, attention_bias=True)),
    "qwen3, yarn rope": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8, rope_parameters=YARN_ROPE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rms_norm_eps=1e-2)),
    "llama, biases, llama3 rope": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3_ROPE)
    ),
    "llama, one key head a query head": lambda: LlamaForCausalLM(LlamaConfig(**SIZES | {"num_key_value_heads": 4})),
}


def make_model(name="qwen3"):
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    for parameter in model.parameters():  # biases and norms begin as zeros and ones, which would hide them
        torch.nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def decode(model, step, *, n_steps=12, n_rows=5):
    """Logits of each step from an empty cache; row r begins at column r, so that pads are hidden by the mask."""
    cache = ColumnCache(n_rows, n_steps, width=0)
    tokens = torch.randint(0, 61, (n_steps, n_rows, 1), generator=torch.Generator().manual_seed(0))
    starts = torch.arange(n_rows)[:, None]
    hidden = torch.where(torch.arange(n_steps) < starts, torch.finfo(torch.float32).min / 2, 0.0)[:, None, None]
    logits = []
    for column in range(n_steps):
        cache.set_visible_columns(0, column)
        positions = (column - starts).clamp(min=0)
        logits.append(step(tokens[column], positions, hidden[..., : column + 1], cache))
    return torch.stack(logits)[n_rows:]


@pytest.mark.parametrize("name", MODELS)
def test_the_fused_step_equals_the_modules(name):
    model = make_model(name)
    assert can_be_fused(model)
    ours = decode(model, build_decoding_step(model, 12))
    model.model.norm.register_forward_hook(lambda *_: None)
    assert not can_be_fused(model)
    theirs = decode(model, build_decoding_step(model, 12))
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def hook(model):
    model.model.layers[1].mlp.register_forward_pre_hook(lambda *_: None)


def replace_forward(model):
    model.model.layers[1].mlp.forward = lambda x: x


def replace_module(model):
    class Quiet(torch.nn.Linear):
        pass

    model.model.layers[0].mlp.up_proj = Quiet(32, 48, bias=False)


def parametrise(model):
    torch.nn.utils.parametrizations.weight_norm(model.lm_head)


@pytest.mark.parametrize("change", [hook, replace_forward, replace_module, parametrise])
def test_a_model_with_something_replaced_or_hooked_runs_through_its_modules(change):
    model = make_model()
    assert can_be_fused(model)
    change(model)
    assert not can_be_fused(model)


def test_adapters_other_precisions_and_autocast_run_through_the_modules():
    assert not can_be_fused(get_peft_model(make_model(), LoraConfig(r=2, target_modules=["q_proj"])))
    assert not can_be_fused(make_model().double())
    assert not can_be_fused(make_model().bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not can_be_fused(make_model())


def test_an_adapter_inside_the_model_runs_through_the_modules():
    model = make_model()
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    assert type(model) is Qwen3ForCausalLM
    assert not can_be_fused(model)


def test_unknown_families_and_settings_run_through_the_modules():
    assert not can_be_fused(MistralForCausalLM(MistralConfig(**SIZES)))
    assert not can_be_fused(Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8, hidden_act="gelu")))
    dynamic = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}
    assert not can_be_fused(LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=dynamic)))


def test_a_large_model_runs_through_the_modules(monkeypatch):
    model = make_model()
    monkeypatch.setattr(fused_decoding, "MAX_PARAMETERS", model.num_parameters() - 1)
    assert not can_be_fused(model)
