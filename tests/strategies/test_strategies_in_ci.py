"""Each kind of stage, and each strategy, once: the steps of one process, its share of them held, the same model."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.strategies.cells import KINDS, Cell, run_cells
from tests.strategies.checks import require_same_model, require_same_steps, require_shares

pytestmark = pytest.mark.slow(seconds=60)

HAS_DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
# DDP of the other kinds: end_to_end/test_two_processes.py.
WITHOUT_DEEPSPEED = [*(f"{kind}:fsdp2:2" for kind in KINDS), "reward_model:ddp:2"]
WITH_DEEPSPEED = ["sft:zero1:2", "dpo:zero2:2", "reward_model:zero3:2", "grpo:zero3:2:parameters"]


@pytest.fixture(scope="module")
def cells(made_once: Callable[..., Path]) -> dict[str, Cell]:
    """The cells, and each kind in one process."""
    names = [*(f"{kind}:ddp:1" for kind in KINDS), *WITHOUT_DEEPSPEED, *(WITH_DEEPSPEED if HAS_DEEPSPEED else [])]
    return run_cells(made_once("strategies", lambda folder: None), names)


def require_what_one_process_makes(name: str, cells: dict[str, Cell]) -> None:
    """Asserts that a cell makes what one process makes, and divides what its strategy says."""
    kind, strategy, *_ = name.split(":")
    cell, one = cells[name], cells[f"{kind}:ddp:1"]
    require_same_steps(cell, one)
    require_shares(cell, one, strategy)
    require_same_model(cell, one)


@pytest.mark.parametrize("name", WITHOUT_DEEPSPEED)
def test_two_processes_make_what_one_makes(name: str, cells: dict[str, Cell]) -> None:
    require_what_one_process_makes(name, cells)


@pytest.mark.skipif(not HAS_DEEPSPEED, reason="DeepSpeed is not installed; `make engines` trains with it")
@pytest.mark.parametrize("name", WITH_DEEPSPEED)
def test_two_processes_make_what_one_makes_with_deepspeed(name: str, cells: dict[str, Cell]) -> None:
    require_what_one_process_makes(name, cells)


def test_a_cell_whose_strategy_was_swapped_for_ddp_fails(cells: dict[str, Cell]) -> None:
    swapped, one = cells["reward_model:ddp:2"], cells["reward_model:ddp:1"]
    require_shares(swapped, one, "ddp")
    with pytest.raises(AssertionError):
        require_shares(swapped, one, "fsdp2")
