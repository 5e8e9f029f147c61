"""Every kind of stage that trains under every strategy, its processes killed, against one that nobody touched.

A cell is a kind, a strategy and two processes. Each kill is drawn by the seed: SIGKILL to one of a stage's processes or
to all, or SIGTERM to one, as a scheduler sends it; while it loads, in a step, while it saves a checkpoint, or after it.
The stage is then run again, until it ends, and its metrics and everything it hands on are compared with the untouched
one's. With --continue-by the runs go on in other numbers of processes, where a strategy can. The first checkpoint of
each cell is damaged in copies, file by file, and has to be passed over. All stages are forked from one warm server.
Prints a table and ends with 1 where something differs.

    PYTHONPATH=tests/fsdp2_on_gloo:.. python tests/evidence/strategy_kills.py [--kills 50] [--cells sft:zero2,..]
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from qwen_align.align.context import MEASURED
from qwen_align.align.errors import AlignError
from qwen_align.align.pipeline import run as run_module
from qwen_align.align.pipeline.launcher import Launcher
from qwen_align.align.pipeline.plan import plan
from qwen_align.align.store import integrity
from qwen_align.align.training import checkpoints

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.end_to_end import ladder

ONLINE = {"schedule": "constant", "learning_rate": 1e-3, "steps": 5, "prompts_per_step": 4}
PPO = ladder.SHARED[3]
STAGES: dict[str, dict[str, Any]] = {
    "sft": {**ladder.SFT, "batch": 6, "epochs": 0.9},
    "dpo": {**ladder.DPO, "batch": 6, "epochs": 0.9},
    "reward_model": {**ladder.SCORER, "batch": 6, "epochs": 0.9},
    "grpo": {**ladder.GRPO, **ONLINE, "kl": {"coefficient": 0.05, "reference_sync_steps": 2}},
    "ppo": {**PPO, **ONLINE, "steps": 3},
}
STRATEGIES = ("ddp", "zero1", "zero2", "zero3", "zero3+parameters", "fsdp2")
ROWS = [ladder.TRACES, ladder.PROBLEMS, ladder.PAIRS, ladder.TEXTS]
MOMENTS = ("load", "step", "save", "saved")
TARGETS = ("one", "all", "term")
HANG_S = 600.0


class Cell(NamedTuple):
    """A kind of stage under a strategy in so many processes."""

    kind: str
    strategy: str
    processes: int = 2

    def __str__(self) -> str:
        return f"{self.kind}:{self.strategy}:{self.processes}"

    @property
    def runtime(self) -> dict[str, Any]:
        strategy, _, offload = self.strategy.partition("+")
        return {"processes": self.processes, "strategy": strategy} | ({"offload": offload} if offload else {})


class Kill(NamedTuple):
    """When and whom to kill: a moment of MOMENTS at an optimiser step and a delay after it; a target of TARGETS."""

    moment: str
    step: int
    delay_s: float
    target: str
    rank: int

    def __str__(self) -> str:
        who = {"one": f"SIGKILL of rank {self.rank}", "all": "SIGKILL of all", "term": f"SIGTERM to rank {self.rank}"}
        return f"{self.moment} {self.step} + {self.delay_s:.3f} s, {who[self.target]}"


class Silent:
    """A listener of a run that keeps its notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def on_note(self, message: str) -> None:
        self.notes.append(message)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


class SharedLauncher(Launcher):
    """A launcher that outlives the runs it is used in, so that its warm server imports once."""

    def __exit__(self, *_: object) -> None:
        """Leaves the warm server running."""

    def end(self) -> None:
        """Ends the warm server."""
        super().__exit__()

    def list_stage_pids(self) -> list[int]:
        """Returns the processes of the stage that runs, in the order of their ranks."""
        if self._server is None:
            return []
        pid = self._server.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def share_launcher() -> Iterator[SharedLauncher]:
    """Has all runs inside the `with` block use one launcher."""
    launcher, original = SharedLauncher(), run_module.Launcher
    run_module.Launcher = lambda *_: launcher  # type: ignore[assignment, misc]
    try:
        yield launcher
    finally:
        run_module.Launcher = original  # type: ignore[misc]
        launcher.end()


