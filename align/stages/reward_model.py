"""Runs a reward_model stage: trains a reward model on preference pairs with TRL's RewardTrainer.

Token ids are our own.
"""

from collections.abc import Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from trl import RewardTrainer

from qwen_align.align.context import Context
from qwen_align.align.errors import DataError
from qwen_align.align.models import loading, quantized_base
from qwen_align.align.models.length_limit import require_length
from qwen_align.align.models.lora import build_lora_config, prepare_adapters
from qwen_align.align.models.quantization_error import measure_quantization
from qwen_align.align.rendering.samples import PairIds
from qwen_align.align.rendering.training_set import PairStream
from qwen_align.align.rows import Pair, read_rows, require_row_type
from qwen_align.align.settings.reward_model import RewardModel
from qwen_align.align.settings.training import count_optimizer_steps
from qwen_align.align.training import fit, trl_arguments
from qwen_align.align.training.callbacks import ProgressCallback
from qwen_align.align.training.checkpoints import AtomicCheckpoints
from qwen_align.align.training.measured_steps import MeasuredSteps
from qwen_align.align.training.row_order import draw_row_order
from qwen_align.align.training.stored_rows import render_once


class Trainer(MeasuredSteps, AtomicCheckpoints, RewardTrainer):  # type: ignore[misc]
    """TRL's RewardTrainer with atomic checkpoints and measured steps."""


def run(settings: RewardModel, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Trains a reward model on preference pairs, saves it and returns the summary."""
    source = inputs[settings.from_model]
    settings = loading.resolve_settings(settings, source)
    renderer = loading.load_renderer(source)
    rows = chain.from_iterable(read_rows(inputs[ref] / "rows.jsonl") for ref in settings.from_data)
    stream = PairStream(renderer, require_row_type(Pair, rows), settings.max_tokens, needs_margin=settings.margins)
    rendered = render_once(out, context, stream, partial(build_columns, with_margin=settings.margins))
    if not rendered.n_rows:
        raise DataError(f"nothing to train on (dropped: {rendered.dropped or 'nothing'}); see max_tokens or from_data")
    require_length(loading.find_length_limit(source), rendered.longest, "a pair's side")
    steps = count_optimizer_steps(rendered.n_rows, settings.epochs, settings.batch)
    row_order = draw_row_order(rendered.n_rows, steps * settings.batch, context.seed)
    causal = quantized_base.load_for_training(source, settings, context.runtime, needs_head=False)
    model = quantized_base.build_scorer_model(causal, renderer.pad_id)
    trainer = Trainer(
        model=model,
        args=trl_arguments.build_reward_model_arguments(settings, context.runtime, out, steps=steps, seed=context.seed),
        train_dataset=rendered.dataset.select(row_order),
        processing_class=fit.load_padding_tokenizer(source),
        peft_config=build_lora_config(settings.lora, model, head="score"),
        callbacks=[ProgressCallback(context, tokens_per_step=rendered.count_tokens(row_order) / steps)],
    )
    prepare_adapters(trainer.model)
    fit.train_and_save(trainer, settings, source, out, context)
    summary = {"samples": rendered.n_rows, "dropped": rendered.dropped, "steps": steps}
    probe = rendered.dataset[0]["chosen_ids"]
    return {**summary, **measure_quantization(trainer.model, out, probe, context)}


def build_columns(pair: PairIds, *, with_margin: bool) -> dict[str, Any]:
    """Returns a preference pair as the token-id columns and the margin that TRL reads.

    Each completion comes after its prompt.
    """
    columns = {"chosen_ids": [*pair.prompt, *pair.chosen], "rejected_ids": [*pair.prompt, *pair.rejected]}
    return {**columns, "margin": pair.margin} if with_margin else columns
