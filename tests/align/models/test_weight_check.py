"""Folders whose weights are not their config's are refused; odd ones that are whole load as in transformers."""

import json
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_torch_file
from safetensors.torch import save_file as save_torch_file
from transformers import AutoConfig, AutoModelForCausalLM

from qwen_align.align.errors import RecipeError
from qwen_align.align.models import loading
from qwen_align.align.models.weight_check import check_weights, read_known_types
from qwen_align.align.store.files import read_json, write_json

Tensors = dict[str, np.ndarray]
FILE = "model.safetensors"
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4cac19622fc3ada9c0fdeadb33f88f367b541f38b89\nsize 1\n"


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model: a Qwen3 of two layers whose head is its embeddings."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def change_weights(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    save_file(change(load_file(folder / FILE)), folder / FILE, metadata={"format": "pt"})


def change_config(folder: Path, **fields: Any) -> None:
    config = {**read_json(folder / "config.json"), **fields}
    write_json(folder / "config.json", {name: value for name, value in config.items() if value is not ...})


def split_in_shards(folder: Path) -> None:
    """Two shards and their index instead of one file."""
    tensors = load_file(folder / FILE)
    (folder / FILE).unlink()
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, those in parts.items():
        save_file({name: tensors[name] for name in those}, folder / file, metadata={"format": "pt"})
    weight_map = {name: file for file, those in parts.items() for name in those}
    write_json(folder / f"{FILE}.index.json", {"metadata": {}, "weight_map": weight_map})


def rename(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + name: tensor for name, tensor in tensors.items()}


def leave_out(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if part not in name}


def cut(n_bytes: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / FILE).write_bytes((folder / FILE).read_bytes()[:n_bytes])

    return change


def write_header(folder: Path, header: Mapping[str, Any], n_bytes: int) -> None:
    text = json.dumps(header).encode()
    (folder / FILE).write_bytes(struct.pack("<Q", len(text)) + text + b"\0" * n_bytes)


def repeat_in_shards(folder: Path) -> None:
    """Shards of two saves: the first one's first tensor is in the second, too."""
    split_in_shards(folder)
    first, second = (load_file(folder / f"model-0000{n}-of-00002.safetensors") for n in (1, 2))
    name = next(iter(first))
    save_file({**second, name: first[name] + 1}, folder / "model-00002-of-00002.safetensors")


