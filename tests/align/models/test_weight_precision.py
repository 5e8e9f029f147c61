"""What `auto` means for a model's files, what contradicts what, and that weights are loaded as asked, once."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

import qwen_align
from qwen_align.align.errors import RecipeError, StageError
from qwen_align.align.models import loading, reward_scorer
from qwen_align.align.models.adapters import merge_adapter
from qwen_align.align.models.bf16_weights import cast_state, copy_in_bf16, hold_frozen_in_bf16, round_to_bf16
from qwen_align.align.models.fp32_head import Fp32Linear
from qwen_align.align.models.weight_precision import (
    LEAST_RATE_FOR_BF16,
    describe_precision,
    find_handed_on_precision,
    read_precision,
    resolve_precision,
)
from qwen_align.align.settings.recipe import AnyStage
from qwen_align.align.training.fit import require_fp32_masters

SFT: dict[str, Any] = {
    "name": "s", "kind": "sft", "from_model": "m", "from_data": ["d"], "max_tokens": 8, "batch": 1, "epochs": 1,
    "learning_rate": 1e-4,
}  # fmt: skip
LORA = {"rank": 2, "alpha": 4}


def sft(**settings: Any) -> Any:
    return TypeAdapter[Any](AnyStage).validate_python({**SFT, **settings})


def rewrite(source: Path, folder: Path, change: Any) -> Path:
    """A copy of a model folder in which each tensor is what `change(name, tensor)` returns."""
    shutil.copytree(source, folder)
    weights = load_file(folder / "model.safetensors")
    changed = {name: change(name, weight) for name, weight in weights.items()}
    save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# --- what files say


def test_auto_is_what_the_files_hold_and_a_mixture_is_told(tiny_model: Path, bf16_model: Path, tmp_path: Path) -> None:
    assert read_precision(tiny_model) == ("fp32", None)
    assert read_precision(bf16_model) == ("bf16", None)
    half = rewrite(tiny_model, tmp_path / "half", lambda name, weight: weight.half())
    assert read_precision(half).precision == "fp32", "which holds fp16 exactly"
    assert "in F16; precision auto is fp32" in str(read_precision(half).note)
    norms = rewrite(bf16_model, tmp_path / "norms", lambda name, weight: weight.float() if "norm" in name else weight)
    assert read_precision(norms).precision == "bf16", "the greater part"
    assert "in BF16 and" in str(read_precision(norms).note)


def test_a_stage_says_what_its_files_do_not(bf16_model: Path, tmp_path: Path) -> None:
    """A whole model handed on in fp32 that is computed with in bf16, and adapters on it."""
    shutil.copytree(bf16_model, tmp_path / "full" / "model")
    masters = rewrite(bf16_model, tmp_path / "masters", lambda name, weight: weight.float())
    shutil.rmtree(tmp_path / "full" / "model")
    masters.rename(tmp_path / "full" / "model")
    (tmp_path / "full" / "model.json").write_text(json.dumps({"model": "model"}))
    assert read_precision(tmp_path / "full").precision == "fp32"
    (tmp_path / "full" / "model.json").write_text(json.dumps({"model": "model", "precision": "bf16"}))
    assert read_precision(tmp_path / "full").precision == "bf16"
    (tmp_path / "adapted").mkdir()
    loading.write_model_json(tmp_path / "full", tmp_path / "adapted", ["adapter"])
    assert read_precision(tmp_path / "adapted").precision == "bf16"


# --- what settings come to


@pytest.mark.parametrize(
    ("stored", "settings", "precision", "held"),
    [
        ("fp32", {}, "fp32", "fp32"),
        ("bf16", {}, "bf16", "bf16"),
        ("bf16", {"precision": "fp32"}, "fp32", "fp32"),
        ("fp32", {"precision": "bf16"}, "bf16", "fp32"),
        ("bf16", {"learning_rate": LEAST_RATE_FOR_BF16 / 2}, "bf16", "fp32"),
        ("bf16", {"learning_rate": LEAST_RATE_FOR_BF16 / 2, "save_weights": "bf16"}, "bf16", "bf16"),
        ("fp32", {"save_weights": "bf16"}, "fp32", "bf16"),
        ("bf16", {"save_weights": "fp32"}, "bf16", "fp32"),
    ],
)
def test_a_full_stage_computes_and_hands_on(stored: Any, settings: Any, precision: str, held: str) -> None:
    resolved = resolve_precision(sft(**settings), stored)
    assert (resolved.precision, resolved.save_weights) == (precision, held)


@pytest.mark.parametrize(
    ("stored", "settings", "held"),
    [
        ("fp32", {}, "fp32"),
        ("bf16", {}, "bf16"),
        ("bf16", {"precision": "fp32"}, "fp32"),
        ("fp32", {"precision": "bf16"}, "fp32"),
        ("fp32", {"precision": "bf16", "lora": {**LORA, "base_weights": "bf16"}}, "bf16"),
        ("bf16", {"lora": {**LORA, "base_weights": "fp32"}}, "fp32"),
        ("bf16", {"lora": {**LORA, "base_weights": "nf4"}}, "nf4"),
    ],
)
def test_a_frozen_base_is_held(stored: Any, settings: Any, held: str) -> None:
    assert resolve_precision(sft(**{"lora": LORA, **settings}), stored).lora.base_weights == held


@pytest.mark.parametrize(
    ("stored", "settings", "said"),
    [
        ("bf16", {"precision": "fp32", "lora": {**LORA, "base_weights": "bf16"}}, "but precision is fp32:"),
        ("fp32", {"lora": {**LORA, "base_weights": "bf16"}}, r"but precision is fp32 \(auto: the model's files are\)"),
        ("bf16", {"lora": LORA, "save_weights": "bf16"}, "adapters are handed on as they are trained, in fp32"),
    ],
)
def test_contradictions_are_refused(stored: Any, settings: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        resolve_precision(sft(**settings), stored)


def test_a_bf16_model_trained_in_bf16_stays_one_however_it_is_handed_on() -> None:
    low = sft(learning_rate=LEAST_RATE_FOR_BF16 / 2)
    assert find_handed_on_precision(resolve_precision(low, "bf16"), "bf16") == "bf16"
    assert find_handed_on_precision(resolve_precision(sft(precision="fp32"), "bf16"), "bf16") == "fp32"
    assert find_handed_on_precision(resolve_precision(sft(lora=LORA), "bf16"), "bf16") == "bf16"
    assert find_handed_on_precision(resolve_precision(sft(precision="bf16"), "fp32"), "fp32") == "fp32"
    assert "bf16 would lose most of the update" in str(describe_precision(low, "bf16"))
    assert describe_precision(sft(), "fp32") is None


def test_check_says_the_precisions_and_refuses_contradictions(bf16_model: Path, write_recipe: Any, cli: Any) -> None:
    stages = [
        {
            "name": "data",
            "kind": "build_data",
            "builder": {"kind": "arithmetic", "rows": "trace", "n": 4, "steps": [1]},
        },
        {**SFT, "name": "full", "from_model": "m", "from_data": ["data"], "max_tokens": 400, "learning_rate": 1e-6},
        {**SFT, "name": "adapted", "from_model": "full", "from_data": ["data"], "max_tokens": 400, "lora": LORA},
    ]
    models = {"m": {"path": str(bf16_model)}}
    said = cli("check", write_recipe(stages, models=models))
    assert said.code == 0, said.out + said.err
    text = " ".join(said.out.split())
    assert "stage 'full': computed in bf16 over fp32 weights, handed on in fp32: at a learning rate of 1e-06" in text
    assert "stage 'adapted': computed in bf16; the base is held in bf16, adapters in fp32" in text
    stages[2]["lora"] = {**LORA, "base_weights": "bf16"}
    stages[2]["precision"] = "fp32"
    said = cli("check", write_recipe(stages, models=models))
    assert said.code != 0
    assert "stage 'adapted': lora.base_weights: bf16, but precision is fp32" in " ".join((said.out + said.err).split())


# --- what is loaded


def test_weights_are_loaded_as_their_files_have_them_or_as_asked(bf16_model: Path) -> None:
    stored = load_file(bf16_model / "model.safetensors")
    as_stored, masters = loading.load_model(bf16_model), loading.load_model(bf16_model, "fp32")
    assert {weight.dtype for weight in as_stored.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in masters.parameters()} == {torch.float32}
    for name, weight in masters.named_parameters():
        assert torch.equal(weight, stored[name].float())
    assert {weight.dtype for weight in qwen_align.load_model(bf16_model)[0].parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("fault", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_found_in_bf16_too(bf16_model: Path, tmp_path: Path, fault: float) -> None:
    def break_one(name: str, weight: torch.Tensor) -> torch.Tensor:
        if name.endswith("1.mlp.up_proj.weight"):
            weight[3, 4] = fault
        return weight

    with pytest.raises(RecipeError, match=r"up_proj\.weight in its weights is not all finite numbers"):
        loading.load_model(rewrite(bf16_model, tmp_path / "broken", break_one))


def test_trained_weights_that_are_not_fp32_are_refused(bf16_model: Path) -> None:
    model = loading.load_model(bf16_model)
    with pytest.raises(StageError, match="would be trained in bfloat16, where small updates round to nothing"):
        require_fp32_masters(model)
    require_fp32_masters(model.requires_grad_(False))
    require_fp32_masters(loading.load_model_to_train(bf16_model, resolve_precision(sft(), "bf16")))


def test_pure_bf16_adamw_loses_the_small_updates_that_fp32_masters_keep(bf16_model: Path) -> None:
    """Why trained weights are fp32: at a low rate the same gradients leave most bf16 weights where they were."""
    ids = torch.arange(5, 37)[None]
    losses, moved = {}, {}
    for name, dtype in (("pure", torch.bfloat16), ("masters", torch.float32)):
        model = AutoModelForCausalLM.from_pretrained(bf16_model, dtype=dtype)
        before = {key: weight.detach().clone() for key, weight in model.named_parameters()}
        optimizer = torch.optim.AdamW(model.parameters(), lr=5e-5, weight_decay=0.0)
        for _ in range(8):
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            loss.backward()
            optimizer.step()
        losses[name] = loss.item()
        still = sum(int((weight == before[key]).sum()) for key, weight in model.named_parameters())
        moved[name] = 1 - still / model.num_parameters()
    assert moved["masters"] > 0.95
    assert moved["pure"] < 0.5
    assert losses["masters"] < losses["pure"] - 0.002


# --- copies and casts


def test_a_copy_in_bf16_rounds_each_weight_and_shares_those_that_are_bf16(tiny_model: Path, bf16_model: Path) -> None:
    model = loading.load_model(tiny_model)
    copied = copy_in_bf16(model)
    for (name, weight), other in zip(model.named_parameters(), copied.parameters(), strict=True):
        assert weight.dtype == torch.float32, name
        assert torch.equal(other, weight.to(torch.bfloat16)), name
    assert copied.lm_head.weight is copied.model.embed_tokens.weight
    frozen = loading.load_model(bf16_model)
    same = zip(frozen.parameters(), copy_in_bf16(frozen).parameters(), strict=True)
    assert all(one.data_ptr() == other.data_ptr() for one, other in same)


@pytest.mark.parametrize("is_tied", [True, False])
@torch.no_grad()
def test_a_reference_held_in_bf16_computes_under_autocast_what_fp32_weights_do(
    bf16_model: Path, tmp_path: Path, is_tied: bool
) -> None:
    """Bit by bit: otherwise the first KL to it is not 0."""
    model = loading.load_model(bf16_model, "fp32")
    if not is_tied:
        model.config.tie_word_embeddings = False
        model.lm_head.weight = nn.Parameter(torch.randn_like(model.lm_head.weight) / 10)
    held = hold_frozen_in_bf16(loading.load_model(bf16_model, "fp32"))
    if not is_tied:
        held.lm_head.weight = nn.Parameter(model.lm_head.weight.to(torch.bfloat16))
    ids = torch.arange(7, 71).view(2, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, actual = (one(input_ids=ids, use_cache=False).logits for one in (model, held))
    assert torch.equal(actual, expected)
    n_bytes = [sum(weight.numel() * weight.element_size() for weight in one.parameters()) for one in (model, held)]
    assert n_bytes[1] < 0.52 * n_bytes[0]


def test_an_embedding_that_bf16_does_not_hold_stays_as_it_is(tiny_model: Path) -> None:
    held = hold_frozen_in_bf16(loading.load_model(tiny_model))
    assert held.model.embed_tokens.weight.dtype == torch.float32
    assert held.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16


def test_weights_that_are_one_stay_one_when_they_are_cast(tiny_model: Path) -> None:
    model = loading.load_model(tiny_model)
    state = cast_state(model, model.state_dict(), torch.bfloat16)
    assert state["lm_head.weight"].data_ptr() == state["model.embed_tokens.weight"].data_ptr()
    assert {weight.dtype for weight in state.values()} == {torch.bfloat16}
    scorer = reward_scorer.build_scorer_model(model, pad_id=0)
    state = cast_state(scorer, scorer.state_dict(), torch.bfloat16)
    assert [name for name, weight in state.items() if weight.dtype == torch.float32] == ["score.weight"]


def test_a_head_computes_in_fp32_under_autocast_and_on_bf16_states() -> None:
    torch.manual_seed(0)
    head, states = Fp32Linear(8, 1), torch.randn(5, 8)
    expected = functional.linear(states.to(torch.bfloat16).float(), head.weight, head.bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(head(states.to(torch.bfloat16)), expected)
    assert expected.dtype == torch.float32


def test_a_scorers_head_stays_fp32_on_a_bf16_trunk(bf16_model: Path, tmp_path: Path) -> None:
    """The head's own numbers, not those rounded with the trunk."""
    made = reward_scorer.build_scorer_model(loading.load_model(bf16_model), pad_id=0)
    torch.nn.init.normal_(made.score.weight, generator=torch.Generator().manual_seed(1))
    made.save_pretrained(tmp_path)
    loading.copy_tokenizer_files(bf16_model, tmp_path)
    loaded = reward_scorer.load_scorer_model(tmp_path)
    assert torch.equal(loaded.score.weight, made.score.weight)
    assert loaded.score.weight.dtype == torch.float32
    assert loaded.model.norm.weight.dtype == torch.bfloat16


