"""Runs an sft stage: next-token training on rendered rows with TRL's SFTTrainer. Token ids are our own."""

from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trl import SFTTrainer
from trl.trainer import sft_trainer

from qwen_align.align.context import Context
from qwen_align.align.models import loading, quantized_base
from qwen_align.align.models.attention_setting import set_attention
from qwen_align.align.models.length_limit import require_length
from qwen_align.align.models.lora import build_lora_config, prepare_adapters
from qwen_align.align.models.quantization_error import measure_quantization
from qwen_align.align.rendering.samples import Sample
from qwen_align.align.rendering.training_set import SampleStream
from qwen_align.align.rows import read_rows
from qwen_align.align.settings.sft import Sft
from qwen_align.align.settings.training import count_optimizer_steps
from qwen_align.align.training import fit, trl_arguments
from qwen_align.align.training.callbacks import ProgressCallback
from qwen_align.align.training.checkpointing import decide_checkpointing
from qwen_align.align.training.packed_forward import replace_fused_head
from qwen_align.align.training.row_order import draw_row_order
from qwen_align.align.training.stored_rows import render_once
from qwen_align.align.training.strategies import start_strategy
from qwen_align.align.training.whole_steps import Batch, Row, WholeSteps


class Trainer(WholeSteps, SFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer on packed rows and whole optimiser steps."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with replace_fused_head(sft_trainer, are_pairs=False):
            super().__init__(*args, **kwargs)

    def count_tokens(self, row: Row) -> int:
        """Returns how many tokens a sample has."""
        return len(row["input_ids"])

    def count_totals(self, batches: Sequence[Batch]) -> Tensor:
        """Returns the number of tokens in the loss."""
        return torch.tensor([sum(_count_tokens_in_loss(batch) for batch in batches)])

    def compute_part(self, model: Any, batch: Batch, totals: Tensor) -> Tensor:
        """Returns the sum of a micro-batch's losses over the number of the step's tokens in the loss."""
        loss: Tensor = self.compute_loss(model, batch, num_items_in_batch=totals[0])
        return loss

    def read_rows(self, model: Any, batch: Batch) -> None:
        """Has the model read a micro-batch's tokens as far as the head."""
        model(**batch, use_cache=False, states_only=True)

    def weigh_metrics(self, batch: Batch) -> tuple[float, Mapping[str, float]]:
        """Returns the number of a micro-batch's tokens in the loss, over which TRL averages."""
        return _count_tokens_in_loss(batch), {}


def run(settings: Sft, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Fine-tunes the model on the rows' completions, saves it and returns the summary."""
    source = inputs[settings.from_model]
    settings = loading.resolve_settings(settings, source)
    rows = chain.from_iterable(read_rows(inputs[ref] / "rows.jsonl") for ref in settings.from_data)
    stream = SampleStream(loading.load_renderer(source), rows, settings.max_tokens)
    rendered = render_once(out, context, stream, build_columns)
    if not rendered.n_rows:
        return fit.pass_model_through(settings, source, out, rendered.dropped, "max_tokens or from_data")
    require_length(loading.find_length_limit(source), rendered.longest, "a sample")
    steps = count_optimizer_steps(rendered.n_rows, settings.epochs, settings.batch)
    row_order = draw_row_order(rendered.n_rows, steps * settings.batch, context.seed)
    runtime = decide_checkpointing(settings, context.runtime, loading.read_model_config(source))
    args = trl_arguments.build_sft_arguments(settings, runtime, out, steps=steps, seed=context.seed)
    start_strategy(args, runtime, out)
    model = quantized_base.load_for_training(source, settings, context.runtime)
    set_attention(model, context.runtime.attention, loading.choose_device(context.runtime).type)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=rendered.dataset.select(row_order),
        processing_class=fit.load_padding_tokenizer(source),
        peft_config=build_lora_config(settings.lora, model),
        callbacks=[ProgressCallback(context, tokens_per_step=rendered.count_tokens(row_order) / steps)],
    )
    prepare_adapters(trainer.model)
    fit.train_and_save(trainer, settings, source, out, context)
    return {
        "samples": rendered.n_rows,
        "dropped": rendered.dropped,
        "modes": rendered.counts["modes"],
        "steps": steps,
        "supervised_tokens": rendered.counts["supervised_tokens"],
        **measure_quantization(trainer.model, out, rendered.dataset[0]["input_ids"], context),
    }


def _count_tokens_in_loss(batch: Batch) -> int:
    """Returns how many tokens of a micro-batch are in the loss; the first of a row never is."""
    return int((batch["labels"][:, 1:] != -100).sum())


def build_columns(sample: Sample) -> dict[str, Any]:
    """Returns a sample as TRL's columns input_ids and labels.

    A label is -100 where a token is not in the loss.
    """
    labels = [token if is_trained else -100 for token, is_trained in zip(sample.ids, sample.mask, strict=True)]
    return {"input_ids": sample.ids, "labels": labels}
