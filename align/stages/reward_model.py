"""Runs a reward_model stage: trains a reward model on preference pairs with TRL's RewardTrainer.

Token ids are our own.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from trl import RewardTrainer

from qwen_align.align.context import Context
from qwen_align.align.errors import DataError
from qwen_align.align.models import loading, quantized_base, reward_scorer
from qwen_align.align.models.attention_setting import set_attention
from qwen_align.align.models.dropout import disable_dropout
from qwen_align.align.models.length_limit import require_length
from qwen_align.align.models.lora import build_lora_config, prepare_adapters
from qwen_align.align.models.quantization_error import measure_score_quantization
from qwen_align.align.rendering.samples import PairIds
from qwen_align.align.rendering.training_set import PairStream
from qwen_align.align.rows import Pair, read_rows, require_row_type
from qwen_align.align.settings.reward_model import RewardModel
from qwen_align.align.settings.training import count_optimizer_steps
from qwen_align.align.training import fit, trl_arguments
from qwen_align.align.training.callbacks import ProgressCallback
from qwen_align.align.training.checkpointing import decide_checkpointing
from qwen_align.align.training.packed_forward import add_packed_scorer
from qwen_align.align.training.row_order import draw_row_order
from qwen_align.align.training.stored_rows import render_once
from qwen_align.align.training.strategies import start_strategy
from qwen_align.align.training.whole_steps import Batch, Row, WholeSteps


class Trainer(WholeSteps, RewardTrainer):  # type: ignore[misc]
    """TRL's RewardTrainer on packed rows and whole optimiser steps."""

    are_pairs = True

    def __init__(self, *args: Any, model: PreTrainedModel, **kwargs: Any) -> None:
        add_packed_scorer(model)
        super().__init__(*args, model=model, **kwargs)

    def count_tokens(self, row: Row) -> int:
        """Returns how many tokens a pair has; those that its sides begin with in common are computed once."""
        return len(row["chosen_ids"]) + len(row["rejected_ids"])

    def count_totals(self, batches: Sequence[Batch]) -> Tensor:
        """Returns the number of pairs."""
        return torch.tensor([sum(len(batch["input_ids"]) // 2 for batch in batches)])

    def compute_part(self, model: Any, batch: Batch, totals: Tensor) -> Tensor:
        """Returns the sum of the pairs' losses over the number of the step's pairs."""
        n_pairs = len(batch["input_ids"]) // 2
        return self.compute_loss(model, batch) * n_pairs / totals[0] * self.args.world_size  # type: ignore[no-any-return]

    def read_rows(self, model: Any, batch: Batch) -> None:
        """Has the model read a micro-batch's tokens; its head has one output."""
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])

    def weigh_metrics(self, batch: Batch) -> tuple[float, Mapping[str, float]]:
        """Returns the number of a micro-batch's pairs, over which TRL averages."""
        return len(batch["input_ids"]) // 2, {}


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
    runtime = decide_checkpointing(settings, context.runtime, loading.read_model_config(source))
    args = trl_arguments.build_reward_model_arguments(settings, runtime, out, steps=steps, seed=context.seed)
    start_strategy(args, runtime, out)
    causal = quantized_base.load_for_training(source, settings, context.runtime, needs_head=False)
    model = reward_scorer.build_scorer_model(causal, renderer.pad_id)
    quantized_base.mark_as_quantized(model, causal)
    set_attention(model, context.runtime.attention, loading.choose_device(context.runtime).type)
    disable_dropout(model)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=rendered.dataset.select(row_order),
        processing_class=fit.load_padding_tokenizer(source),
        peft_config=build_lora_config(settings.lora, model, head="score"),
        callbacks=[ProgressCallback(context, tokens_per_step=rendered.count_tokens(row_order) / steps)],
    )
    prepare_adapters(trainer.model)
    fit.train_and_save(trainer, settings, source, out, context)
    summary = {"samples": rendered.n_rows, "dropped": rendered.dropped, "steps": steps}
    probe = rendered.dataset[0]["chosen_ids"]
    load = reward_scorer.load_scorer_model
    return {**summary, **measure_score_quantization(trainer.model, out, probe, context, load)}


def build_columns(pair: PairIds, *, with_margin: bool) -> dict[str, Any]:
    """Returns a preference pair as the token-id columns and the margin that TRL reads.

    Each completion comes after its prompt.
    """
    columns = {"chosen_ids": [*pair.prompt, *pair.chosen], "rejected_ids": [*pair.prompt, *pair.rejected]}
    return {**columns, "margin": pair.margin} if with_margin else columns
