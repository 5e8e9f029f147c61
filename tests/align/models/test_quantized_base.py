"""A base in 4 bits against the same numbers written out: its weights, its gradients, and what is merged before."""

import copy
from pathlib import Path
from typing import Any

import bitsandbytes
import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from qwen_align.align.errors import RecipeError
from qwen_align.align.generation.engine import Request
from qwen_align.align.generation.fused_decoding import can_be_fused
from qwen_align.align.generation.local import LocalEngine
from qwen_align.align.models import loading
from qwen_align.align.models.quantized_base import is_quantized, list_quantized_layers, load_quantized_model
from qwen_align.align.settings.sampling import Sampling

BASE = Path(__file__).parents[3] / "recipes" / "tiny_base"
# The 16 numbers of NormalFloat4: arXiv:2305.14314, appendix E.
NF4 = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]
IDS = torch.arange(5, 45)[None]


def load(folder: Path = BASE, compute: Any = "fp32") -> Any:
    """Loads a model in 4 bits as on a CPU with AVX512-BF16, where layers are made with the flag set."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
        return load_quantized_model(folder, compute, torch.device("cpu"))


@pytest.fixture(scope="module")
def loaded() -> Any:
    return load()


@pytest.fixture
def quantised(loaded: Any) -> Any:
    """A copy that may be adapted: the flags have to be copied too."""
    return copy.deepcopy(loaded)


def write_out(weight: Any) -> Tensor:
    """The numbers of a 4-bit weight: two to a byte, the first above, in blocks of 64 with a scale of 8 bits."""
    state = weight.quant_state
    packed = weight.data.numpy().ravel()
    numbers = np.array(NF4, dtype=np.float32)[np.stack([packed >> 4, packed & 15], axis=1).ravel()]
    outer = state.state2
    scales = outer.code.numpy()[state.absmax.numpy()] * np.repeat(outer.absmax.numpy(), 256)[: len(state.absmax)]
    scales += state.offset.item()
    return torch.from_numpy(numbers.reshape(-1, 64) * scales[:, None]).reshape(state.shape)


def write_out_model(quantised: Any) -> Any:
    """The full-precision model with the numbers of a 4-bit one."""
    model = loading.load_model(BASE)
    layers = {name: one for name, one in quantised.named_modules() if isinstance(one, bitsandbytes.nn.Linear4bit)}
    for name, layer in layers.items():
        model.get_submodule(name).weight.data = write_out(layer.weight)
    return model


def adapt(model: Any, *, dora: bool) -> Any:
    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8, target_modules="all-linear", use_dora=dora)
    adapted = get_peft_model(model, config)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return adapted


def compute_gradients(adapted: Any) -> dict[str, Tensor]:
    adapted.zero_grad()
    adapted.train()
    adapted(input_ids=IDS, labels=IDS).loss.backward()
    return {name: weight.grad.clone() for name, weight in adapted.named_parameters() if weight.grad is not None}


def draw(model: Any) -> Any:
    """Completions of the local engine, which puts the model into evaluation mode meanwhile."""
    request = Request("a", IDS[0, :8].tolist(), 3, Sampling(temperature=1.0, max_tokens=6), seed=0)
    return sorted(LocalEngine(model, stop_ids=[]).generate([request]), key=lambda one: one.sample)


@pytest.mark.parametrize("dora", [False, True])
def test_gradients_are_those_of_the_numbers_written_out_also_after_drawing(quantised: Any, dora: bool) -> None:
    literal, adapted = adapt(write_out_model(quantised), dora=dora), adapt(quantised, dora=dora)
    expected = compute_gradients(literal)
    assert len(expected) == 21 * (3 if dora else 2)
    for prepare in (lambda: None, lambda: adapted.eval()(input_ids=IDS), lambda: draw(quantised)):
        with torch.no_grad():
            prepare()
        actual = compute_gradients(adapted)
        assert actual.keys() == expected.keys()
        for name, gradient in expected.items():
            assert (actual[name] - gradient).norm() <= 1e-5 * gradient.norm(), name


def test_policy_in_4_bits_draws_from_itself(quantised: Any) -> None:
    literal, adapted = adapt(write_out_model(quantised), dora=True), adapt(quantised, dora=True)
    assert not can_be_fused(quantised)
    assert not can_be_fused(literal.get_base_model())
    for one in draw(quantised):
        ids = torch.tensor([[*one.request.prompt_ids, *one.token_ids]])
        for model in (adapted, literal):
            logps = model(input_ids=ids).logits.log_softmax(dim=-1)[0, 7:-1]
            expected = logps.gather(1, ids[0, 8:, None])[:, 0]
            assert torch.allclose(torch.tensor(one.logps), expected, atol=1e-4)


def test_layers_are_nf4_twice_quantised_and_never_repacked(loaded: Any, tmp_path: Path) -> None:
    full = loading.load_model(BASE)
    weights = [one.weight.clone() for one in full.model.modules() if isinstance(one, torch.nn.Linear)]
    bf16 = tmp_path / "bf16"
    full.to(torch.bfloat16).save_pretrained(bf16)
    cases = [(loaded, "fp32", "fp32"), (load(compute="bf16"), "fp32", "bf16"), (load(bf16, "bf16"), "bf16", "bf16")]
    for model, held, compute in [*cases, (load(bf16), "fp32", "fp32")]:
        layers = list_quantized_layers(copy.deepcopy(model))
        assert is_quantized(model)
        assert len(layers) == 21
        assert not any(layer.support_avx512bf16_for_cpu for layer in [*layers, *list_quantized_layers(model)])
        assert {(one.weight.quant_type, one.weight.quant_state.nested) for one in layers} == {("nf4", True)}
        assert {layer.compute_dtype for layer in layers} == {loading.DTYPES[compute]}
        assert {one.dtype for one in model.parameters()} == {torch.uint8, loading.DTYPES[held]}
        assert model.lm_head.weight is model.model.embed_tokens.weight
        errors = [
            (write_out(layer.weight) - weight).norm() / weight.norm()
            for layer, weight in zip(layers, weights, strict=True)
        ]
        assert 0.05 < min(errors) <= max(errors) < 0.12  # nf4 of normal numbers: 0.09


def test_adapters_below_are_merged_before_the_rounding(loaded: Any, tmp_path: Path) -> None:
    adapted = adapt(loading.load_model(BASE), dora=False)
    adapted.save_pretrained(tmp_path / "adapter")
    (tmp_path / "model.json").write_text(f'{{"base": "{BASE}", "adapters": ["adapter"]}}')
    merged = loading.load_model(tmp_path)
    merged.save_pretrained(tmp_path / "merged")
    below, whole = (load(folder).state_dict() for folder in (tmp_path, tmp_path / "merged"))
    assert below.keys() == whole.keys()
    assert all(torch.equal(below[name], whole[name]) for name in whole)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(whole[name], loaded.state_dict()[name])


def test_weights_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    for path in BASE.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(BASE / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RecipeError, match="not all finite numbers"):
        load(tmp_path)
