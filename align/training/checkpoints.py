"""Checkpoints that are whole or not there, and a trainer that stops when asked."""

import math
import os
import random
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qwen_align.align.context import Context, main_process
from qwen_align.align.errors import StageError
from qwen_align.align.store.store import integrity, store

NEEDED = ("optimizer.pt", "scheduler.pt", "trainer_state.json")  # without the first two Adam starts anew, silently


class Found(NamedTuple):
    """The checkpoint to go on from, None for the beginning, and what is wrong with those that were passed over."""

    folder: Path | None
    damaged: list[str]

    @property
    def step(self) -> int:
        return (step_of(self.folder) or 0) if self.folder else 0

    def tell(self, context: Context) -> None:
        """A note for each damaged checkpoint; to be called after `context.forget_after`, which would drop them."""
        instead = f"going on from {self.folder.name}" if self.folder else "starting from the beginning"
        for what in self.damaged:
            context.note(self.step, "damaged checkpoint", f"{what}; {instead}")


class WholeCheckpoints:
    """Mixin before a transformers Trainer: a checkpoint is renamed into place after all of it is on disk."""

    args: TrainingArguments
    state: TrainerState
    _checkpoint_root: Path | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._checkpoint_root or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        home = Path(str(self.args.output_dir))
        folder = unfinished(home, self.state.global_step)
        self._checkpoint_root = folder.parent
        super()._save_checkpoint(model, trial)  # type: ignore[misc]
        self._checkpoint_root = None
        _barrier()
        if self.args.should_save:
            self._save_more(folder)
            _check_saved(folder)
            finish(home, self.state.global_step)
        _barrier()

    def _save_more(self, folder: Path) -> None:
        """What else a checkpoint has to hold; in the main process."""

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: the stage's manifest says what the model is."""


def unfinished(home: Path, step: int) -> Path:
    """Where the files of a checkpoint are written before `finish`."""
    return home / "partial" / f"checkpoint-{step}"


def finish(home: Path, step: int) -> None:
    """Seals the unfinished checkpoint and renames it into place; the others are deleted."""
    folder = unfinished(home, step)
    (folder / "training_args.bin").unlink(missing_ok=True)
    integrity.seal(folder, step=step, world_size=_world_size())
    store.remove_tree(home / folder.name)
    folder.rename(home / folder.name)
    for old in _checkpoints(home):
        if old.name != folder.name:
            store.remove_tree(old)


def _check_saved(folder: Path) -> None:
    """Raises StageError when the trainer has left out what it needs to go on. DeepSpeed has files of its own."""
    missing = [name for name in NEEDED if not (folder / name).exists()]
    if not any(folder.glob("rng_state*")):
        missing.append("rng_state.pth")
    if missing and not (folder / "latest").exists():
        raise StageError(
            f"{folder}: transformers saved no {', '.join(missing)}; see NEEDED in align/training/checkpoints.py"
        )


def newest(home: Path) -> Found:
    """The newest whole checkpoint; raises StageError when another number of processes made it.

    The main process reads all files and tells the others.
    """
    found = _from_main(_look(home) if main_process() else None)
    if found.folder:
        made_by = store.read_json(found.folder / integrity.COMPLETE)["world_size"]
        if made_by != (now := _world_size()):
            raise StageError(
                f"{found.folder}: saved by {made_by} process(es), but this run has {now}; "
                "run with as many as before, or recompute the stage with --force"
            )
    return found


def _look(home: Path) -> Found:
    store.remove_tree(home / "partial")
    steps = {folder: step_of(folder) for folder in _checkpoints(home)}
    damaged = [f"{folder}: its name has no step" for folder, step in sorted(steps.items()) if step is None]
    for step, folder in sorted(((step, folder) for folder, step in steps.items() if step is not None), reverse=True):
        try:
            said = integrity.opened(folder)
        except integrity.Damaged as error:
            damaged.append(f"{folder}: {error}")
            continue
        if said["step"] == step:
            return Found(folder, damaged)
        damaged.append(f"{folder}: holds step {said['step']}")
    return Found(None, damaged)


def _checkpoints(home: Path) -> list[Path]:
    return [path for path in home.glob("checkpoint-*") if path.is_dir()]


def step_of(folder: Path) -> int | None:
    """The step in the folder's name."""
    said = folder.name.removeprefix("checkpoint-")
    return int(said) if said.isdecimal() else None


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _from_main(found: Found | None) -> Found:
    """What the main process found, in every process."""
    said = [found]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(said, src=0)
    assert said[0] is not None
    return said[0]


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
