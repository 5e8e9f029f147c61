"""The tables of tensor names and shapes, held to models that transformers builds on the meta device."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from qwen_align.align.models.tensor_table import ARCHITECTURES, Shape, list_fused_experts, list_tensors, ties_head
from qwen_align.align.models.weight_headers import read_header

SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 6}
SHARED = {**EXPERTS, "shared_expert_intermediate_size": 10}
CONFIGS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": None}),
    ("llama", {"head_dim": 6, "tie_word_embeddings": True}),
    ("qwen2", {}),
    ("qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    ("qwen2", {"head_dim": 6}),
    ("qwen3", {}),
    ("qwen3", {"head_dim": 6, "tie_word_embeddings": True}),
    ("qwen3", {"attention_bias": True, "num_key_value_heads": None}),
    ("qwen2_moe", SHARED),
    ("qwen2_moe", {**SHARED, "mlp_only_layers": [1], "tie_word_embeddings": True}),
    ("qwen2_moe", {**SHARED, "decoder_sparse_step": 2, "qkv_bias": False}),
    ("qwen3_moe", EXPERTS),
    ("qwen3_moe", {**EXPERTS, "head_dim": 6, "mlp_only_layers": [0, 2], "tie_word_embeddings": True}),
    ("qwen3_moe", {**EXPERTS, "decoder_sparse_step": 2, "attention_bias": True}),
    ("qwen3_moe", {**EXPERTS, "num_experts": 0}),
]


def build_shapes(config: Any, auto_class: Any) -> dict[str, Shape]:
    with torch.device("meta"):
        model = auto_class.from_config(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def fuse_experts(config: dict[str, Any]) -> dict[str, Shape]:
    shapes = list_tensors(config, "lm_head")
    assert shapes is not None
    fused = list_fused_experts(config, shapes)
    gone = {name for _, names in fused.values() for name in names}
    return {name: shape for name, shape in shapes.items() if name not in gone} | {
        name: shape for name, (shape, _) in fused.items()
    }


@pytest.mark.parametrize(("kind", "fields"), CONFIGS)
def test_a_table_has_the_tensors_that_transformers_builds(kind: str, fields: dict[str, Any]) -> None:
    written = {"model_type": kind, **SMALL, **fields}  # a config.json as people write it
    config = AutoConfig.for_model(kind, **{**SMALL, **fields})
    built = build_shapes(config, AutoModelForCausalLM)
    assert fuse_experts(written) == built
    assert fuse_experts(config.to_dict()) == built
    assert ties_head(written) == ties_head(config.to_dict()) == config.tie_word_embeddings


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_what_a_config_leaves_out_is_what_transformers_takes_for_it(kind: str) -> None:
    config = AutoConfig.for_model(kind, num_hidden_layers=1)
    assert fuse_experts({"model_type": kind, "num_hidden_layers": 1}) == build_shapes(config, AutoModelForCausalLM)
    assert len(list_tensors({"model_type": kind}, None) or {}) > len(fuse_experts({"model_type": kind, **SMALL}))
    assert AutoConfig.for_model(kind).num_hidden_layers == ARCHITECTURES[kind].defaults["num_hidden_layers"]


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_a_scorer_has_a_head_of_one_row(kind: str) -> None:
    experts = SHARED if ARCHITECTURES[kind].has_experts else {}
    config = AutoConfig.for_model(kind, **SMALL, **experts, mlp_only_layers=[0, 1, 2], num_labels=1)
    built = build_shapes(config, AutoModelForSequenceClassification)
    assert list_tensors(config.to_dict(), "score") == built
    trunk = {name: shape for name, shape in built.items() if name != "score.weight"}
    assert list_tensors(config.to_dict(), None) == trunk


@pytest.mark.parametrize(("kind", "fields"), [("qwen2_moe", SHARED), ("qwen3_moe", EXPERTS)])
def test_experts_are_named_as_transformers_saves_them(kind: str, fields: dict[str, Any], tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **{**SMALL, **fields})).save_pretrained(tmp_path)
    saved = {name: tuple(entry["shape"]) for name, entry in read_header(tmp_path / "model.safetensors").items()}
    assert list_tensors(json.loads((tmp_path / "config.json").read_text()), "lm_head") == saved


def test_other_architectures_have_no_table() -> None:
    assert list_tensors({"model_type": "gemma3"}, "lm_head") is None
    with pytest.raises(ValueError, match="hidden_size is 'wide', where a number is wanted"):
        list_tensors({"model_type": "qwen3", "hidden_size": "wide"}, "lm_head")
