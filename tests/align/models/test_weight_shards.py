"""What one of two processes holds of a model that is loaded as shards; the other is pretended.

`tests/align/training/test_sharded_models.py` trains with two.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import Qwen3Config, Qwen3ForCausalLM

from qwen_align.align.errors import RecipeError
from qwen_align.align.models import loading
from qwen_align.align.training.fsdp2 import shard_model

NAN = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def join() -> Iterator[Callable[[int], DeviceMesh]]:
    """Makes this process one of two; what the other would send is made up."""

    def become(rank: int) -> DeviceMesh:
        torch.distributed.init_process_group("fake", rank=rank, world_size=2, store=FakeStore())
        return init_device_mesh("cpu", (2,))

    yield become
    torch.distributed.destroy_process_group()


def write_model(folder: Path, *, is_tied: bool) -> Path:
    """Writes a random model with 97 embeddings, which two processes do not hold in equal parts."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=is_tied,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)  # type: ignore[no-untyped-call]
    return folder


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("is_tied", [True, False])
def test_a_process_holds_its_rows_alone(
    tmp_path: Path, join: Callable[[int], DeviceMesh], rank: int, is_tied: bool
) -> None:
    folder = write_model(tmp_path, is_tied=is_tied)
    model: Any = loading.load_base_model(folder, mesh=join(rank))
    whole = dict(loading.load_base_model(folder).named_parameters())
    for name, weight in model.named_parameters():
        assert torch.equal(weight.to_local(), whole[name].chunk(2)[rank]), name
        assert weight.shape == whole[name].shape
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == is_tied


@pytest.mark.parametrize("rank", [0, 1])
def test_numbers_that_are_not_finite_are_seen_by_who_reads_them(
    tmp_path: Path, join: Callable[[int], DeviceMesh], rank: int
) -> None:
    folder = write_model(tmp_path, is_tied=True)
    tensors = load_file(folder / "model.safetensors")
    tensors[NAN][-1, -1] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    mesh = join(rank)
    if rank == 0:  # tests with two processes hold that it hears of it
        loading.load_base_model(folder, mesh=mesh)
    else:
        with pytest.raises(RecipeError, match=f"{NAN} in its weights is not all finite"):
            loading.load_base_model(folder, mesh=mesh)


@pytest.mark.parametrize("is_tied", [True, False])
def test_fsdp2_takes_the_shards_as_they_are(tmp_path: Path, join: Callable[[int], DeviceMesh], is_tied: bool) -> None:
    folder = write_model(tmp_path, is_tied=is_tied)
    mesh = join(1)
    model: Any = loading.load_base_model(folder, mesh=mesh)
    loaded = {name: weight.to_local() for name, weight in model.named_parameters()}
    held = {id(weight) for weight in model.parameters()}
    adapted: Any = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"]))
    shard_model(adapted, mesh, torch.device("cpu"))
    names = {
        name: name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        for name, _ in adapted.named_parameters()
    }
    for name, weight in adapted.named_parameters():
        if ".lora_" in name:
            assert weight.requires_grad
            assert weight.to_local().shape[0] == weight.shape[0] // 2
            continue
        assert not weight.requires_grad
        assert weight.to_local().data_ptr() == loaded[names[name]].data_ptr(), name
    layers = [module for module in adapted.modules() if type(module).__name__ == "Qwen3DecoderLayer"]
    assert len(layers) == 2
    assert all(isinstance(layer, FSDPModule) for layer in layers)
    assert isinstance(model.model.embed_tokens, FSDPModule) != is_tied
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == is_tied
    assert held.isdisjoint(id(weight) for weight in adapted.parameters())
