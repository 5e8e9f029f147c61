"""Online RL under the strategies in odd ways: processes without prompts or rows, other critics, a moving reference."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.end_to_end import ladder
from tests.strategies.cells import Cell, run_cells
from tests.strategies.checks import require_same_model, require_same_steps

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"),
]

WAYS = [
    "grpo:zero2:2:uneven",
    "grpo:zero3:2:uneven",
    "grpo:fsdp2:2:uneven",
    "grpo:zero3:2:synced",
    "grpo:fsdp2:2:synced",
    "grpo:zero3:2:skipped",
    "grpo:fsdp2:2:skipped",
    "ppo:zero1:2:head",
    "ppo:zero3:2:head",
    "ppo:fsdp2:2:head",
    "ppo:zero3:2:detached",
    "ppo:zero3:2:lora",
    "ppo:fsdp2:2:lora",
    "ppo:zero2:2:optimizer",
]
WARM = ["ppo:zero1:2:warm", "ppo:zero2:2:warm:optimizer", "ppo:zero3:2:warm", "ppo:fsdp2:2:warm"]


def name_single(cell: str) -> str:
    """The cell of one process that a cell is compared with."""
    kind, _, _, *variants = cell.split(":")
    return ":".join([kind, "ddp", "1", *(one for one in variants if one not in ("optimizer", "parameters"))])


@pytest.fixture(scope="module")
def cells(made_once: Callable[..., Path]) -> dict[str, Cell]:
    """All cells of this file, and each in one process."""
    names = dict.fromkeys([*map(name_single, WAYS), *WAYS, *WARM])
    return run_cells(made_once("online_rl", lambda folder: None), names)


@pytest.mark.parametrize("name", WAYS)
def test_two_processes_make_the_steps_of_one(name: str, cells: dict[str, Cell]) -> None:
    cell, one = cells[name], cells[name_single(name)]
    require_same_steps(cell, one)
    require_same_model(cell, one)


@pytest.mark.parametrize("name", WARM)
def test_a_warm_up_leaves_every_bit_of_the_policy(name: str, cells: dict[str, Cell]) -> None:
    cell = cells[name]
    assert cell.code == 0, cell.log[-3000:]
    assert all(line["grad_norm"] == 0.0 < line["value/grad_norm"] for line in cell.metrics)
    trained = load_file(cell.folder / "model" / "model.safetensors")
    base = load_file(ladder.BASE / "model.safetensors")
    assert [name for name, weight in trained.items() if not torch.equal(weight, base[name].float())] == []
