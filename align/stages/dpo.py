"""Runs a dpo stage: preference training on pairs with TRL's DPOTrainer.

The reference policy is the model the stage starts from.
"""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import datasets

from qwen_align.align.context import Context
from qwen_align.align.models import loading, quantized_base
from qwen_align.align.models.length_limit import require_length
from qwen_align.align.models.lora import build_lora_config, prepare_adapters
from qwen_align.align.models.packed_attention import set_attention
from qwen_align.align.models.quantization_error import measure_quantization
from qwen_align.align.rendering.samples import PairIds
from qwen_align.align.rendering.training_set import render_pairs
from qwen_align.align.rows import Pair, read_rows, require_row_type
from qwen_align.align.settings.dpo import Dpo
from qwen_align.align.settings.training import count_optimizer_steps
from qwen_align.align.training import fit, trl_arguments
from qwen_align.align.training.callbacks import ProgressCallback
from qwen_align.align.training.preference_losses import PREFERENCE_LOSSES
from qwen_align.align.training.preference_trainer import PreferenceTrainer
from qwen_align.align.training.reference_check import ReferenceStartCheck
from qwen_align.align.training.row_order import draw_row_order


def run(settings: Dpo, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Trains the model on preference pairs, saves it and returns the summary."""
    source = inputs[settings.from_model]
    settings = loading.resolve_settings(settings, source)
    rows = chain.from_iterable(read_rows(inputs[ref] / "rows.jsonl") for ref in settings.from_data)
    rendered = render_pairs(loading.load_renderer(source), require_row_type(Pair, rows), max_tokens=settings.max_tokens)
    if not rendered.pairs:
        return fit.pass_model_through(settings, source, out, rendered.dropped, "from_data (no pair) or max_tokens")
    require_length(loading.find_length_limit(source), rendered.longest, "a pair's side")
    steps = count_optimizer_steps(len(rendered.pairs), settings.epochs, settings.batch)
    row_order = draw_row_order(len(rendered.pairs), steps * settings.batch, context.seed)
    n_tokens = sum(rendered.pairs[i].n_tokens for i in row_order)
    loss = PREFERENCE_LOSSES[settings.loss]
    model = quantized_base.load_for_training(source, settings, context.runtime)
    set_attention(model, context.runtime.attention, loading.choose_device(context.runtime).type)
    trainer = PreferenceTrainer(
        model=model,
        args=trl_arguments.build_dpo_arguments(settings, context.runtime, out, steps=steps, seed=context.seed),
        train_dataset=build_dataset(rendered.pairs).select(row_order),
        processing_class=fit.load_padding_tokenizer(source),
        peft_config=build_lora_config(settings.lora, model),
        callbacks=[
            ProgressCallback(context, tokens_per_step=n_tokens / steps),
            *([ReferenceStartCheck()] if loss.needs_reference else []),
        ],
        loss=loss,
        sft_weight=settings.sft_weight,
    )
    prepare_adapters(trainer.model)
    fit.train_and_save(trainer, settings, source, out, context)
    summary = {"samples": len(rendered.pairs), "dropped": rendered.dropped, "steps": steps}
    probe = [*rendered.pairs[0].prompt, *rendered.pairs[0].chosen]
    return {**summary, **measure_quantization(trainer.model, out, probe, context)}


def build_dataset(pairs: list[PairIds]) -> datasets.Dataset:
    """Returns the preference pairs as a data set with the token-id columns that TRL reads."""
    return datasets.Dataset.from_dict(
        {
            "prompt_ids": [pair.prompt for pair in pairs],
            "chosen_ids": [pair.chosen for pair in pairs],
            "rejected_ids": [pair.rejected for pair in pairs],
        }
    )
