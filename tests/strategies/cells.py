"""Trains each kind of stage under a strategy, and keeps its losses, what each process held, and the weights handed on.

`python -P tests/strategies/cells.py FOLDER CELL ...` imports torch, TRL and DeepSpeed once and forks the processes of
each cell, as the warm server does; a cell is KIND:STRATEGY:PROCESSES[:VARIANT...]. What `run_cells` reads is FOLDER.
"""

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from qwen_align.align.pipeline.deepspeed_operators import build_operator_environment, build_operators
from qwen_align.align.settings.runtime import Runtime
from tests.end_to_end import ladder

FSDP2_ON_GLOO = Path(__file__).parents[1] / "fsdp2_on_gloo"

DATA = [
    {**ladder.TRACES, "builder": {**ladder.TRACES["builder"], "n": 48}},
    ladder.PROBLEMS,
    ladder.PAIRS,
    ladder.TEXTS,
]
SHORT = {"batch": 8, "epochs": 1, "learning_rate": 1e-4}
KINDS: dict[str, dict[str, Any]] = {
    "sft": {**ladder.SFT, **SHORT},
    "dpo": {**ladder.DPO, **SHORT, "epochs": 1.2},
    "reward_model": {**ladder.SCORER, **SHORT, "epochs": 1.2},
    "grpo": {
        **ladder.GRPO,
        "steps": 3,
        "updates": {"epochs": 1, "minibatches": 2},
        "kl": {"coefficient": 0.05},
        "learning_rate": 1e-4,
    },
    "ppo": {**ladder.SHARED[3], "learning_rate": 1e-4},
}
# What a cell may be besides its kind and strategy.
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"lora": ladder.SMALL},
    "bf16": {"precision": "bf16"},
    "optimizer": {"runtime": {"offload": "optimizer"}},
    "parameters": {"runtime": {"offload": "parameters"}},
    "recompute": {"runtime": {"gradient_checkpointing": True}},
    "small": {"runtime": {"micro_batch": 2}},  # several passes a step, and not as many in every process
    # of online RL
    "head": {"critic": {"kind": "head", "learning_rate": 1e-3, "warmup_steps": 1}},
    "detached": {"critic": {"kind": "head", "detached": True, "learning_rate": 1e-3, "warmup_steps": 1}},
    "synced": {"kl": {"coefficient": 0.05, "reference_sync_steps": 1}, "entropy": {"coefficient": 0.01}},
    "uneven": {  # fewer prompts than processes, replaced where they teach nothing, drawn a step ahead
        "kl": None,
        "steps": 6,
        "updates": {"epochs": 1},
        "prompts_per_step": 1,
        "completions_per_prompt": 3,
        "dynamic_sampling": {"max_prompts": 3},
        "async_steps": 1,
        "held_out": {"from_data": ["problems"], "every_steps": 3},
        "runtime": {"micro_batch": 1},
    },
    "warm": {"steps": 3, "ptx": None, "critic": {"kind": "head", "learning_rate": 1e-3, "warmup_steps": 3}},
    "skipped": {"kl": None, "rewards": [{"kind": "constant"}]},  # no step has anything to train on
}


class Cell(NamedTuple):
    """What came of a cell: its exit code and log, the lines of its metrics, what each rank held, and its folder."""

    code: int
    log: str
    metrics: list[dict[str, float]]
    held: list[dict[str, Any]]
    folder: Path
    seconds: float


def run_cells(folder: Path, cells: Iterable[str], environment: Mapping[str, str] | None = None) -> dict[str, Cell]:
    """Trains cells and returns what came of each."""
    cells = list(cells)
    build_data(folder)
    paths = [str(FSDP2_ON_GLOO), str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    started = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "OMP_NUM_THREADS": "1",
        **(environment or {}),
    }
    if any(":zero" in cell for cell in cells):
        started |= build_operator_environment()
        build_operators(Runtime(), started, print)
    done = subprocess.run(
        [sys.executable, "-P", __file__, str(folder), *cells],
        env=started,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {cell: read_cell(folder / name_folder(cell)) for cell in cells}


def build_data(folder: Path) -> None:
    """Builds the data sets of all cells into a folder, once."""
    if not (folder / "runs").exists():
        ladder.run(ladder.write_recipe(folder, *DATA), folder)


def name_folder(cell: str) -> str:
    """Returns the name of a cell's folder."""
    return cell.replace(":", "-")


def read_cell(folder: Path) -> Cell:
    """Reads what came of a cell."""
    ended = json.loads((folder / "ended.json").read_text())
    metrics = folder / "metrics.jsonl"
    return Cell(
        ended["code"],
        (folder / "log.txt").read_text(errors="replace"),
        [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else [],
        [json.loads(path.read_text()) for path in sorted(folder.glob("held-*.json"))],
        folder,
        ended["seconds"],
    )


def write_stage(folder: Path, home: Path, cell: str) -> int:
    """Writes the stage.json of a cell and returns its number of processes."""
    kind, strategy, processes, *variants = cell.split(":")
    settings = {name: value for name, value in KINDS[kind].items() if name not in ("name", "runtime")}
    runtime: dict[str, Any] = {"device": "cpu", "threads": 1, "generation_batch": 16, "checkpoint_every": 1000}
    runtime |= {"strategy": strategy, "processes": int(processes), **KINDS[kind].get("runtime", {})}
    for variant in variants:
        changed = VARIANTS[variant]
        settings |= {name: value for name, value in changed.items() if name != "runtime"}
        runtime |= changed.get("runtime", {})
    stages = home / "runs" / "trained" / "stages"
    inputs = {stage["name"]: {"folder": str((stages / stage["name"]).resolve())} for stage in DATA}
    job = {
        "settings": {"name": kind, **settings},
        "runtime": runtime,
        "seed": 0,
        "key": name_folder(cell),
        "inputs": {"base": {"folder": str(ladder.BASE)}, **inputs},
    }
    folder.mkdir(exist_ok=True)
    (folder / "stage.json").write_text(json.dumps(job))
    return int(processes)


def main() -> None:
    """Trains the cells named on the command line, one after another."""
    from qwen_align.align.pipeline import warm_server

    home = Path(sys.argv[1])
    os.environ.update(warm_server.NO_THREADS)
    warm_server._import_libraries()
    if importlib.util.find_spec("deepspeed"):
        import deepspeed  # noqa: F401
    from qwen_align.align.training import fit
    from tests.strategies.held_bytes import measure_held_bytes

    fit.run_trainer = measure_held_bytes(fit.run_trainer)
    for cell in sys.argv[2:]:
        began = time.monotonic()
        folder = home / name_folder(cell)
        processes = write_stage(folder, home, cell)
        request = {
            "folder": str(folder),
            "report": str(folder / "report.json"),
            "log": str(folder / "log.txt"),
            "processes": processes,
            "is_group": processes > 1 or ":zero" in cell,
        }
        code = warm_server.wait_for_processes(warm_server.fork_stage(request, 0.0))
        ended = {"code": code, "seconds": round(time.monotonic() - began, 1)}
        (folder / "ended.json").write_text(json.dumps(ended))
        print(json.dumps({"cell": cell, **ended}), flush=True)


if __name__ == "__main__":
    main()