def quantise(folder: Path, dtype: torch.dtype) -> None:
    tensors = load_torch_file(folder / FILE)
    stored = {name: tensor.to(dtype) if "proj" in name else tensor for name, tensor in tensors.items()}
    save_torch_file(stored, folder / FILE, metadata={"format": "pt"})


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "compiled": (
        lambda folder: change_weights(folder, rename("_orig_mod.")),
        r"lack 24 of the 24 tensors of a qwen3 model .*at random.*_orig_mod\.model\.embed_tokens\.weight: rename",
    ),
    "wrapped": (lambda folder: change_weights(folder, rename("module.")), r"calls .* module\.model\."),
    "a layer's part": (
        lambda folder: change_weights(folder, leave_out("layers.1.mlp")),
        r"3 of the 24 tensors .*: model\.layers\.\*\.mlp\.gate_proj\.weight \(1\)",
    ),
    "a norm": (lambda folder: change_weights(folder, leave_out("model.norm")), r"at random: model\.norm\.weight; down"),
    "more layers in the config": (
        lambda folder: change_config(folder, num_hidden_layers=3),
        r"11 of the 35 tensors .* and 7 more kinds",
    ),
    "no head": (lambda folder: change_config(folder, tie_word_embeddings=False), "lm_head.weight; where the head is"),
    "no head, by default": (lambda folder: change_config(folder, tie_word_embeddings=...), "lm_head.weight"),
    "another width": (
        lambda folder: change_config(folder, intermediate_size=64),
        r"mlp\.gate_proj\.weight has shape \[32, 16\], where config\.json asks for \[64, 16\]",
    ),
    "another vocabulary": (
        lambda folder: change_config(folder, vocab_size=512),
        r"embed_tokens\.weight has shape \[400, 16\]",
    ),
    "another architecture": (
        lambda folder: change_config(folder, model_type="qwen2"),
        r"self_attn\.q_proj\.bias \(2\).*the file has .*self_attn\.q_norm\.weight \(2\) instead",
    ),
    "eight bit": (lambda folder: quantise(folder, torch.int8), "is stored as I8: these weights are quantised"),
    "fp8": (lambda folder: quantise(folder, torch.float8_e4m3fn), "is stored as F8_E4M3: these weights are quantised"),
    "fp8 in the config": (
        lambda folder: change_config(folder, quantization_config={"quant_method": "fp8"}),
        r"quantization_config: the weights are quantised \(fp8\)",
    ),
    "a git-lfs pointer": (lambda folder: (folder / FILE).write_text(LFS), "model.safetensors: a git-lfs pointer"),
    "a git-lfs pointer of a tokenizer": (lambda folder: (folder / "tokenizer.json").write_text(LFS), "git lfs pull"),
    "half a file": (cut(9_000), r"is cut short: its header promises [\d,]+ bytes, it has 9,000"),
    "half a header": (cut(100), "is cut short"),
    "an empty file": (cut(0), r"is no safetensors file, or is cut short \(0 bytes\)"),
    "a pickle": (lambda folder: (folder / FILE).write_bytes(b"PK\3\4" * 100), "is no safetensors file"),
    "no JSON": (lambda folder: (folder / FILE).write_bytes(struct.pack("<Q", 9) + b"{" * 9), "its header is damaged"),
    "fewer bytes than a shape asks for": (
        lambda folder: write_header(
            folder, {"model.norm.weight": {"dtype": "F32", "shape": [16], "data_offsets": [0, 8]}}, 8
        ),
        "is damaged",
    ),
    "no type": (lambda folder: change_config(folder, model_type=...), "has no model_type"),
    "code of its own": (
        lambda folder: change_config(folder, model_type="chatglm", auto_map={"AutoModel": "modeling_chatglm.X"}),
        r"no causal language model of type 'chatglm'; it brings code of its own \(auto_map\), which is not run here",
    ),
    "a tied head that is another": (
        lambda folder: change_weights(
            folder, lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1}
        ),
        r"the head is the embeddings \(tie_word_embeddings\), but the weights have another head \(lm_head\.weight\)",
    ),
    "a tensor under two names": (
        lambda folder: change_weights(
            folder, lambda tensors: {**tensors, "norm.weight": tensors["model.norm.weight"] + 1}
        ),
        r"its weights have model\.norm\.weight twice, also as norm\.weight",
    ),
    "a tensor in two shards": (
        repeat_in_shards,
        r"is in two of its shards, model-00001-of-00002\.safetensors and model-00002-of-00002\.safetensors",
    ),
    "kinds of other layers": (
        lambda folder: change_config(folder, layer_types=["full_attention"] * 3),
        "layer_types names 3 layers, num_hidden_layers is 2",
    ),
    "padding without an embedding": (
        lambda folder: change_config(folder, pad_token_id=400),
        r"pad_token_id 400 has no embedding; there are 400 \(vocab_size\)",
    ),
    "no JSON in the generation config": (
        lambda folder: (folder / "generation_config.json").write_text("{"),
        "generation_config.json: is no JSON",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_weights_that_are_not_the_configs_are_refused(folder: Path, case: str) -> None:
    change, message = WRONG[case]
    assert check_weights(folder) == []
    change(folder)
    with pytest.raises(RecipeError, match=message):
        check_weights(folder)
    with pytest.raises(RecipeError, match=message):  # the same words where a stage loads it, from the hub say
        loading.load_base_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: change_config(folder, hidden_act="swishy"), "transformers cannot load it .*KeyError: 'swishy'"),
        (
            lambda folder: change_weights(
                folder, lambda tensors: {**tensors, "model.norm.weight": np.full(16, np.nan, np.float32)}
            ),
            r"model\.norm\.weight in its weights is not all finite numbers",
        ),
    ],
    ids=["an unknown activation", "NaN"],
)
def test_what_only_loading_sees_is_refused_in_plain_words(
    folder: Path, change: Callable[[Path], Any], message: str
) -> None:
    change(folder)
    check_weights(folder)
    with pytest.raises(RecipeError, match=message):
        loading.load_base_model(folder)


