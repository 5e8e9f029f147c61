"""A model whose layers lose the layout reads padded rows; other logits are refused, dropout is switched off."""

from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    CohereConfig,
    Gemma2Config,
    GPT2Config,
    NemotronConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    StableLmConfig,
)

from qwen_align.align.errors import RecipeError
from qwen_align.align.models.attention_setting import set_attention
from qwen_align.align.models.dropout import disable_dropout
from qwen_align.align.models.logit_scales import find_logit_scale
from qwen_align.align.models.packed_attention import can_pack
from qwen_align.align.rl.actor import Actor

SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
OWN_SIZES: dict[type[PreTrainedConfig], dict[str, Any]] = {
    BartConfig: {"d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 24},
    GPT2Config: {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    OPTConfig: {"ffn_dim": 24, "word_embed_proj_dim": 16},
}


def build(config: type[PreTrainedConfig], **settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(**SIZES | OWN_SIZES.get(config, {}) | settings))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.3)
    assert isinstance(model, PreTrainedModel)
    return model.eval()


@pytest.mark.parametrize(
    ("config", "packs"),
    [(Qwen3Config, True), (GPT2Config, True), (StableLmConfig, False), (NemotronConfig, False), (BartConfig, False)],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_only_a_model_that_gives_its_attention_the_layout_reads_packed_rows(config: Any, packs: bool) -> None:
    model = build(config)
    set_attention(model, "auto", "cpu")
    assert can_pack(model.config) == packs


def test_a_model_without_that_attention_keeps_its_own_unless_it_is_asked_for() -> None:
    model = build(Gemma2Config, head_dim=8)
    set_attention(model, "auto", "cpu")
    assert model.config._attn_implementation == "eager"
    with pytest.raises(RecipeError, match=r"runtime.attention: sdpa: Gemma2ForCausalLM does not support"):
        set_attention(model, "sdpa", "cpu")


def test_online_rl_refuses_logits_that_are_more_than_the_heads_output() -> None:
    Actor(build(GPT2Config), 1.0)
    with pytest.raises(RecipeError, match=r"logits \(cohere, logit_scale: 0.25\)"):
        Actor(build(CohereConfig, logit_scale=0.25), 1.0)
    strange = build(GPT2Config)
    plain = strange.forward
    strange.forward = lambda **inputs: _double_logits(plain(**inputs))
    with pytest.raises(RecipeError, match=r"logits \(gpt2, they are not"):
        Actor(strange, 1.0)


def _double_logits(output: Any) -> Any:
    output.logits = 2 * output.logits
    return output


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"logits_scaling": 1.0}, None),
        ({"logits_scaling": 8.0}, "logits_scaling: 8.0"),
        ({"final_logit_softcapping": 1.0}, "final_logit_softcapping: 1.0"),
        ({"text_config": {"logit_scale": 0.5}}, "logit_scale: 0.5"),
    ],
)
def test_a_config_says_by_what_logits_are_scaled(config: dict[str, Any], found: str | None) -> None:
    assert find_logit_scale(config) == found


@pytest.mark.parametrize(
    ("config", "settings"),
    [
        (Qwen3Config, {"attention_dropout": 0.4}),
        (OPTConfig, {"dropout": 0.4, "layerdrop": 0.4}),
        (GPT2Config, {"resid_pdrop": 0.4, "embd_pdrop": 0.4, "attn_pdrop": 0.4}),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_without_dropout_two_passes_are_the_same(config: Any, settings: dict[str, float]) -> None:
    """Its own config stays as it is."""
    model, ids = build(config, **settings).train(), torch.arange(9)[None]
    assert not torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    disable_dropout(model)
    assert torch.equal(model(input_ids=ids).logits, model(input_ids=ids).logits)
    assert settings.items() <= model.config.to_dict().items()


def test_the_policy_of_online_rl_has_no_dropout() -> None:
    actor = Actor(build(Qwen3Config, attention_dropout=0.4), 1.0).train()
    ids = torch.arange(9)[None]
    assert torch.equal(actor.causal_lm(input_ids=ids).logits, actor.causal_lm(input_ids=ids).logits)
