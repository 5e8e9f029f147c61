"""Gradients come in one order whatever a process's micro-batch holds, as ZeRO 1 and 2 need it.

They put gradients into a bucket in the order they come in and sum the buckets of all processes: another order would add
one weight's gradient to another's, without a word where the sizes fit.
"""

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_align.align.models import loading
from qwen_align.align.rl.actor import Actor, Critic
from qwen_align.align.rl.micro_batches import MicroBatch, build_micro_batch

WORDS = random.Random(0)
PROMPT = [WORDS.randrange(5, 60) for _ in range(120)]


def pack(*rows: tuple[int, int, int]) -> MicroBatch:
    """A micro-batch of completions, each as tokens of its prompt, its own tokens, and which prompt it shares."""
    ids = [torch.tensor(PROMPT[:n_prompt] + PROMPT[:n_own]) for n_prompt, n_own, _ in rows]
    return build_micro_batch(list(range(len(rows))), ids, [row[0] for row in rows], [row[2] for row in rows])


# As processes may have them in one pass: of few rows or many, with prompts that are shared, long, or a single token.
BATCHES = {
    "one completion": pack((5, 7, 0)),
    "one token": pack((1, 1, 0)),
    "a shared prompt": pack((9, 3, 0), (9, 4, 0), (9, 30, 0)),
    "a long shared prompt": pack((100, 3, 0), (100, 40, 0), (100, 1, 0)),
    "several prompts": pack((9, 3, 0), (9, 30, 0), (20, 5, 1), (40, 1, 2), (40, 60, 2)),
    "nothing shared": pack((9, 3, 0), (9, 3, 1), (70, 2, 2)),
}


@pytest.mark.parametrize("recomputes", [False, True])
@pytest.mark.parametrize("critic", [None, "head", "separate"])
def test_gradients_come_in_one_order_whatever_a_pass_holds(
    tiny_model: Path, critic: str | None, *, recomputes: bool
) -> None:
    model = loading.load_model(tiny_model, "fp32")
    trunk = loading.load_model(tiny_model, "fp32").base_model if critic == "separate" else None
    actor = Actor(model, 1.0, Critic(model.config.hidden_size, trunk) if critic else None).train()
    if recomputes:
        actor.gradient_checkpointing_enable()
    came: list[str] = []
    for name, weight in actor.named_parameters():
        weight.register_post_accumulate_grad_hook(lambda _, name=name: came.append(name))
    orders: dict[str, Any] = {}
    for what, batch in BATCHES.items():
        came.clear()
        scores = actor(batch, values=critic is not None)
        parts = [one.square().sum() for one in scores if one is not None]
        torch.stack(parts).sum().backward()
        orders[what] = list(came)
    first = orders["one completion"]
    assert sorted(first) == sorted(name for name, _ in actor.named_parameters())
    assert [what for what, order in orders.items() if order != first] == []
