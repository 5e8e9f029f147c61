"""Each kind of stage with FSDP2, and with DDP, makes the steps of one process; DeepSpeed's cells are in test_matrix.py."""

import importlib.util
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.strategies.cells import KINDS, Cell, run_cells
from tests.strategies.checks import require_same_model, require_same_steps, require_shares

pytestmark = pytest.mark.slow(seconds=60)

# The others of DDP are in tests/end_to_end/test_two_processes.py.
WITH_DDP = ["sft", "reward_model"]


@pytest.fixture(scope="module")
def cells(made_once: Callable[..., Path]) -> dict[str, Cell]:
    """Each kind in one process and with FSDP2 in two, some with DDP in two."""
    names = [f"{kind}:{how}" for kind in KINDS for how in ("ddp:1", "fsdp2:2")]
    return run_cells(made_once("strategies", lambda folder: None), [*names, *(f"{kind}:ddp:2" for kind in WITH_DDP)])


@pytest.mark.parametrize("kind", KINDS)
def test_fsdp2_makes_the_steps_of_one_process_and_holds_half(kind: str, cells: dict[str, Cell]) -> None:
    cell, one = cells[f"{kind}:fsdp2:2"], cells[f"{kind}:ddp:1"]
    require_same_steps(cell, one)
    require_shares(cell, one, "fsdp2")
    require_same_model(cell, one)


@pytest.mark.parametrize("kind", WITH_DDP)
def test_ddp_makes_the_steps_of_one_process_and_holds_all(kind: str, cells: dict[str, Cell]) -> None:
    cell, one = cells[f"{kind}:ddp:2"], cells[f"{kind}:ddp:1"]
    require_same_steps(cell, one)
    require_shares(cell, one, "ddp")
    require_same_model(cell, one)
    with pytest.raises(AssertionError):  # so a cell fails whose strategy the libraries have swapped for DDP
        require_shares(cell, one, "fsdp2")


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="test_matrix.py trains with it")
def test_deepspeed_is_said_to_be_missing() -> None:
    """Where DeepSpeed is not installed, its cells do not run; a run of the tests says so."""
    warnings.warn("DeepSpeed is not installed: strategies zero1 to zero3 are tested by `make engines`", stacklevel=1)
    pytest.skip("DeepSpeed is not installed: strategies zero1, zero2 and zero3 are tested by `make engines` alone")