def test_rounding_to_bf16_is_right_in_the_mean_and_leaves_what_bf16_holds() -> None:
    """An update of a tenth of a step: to the nearest it would be gone."""
    start = torch.linspace(0.55, 0.9, 200_000).to(torch.bfloat16).float() * torch.tensor([1.0, -1.0]).repeat(100_000)
    step = 2.0**-8  # of bf16 between 0.5 and 1
    assert torch.equal(round_to_bf16(start, "a").float(), start)
    rounded = round_to_bf16(start + 0.1 * step, "a")
    assert rounded.dtype == torch.bfloat16
    moved = (rounded.float() - start) / step
    assert set(moved.tolist()) == {0.0, 1.0}
    assert moved.mean().item() == pytest.approx(0.1, abs=0.003)
    assert torch.equal(rounded, round_to_bf16(start + 0.1 * step, "a"))
    assert not torch.equal(rounded, round_to_bf16(start + 0.1 * step, "b"))
    assert torch.equal((start + 0.1 * step).to(torch.bfloat16).float(), start), "to the nearest"


@torch.no_grad()
def test_a_small_adapter_survives_the_merge_into_bf16(bf16_model: Path, tmp_path: Path) -> None:
    """The merged model's weights have moved as the adapter says, in the mean, not by nothing."""
    model = loading.load_model(bf16_model)
    before = {name: weight.float() for name, weight in model.state_dict().items()}
    adapted = get_peft_model(model, LoraConfig(r=2, lora_alpha=4, target_modules="all-linear"))
    generator = torch.Generator().manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            weight.normal_(0.0, 2e-5, generator=generator)
        elif "lora_A" in name:
            weight.normal_(0.0, 1.0, generator=generator)
    layers = {name: module for name, module in adapted.named_modules() if isinstance(module, Linear)}
    deltas = {name.removeprefix("base_model.model."): one.get_delta_weight("default") for name, one in layers.items()}
    adapted.save_pretrained(tmp_path)
    merged = merge_adapter(loading.load_model(bf16_model), tmp_path).state_dict()
    wanted = torch.cat([delta.flatten() for delta in deltas.values()])
    got = torch.cat([(merged[f"{name}.weight"].float() - before[f"{name}.weight"]).flatten() for name in deltas])
    nearest = torch.cat([
        ((before[f"{name}.weight"] + delta).to(torch.bfloat16).float() - before[f"{name}.weight"]).flatten()
        for name, delta in deltas.items()
    ])  # fmt: skip
    assert float(nearest @ wanted / (wanted @ wanted)) < 0.5
    assert float(got @ wanted / (wanted @ wanted)) == pytest.approx(1, abs=0.15)
    assert torch.equal(merged["model.embed_tokens.weight"].float(), before["model.embed_tokens.weight"])
