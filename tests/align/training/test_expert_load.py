"""The load of a mixture's experts over whole optimiser steps, against transformers' loss of one padded batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from qwen_align.align.context import Context
from qwen_align.align.models.attention_setting import set_attention
from qwen_align.align.models.packed_attention import pack_completions, pack_rows, read_rows
from qwen_align.align.training.expert_load import ExpertLoad, count_readers, freeze_routers, watch_experts
from tests.align.training.test_packed_training import (
    ALONE,
    LORA,
    SMALL,
    WHOLE,
    Case,
    build,
    join_prompts,
    make_mixture,
    make_pairs,
    make_samples,
    run_packed,
    run_plain,
    tokenizer,
)

__all__ = ["tokenizer"]
pytestmark = pytest.mark.filterwarnings("ignore")
KINDS = ["qwen3_moe", "qwen2_moe"]
COEFFICIENT = 0.5


def make_packed(kind: str) -> Any:
    model = make_mixture(kind)
    set_attention(model, "sdpa", "cpu")
    return model.train()


def pad(rows: list[list[int]]) -> tuple[Tensor, Tensor]:
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = torch.tensor(row)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()


def compute_loss_of_one_batch(model: Any, rows: list[list[int]]) -> Tensor:
    """transformers' own loss of all rows in one padded pass, layer by layer."""
    ids, mask = pad(rows)
    backbone = model.base_model
    logits = backbone(input_ids=ids, attention_mask=mask, output_router_logits=True).router_logits
    return torch.stack([load_balancing_loss_func((each,), 4, 2, mask) for each in logits]).mean()


def get_gradients(model: Any) -> dict[str, Tensor]:
    found = {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}
    model.zero_grad()
    return found


def draw_skewed_rows() -> list[list[int]]:
    """Rows that each repeat a few tokens of their own, so that each has experts of its own."""
    return [[10 * row + 1 + position % 2 for position in range(9 + 2 * row)] for row in range(4)]


