"""Runs a transformers Trainer for a stage: starts or resumes it, stops it on request, saves the model."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from qwen_align.align.context import Context
from qwen_align.align.errors import DataError, Preempted, StageError
from qwen_align.align.models import loading
from qwen_align.align.models.adapters import label_adapter
from qwen_align.align.models.model_description import MODEL, locate_model_files
from qwen_align.align.settings.stage import CanBeEmpty
from qwen_align.align.store.files import write_json
from qwen_align.align.training import checkpoints
from qwen_align.align.training.step_guard import run_guarded


def train_and_save(trainer: Any, source: Path, out: Path, context: Context) -> None:
    """Trains a model from its newest checkpoint or from the start, and saves the trained model."""
    run_trainer(trainer, out, context)
    save_trained_model(source, out, context, is_adapter=isinstance(trainer.model, PeftModel), save=trainer.save_model)


def run_trainer(trainer: Any, out: Path, context: Context) -> None:
    """Runs a Trainer from its newest checkpoint or from the start.

    Raises Preempted when it was asked to stop before the end, and OutOfMemory when memory ran out.
    """
    trainer.context = context
    n_asked, n_actual = context.runtime.processes, trainer.accelerator.num_processes
    if n_asked != n_actual:
        raise StageError(f"runtime asks for {n_asked} processes, but training would run in {n_actual}")
    resume_point = checkpoints.find_newest_checkpoint(out / "checkpoints")
    context.truncate_logs(resume_point.step)
    resume_point.log_damaged_checkpoints(context)
    if resume_point.folder:
        trainer.load_extra_state(resume_point.folder)
    checkpoint = str(resume_point.folder) if resume_point.folder else None
    train = partial(trainer.train, resume_from_checkpoint=checkpoint)
    run_guarded(trainer, train, resumed_from=resume_point.step)
    if trainer.state.global_step < trainer.state.max_steps:
        raise Preempted(f"stopped as asked after step {trainer.state.global_step}; run again to go on")


def save_trained_model(
    source: Path, out: Path, context: Context, *, is_adapter: bool, save: Callable[[str], None]
) -> None:
    """Saves the trained model for the next stage, as a full model or as an adapter."""
    folder = out / ("adapter" if is_adapter else "model")
    with context.work_on("save"):
        save(str(folder))
    if context.is_main:
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, and nothing of the model
        if is_adapter:
            label_adapter(folder, locate_model_files(source))
            loading.write_model_json(source, out, ["adapter"])
        else:
            loading.copy_tokenizer_files(loading.fetch_base_folder(locate_model_files(source)), folder)
            loading.add_end_of_turn_stop(folder)
            write_json(out / MODEL, {"model": "model"})


def pass_model_through(
    settings: CanBeEmpty, source: Path, out: Path, dropped: dict[str, int], setting: str
) -> dict[str, Any]:
    """Writes the untrained source model as the stage's result if `on_empty` is "pass_through".

    Raises DataError otherwise.
    """
    if settings.on_empty == "fail":
        raise DataError(
            f"nothing to train on (dropped: {dropped or 'nothing, there were no rows'}); see {setting}, "
            "or set on_empty: pass_through to pass the model on as it is"
        )
    loading.write_model_json(source, out, [])
    return {"samples": 0, "dropped": dropped, "steps": 0, "passed_through": True}


def load_padding_tokenizer(source: Path) -> PreTrainedTokenizerBase:
    """Loads the transformers tokenizer that TRL's trainers need for padding.

    Its padding token is the renderer's. The bases of Qwen2.5 and Qwen3 pad with the token that ends their texts.
    """
    tokenizer = AutoTokenizer.from_pretrained(str(loading.fetch_base_folder(locate_model_files(source))))
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(loading.load_renderer(source).pad_id)
    return tokenizer
