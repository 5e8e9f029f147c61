"""Checkpoints that are whole or not there, and a trainer that stops when asked."""

import json
import math
import os
import random
from pathlib import Path
from typing import Any

import torch.distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qwen_align.align import store
from qwen_align.align.context import Context, main_process
from qwen_align.align.errors import StageError

COMPLETE = "complete.json"
NEEDED = ("optimizer.pt", "scheduler.pt", "trainer_state.json")  # without the first two Adam starts anew, silently


class WholeCheckpoints:
    """Mixin before a transformers Trainer: a checkpoint is renamed into place after all of it is on disk."""

    args: TrainingArguments
    state: TrainerState
    _checkpoint_root: Path | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._checkpoint_root or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        home = Path(str(self.args.output_dir))
        name = f"checkpoint-{self.state.global_step}"
        self._checkpoint_root = home / "partial"
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        self._checkpoint_root = None
        _barrier()
        if self.args.should_save:
            self._save_more(home / "partial" / name)
            _complete(home / "partial" / name)
            store.remove_tree(home / name)
            (home / "partial" / name).rename(home / name)
            for old in _checkpoints(home):
                if old.name != name:
                    store.remove_tree(old)
        _barrier()

    def _save_more(self, folder: Path) -> None:
        """What else a checkpoint has to hold; in the main process."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the stage's manifest says what the model is."""


def _complete(folder: Path) -> None:
    (folder / "training_args.bin").unlink(missing_ok=True)
    files = {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    for name in files:
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    store.write_json(folder / COMPLETE, {"files": files, "world_size": int(os.environ.get("WORLD_SIZE", "1"))})


def newest(home: Path) -> Path | None:
    """The newest whole checkpoint; raises StageError when it was made by another number of processes."""
    if main_process():
        store.remove_tree(home / "partial")
    _barrier()
    for folder in sorted(_checkpoints(home), key=step_of, reverse=True):
        if _is_whole(folder):
            made_by = store.read_json(folder / COMPLETE)["world_size"]
            if made_by != (now := int(os.environ.get("WORLD_SIZE", "1"))):
                raise StageError(
                    f"{folder}: saved by {made_by} process(es), but this run has {now}; "
                    "run with as many as before, or recompute the stage with --force"
                )
            return folder
    return None


def _is_whole(folder: Path) -> bool:
    if not (folder / COMPLETE).exists():
        return False
    files = json.loads((folder / COMPLETE).read_text())["files"]
    sizes_hold = all((folder / name).exists() and (folder / name).stat().st_size == files[name] for name in files)
    return sizes_hold and all(name in files for name in NEEDED) and any("rng_state" in name for name in files)


def _checkpoints(home: Path) -> list[Path]:
    return [path for path in home.glob("checkpoint-*") if path.is_dir()]


def step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _barrier() -> None:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()


def _any_process(flag: bool) -> bool:
    """Whether the flag is up in any process: all have to stop after the same step."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return flag
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    flags = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(flags, op=torch.distributed.ReduceOp.MAX)
    return bool(flags)


class Watcher(TrainerCallback):  # type: ignore[misc]
    """Tells the context how far training is, stops when asked, and raises when the loss is no number."""

    def __init__(self, context: Context, tokens_a_step: float = 0.0) -> None:
        self.context = context
        self.tokens_a_step = tokens_a_step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> TrainerControl:
        tokens = state.num_input_tokens_seen or int(self.tokens_a_step * state.global_step)
        self.context.progress(state.global_step, state.max_steps, tokens)
        if _any_process(self.context.stopping()) and state.global_step < state.max_steps:
            control.should_save = True
            control.should_training_stop = True
        return control

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        logs = {name: value for name, value in (kwargs.get("logs") or {}).items() if isinstance(value, int | float)}
        if not math.isfinite(logs.get("loss", 0.0)):
            raise StageError(f"step {state.global_step}: the loss is {logs['loss']}; lower learning_rate")
        if "loss" in logs:
            if self.tokens_a_step:  # TRL's own count starts at 0 again when a stage is resumed
                logs["num_tokens"] = int(self.tokens_a_step * state.global_step)
            self.context.log({"step": state.global_step, **logs})
        return control


def order(n_rows: int, n_draws: int, seed: int) -> list[int]:
    """Row numbers in the order they are trained: one permutation after another, cut after `n_draws`.

    The same for any number of processes, and every batch is full.
    """
    drawn: list[int] = []
    epoch = 0
    while len(drawn) < n_draws:
        permutation = list(range(n_rows))
        random.Random(f"{seed}:{epoch}").shuffle(permutation)
        drawn += permutation
        epoch += 1
    return drawn[:n_draws]
