"""Finds a stage's checkpoints and says whether a run can go on from one: of its strategy, and how many processes.

It needs no torch, and reads what checkpoints were sealed with alone, so that `check` and `run` see it before processes
are started.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from qwen_align.align.settings.runtime import Runtime, Strategy
from qwen_align.align.settings.strategy import ZERO_STAGES, choose_strategy
from qwen_align.align.store import integrity


class SavedBy(NamedTuple):
    """What a checkpoint was saved by, or is to be loaded by: a strategy in so many processes."""

    strategy: Strategy
    n_processes: int

    def __str__(self) -> str:
        return f"{self.n_processes} process(es) with runtime.strategy: {self.strategy}"


def read_saved_by(record: Mapping[str, Any]) -> SavedBy:
    """Returns by what a sealed checkpoint was saved. One without a strategy is of a version that had ddp alone."""
    return SavedBy(record.get("strategy", "ddp"), int(record["world_size"]))


def list_checkpoints(home: Path) -> list[Path]:
    """Returns the folders of published checkpoints, in no order."""
    return [path for path in home.glob("checkpoint-*") if path.is_dir()]


def parse_checkpoint_step(folder: Path) -> int | None:
    """Parses the training step from the name of a checkpoint folder.

    Returns None if it has none.
    """
    digits = folder.name.removeprefix("checkpoint-")
    return int(digits) if digits.isdecimal() else None


def find_obstacle(saved: SavedBy, now: SavedBy) -> str | None:
    """Returns why a run cannot go on from a checkpoint and what to do, None where it can.

    With ddp weights and optimiser are whole; FSDP2's shards are cut anew by torch. DeepSpeed's are of its ranks.
    """
    if saved.strategy != now.strategy:
        return f"saved by {saved}, but this run has {now}: one strategy cannot read the other's files. {_ADVICE}"
    if saved.n_processes != now.n_processes and saved.strategy in ZERO_STAGES:
        return (
            f"saved by {saved}, but this run has {now.n_processes}: DeepSpeed's shards are of as many processes as "
            f"wrote them. {_ADVICE}"
        )
    return None


_ADVICE = "Run with the runtime as before, or recompute the stage with --force"


def find_obstacle_at_door(home: Path, runtime: Runtime, n_processes: int) -> str | None:
    """Returns why a stage cannot go on from the newest checkpoint in a folder, None where it can or there is none.

    Damaged records are passed over, as a run does; files are not read.
    """
    steps = {folder: parse_checkpoint_step(folder) for folder in list_checkpoints(home)}
    for folder in sorted((one for one in steps if steps[one] is not None), key=lambda one: -(steps[one] or 0)):
        try:
            record = integrity.read_seal(folder)
        except integrity.Damaged:
            continue
        if record.get("step") == steps[folder]:
            obstacle = find_obstacle(read_saved_by(record), SavedBy(choose_strategy(runtime), n_processes))
            return f"{folder}: {obstacle}" if obstacle else None
    return None
