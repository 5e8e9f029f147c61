"""Which layers LoRA adapts: what is said of them without torch is what PEFT adapts in the real model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from qwen_align.align.errors import RecipeError, StageError
from qwen_align.align.models import adapters
from qwen_align.align.models.lora import build_lora_config, prepare_adapters
from qwen_align.align.models.lora_targets import check_lora_targets, describe_all_linear, list_layers
from qwen_align.align.models.model_description import ModelFiles
from qwen_align.align.settings.training import Lora
from qwen_align.align.store.files import read_json

SMALL = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
FIELDS = {"qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 8}, "qwen3_moe": EXPERTS}
ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}


def build_model(kind: str, **fields: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SMALL, **FIELDS.get(kind, {}), **fields)
    model = AutoModelForCausalLM.from_config(config)
    assert isinstance(model, PreTrainedModel)
    return model


def lora(targets: Any = "all-linear", **fields: Any) -> Lora:
    return Lora(rank=2, alpha=4, target_modules=targets, **fields)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe"])
def test_the_layers_of_a_config_are_those_of_its_model(kind: str, tied: bool) -> None:
    model = build_model(kind, tie_word_embeddings=tied)
    layers = list_layers(model.config.to_dict(), "lm_head")
    assert layers is not None
    modules = {name: module for name, module in model.named_modules() if name}
    linear = {name for name, module in modules.items() if isinstance(module, nn.Linear | nn.Embedding)}
    assert layers.adaptable == linear
    outside = {name for name in modules if name.endswith(("act_fn", "rotary_emb"))}  # they have no weights
    assert layers.others == modules.keys() - linear - outside
    assert layers.tied == ({"lm_head", "model.embed_tokens"} if tied else set())


@pytest.mark.parametrize(
    ("kind", "targets", "adapted"),
    [
        ("llama", "all-linear", ATTENTION | MLP),
        ("qwen3", "all-linear", ATTENTION | MLP),
        ("qwen3", ["q_proj", "layers.1.mlp.up_proj"], {"q_proj", "up_proj"}),
        ("qwen3", ["embed_tokens", "lm_head"], {"embed_tokens", "lm_head"}),
        ("qwen3_moe", "all-linear", ATTENTION | {"experts"}),
        ("qwen2_moe", "all-linear", ATTENTION | MLP),
        ("qwen3_moe", ["q_proj", "gate"], {"q_proj", "gate"}),
        ("qwen2_moe", ["q_proj", "shared_expert_gate"], {"q_proj", "shared_expert_gate"}),
        ("mixtral", "all-linear", ATTENTION),
        ("olmoe", "all-linear", ATTENTION | {"experts"}),
    ],
)
def test_routers_of_mixtures_are_adapted_only_where_they_are_asked_for(
    kind: str, targets: Any, adapted: set[str], tmp_path: Path
) -> None:
    model = build_model(kind)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    peft_model = get_peft_model(model, build_lora_config(lora(targets), model))
    weights = {name: weight for name, weight in peft_model.named_parameters() if ".lora_" in name}
    names = {name.partition(".lora_")[0].replace(".base_layer", "") for name in weights}
    assert {name.rpartition(".")[2] for name in names} == adapted
    for weight in weights.values():
        nn.init.normal_(weight, std=0.1)
    peft_model.save_pretrained(tmp_path)
    base = build_model(kind)
    base.load_state_dict(start)
    merged = adapters.merge_adapter(base, tmp_path).state_dict()  # it compares the logits
    changed = {name for name, tensor in start.items() if not torch.equal(merged[name], tensor)}
    routers = {name for name in changed if name.endswith(("mlp.gate.weight", "expert_gate.weight"))}
    assert changed
    assert bool(routers) == ("gate" in targets or "shared_expert_gate" in targets)


def test_what_peft_passes_over_beside_experts_is_no_layer_to_adapt() -> None:
    model = build_model("qwen3_moe", mlp_only_layers=[0])
    layers = list_layers(model.config.to_dict(), "lm_head")
    assert layers is not None
    assert "model.layers.0.mlp.gate_proj" in layers.others
    peft_model = get_peft_model(model, build_lora_config(lora(["q_proj", *MLP]), model))
    adapted = {name for name, _ in peft_model.named_parameters() if ".lora_" in name}
    assert any("layers.1.mlp.experts" in name for name in adapted)
    assert not any("layers.0.mlp" in name for name in adapted)
    without = {"model_type": "qwen3_moe", **SMALL, **EXPERTS, "mlp_only_layers": [0, 1]}
    nowhere = list_layers(without, "lm_head")
    assert nowhere is not None
    with pytest.raises(RecipeError, match="_proj is no layer that LoRA can adapt in a qwen3_moe model"):
        check_lora_targets(lora(["q_proj", *MLP]), nowhere)
    assert "layers without experts none" in str(describe_all_linear(nowhere, without))


def test_what_does_not_go_with_the_experts_of_a_mixture_is_refused() -> None:
    model = build_model("qwen3_moe")
    mixture = list_layers(model.config.to_dict(), "lm_head")
    other = list_layers(build_model("qwen2_moe").config.to_dict(), "lm_head")
    dense = list_layers({"model_type": "qwen3", **SMALL}, "lm_head")
    assert mixture
    assert other
    assert dense
    for targets in ("all-linear", ["q_proj", *MLP]):
        with pytest.raises(RecipeError, match=r"lora\.dora: PEFT has no DoRA on the experts"):
            check_lora_targets(lora(targets, dora=True), mixture)
    check_lora_targets(lora(["q_proj"], dora=True), mixture)
    check_lora_targets(lora(dora=True), other)  # its experts get no adapters
    for layers in (mixture, other):
        with pytest.raises(RecipeError, match=r"lora\.base_weights: nf4: the experts of a qwen._moe model"):
            check_lora_targets(lora(["q_proj"], base_weights="nf4"), layers)
    check_lora_targets(lora(base_weights="nf4", dora=True), dense)
    config = build_lora_config(lora(rank_stabilized=True), model)
    config.use_dora = True
    with pytest.raises(ValueError, match="does not work with use_dora"):  # PEFT, of the same
        get_peft_model(model, config)


def test_rank_stabilized_adapters_are_scaled_by_the_root_of_the_rank() -> None:
    for stable, scale in ((False, 4 / 2), (True, 4 / 2**0.5)):
        model = build_model("qwen3")
        adapted: Any = get_peft_model(model, build_lora_config(lora(["q_proj"], rank_stabilized=stable), model))
        (found,) = {
            layer.scaling["default"] for name, layer in adapted.named_modules() if name.endswith("self_attn.q_proj")
        }
        assert found == pytest.approx(scale)


def test_magnitudes_start_as_the_norms_of_rounded_weights_in_fp32() -> None:
    model = build_model("qwen3").to(torch.bfloat16)
    adapted: Any = get_peft_model(model, build_lora_config(lora(["q_proj"], dora=True), model))
    for weight in adapted.parameters():  # what TRL does to adapters on a quantised base
        weight.data = weight.data.to(torch.bfloat16)
    prepare_adapters(adapted)
    layer = adapted.base_model.model.model.layers[1].self_attn.q_proj
    norms = layer.base_layer.weight.float().square().sum(dim=1).sqrt()
    assert torch.allclose(layer.lora_magnitude_vector["default"].weight, norms, rtol=1e-6)
    assert {weight.dtype for name, weight in adapted.named_parameters() if ".lora_" in name} == {torch.float32}


def test_magnitudes_of_layers_that_hold_their_weights_turned() -> None:
    config = GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2)
    model = GPT2LMHeadModel(config).to(torch.bfloat16)
    adapted: Any = get_peft_model(model, build_lora_config(lora(["c_attn"], dora=True), model))
    prepare_adapters(adapted)
    layer = adapted.base_model.model.transformer.h[0].attn.c_attn
    norms = layer.base_layer.weight.float().square().sum(dim=0).sqrt()
    assert torch.allclose(layer.lora_magnitude_vector["default"].weight, norms, rtol=1e-6)
    adapted(input_ids=torch.arange(5)[None])


def test_a_name_that_a_model_without_a_table_does_not_have_is_refused_where_it_is_loaded() -> None:
    model = build_model("olmo2", tie_word_embeddings=True)
    assert list_layers(model.config.to_dict(), "lm_head") is None
    with pytest.raises(RecipeError, match=r"'v_porj' is no layer of a olmo2 model\. Did you mean 'v_proj'"):
        build_lora_config(lora(["q_proj", "v_porj"]), model)
    with pytest.raises(RecipeError, match="embed_tokens shares its weights with another layer"):
        build_lora_config(lora(["embed_tokens"]), model)
    assert build_lora_config(lora(["q_proj"]), model).target_modules == {"q_proj"}


def test_a_reward_model_has_no_head_to_adapt() -> None:
    layers = list_layers({"model_type": "qwen3", "tie_word_embeddings": True, **SMALL}, "score")
    assert layers is not None
    check_lora_targets(lora(["q_proj", "embed_tokens"]), layers)  # no head shares the embeddings here
    for name in ("lm_head", "score"):
        with pytest.raises(RecipeError, match=r"lora\.target_modules: "):
            check_lora_targets(lora([name]), layers)


# --- what is stored of an adapter


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_a_sound_merge_passes_at_any_scale_of_the_logits(scale: float, tmp_path: Path) -> None:
    model = build_model("qwen3", tie_word_embeddings=False)
    model.lm_head.weight.data.normal_(std=scale)
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = Lora(rank=16, alpha=32, target_modules="all-linear")
    peft_model = get_peft_model(model, build_lora_config(settings, model))
    for name, weight in peft_model.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(weight, std=0.3)
    peft_model.save_pretrained(tmp_path)
    base = build_model("qwen3", tie_word_embeddings=False)
    base.load_state_dict(start)
    ids = torch.arange(64).unsqueeze(0)
    with torch.inference_mode():
        expected = peft_model.eval()(input_ids=ids).logits
        found = adapters.merge_adapter(base, tmp_path)(input_ids=ids).logits
    assert scale == 1.0 or (found - expected).abs().max() > 1e-3  # what an absolute tolerance refused


def test_a_merge_that_changes_the_model_is_refused(tmp_path: Path) -> None:
    from peft import LoraConfig

    model = build_model("qwen3", tie_word_embeddings=True)
    peft_model = get_peft_model(model, LoraConfig(r=2, target_modules=["embed_tokens"], task_type="CAUSAL_LM"))
    for name, weight in peft_model.named_parameters():
        if ".lora_" in name:
            nn.init.normal_(weight, std=0.1)
    peft_model.save_pretrained(tmp_path)
    with pytest.raises(StageError, match=r"logits are up to .* of the scale is rounding\); it cannot be merged"):
        adapters.merge_adapter(build_model("qwen3", tie_word_embeddings=True), tmp_path)


def test_of_a_mixture_rounding_may_send_some_rows_to_other_experts() -> None:
    expected = torch.ones(8, 3, 5)
    actual = expected.clone()
    actual[:3] += 0.5
    adapters.require_equal_logits(actual, expected, "a model", is_mixture=True)
    with pytest.raises(StageError, match="a model's logits"):
        adapters.require_equal_logits(actual, expected, "a model")
    actual[3:6] += 0.5
    with pytest.raises(StageError, match="a model's logits"):
        adapters.require_equal_logits(actual, expected, "a model", is_mixture=True)
    actual[0, 0, 0] = torch.nan
    with pytest.raises(StageError, match="nan"):
        adapters.require_equal_logits(actual, expected, "a model", is_mixture=True)


@pytest.mark.parametrize(("dtype", "passes", "fails"), [(torch.float32, 3e-4, 4e-4), (torch.bfloat16, 0.07, 0.1)])
def test_the_tolerance_is_that_of_the_precision_and_the_scale(dtype: torch.dtype, passes: float, fails: float) -> None:
    for scale in (0.01, 40.0):
        expected = torch.full((1, 4), scale, dtype=dtype)
        adapters.require_equal_logits((expected.double() * (1 + passes)), expected, "a model")
        with pytest.raises(StageError, match="a model's logits"):
            adapters.require_equal_logits((expected.double() * (1 + fails)), expected, "a model")
    with pytest.raises(StageError, match="nan"):
        adapters.require_equal_logits(torch.full((1, 4), torch.nan), torch.ones(1, 4), "a model")


@pytest.mark.parametrize("base", ["hub:a/b@0123456789", "model"])
@pytest.mark.parametrize("below", [0, 2])
def test_an_adapter_says_what_it_was_trained_on(base: str, below: int, tmp_path: Path) -> None:
    model = build_model("qwen3")
    get_peft_model(model, build_lora_config(lora(), model)).save_pretrained(tmp_path)
    adapters.label_adapter(tmp_path, ModelFiles(base, [tmp_path / "other"] * below))
    readme = (tmp_path / "README.md").read_text()
    names = {path.name for path in tmp_path.glob("*.json")}
    assert names == ({"stacked_adapter_config.json"} if below else {"adapter_config.json"})
    written = read_json(tmp_path / names.pop())
    hub = ("a/b", "0123456789")
    assert (written["base_model_name_or_path"], written["revision"]) == (
        hub if base.startswith("hub:") else (str(Path("model").resolve()), None)
    )
    assert ("`a/b` at commit `0123456789`" in readme) == base.startswith("hub:")
    assert ("on top of 2 other adapters" in readme) == bool(below)
    assert str(Path("model").resolve()) not in readme
    adapters.load_adapter(build_model("qwen3"), tmp_path)


def test_an_adapter_without_some_of_its_weights_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    model = build_model("qwen3")
    get_peft_model(model, build_lora_config(lora(), model)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    kept = {name: weight for name, weight in weights.items() if "layers.1.self_attn.q_proj" not in name}
    save_file(kept, tmp_path / "adapter_model.safetensors", {"format": "pt"})
    with pytest.raises(StageError, match="its weights lack 2 of the adapter's tensors"):
        adapters.load_adapter(build_model("qwen3"), tmp_path)
