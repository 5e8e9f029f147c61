"""Runs a reward_model stage: trains a reward model on preference pairs with TRL's RewardTrainer.

Token ids are our own.
"""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
from trl import RewardTrainer

from qwen_align.align.context import Context
from qwen_align.align.errors import DataError
from qwen_align.align.models import loading, quantized_base, reward_scorer
from qwen_align.align.models.length_limit import require_length
from qwen_align.align.models.lora import build_lora_config, prepare_adapters
from qwen_align.align.models.quantization_error import measure_score_quantization
from qwen_align.align.rendering.samples import PairIds
from qwen_align.align.rendering.training_set import render_pairs
from qwen_align.align.rows import Pair, read_rows, require_row_type
from qwen_align.align.settings.reward_model import RewardModel
from qwen_align.align.settings.training import count_optimizer_steps
from qwen_align.align.training import fit, trl_arguments
from qwen_align.align.training.callbacks import ProgressCallback
from qwen_align.align.training.checkpoints import AtomicCheckpoints
from qwen_align.align.training.measured_steps import MeasuredSteps
from qwen_align.align.training.row_order import draw_row_order


class Trainer(MeasuredSteps, AtomicCheckpoints, RewardTrainer):  # type: ignore[misc]
    """TRL's RewardTrainer with atomic checkpoints and measured steps."""


def run(settings: RewardModel, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Trains a reward model on preference pairs, saves it and returns the summary."""
    source = inputs[settings.from_model]
    settings = loading.resolve_settings(settings, source)
    renderer = loading.load_renderer(source)
    rows = chain.from_iterable(read_rows(inputs[ref] / "rows.jsonl") for ref in settings.from_data)
    rendered = render_pairs(
        renderer, require_row_type(Pair, rows), max_tokens=settings.max_tokens, needs_margin=settings.margins
    )
    if not rendered.pairs:
        raise DataError(f"nothing to train on (dropped: {rendered.dropped or 'nothing'}); see max_tokens or from_data")
    require_length(loading.find_length_limit(source), rendered.longest, "a pair's side")
    steps = count_optimizer_steps(len(rendered.pairs), settings.epochs, settings.batch)
    row_order = draw_row_order(len(rendered.pairs), steps * settings.batch, context.seed)
    n_tokens = sum(rendered.pairs[i].n_tokens for i in row_order)
    causal = quantized_base.load_for_training(source, settings, context.runtime, needs_head=False)
    model = reward_scorer.build_scorer_model(causal, renderer.pad_id)
    quantized_base.mark_as_quantized(model, causal)
    trainer = Trainer(
        model=model,
        args=trl_arguments.build_reward_model_arguments(settings, context.runtime, out, steps=steps, seed=context.seed),
        train_dataset=build_dataset(rendered.pairs, with_margins=settings.margins).select(row_order),
        processing_class=fit.load_padding_tokenizer(source),
        peft_config=build_lora_config(settings.lora, model, head="score"),
        callbacks=[ProgressCallback(context, tokens_per_step=n_tokens / steps)],
    )
    prepare_adapters(trainer.model)
    fit.train_and_save(trainer, settings, source, out, context)
    summary = {"samples": len(rendered.pairs), "dropped": rendered.dropped, "steps": steps}
    probe = [*rendered.pairs[0].prompt, *rendered.pairs[0].chosen]
    load = reward_scorer.load_scorer_model
    return {**summary, **measure_score_quantization(trainer.model, out, probe, context, load)}


def build_dataset(pairs: list[PairIds], *, with_margins: bool) -> datasets.Dataset:
    """Returns the preference pairs as a data set with the token-id columns and margins that TRL reads.

    Each completion comes after its prompt.
    """
    columns: dict[str, list[Any]] = {
        "chosen_ids": [[*pair.prompt, *pair.chosen] for pair in pairs],
        "rejected_ids": [[*pair.prompt, *pair.rejected] for pair in pairs],
    }
    if with_margins:
        columns["margin"] = [pair.margin for pair in pairs]
    return datasets.Dataset.from_dict(columns)