def balance(model: Any, experts: ExpertLoad, passes: list[list[list[int]]]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of a step of some passes, and its gradients."""

    def read(rows: list[list[int]]) -> None:
        ids = torch.tensor([token for row in rows for token in row])
        read_rows(model.base_model, ids, pack_rows([len(row) for row in rows]))

    experts.start_step()
    if experts.needs_counting(len(passes)):
        with experts.count_passes():
            for rows in passes:
                experts.start_pass()
                read(rows)
                experts.end_pass()
    total = torch.zeros(())
    for rows in passes:
        experts.start_pass()
        read(rows)
        part = experts.compute_part()
        part.backward()
        experts.end_pass()
        total += part.detach()
    return total, get_gradients(model)


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_passes_have_the_loss_and_gradient_of_one_batch(kind: str, is_checkpointed: bool) -> None:
    """And not those of a mean over passes, which balances each pass by itself."""
    rows, model = draw_skewed_rows(), make_packed(kind)
    plain = make_mixture(kind).train()
    loss = COEFFICIENT * compute_loss_of_one_batch(plain, rows)
    loss.backward()
    wanted = get_gradients(plain)
    if is_checkpointed:
        model.gradient_checkpointing_enable()
    experts = watch_experts(model, COEFFICIENT)
    assert experts is not None
    for passes in ([rows], [rows[:1], rows[1:]], [[row] for row in rows]):
        found, gradients = balance(model, experts, passes)
        assert float(found) == pytest.approx(float(loss), abs=1e-6)
        assert gradients.keys() == wanted.keys()
        for name, gradient in wanted.items():
            assert torch.allclose(gradients[name], gradient, rtol=1e-5, atol=1e-6), name
        assert experts.summarise()["experts/load_balancing_loss"] == pytest.approx(float(loss) / COEFFICIENT, abs=1e-6)
    assert max(float(gradient.abs().max()) for gradient in wanted.values()) > 1e-2
    of_passes = torch.stack([COEFFICIENT * compute_loss_of_one_batch(plain, [row]) for row in rows]).mean()
    of_passes.backward()
    assert float(of_passes) > float(loss) + 0.1
    assert (
        get_gradients(plain)["model.layers.0.mlp.gate.weight"] - wanted["model.layers.0.mlp.gate.weight"]
    ).norm() > 0.1


def test_a_shared_prompt_counts_for_each_of_its_rows() -> None:
    assert count_readers(pack_completions([3, 0], [2, 1, 4], [0, 0, 1])).tolist() == [2, 2, 2, 1, 1, 1, 1, 1, 1, 1]
    assert count_readers(pack_rows([2, 1])).tolist() == [1, 1, 1]
    model = make_packed("qwen3_moe")
    experts = watch_experts(model, COEFFICIENT)
    assert experts is not None
    prompt, completions = [5, 6, 7, 8], [[9, 1], [2, 3, 4]]
    loss, gradients = balance(model, experts, [[prompt + one for one in completions]])
    experts.start_step()
    experts.start_pass()
    ids = torch.tensor([token for row in [prompt, *completions] for token in row])
    read_rows(model.base_model, ids, pack_completions([4], [2, 3], [0, 0]))
    shared = experts.compute_part()
    shared.backward()
    experts.end_pass()
    assert float(shared) == pytest.approx(float(loss), abs=1e-6)
    for name, gradient in get_gradients(model).items():
        assert torch.allclose(gradient, gradients[name], atol=1e-6), name


def list_read_rows(kind: str) -> list[list[int]]:
    """The tokens of each row that are read: up to the last from which one in the loss is predicted."""
    if kind == "sft":
        last = [max((n for n, token in enumerate(row["labels"]) if token != -100), default=1) for row in make_samples()]
        return [row["input_ids"][:n] for row, n in zip(make_samples(), last, strict=True)]
    end = -1 if kind == "dpo" else None
    return [row[side][:end] for side in ("chosen_ids", "rejected_ids") for row in join_prompts(make_pairs())]


@pytest.mark.parametrize(
    ("kind", "base"),
    [
        ("sft", "qwen3_moe"),
        pytest.param("sft", "qwen2_moe", marks=pytest.mark.slow(seconds=2)),
        ("dpo", "qwen3_moe"),
        ("reward_model", "qwen2_moe"),
    ],
)
def test_trainers_add_the_loss_of_the_whole_step(kind: str, base: str, tmp_path: Path, tokenizer: Any) -> None:
    plain = build(Case(kind, base=base), tmp_path, tokenizer, is_packed=False)
    theirs = run_plain(plain)
    balancing = compute_loss_of_one_batch(plain.model, list_read_rows(kind))
    (COEFFICIENT * balancing).backward()
    wanted = get_gradients(plain.model)
    trainer = build(Case(kind, base=base), tmp_path, tokenizer)
    trainer.expert_load = watch_experts(trainer.model, COEFFICIENT)
    for runtime in (WHOLE, SMALL, ALONE):
        trainer.context = Context(tmp_path, 0, runtime)
        trainer.model.zero_grad()
        found = run_packed(trainer)
        assert found.metrics.pop("experts/load_balancing_loss") == pytest.approx(float(balancing), abs=1e-6)
        assert 0.25 <= found.metrics.pop("experts/busiest_share") <= 0.5
        assert 0 <= found.metrics.pop("experts/unused") < 8
        assert found.loss == pytest.approx(theirs.loss + COEFFICIENT * float(balancing), abs=1e-5)
        assert found.metrics == pytest.approx(theirs.metrics, abs=1e-5)
        for name, gradient in wanted.items():
            assert torch.allclose(found.gradients[name], gradient, rtol=1e-5, atol=1e-5), name
        trainer._metrics["train"].clear()


def test_dropout_is_the_same_when_passes_are_counted(tmp_path: Path, tokenizer: Any) -> None:
    """Else the frequencies would be those of another routing: the loss of the log is that of the gradient."""
    lora = LORA | {"target_modules": ["q_proj", "gate"], "lora_dropout": 0.0}
    trainer = build(Case("sft", base="qwen3_moe", lora=lora), tmp_path, tokenizer)
    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.register_forward_hook(lambda _, __, states: torch.nn.functional.dropout(states, 0.5))
    trainer.expert_load = watch_experts(trainer.model, COEFFICIENT)
    counted: list[Tensor] = []
    layer = trainer.model.get_base_model().model.layers[1]
    layer.register_forward_hook(lambda _, __, states: counted.append(states.detach()))
    trainer.context = Context(tmp_path, 0, SMALL)
    run_packed(trainer)
    half = len(counted) // 2
    assert half > 1
    assert all(torch.equal(one, other) for one, other in zip(counted[:half], counted[half:], strict=True))


def count_reads(model: Any) -> list[int]:
    """The tokens of each pass that the model makes from now on."""
    n_read: list[int] = []
    model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: n_read.append(inputs[0].numel()))
    return n_read


def test_passes_are_made_twice_only_where_several_are_balanced(tmp_path: Path, tokenizer: Any) -> None:
    for coefficient in (0.0, COEFFICIENT):
        trainer = build(Case("sft", base="qwen2_moe"), tmp_path, tokenizer)
        trainer.expert_load = watch_experts(trainer.model, coefficient)
        n_read = count_reads(trainer.model)
        for runtime, n_passes in ((WHOLE, 1), (ALONE, 3)):
            trainer.context = Context(tmp_path, 0, runtime)
            n_read.clear()
            assert run_packed(trainer).metrics["experts/load_balancing_loss"] >= 2
            assert len(n_read) == n_passes * (2 if coefficient and n_passes > 1 else 1)


def test_a_references_pass_is_not_counted(tmp_path: Path, tokenizer: Any) -> None:
    """With adapters it is the same model without them, inside the policy's pass."""
    figures = []
    for loss in ("sigmoid", "ipo"):
        case = Case("dpo", base="qwen3_moe", loss=loss, lora={**LORA, "target_modules": ["q_proj", "gate"]})
        trainer = build(case, tmp_path, tokenizer)
        trainer.expert_load = watch_experts(trainer.model, COEFFICIENT)
        trainer.context = Context(tmp_path, 0, SMALL)
        figures.append({name: value for name, value in run_packed(trainer).metrics.items() if "experts/" in name})
        balancing = compute_loss_of_one_batch(trainer.model.get_base_model(), list_read_rows("dpo"))
        assert figures[-1]["experts/load_balancing_loss"] == pytest.approx(float(balancing), abs=1e-6)
    assert figures[0] == figures[1]


def test_frozen_routers_stay(tmp_path: Path, tokenizer: Any) -> None:
    trainer = build(Case("sft", base="qwen2_moe"), tmp_path, tokenizer)
    freeze_routers(trainer.model)
    frozen = {name for name, one in trainer.model.named_parameters() if not one.requires_grad}
    layers = [f"model.layers.{layer}.mlp." for layer in (0, 1)]
    assert frozen == {f"{layer}{gate}.weight" for layer in layers for gate in ("gate", "shared_expert_gate")}
    assert frozen.isdisjoint(run_packed(trainer).gradients)
    assert watch_experts(build(Case("sft"), tmp_path, tokenizer).model, 0.0) is None
