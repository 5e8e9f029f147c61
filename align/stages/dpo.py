"""Runs a dpo stage: preference training on pairs with TRL's DPOTrainer.

The reference policy is the model the stage starts from.
"""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from qwen_align.align.context import Context
from qwen_align.align.models import loading, quantized_base
from qwen_align.align.models.attention_setting import set_attention
from qwen_align.align.models.dropout import disable_dropout
from qwen_align.align.models.length_limit import require_length
from qwen_align.align.models.lora import build_lora_config, prepare_adapters
from qwen_align.align.models.quantization_error import measure_quantization
from qwen_align.align.rendering.samples import PairIds
from qwen_align.align.rendering.training_set import PairStream
from qwen_align.align.rows import Pair, read_rows, require_row_type
from qwen_align.align.settings.dpo import Dpo
from qwen_align.align.settings.training import count_optimizer_steps
from qwen_align.align.training import fit, trl_arguments
from qwen_align.align.training.callbacks import ProgressCallback
from qwen_align.align.training.checkpointing import decide_checkpointing
from qwen_align.align.training.preference_losses import PREFERENCE_LOSSES
from qwen_align.align.training.preference_trainer import PreferenceTrainer
from qwen_align.align.training.reference_check import ReferenceStartCheck
from qwen_align.align.training.row_order import draw_row_order
from qwen_align.align.training.stored_rows import render_once
from qwen_align.align.training.strategies import start_strategy


def run(settings: Dpo, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Trains the model on preference pairs, saves it and returns the summary."""
    source = inputs[settings.from_model]
    settings = loading.resolve_settings(settings, source)
    rows = chain.from_iterable(read_rows(inputs[ref] / "rows.jsonl") for ref in settings.from_data)
    stream = PairStream(loading.load_renderer(source), require_row_type(Pair, rows), settings.max_tokens)
    rendered = render_once(out, context, stream, build_columns)
    if not rendered.n_rows:
        return fit.pass_model_through(settings, source, out, rendered.dropped, "from_data (no pair) or max_tokens")
    require_length(loading.find_length_limit(source), rendered.longest, "a pair's side")
    steps = count_optimizer_steps(rendered.n_rows, settings.epochs, settings.batch)
    row_order = draw_row_order(rendered.n_rows, steps * settings.batch, context.seed)
    loss = PREFERENCE_LOSSES[settings.loss]
    runtime = decide_checkpointing(settings, context.runtime, loading.read_model_config(source))
    args = trl_arguments.build_dpo_arguments(settings, runtime, out, steps=steps, seed=context.seed)
    start_strategy(args, runtime, out)
    model = quantized_base.load_for_training(source, settings, context.runtime)
    set_attention(model, context.runtime.attention, loading.choose_device(context.runtime).type)
    disable_dropout(model)
    trainer = PreferenceTrainer(
        model=model,
        args=args,
        train_dataset=rendered.dataset.select(row_order),
        processing_class=fit.load_padding_tokenizer(source),
        peft_config=build_lora_config(settings.lora, model),
        callbacks=[
            ProgressCallback(context, tokens_per_step=rendered.count_tokens(row_order) / steps),
            *([ReferenceStartCheck()] if loss.needs_reference else []),
        ],
        loss=loss,
        sft_weight=settings.sft_weight,
    )
    prepare_adapters(trainer.model)
    fit.train_and_save(trainer, settings, source, out, context)
    summary = {"samples": rendered.n_rows, "dropped": rendered.dropped, "steps": steps}
    probe = [*rendered.dataset[0]["prompt_ids"], *rendered.dataset[0]["chosen_ids"]]
    return {**summary, **measure_quantization(trainer.model, out, probe, context)}


def build_columns(pair: PairIds) -> dict[str, Any]:
    """Returns a preference pair as the token-id columns that TRL reads."""
    return {"prompt_ids": pair.prompt, "chosen_ids": pair.chosen, "rejected_ids": pair.rejected}