@pytest.mark.parametrize(
    ("gone", "message"),
    [
        ("model-00002-of-00002.safetensors", r"1 of its 2 shards are missing: model-00002-of-00002\.safetensors"),
        (f"{FILE}.index.json", r"has neither model\.safetensors nor .*index\.json; found model-00001-of-00002"),
    ],
)
def test_shards_are_all_there_or_refused(folder: Path, gone: str, message: str) -> None:
    split_in_shards(folder)
    (folder / gone).unlink()
    with pytest.raises(RecipeError, match=message):
        check_weights(folder)


def test_a_shard_without_what_the_index_says_is_refused(folder: Path) -> None:
    split_in_shards(folder)
    shard = folder / "model-00002-of-00002.safetensors"
    tensors = load_file(shard)
    save_file({name: tensors[name] for name in list(tensors)[1:]}, shard)
    with pytest.raises(RecipeError, match="its weights lack 1 of the 24 tensors"):
        check_weights(folder)


def add_rotary_buffers(tensors: Tensors) -> Tensors:
    buffers = {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32) for n in range(2)}
    return tensors | buffers


def to_half(folder: Path) -> None:
    tensors = {name: tensor.to(torch.bfloat16) for name, tensor in load_torch_file(folder / FILE).items()}
    save_torch_file(tensors, folder / FILE, metadata={"format": "pt"})


def store_head_apart(folder: Path) -> None:
    change_config(folder, tie_word_embeddings=False)
    change_weights(folder, lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1})


def rename_embeddings(tensors: Tensors) -> Tensors:
    return {name.replace("model.embed_tokens", "lm_head"): tensor for name, tensor in tensors.items()}


