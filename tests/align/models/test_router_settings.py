"""How a mixture's routers are trained, from settings and config.json; and a config that asks for their logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from qwen_align.align.errors import RecipeError
from qwen_align.align.estimation.stage_estimate import estimate_stage
from qwen_align.align.generation.engine import Request
from qwen_align.align.generation.local import LocalEngine
from qwen_align.align.models import loading, quantized_base
from qwen_align.align.models.attention_setting import set_attention
from qwen_align.align.models.router_settings import RouterSettings, has_routers, resolve_router_settings
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.settings.sampling import Sampling
from qwen_align.align.settings.sft import Sft

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
MIXTURE = {"model_type": "qwen3_moe", "vocab_size": 64, **SIZES, **EXPERTS}
CPU = Runtime(device="cpu")


def sft(**given: Any) -> Sft:
    fields = {"name": "s", "kind": "sft", "from_model": "m", "from_data": ["d"], "learning_rate": 1e-3}
    return Sft.model_validate({**fields, "max_tokens": 64, "batch": 8, "epochs": 1, "precision": "fp32", **given})


def resolve(settings: Any, config: dict[str, Any] = MIXTURE, **runtime: Any) -> RouterSettings | None:
    return resolve_router_settings(settings, config, Runtime.model_validate({"device": "cpu", **runtime}))


def lora(*targets: str) -> dict[str, Any]:
    return {"rank": 2, "alpha": 4, **({"target_modules": list(targets)} if targets else {})}


@pytest.mark.parametrize(
    ("settings", "config", "found"),
    [
        (sft(), {}, (True, 0.001)),
        (sft(), {"router_aux_loss_coef": 0.02}, (True, 0.02)),
        (sft(experts={"load_balancing": 0.3}), {"router_aux_loss_coef": 0.02}, (True, 0.3)),
        (sft(experts={"load_balancing": 0.0}), {}, (True, 0.0)),
        (sft(experts={"train_router": False}), {}, (False, 0.0)),
        (sft(lora=lora()), {}, (False, 0.0)),
        (sft(lora=lora("q_proj", "gate")), {}, (True, 0.001)),
        (sft(), {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 8}, (True, 0.001)),
        (sft(), {"mlp_only_layers": [0, 1]}, None),
        (sft(), {"model_type": "qwen3"}, None),
        (sft(lora=lora()), {"model_type": "mixtral", "num_local_experts": 4}, (False, 0.0)),
    ],
)
def test_routers_are_trained_and_balanced_as_settings_and_config_say(
    settings: Sft, config: dict[str, Any], found: tuple[bool, float] | None
) -> None:
    assert resolve(settings, MIXTURE | config) == found


@pytest.mark.parametrize(
    ("settings", "config", "runtime", "message"),
    [
        (sft(experts={"train_router": True}), {"model_type": "qwen3"}, {}, "experts: this qwen3 model is no mixture"),
        (sft(experts={"train_router": False}, lora=lora()), {}, {}, "experts.train_router: with lora"),
        (sft(experts={"train_router": False, "load_balancing": 0.1}), {}, {}, "no router is trained"),
        (sft(experts={"load_balancing": 0.1}, lora=lora()), {}, {}, "no router is trained"),
        (sft(), {"model_type": "mixtral", "num_local_experts": 4}, {}, "known of qwen2_moe, qwen3_moe, not of mixtral"),
        (sft(), {"layer_types": ["sliding_attention"] * 2}, {}, "sliding windows"),
        (sft(), {"use_sliding_window": True, "max_window_layers": 0}, {}, "sliding windows"),
        (sft(), {}, {"processes": 2, "strategy": "zero3"}, "zero3"),
    ],
)
def test_what_cannot_be_balanced_is_refused(
    settings: Sft, config: dict[str, Any], runtime: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        resolve(settings, MIXTURE | config, **runtime)


def test_trls_loop_balances_nothing() -> None:
    fields = {"name": "g", "kind": "grpo", "from_model": "m", "from_data": ["d"], "rewards": [{"kind": "random"}]}
    sizes = {"steps": 1, "prompts_per_step": 1, "completions_per_prompt": 2, "learning_rate": 1e-3, "trainer": "trl"}
    asked = Grpo.model_validate({**fields, **sizes, "sampling": {"temperature": 1.0, "max_tokens": 4}})
    with pytest.raises(RecipeError, match="needs trainer: native"):
        resolve(asked)
    assert resolve(asked.model_copy(update={"experts": type(asked.experts)(load_balancing=0.0)})) == (True, 0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture whose config.json asks for router logits."""
    made = tmp_path_factory.mktemp("mixture")
    torch.manual_seed(0)
    config = AutoConfig.for_model(**MIXTURE, output_router_logits=True)
    AutoModelForCausalLM.from_config(config).save_pretrained(made)
    return made


def test_a_model_that_asks_for_router_logits_can_be_drawn_from(folder: Path) -> None:
    model = loading.load_model(folder)
    set_attention(model, "sdpa", "cpu")
    request = Request("r", [3, 4, 5], 2, Sampling(temperature=1.0, max_tokens=4), seed=0)
    assert len(list(LocalEngine(model, stop_ids=[]).generate([request]))) == 2
    assert loading.read_router_outputs(folder) == {"output_router_logits": True}
    assert has_routers(model.config.to_dict())


def test_routers_are_frozen_where_settings_say_so(folder: Path) -> None:
    for experts, are_trained in (({}, True), ({"train_router": False}, False)):
        model = quantized_base.load_for_training(folder, sft(experts=experts, save_weights="fp32"), CPU)
        trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
        assert ("model.layers.1.mlp.gate.weight" in trained) is are_trained
        assert "model.layers.1.mlp.experts.down_proj" in trained


def test_passes_that_are_counted_before_cost_time() -> None:
    for micro_batch, load_balancing, n_passes in ((1, None, 1), (1, 0.0, 0), (8, None, 0)):
        settings = sft(experts={"load_balancing": load_balancing})
        runtime = Runtime(device="cpu", micro_batch=micro_batch)
        found = estimate_stage(settings, runtime, MIXTURE, is_on_gpu=False)
        assert found is not None
        assert found.workload.training is not None
        assert found.workload.training.scoring_passes == n_passes
