"""reward_model: a scorer from pairs, through TRL's RewardTrainer on token ids we made ourselves."""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
from peft import PeftModel
from trl import RewardTrainer

from qwen_align.align.context import Context
from qwen_align.align.errors import DataError
from qwen_align.align.models import loading, reward_scorer
from qwen_align.align.rendering.renderer import PairIds, render_pairs
from qwen_align.align.rows import Pair, only, read_rows
from qwen_align.align.settings.reward_model import RewardModel
from qwen_align.align.settings.training import count_optimizer_steps
from qwen_align.align.training import fit, trl_arguments
from qwen_align.align.training.callbacks import Watcher
from qwen_align.align.training.checkpoints import WholeCheckpoints
from qwen_align.align.training.row_order import draw_row_order


class Trainer(WholeCheckpoints, RewardTrainer):  # type: ignore[misc]
    """TRL's RewardTrainer with whole checkpoints."""


def run(spec: RewardModel, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    source = inputs[spec.from_model]
    renderer = loading.renderer_of(source)
    rows = list(only(Pair, chain.from_iterable(read_rows(inputs[ref] / "rows.jsonl") for ref in spec.from_data)))
    rendered = render_pairs(renderer, rows, max_tokens=spec.max_tokens)
    if not rendered.pairs:
        raise DataError(f"nothing to train on (dropped: {rendered.dropped or 'nothing'}); see max_tokens or from_data")
    steps = count_optimizer_steps(len(rendered.pairs), spec.epochs, spec.batch)
    drawn = draw_row_order(len(rendered.pairs), steps * spec.batch, context.seed)
    tokens = sum(len(ids) for i in drawn for ids in rendered.pairs[i])
    trainer = Trainer(
        model=reward_scorer.classifier(source, renderer.pad_id),
        args=trl_arguments.reward_model(spec, context.runtime, out, steps=steps, seed=context.seed),
        train_dataset=training_set(rendered.pairs).select(drawn),
        processing_class=fit.tokenizer(source),
        peft_config=trl_arguments.lora(spec.lora, head="score"),
        callbacks=[Watcher(context, tokens_a_step=tokens / steps)],
    )
    fit.fit(trainer, out, context)
    fit.hand_on(source, out, context, is_adapter=isinstance(trainer.model, PeftModel), save=trainer.save_model)
    return {"samples": len(rendered.pairs), "dropped": rendered.dropped, "steps": steps}


def training_set(pairs: list[PairIds]) -> datasets.Dataset:
    """TRL's columns of token ids: each side after its prompt."""
    return datasets.Dataset.from_dict(
        {
            "chosen_ids": [[*pair.prompt, *pair.chosen] for pair in pairs],
            "rejected_ids": [[*pair.prompt, *pair.rejected] for pair in pairs],
        }
    )