def write_cell_recipe(folder: Path, cell: Cell, **changes: Any) -> Path:
    """Writes the recipe of a cell and returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    stage = {**STAGES[cell.kind], **changes, "name": "trained", "seed": 0}
    stage["runtime"] = {**stage.get("runtime", {}), **cell.runtime, "checkpoint_every": 2, "micro_batch": 4}
    return ladder.write_recipe(folder, *ROWS, stage)


def run_recipe(recipe: Path, home: Path) -> str | None:
    """Runs a recipe to its end and returns what it failed with, None if it did not."""
    try:
        run_module.run(plan(recipe, home), Silent())  # type: ignore[arg-type]
    except AlignError as error:
        return f"{type(error).__name__}: {error}"
    return None


def find_stage_folder(home: Path, kind: str) -> Path | None:
    return next(iter(home.glob(f"store/{kind}-*")), None)


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Returns what a stage logged of each step that does not differ between two runs of the same work."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if not name.startswith(MEASURED)} for line in lines]


def compare(whole: Path, other: Path, tolerance: float) -> str:
    """Says whether a stage equals the untouched one: its outputs and metrics, or its losses within a tolerance."""
    made = [json.loads((folder / "manifest.json").read_text())["outputs"] for folder in (whole, other)]
    one, two = read_metrics(whole), read_metrics(other)
    if made[0] == made[1] and one == two:
        return "same bytes"
    if [line["step"] for line in one] != [line["step"] for line in two]:
        return f"DIFFERS: steps {[line['step'] for line in two]}"
    off = max(
        abs(x[name] - y.get(name, float("nan"))) / max(abs(x[name]), 1e-3)
        for x, y in zip(one, two, strict=True)
        for name in ("loss", "grad_norm")
        if name in x
    )
    where = next((x["step"] for x, y in zip(one, two, strict=True) if x != y), "the end")
    return f"{'within' if off <= tolerance else 'DIFFERS:'} {off:.1e} from step {where} on"


def count_damages(checkpoint: Path, cell: Cell) -> tuple[int, list[str]]:
    """Damages a checkpoint in copies, each file in each way. Returns how many there were, and those not noticed."""
    number, missed = 0, []
    names = [*integrity.list_files(checkpoint), "foreign.pt"]
    with tempfile.TemporaryDirectory() as scratch:
        for name in names:
            for way, damage in DAMAGES.items():
                copy = Path(scratch, checkpoint.name)
                shutil.copytree(checkpoint, copy)
                if name == "foreign.pt":
                    (copy / name).write_bytes(b"foreign")
                else:
                    damage(copy / name)
                found = checkpoints.find_newest_checkpoint(Path(scratch), read_strategy_of(cell))
                number += 1
                if found.folder is not None or not found.damaged:
                    missed.append(f"{name} {way}")
                shutil.rmtree(copy)
    return number, missed


def read_strategy_of(cell: Cell) -> Any:
    return cell.strategy.partition("+")[0]


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-7]),
    "removed": lambda path: path.unlink(),
    "flipped": flip_byte,
}
DAMAGED: dict[Cell, tuple[int, list[str]]] = {}


def start_killer(launcher: SharedLauncher, home: Path, cell: Cell, kill: Kill, said: list[str]) -> threading.Thread:
    """Starts a thread that waits for the moment and kills; what it did is appended to `said`."""

    def has_come(folder: Path) -> bool:
        if kill.moment == "load":
            return True
        if kill.moment == "step":
            metrics = folder / "metrics.jsonl"
            return metrics.exists() and len(metrics.read_bytes().splitlines()) >= kill.step
        place = "partial/" if kill.moment == "save" else ""
        return (folder / "checkpoints" / f"{place}checkpoint-{kill.step}").exists()

    def work() -> None:
        deadline = time.monotonic() + HANG_S
        while time.monotonic() < deadline:
            folder = find_stage_folder(home, cell.kind)
            pids = launcher.list_stage_pids()
            if folder and (folder / "manifest.json").exists():
                said.append("too late")
                return
            if folder and (folder / "stage.json").exists() and len(pids) >= cell.processes and has_come(folder):
                break
            time.sleep(0.001)
        time.sleep(kill.delay_s)
        pids = launcher.list_stage_pids()
        if len(pids) < cell.processes:
            said.append("too late")
            return
        chosen = pids if kill.target == "all" else [pids[kill.rank % len(pids)]]
        for pid in chosen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM if kill.target == "term" else signal.SIGKILL)
        said.append("killed")

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def draw_kill(rng: random.Random, number: int) -> Kill:
    """Draws a kill: moments and targets in turn, so that all of them come."""
    moment = MOMENTS[number % len(MOMENTS)]
    delays = {"load": (0.0, 1.5), "step": (0.0, 0.3), "save": (0.0, 0.08), "saved": (0.0, 0.02)}[moment]
    step = rng.choice([2, 4] if moment in ("save", "saved") else [1, 2, 3, 4])
    return Kill(moment, step, rng.uniform(*delays), TARGETS[(number // len(MOMENTS)) % len(TARGETS)], rng.randrange(2))


def kill_and_continue(
    launcher: SharedLauncher, recipe: Path, home: Path, cell: Cell, kill: Kill, continue_by: int | None, precision: str
) -> tuple[str, str]:
    """Runs a cell, kills it and runs it to its end. Returns what happened and what it went on from."""
    said: list[str] = []
    thread = start_killer(launcher, home, cell, kill, said)
    failed = run_recipe(recipe, home)
    thread.join()
    folder = find_stage_folder(home, cell.kind)
    assert folder is not None
    steps = sorted(path.name for path in (folder / "checkpoints").glob("checkpoint-*"))
    left = [
        str(path.relative_to(folder / "checkpoints" / "partial"))
        for path in (folder / "checkpoints" / "partial").glob("*/*")
    ]
    went_on = ", ".join(steps) or ("the end" if (folder / "manifest.json").exists() else "the beginning")
    if left:
        went_on += f" (partial: {len(left)} files)"
    if steps and cell not in DAMAGED:
        DAMAGED[cell] = count_damages(folder / "checkpoints" / steps[-1], cell)
    if failed is None:
        return "ended by itself", went_on
    if continue_by is not None:
        recipe = write_cell_recipe(
            recipe.parent / str(continue_by), cell._replace(processes=continue_by), precision=precision
        )
    if failed := run_recipe(recipe, home):
        return f"FAILED to go on: {failed}", went_on
    return said[0], went_on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--continue-by", type=int, nargs="*", help="numbers of processes that go on in turn; 2 without")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cells", help="kind:strategy, separated by commas; all without it")
    parser.add_argument("--home", type=Path, help="where the runs stay; deleted at the end without it")
    options = parser.parse_args()
    cells = [Cell(kind, strategy) for strategy in STRATEGIES for kind in STAGES]
    if options.cells:
        cells = [Cell(*name.split(":")[:2]) for name in options.cells.split(",")]
    with tempfile.TemporaryDirectory() as scratch, share_launcher() as launcher:
        sys.exit(run_kills(launcher, cells, options, options.home or Path(scratch)))


def run_kills(launcher: SharedLauncher, cells: list[Cell], options: argparse.Namespace, home: Path) -> int:
    """Prints a line for each kill; returns 1 if one differs from the untouched run, else 0."""
    rng, wrong, hits, began = random.Random(options.seed), 0, 0, time.monotonic()
    whole: dict[Cell, Path | None] = {}
    number = 0
    print("| cell | killed | went on from | ends with |\n|---|---|---|---|", flush=True)
    while hits < options.kills and number < 3 * options.kills:
        cell = cells[number % len(cells)]
        kill = draw_kill(rng, number // len(cells) + number)
        folder = home / str(cell).replace(":", "_")
        recipe = write_cell_recipe(folder, cell, precision=options.precision)
        if cell not in whole:
            failed = run_recipe(recipe, folder / "whole")
            whole[cell] = None if failed else find_stage_folder(folder / "whole", cell.kind)
            if failed:
                print(f"| {cell} | - | - | FAILED untouched: {failed.splitlines()[0][:200]} |", flush=True)
                wrong += 1
        number += 1
        untouched = whole[cell]
        if untouched is None:
            continue
        for made in (folder / "whole" / "store").glob("build_data-*"):
            shutil.copytree(made, folder / str(number) / "store" / made.name)
        continue_by = options.continue_by[number % len(options.continue_by)] if options.continue_by else None
        if continue_by is not None:
            kill = kill._replace(moment="step", step=2, target="term")  # it saves, so that half of it is the other's
        happened, went_on = kill_and_continue(
            launcher, recipe, folder / str(number), cell, kill, continue_by, options.precision
        )
        hits += happened == "killed"
        other = find_stage_folder(folder / str(number), cell.kind)
        assert other is not None
        tolerance = 1e-6 if continue_by is None else 1e-5
        result = compare(untouched, other, tolerance) if (other / "manifest.json").exists() else happened
        wrong += "DIFFERS" in result or "FAILED" in result
        by = f", by {continue_by}" if continue_by else ""
        print(f"| {cell}{by} | {kill}: {happened} | {went_on} | {result} |", flush=True)
    for cell, (n_damages, missed) in DAMAGED.items():
        wrong += bool(missed)
        print(f"{cell}: {n_damages} damages of its checkpoint, not noticed: {', '.join(missed) or 'none'}", flush=True)
    seconds = time.monotonic() - began
    print(f"\n{hits} kills in {len(whole)} cells, {wrong} wrong; {seconds:.0f} s, seed {options.seed}", flush=True)
    return int(wrong > 0 or hits == 0)


if __name__ == "__main__":
    main()
