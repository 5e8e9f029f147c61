"""Runs a transformers Trainer for a stage: starts or resumes it, stops it on request, saves the model."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from qwen_align.align.context import Context
from qwen_align.align.errors import DataError, Preempted, StageError
from qwen_align.align.models import loading
from qwen_align.align.models.adapters import label_adapter
from qwen_align.align.models.model_description import MODEL, locate_model_files
from qwen_align.align.models.router_settings import describe_routers, resolve_router_settings
from qwen_align.align.models.weight_precision import Trained, find_handed_on_precision
from qwen_align.align.settings.stage import CanBeEmpty
from qwen_align.align.store.files import read_json, write_json
from qwen_align.align.training import checkpoints
from qwen_align.align.training.activation_offloading import offload_activations
from qwen_align.align.training.expert_load import watch_experts
from qwen_align.align.training.fsdp2 import shard_trained_model
from qwen_align.align.training.step_guard import run_guarded
from qwen_align.align.training.strategies import read_strategy, require_strategy

CONFIG = "config.json"
FP32 = torch.float32


def train_and_save(trainer: Any, settings: Trained, source: Path, out: Path, context: Context) -> None:
    """Trains a model from its newest checkpoint or from the start, and saves the trained model.

    `settings` are resolved.
    """
    routers = resolve_router_settings(settings, loading.read_model_config(source), context.runtime)
    if routers is not None:
        trainer.expert_load = watch_experts(getattr(trainer.model, "policy", trainer.model), routers.load_balancing)
        print(describe_routers(routers), flush=True)
    run_trainer(trainer, out, context)
    if not settings.lora:
        trainer.handed_on_dtype = loading.DTYPES["bf16" if settings.save_weights == "bf16" else "fp32"]
    _save_trained_model(trainer, settings, source, out, context)


def run_trainer(trainer: Any, out: Path, context: Context) -> None:
    """Runs a Trainer from its newest checkpoint or from the start.

    Raises Preempted when it was asked to stop before the end, and OutOfMemory when memory ran out.
    """
    trainer.context = context
    require_fp32_masters(trainer.model)
    require_strategy(trainer, context.runtime)
    shard_trained_model(trainer)
    resume_point = checkpoints.find_newest_checkpoint(out / "checkpoints", read_strategy(trainer.accelerator))
    context.truncate_logs(resume_point.step)
    resume_point.log_damaged_checkpoints(context)
    trainer.resumed_from = resume_point.saved_by
    if resume_point.folder:
        trainer.load_extra_state(resume_point.folder)
    checkpoint = str(resume_point.folder) if resume_point.folder else None
    train = partial(trainer.train, resume_from_checkpoint=checkpoint)
    with offload_activations(trainer.model, is_asked=context.runtime.activation_offloading):
        run_guarded(trainer, train, resumed_from=resume_point.step)
    if trainer.state.global_step < trainer.state.max_steps:
        raise Preempted(f"stopped as asked after step {trainer.state.global_step}; run again to go on")


def require_fp32_masters(model: nn.Module) -> None:
    """Raises StageError where a trained weight is not fp32: AdamW's small steps in bf16 weights round to nothing."""
    other = next(((name, p.dtype) for name, p in model.named_parameters() if p.requires_grad and p.dtype != FP32), None)
    if other:
        raise StageError(
            f"{other[0]} would be trained in {str(other[1]).removeprefix('torch.')}, where small updates round to "
            "nothing; trained weights have to be fp32"
        )


def _save_trained_model(trainer: Any, settings: Trained, source: Path, out: Path, context: Context) -> None:
    """Saves the trained model for the next stage, as a full model or as an adapter."""
    folder = out / ("adapter" if settings.lora else "model")
    with context.work_on("save"):
        trainer.save_trained_model(folder)
    if context.is_main:
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, and nothing of the model
        if settings.lora:
            in_4_bits = settings.lora.base_weights == "nf4"
            label_adapter(folder, locate_model_files(source), in_4_bits=in_4_bits)
            loading.write_model_json(source, out, ["adapter"])
        else:
            loading.copy_tokenizer_files(loading.fetch_base_folder(locate_model_files(source)), folder)
            loading.add_end_of_turn_stop(folder)
            dtype = "bfloat16" if settings.save_weights == "bf16" else "float32"
            config = read_json(folder / CONFIG)
            # config.json says how the weights were computed with, which may differ from how they are handed on.
            as_source = {"dtype": dtype, **loading.read_router_outputs(source)}
            if config | as_source != config:
                write_json(folder / CONFIG, config | as_source)
            asked = find_handed_on_precision(settings, loading.find_precision(source))
            is_said = asked == settings.save_weights
            write_json(out / MODEL, {"model": "model"} | ({} if is_said else {"precision": asked}))


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
