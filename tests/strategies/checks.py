"""What holds of a cell of the matrix: its steps are those of one process, and each rank holds its share alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qwen_align.align.models.loading import load_model
from qwen_align.align.models.reward_scorer import load_scorer_model
from qwen_align.align.settings.strategy import SHARDINGS, ZERO_STAGES
from tests.strategies.cells import Cell

N_STEPS = 6
TOLERANCE = 1e-4  # relative, of losses and norms of gradients in fp32
WHOLE = 1.001  # DeepSpeed pads what it flattens by some bytes
LARGEST_SHARE = 0.6  # of what one process holds, for two that divide it
DISTRIBUTED_TYPES = {"ddp": "MULTI_CPU", "fsdp2": "FSDP", **dict.fromkeys(ZERO_STAGES, "DEEPSPEED")}


def require_same_steps(cell: Cell, one: Cell, tolerance: float = TOLERANCE) -> None:
    """Asserts that a cell's first steps have the losses and norms of one process's."""
    assert cell.code == 0, cell.log[-3000:]
    assert one.code == 0, one.log[-3000:]
    assert len(one.metrics) >= N_STEPS
    assert len(cell.metrics) == len(one.metrics)
    for left, right in zip(cell.metrics[:N_STEPS], one.metrics[:N_STEPS], strict=True):
        for figure in ("loss", "grad_norm"):
            assert left[figure] == pytest.approx(right[figure], rel=tolerance, abs=tolerance / 10), (
                f"step {left['step']}",
                figure,
            )


def require_shares(cell: Cell, one: Cell, strategy: str) -> None:
    """Asserts that two processes trained under a strategy, and that each held its share of what that divides."""
    (whole,) = one.held
    assert len(cell.held) == 2
    shares = SHARDINGS[strategy]._asdict()  # type: ignore[index]
    for held in cell.held:
        assert held["distributed_type"] == DISTRIBUTED_TYPES[strategy]
        assert held["zero_stage"] == ZERO_STAGES.get(strategy)  # type: ignore[call-overload]
        assert held["processes"] == 2
        for name, is_divided in shares.items():
            share = held["bytes"][name] / whole["bytes"][name]
            assert share > 0.4
            assert share <= (LARGEST_SHARE if is_divided else WHOLE), (name, share)
        for name, of in {"masters": "parameters", "master_gradients": "gradients"}.items():  # DeepSpeed's, in fp32
            assert held["bytes"][name] <= LARGEST_SHARE * whole["bytes"][of], name


def require_same_model(cell: Cell, one: Cell, tolerance: float = TOLERANCE) -> None:
    """Asserts that a cell handed on the model of one process: the same files and tensors, and its outputs."""
    files, same_files = (_list_model_files(each.folder) for each in (cell, one))
    assert files == same_files
    assert files
    for name in files:
        if name.endswith(".safetensors"):
            weights, same = load_file(cell.folder / name), load_file(one.folder / name)
            assert {key: (w.shape, w.dtype) for key, w in weights.items()} == {
                key: (w.shape, w.dtype) for key, w in same.items()
            }
    outputs, same_outputs = (_compute_outputs(each.folder) for each in (cell, one))
    assert (outputs - same_outputs).abs().max() <= tolerance * same_outputs.abs().max().clamp(min=1.0)


def _list_model_files(folder: Path) -> list[str]:
    """Returns the files of the model or adapter that a stage has handed on."""
    return sorted(str(path.relative_to(folder)) for part in ("model", "adapter") for path in (folder / part).rglob("*"))


@torch.no_grad()
def _compute_outputs(folder: Path) -> torch.Tensor:
    """Returns the logits, or the scores, of a stage's model for some tokens."""
    ids = torch.arange(64).remainder(500).view(2, 32)
    is_scorer = folder.name.startswith("reward_model")
    model: Any = (load_scorer_model if is_scorer else load_model)(folder)
    outputs: torch.Tensor = model(input_ids=ids).logits
    return outputs
