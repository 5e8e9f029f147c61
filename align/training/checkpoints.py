"""Writes checkpoints atomically and finds the newest undamaged checkpoint."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import TrainerState, TrainingArguments

from qwen_align.align.context import Context
from qwen_align.align.errors import StageError
from qwen_align.align.models.bf16_weights import cast_state
from qwen_align.align.store import integrity
from qwen_align.align.store.files import read_json, remove_tree
from qwen_align.align.training.distributed import (
    broadcast_from_main,
    get_world_size,
    is_main_process,
    wait_for_all,
    wait_until_visible,
)

NEEDED = ("optimizer.pt", "scheduler.pt", "trainer_state.json")  # without the first two Adam starts anew, silently


class ResumePoint(NamedTuple):
    """The checkpoint folder to resume from and the faults of newer, damaged checkpoints.

    The folder is None at the beginning.
    """

    folder: Path | None
    damaged: list[str]

    @property
    def step(self) -> int:
        """Returns the training step of the checkpoint to resume from.

        It is 0 at the beginning.
        """
        return (parse_checkpoint_step(self.folder) or 0) if self.folder else 0

    def log_damaged_checkpoints(self, context: Context) -> None:
        """Logs a note for each damaged checkpoint.

        Call it after `context.truncate_logs`, which would drop them.
        """
        resumed_from = f"going on from {self.folder.name}" if self.folder else "starting from the beginning"
        for problem in self.damaged:
            context.log_note(self.step, "damaged checkpoint", f"{problem}; {resumed_from}")


class AtomicCheckpoints:
    """A mixin for a transformers Trainer that renames a checkpoint into place once it is complete.

    It comes before Trainer among the base classes.
    """

    args: TrainingArguments
    state: TrainerState
    model: Any
    last_saved_step = 0
    _checkpoint_root: Path | None = None
    handed_on_dtype: torch.dtype | None = (
        None  # of a whole model that is saved for the next stage; checkpoints are fp32
    )

    def _get_output_dir(self, trial: Any) -> str:
        """Returns the folder that transformers writes to.

        While a checkpoint is saved, it is the partial checkpoint's.
        """
        return str(self._checkpoint_root or self.args.output_dir)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Saves a checkpoint into a partial folder, checks its files and renames it into place."""
        home = Path(str(self.args.output_dir))
        folder = get_partial_folder(home, self.state.global_step)
        self._checkpoint_root = folder.parent
        try:
            super()._save_checkpoint(model, trial)  # type: ignore[misc]
        finally:
            self._checkpoint_root = None
        wait_for_all()
        if self.args.should_save:
            self._save_extra_state(folder)
            _check_checkpoint_files(folder)
            publish_checkpoint(home, self.state.global_step)
        wait_for_all()
        self.last_saved_step = self.state.global_step

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Saves the model, cast to `handed_on_dtype` when it is to be handed on."""
        if self.handed_on_dtype is not None and self.handed_on_dtype != torch.float32:
            state_dict = cast_state(self.model, state_dict or self.model.state_dict(), self.handed_on_dtype)
        super()._save(output_dir, state_dict=state_dict)  # type: ignore[misc]

    def _save_extra_state(self, folder: Path) -> None:
        """Saves a subclass's own state into the checkpoint folder.

        Called in the main process.
        """

    def load_extra_state(self, folder: Path) -> None:
        """Loads a subclass's own state from the checkpoint folder that training goes on from.

        Called in every process, before training and by ourselves: transformers calls `_load_from_checkpoint` only
        where neither DeepSpeed nor FSDP loads the weights.
        """

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Writes no model card, because the stage's manifest describes the model."""


def get_partial_folder(home: Path, step: int) -> Path:
    """Returns the folder that a checkpoint's files are written to before it is published."""
    return home / "partial" / f"checkpoint-{step}"


def remove_partial_checkpoint(home: Path) -> None:
    """Removes what a checkpoint that was never published has left."""
    remove_tree(home / "partial")


def publish_checkpoint(home: Path, step: int) -> None:
    """Seals the partial checkpoint, renames it into place and deletes older checkpoints."""
    folder = get_partial_folder(home, step)
    (folder / "training_args.bin").unlink(missing_ok=True)
    integrity.seal_folder(folder, step=step, world_size=get_world_size())
    remove_tree(home / folder.name)
    folder.rename(home / folder.name)
    for old in _list_checkpoints(home):
        if old.name != folder.name:
            remove_tree(old)


def _check_checkpoint_files(folder: Path) -> None:
    """Checks that a checkpoint folder has all the files needed to resume.

    Raises StageError if one is missing. DeepSpeed has files of its own.
    """
    missing = [name for name in NEEDED if not (folder / name).exists()]
    if not any(folder.glob("rng_state*")):
        missing.append("rng_state.pth")
    if missing and not (folder / "latest").exists():
        raise StageError(
            f"{folder}: transformers saved no {', '.join(missing)}; see NEEDED in align/training/checkpoints.py"
        )


def find_newest_checkpoint(home: Path) -> ResumePoint:
    """Finds the newest undamaged checkpoint in the folder.

    Raises StageError when another number of processes made it. The main process reads all files and broadcasts the
    result.
    """
    resume_point = broadcast_from_main(_find_resumable(home) if is_main_process() else None)
    if resume_point.folder:
        wait_until_visible(resume_point.folder / integrity.COMPLETE)
        made_by = read_json(resume_point.folder / integrity.COMPLETE)["world_size"]
        if made_by != (now := get_world_size()):
            raise StageError(
                f"{resume_point.folder}: saved by {made_by} process(es), but this run has {now}; "
                "run with as many as before, or recompute the stage with --force"
            )
    return resume_point


def _find_resumable(home: Path) -> ResumePoint:
    """Verifies the checkpoints in a folder from the newest on and returns the first undamaged one."""
    remove_partial_checkpoint(home)
    steps = {folder: parse_checkpoint_step(folder) for folder in _list_checkpoints(home)}
    damaged = [f"{folder}: its name has no step" for folder, step in sorted(steps.items()) if step is None]
    for step, folder in sorted(((step, folder) for folder, step in steps.items() if step is not None), reverse=True):
        try:
            record = integrity.verify_sealed_folder(folder)
        except integrity.Damaged as error:
            damaged.append(f"{folder}: {error}")
            continue
        if record["step"] == step:
            return ResumePoint(folder, damaged)
        damaged.append(f"{folder}: holds step {record['step']}")
    return ResumePoint(None, damaged)


def _list_checkpoints(home: Path) -> list[Path]:
    """Returns the folders of complete checkpoints, in no order."""
    return [path for path in home.glob("checkpoint-*") if path.is_dir()]


def parse_checkpoint_step(folder: Path) -> int | None:
    """Parses the training step from the name of a checkpoint folder.

    Returns None if it has none.
    """
    digits = folder.name.removeprefix("checkpoint-")
    return int(digits) if digits.isdecimal() else None
