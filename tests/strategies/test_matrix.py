"""Every kind of stage under every strategy makes the steps that one process makes, and holds what it should."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.strategies.cells import KINDS, Cell, run_cells
from tests.strategies.checks import require_same_model, require_same_steps, require_shares

# DeepSpeed is installed by `make engines` alone.
pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"),
]

STRATEGIES = {
    "ddp": "ddp:2",
    "zero1": "zero1:2",
    "zero2": "zero2:2",
    "zero3": "zero3:2",
    "zero3 + offload": "zero3:2:parameters",
    "fsdp2": "fsdp2:2",
}


@pytest.fixture(scope="module")
def matrix(made_once: Callable[..., Path]) -> dict[str, Cell]:
    """Every cell of the matrix, and each kind in one process."""
    cells = [f"{kind}:{how}" for kind in KINDS for how in ("ddp:1", *STRATEGIES.values())]
    return run_cells(made_once("matrix", lambda folder: None), cells)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_make_the_steps_of_one_and_hold_their_share(
    kind: str, strategy: str, matrix: dict[str, Cell]
) -> None:
    cell, one = matrix[f"{kind}:{STRATEGIES[strategy]}"], matrix[f"{kind}:ddp:1"]
    require_same_steps(cell, one)
    require_shares(cell, one, STRATEGIES[strategy].partition(":")[0])
    require_same_model(cell, one)