ODD: dict[str, tuple[Callable[[Path], Any], str | None]] = {
    "a tied head stored too": (
        lambda folder: change_weights(
            folder, lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].copy()}
        ),
        None,
    ),
    "a head of its own": (store_head_apart, None),
    "embeddings stored as the head that they are": (lambda folder: change_weights(folder, rename_embeddings), None),
    "rotary buffers": (
        lambda folder: change_weights(folder, add_rotary_buffers),
        r"2 tensors in .* are not read: model\.layers\.\*\.self_attn\.rotary_emb\.inv_freq \(2\)$",
    ),
    "shards": (split_in_shards, None),
    "bf16": (to_half, None),
    "the trunk alone": (
        lambda folder: change_weights(
            folder, lambda tensors: {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
        ),
        None,
    ),
    "a reward model's head": (
        lambda folder: change_weights(
            folder, lambda tensors: {**tensors, "score.weight": np.ones((1, 16), np.float32)}
        ),
        r"1 tensor in .* are not read: score\.weight$",
    ),
    "a pickle beside them": (lambda folder: (folder / "pytorch_model.bin").write_bytes(b"PK"), None),
    "code of its own beside transformers'": (
        lambda folder: change_config(folder, auto_map={"AutoModelForCausalLM": "modeling_qwen3.X"}),
        None,
    ),
    "no quantisation, said": (lambda folder: change_config(folder, quantization_config=None), None),
    "a contradiction in how to sample": (
        lambda folder: (folder / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.6}'),
        "generation_config.json: sets temperature without do_sample: true",
    ),
    "how to sample, but not to": (
        lambda folder: (folder / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 1.0}'),
        "generation_config.json: sets temperature without do_sample: true",
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_folders_that_are_whole_load_as_they_do_in_transformers(folder: Path, case: str) -> None:
    change, note = ODD[case]
    change(folder)
    notes = check_weights(folder)
    assert len(notes) == (note is not None)
    if note:
        with pytest.raises(AssertionError, match=note):
            raise AssertionError(notes[0])
    expected, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"]
    model = loading.load_base_model(folder)
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    model.save_pretrained(folder / "saved")  # what every training stage ends with


@pytest.mark.parametrize(
    "said",
    [{"max_new_tokens": 0}, {"early_stopping": "x"}, {"pad_token_id": -1}, {"num_return_sequences": 4}, {"min_p": 0.1}],
)
def test_how_to_generate_never_ends_a_training(folder: Path, said: dict[str, Any]) -> None:
    write_json(folder / "generation_config.json", {"eos_token_id": [7, 8], **said})
    model = loading.load_base_model(folder)
    assert model.generation_config.eos_token_id in ([7, 8], model.config.eos_token_id)
    model.save_pretrained(folder / "saved")
    write_json(folder / "generation_config.json", {"do_sample": True, "temperature": 0.6, "eos_token_id": 7})
    kept = loading.load_base_model(folder).generation_config
    assert (kept.do_sample, kept.temperature, kept.eos_token_id) == (True, 0.6, 7)


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 6, "num_local_experts": 4}
SMALL = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.parametrize("kind", ["qwen2_moe", "qwen3_moe"])
def test_experts_may_be_one_tensor_each_or_one_of_a_layer(kind: str, tmp_path: Path) -> None:
    fields = {name: value for name, value in EXPERTS.items() if kind == "qwen3_moe" or name != "num_local_experts"}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL, **HEADS, **fields))
    model.save_pretrained(tmp_path)
    assert check_weights(tmp_path) == []
    change_weights(tmp_path, leave_out("layers.1.mlp.experts.2.up_proj"))
    with pytest.raises(RecipeError, match=r"mlp\.experts\.\*\.up_proj\.weight \(1\)"):
        check_weights(tmp_path)
    fused = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    assert any(name.endswith("experts.gate_up_proj") for name in fused)
    save_torch_file(fused, tmp_path / FILE, metadata={"format": "pt"})
    assert check_weights(tmp_path) == []
    single = "model.layers.1.mlp.experts.2.up_proj.weight"
    change_weights(tmp_path, lambda tensors: {**tensors, single: np.ones((6, 16), np.float32)})
    with pytest.raises(RecipeError, match=r"experts\.gate_up_proj twice, also as .*experts\.2\.up_proj\.weight"):
        check_weights(tmp_path)
    change_weights(tmp_path, leave_out(single))
    loaded = loading.load_base_model(tmp_path).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in fused.items())
    change_weights(tmp_path, leave_out("layers.0.mlp.experts.down_proj"))
    with pytest.raises(RecipeError, match=r"mlp\.experts\.\*\.down_proj\.weight \(4\)"):
        check_weights(tmp_path)


@pytest.mark.parametrize("change", [{"num_hidden_layers": 3}, {"hidden_size": 32, "num_attention_heads": 8}])
def test_models_without_a_table_are_refused_where_they_are_loaded(tmp_path: Path, change: dict[str, int]) -> None:
    config = AutoConfig.for_model("olmo2", **SMALL, **HEADS, pad_token_id=0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    assert ["weights are not checked here; loading does" in note for note in check_weights(tmp_path)] == [True]
    loading.load_base_model(tmp_path)
    change_config(tmp_path, **change)
    check_weights(tmp_path)
    with pytest.raises(
        RecipeError, match=r"its weights lack \d+ of the model's tensors, which would be made up at random"
    ):
        loading.load_base_model(tmp_path)


def test_a_new_head_may_be_missing_where_a_stage_makes_one(folder: Path) -> None:
    change_config(folder, tie_word_embeddings=False)
    assert check_weights(folder, None) == []
    loading.load_base_model(folder, None)
    with pytest.raises(RecipeError, match=r"score\.weight; a reward model in Hugging Face form has a linear head"):
        check_weights(folder, "score")
    change_weights(folder, leave_out("model.norm"))
    for head in (None, "score"):
        with pytest.raises(RecipeError, match=r"model\.norm\.weight"):
            loading.load_base_model(folder, head)


def test_known_types_are_those_of_the_installed_transformers() -> None:
    from transformers.models.auto import modeling_auto

    assert read_known_types("CAUSAL_LM") == set(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert read_known_types("SEQUENCE_CLASSIFICATION") == set(
        modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES
    )
