"""Every kind of stage under every strategy makes the steps that one process makes, and holds what it should."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.strategies.cells import KINDS, Cell, run_cells
from tests.strategies.checks import require_same_model, require_same_steps, require_shares

pytestmark = pytest.mark.engine

STRATEGIES = {
    "ddp": "ddp:2",
    "zero1": "zero1:2",
    "zero2": "zero2:2",
    "zero3": "zero3:2",
    "zero3 + offload": "zero3:2:parameters",
    "fsdp2": "fsdp2:2",
}
# What else a stage may be, for some strategies: adapters, activations computed again, more passes in one process.
VARIANTS = [
    "sft:zero2:2:lora",
    "sft:zero3:2:lora",
    "sft:fsdp2:2:lora",
    "dpo:zero1:2:lora",
    "dpo:zero3:2:lora",
    "dpo:fsdp2:2:lora",
    "reward_model:zero2:2:lora",
    "reward_model:zero3:2:lora",
    "reward_model:fsdp2:2:lora",
    "sft:zero3:2:recompute",
    "dpo:zero2:2:recompute",
    "reward_model:fsdp2:2:recompute",
    "sft:zero2:2:small",
    "sft:zero3:2:small",
    "sft:fsdp2:2:small",
    "dpo:zero3:2:small",
    "reward_model:zero2:2:small",
]
IN_BF16 = ["sft:zero2:2:bf16", "sft:zero3:2:bf16", "sft:fsdp2:2:bf16", "dpo:zero2:2:bf16", "reward_model:zero2:2:bf16"]
# Two processes round other sums than one, a loss by up to 2**-8; FSDP2 rounds weights before it gathers them.
BF16_TOLERANCE = 0.02


@pytest.fixture(scope="module")
def matrix(made_once: Callable[..., Path]) -> dict[str, Cell]:
    """Every cell of the matrix, and each kind in one process."""
    cells = [f"{kind}:{how}" for kind in KINDS for how in ("ddp:1", *STRATEGIES.values())]
    return run_cells(made_once("matrix", lambda folder: None), cells)


@pytest.fixture(scope="module")
def variants(made_once: Callable[..., Path]) -> dict[str, Cell]:
    """The variants, and what they are compared with in one process."""
    names = [*VARIANTS, *IN_BF16]
    return run_cells(made_once("variants", lambda folder: None), dict.fromkeys([*map(name_one, names), *names]))


def name_one(name: str) -> str:
    """Returns the cell that does in one process what another does in two."""
    kind, _, _, variant = name.split(":")
    return f"{kind}:ddp:1:{variant}"


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_make_the_steps_of_one_and_hold_their_share(
    kind: str, strategy: str, matrix: dict[str, Cell]
) -> None:
    cell, one = matrix[f"{kind}:{STRATEGIES[strategy]}"], matrix[f"{kind}:ddp:1"]
    require_same_steps(cell, one)
    require_shares(cell, one, STRATEGIES[strategy].partition(":")[0])
    require_same_model(cell, one)


@pytest.mark.parametrize("name", VARIANTS)
def test_so_do_those_of_other_settings(name: str, variants: dict[str, Cell]) -> None:
    cell, one = variants[name], variants[name_one(name)]
    require_same_steps(cell, one)
    require_same_model(cell, one)


@pytest.mark.parametrize("name", IN_BF16)
def test_in_bf16_losses_differ_by_its_roundings_and_fp32_weights_are_handed_on(
    name: str, variants: dict[str, Cell]
) -> None:
    cell, one = variants[name], variants[name_one(name)]
    require_same_steps(cell, one, BF16_TOLERANCE)
    require_same_model(cell, one, BF16_TOLERANCE)
