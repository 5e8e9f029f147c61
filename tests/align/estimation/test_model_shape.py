"""Parameters and adapters are counted exactly, from config.json alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from qwen_align.align.estimation.known_configs import KNOWN_CONFIGS, build_qwen3_config
from qwen_align.align.estimation.model_shape import count_adapter_parameters, list_adapter_ranks, read_model_shape
from qwen_align.align.estimation.numerics import NF4_BYTES, count_optimizer_bytes
from qwen_align.align.estimation.sampling_memory import count_cache_bytes
from qwen_align.align.settings.training import Lora

TINY = json.loads((Path(__file__).parents[3] / "recipes" / "tiny_base" / "config.json").read_text())
LLAMA = {"model_type": "llama", "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}  # fmt: skip
QWEN2 = {**LLAMA, "model_type": "qwen2", "tie_word_embeddings": True}


# Table 1 of arXiv:2505.09388 and the hub's own counts.
@pytest.mark.parametrize(
    ("size", "n_parameters"),
    [
        ("0.6B", 596_049_920),
        ("1.7B", 1_720_574_976),
        ("4B", 4_022_468_096),
        ("8B", 8_190_735_360),
        ("14B", 14_768_307_200),
        ("32B", 32_762_123_264),
    ],
)
def test_known_models_have_as_many_parameters_as_published(size: str, n_parameters: int) -> None:
    assert read_model_shape(build_qwen3_config(size)).n_parameters == n_parameters


def test_known_configs_name_every_model_of_the_recipes() -> None:
    recipes = (Path(__file__).parents[3] / "recipes").glob("*.yaml")
    named = {
        line.split("hub: ")[1].split(",")[0]
        for path in recipes
        for line in path.read_text().splitlines()
        if "hub: Q" in line
    }
    assert named
    assert named <= set(KNOWN_CONFIGS)


def test_a_token_of_cache_has_as_many_bytes_as_measured() -> None:
    kib = {
        size: count_cache_bytes(read_model_shape(build_qwen3_config(size)), 4) / 1024 for size in ("0.6B", "8B", "32B")
    }
    assert kib == {"0.6B": 224, "8B": 288, "32B": 512}


@pytest.mark.parametrize("config", [TINY, LLAMA, QWEN2], ids=["qwen3", "llama", "qwen2"])
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
@pytest.mark.parametrize("dora", [False, True])
def test_weights_and_adapters_are_those_that_transformers_and_peft_make(
    config: dict[str, Any], targets: Any, dora: bool
) -> None:
    shape = read_model_shape(config)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    assert shape.n_parameters == sum(weight.numel() for weight in model.parameters())
    lora = Lora(rank=3, alpha=3, target_modules=targets, dora=dora)
    adapted: Any = get_peft_model(model, LoraConfig(r=3, target_modules=targets, task_type="CAUSAL_LM", use_dora=dora))
    trained = sum(weight.numel() for weight in adapted.parameters() if weight.requires_grad)
    assert count_adapter_parameters(lora, shape) == trained
    assert set(list_adapter_ranks(lora, shape).values()) == {3}


def test_quantised_models_are_as_large_as_measured() -> None:
    """GiB of nf4 weights with embeddings and head in bf16."""
    for size, gib in (("8B", 6.0), ("32B", 19.2)):
        shape = read_model_shape(build_qwen3_config(size))
        others = 2 * (shape.embeddings + shape.head + shape.others)
        assert (shape.linear * NF4_BYTES + others) / 2**30 == pytest.approx(gib, rel=0.08)
    assert round(NF4_BYTES * 8, 3) == 4.127


def test_moments_of_adamw() -> None:
    assert count_optimizer_bytes("adamw", 1000) == 8000
    assert count_optimizer_bytes("adamw_8bit", 1024) == 2 * 1024 + 2 * 4 * 4
    assert count_optimizer_bytes("paged_adamw_8bit", 1000) == 0


def test_a_mixture_counts_all_experts_and_computes_some() -> None:
    config = {"model_type": "qwen3_moe", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_experts": 8,
              "num_attention_heads": 4, "num_key_value_heads": 2, "moe_intermediate_size": 16,
              "num_experts_per_tok": 2}  # fmt: skip
    shape = read_model_shape(config)
    of_experts = 2 * 8 * 3 * 32 * 16
    assert shape.is_mixture
    assert shape.linear - shape.active == of_experts * 6 // 8
    assert shape.layer.inner == 2 * 16
    assert shape.layer.n_experts == 8


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(ValueError, match="gemma"):
        read_model_shape({"model_type": "gemma"})
