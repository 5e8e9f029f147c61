"""What completions are drawn from where processes hold parts of a model: all its weights, as they are, for as long."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from qwen_align.align.models import loading
from qwen_align.align.models.bf16_weights import copy_in_bf16
from qwen_align.align.training.frozen_models import prepare_frozen
from qwen_align.align.training.whole_copy import WholeCopy, copy_weights, gather_weight

CPU = torch.device("cpu")
IDS = torch.arange(5, 25)[None]


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone, which shards nevertheless."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def shard(model: Any) -> Any:
    """The model as accelerate prepares it for FSDP2: each layer by itself, and the rest."""
    for layer in model.model.layers:
        fully_shard(layer)
    return fully_shard(model)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    found: Tensor = model(input_ids=IDS, use_cache=False).logits
    return found


@pytest.mark.usefixtures("process_group")
def test_the_copy_draws_what_the_present_weights_draw_and_leaves_the_shards(tiny_model: Path) -> None:
    model = loading.load_model(tiny_model, "fp32").eval()
    expected = logits(model)
    copied = WholeCopy(model, CPU, in_bf16=False)
    shard(model)
    before = {name: weight.to_local().clone() for name, weight in model.named_parameters()}
    with copied.hold():
        assert torch.equal(logits(copied.model), expected)
        assert copied.model.lm_head.weight is copied.model.model.embed_tokens.weight  # tied, as the model's
        assert type(copied.model).__name__ == "Qwen3ForCausalLM"  # without the hooks of FSDP2
    assert all(weight.numel() == 0 for weight in copied.model.parameters())
    assert all(torch.equal(weight.to_local(), before[name]) for name, weight in model.named_parameters())
    with torch.no_grad():
        model.model.norm.weight.mul_(2)
    with copied.hold():
        assert torch.equal(logits(copied.model), logits(model))
        assert not torch.equal(logits(copied.model), expected)


def test_a_copy_in_bf16_is_the_one_that_is_drawn_from_with_whole_weights(tiny_model: Path) -> None:
    model = loading.load_model(tiny_model, "fp32").eval()
    copied = WholeCopy(model, CPU, in_bf16=True)
    with copied.hold():
        assert {weight.dtype for weight in copied.model.parameters()} == {torch.bfloat16}
        assert torch.equal(logits(copied.model), logits(copy_in_bf16(model)))


@pytest.mark.usefixtures("process_group")
def test_weights_are_copied_into_a_model_that_has_just_computed(tiny_model: Path) -> None:
    policy, reference = (shard(loading.load_model(tiny_model, "fp32").eval()) for _ in range(2))
    with torch.no_grad():
        for weight in policy.parameters():
            weight.mul_(1.5)
    logits(reference)
    assert not isinstance(reference.model.norm.weight, DTensor)  # what is outside of layers waits for a backward pass
    copy_weights(policy, reference, CPU)
    # With several processes a whole weight is a copy, and what is written to it is lost; with one it is the shard.
    assert all(isinstance(weight, DTensor) for weight in reference.parameters())
    for name, weight in reference.named_parameters():
        assert torch.equal(gather_weight(weight, CPU), gather_weight(dict(policy.named_parameters())[name], CPU)), name
    assert torch.equal(logits(reference), logits(policy))


class Accelerator:
    """Of what accelerate says of a stage, as much as is asked for a frozen model."""

    distributed_type = "NO"
    device = CPU


def test_a_frozen_model_is_whole_where_nothing_is_divided(tiny_model: Path) -> None:
    model = loading.load_model(tiny_model, "fp32").train()
    frozen = prepare_frozen(model, Accelerator())
    assert frozen is model
    assert not model.training
    assert not any(weight.requires_grad for weight in model.parameters())
