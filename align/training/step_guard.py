"""Saves the last completed optimiser step when memory runs out, with the random numbers' state of its end."""

import random
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from qwen_align.align.context import Context, Phase
from qwen_align.align.errors import OutOfMemory
from qwen_align.align.training.checkpoints import remove_partial_checkpoint
from qwen_align.align.training.distributed import get_world_size
from qwen_align.align.training.out_of_memory import free_memory, is_out_of_memory


class StepGuard(TrainerCallback):  # type: ignore[misc]
    """A Trainer callback that knows the random numbers' state at the end of each step, and whether weights are whole.

    They are not while the optimiser writes them: some are then of one step and some of the next.
    """

    def __init__(self, context: Context) -> None:
        self.is_updating = False
        self._context = context
        self._restore_generators: Callable[[], None] = _record_generators()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Notes that the optimiser begins to write the weights."""
        self.is_updating = True
        self._context.phase = Phase("update", state.global_step + 1)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Notes that the step is complete, and where its random numbers end."""
        self.is_updating = False
        self._restore_generators = _record_generators()

    def restore_generators(self) -> None:
        """Sets the random number generators back to the end of the last completed step."""
        self._restore_generators()


def _record_generators() -> Callable[[], None]:
    """Records the states of the random number generators and returns a function that sets them back."""
    python, of_numpy, cpu = random.getstate(), numpy.random.get_state(), torch.random.get_rng_state()
    gpus = torch.cuda.random.get_rng_state_all() if torch.cuda.is_available() else []

    def restore() -> None:
        random.setstate(python)
        numpy.random.set_state(of_numpy)
        torch.random.set_rng_state(cpu)
        if gpus:
            torch.cuda.random.set_rng_state_all(gpus)

    return restore


def run_guarded(trainer: Any, train: Callable[[], Any], *, resumed_from: int) -> None:
    """Runs a Trainer; when memory runs out, frees it, saves the last completed step and raises OutOfMemory.

    `resumed_from`: the step of the checkpoint that training goes on from, 0 at the beginning.
    """
    guard = StepGuard(trainer.context)
    trainer.add_callback(guard)
    try:
        train()
        return
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}"
    # Only now, outside of the `except` block, does nothing hold the failed pass's tensors any more.
    phase = trainer.context.phase
    kept = _keep_last_step(trainer, guard, resumed_from=resumed_from)
    trainer.context.phase = phase  # that of the error, not of the saving
    raise OutOfMemory(message, kept)


def _keep_last_step(trainer: Any, guard: StepGuard, *, resumed_from: int) -> str:
    """Saves a checkpoint of the last completed step where that can be done. Says what a further run goes on from."""
    step = trainer.state.global_step
    saved = max(trainer.last_saved_step, resumed_from)
    older = f"the checkpoint of step {saved:,}" if saved else "the beginning"
    if step == saved:
        return f"`run` goes on from {older}"
    if get_world_size() > 1 or trainer.is_deepspeed_enabled or trainer.is_fsdp_enabled:
        return f"Of several processes, and with DeepSpeed or FSDP, none saves alone: `run` goes on from {older}"
    if guard.is_updating:
        return f"It was writing the weights, which are no step's now: `run` goes on from {older}"
    trainer.model.zero_grad(set_to_none=True)
    free_memory()
    guard.restore_generators()
    remove_partial_checkpoint(Path(trainer.args.output_dir))  # it may have been writing one
    try:
        trainer._save_checkpoint(trainer.model, trial=None)
    except Exception as error:  # noqa: BLE001 - whatever it is, the older checkpoint is there still, and the cause is the other error
        traceback.print_exc()
        return f"Saving step {step:,} failed too ({type(error).__name__}): `run` goes on from {older}"
    return f"Step {step:,} is saved: `run` goes on from it"
