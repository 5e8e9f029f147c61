"""sft: next-token training on rendered rows, through TRL's SFTTrainer on token ids we made ourselves."""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
from trl import SFTTrainer

from qwen_align.align.context import Context
from qwen_align.align.models import loading
from qwen_align.align.rendering.renderer import Sample, render_rows
from qwen_align.align.rows import read_rows
from qwen_align.align.settings.sft import Sft
from qwen_align.align.settings.training import count_optimizer_steps
from qwen_align.align.training import fit, trl_arguments
from qwen_align.align.training.callbacks import Watcher
from qwen_align.align.training.checkpoints import WholeCheckpoints
from qwen_align.align.training.row_order import draw_row_order


class Trainer(WholeCheckpoints, SFTTrainer):  # type: ignore[misc]
    """TRL's SFTTrainer with whole checkpoints."""


def run(spec: Sft, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    source = inputs[spec.from_model]
    rows = chain.from_iterable(read_rows(inputs[ref] / "rows.jsonl") for ref in spec.from_data)
    rendered = render_rows(loading.renderer_of(source), rows, max_tokens=spec.max_tokens)
    if not rendered.samples:
        return fit.nothing_to_train(spec, source, out, rendered.dropped, "max_tokens or from_data")
    steps = count_optimizer_steps(len(rendered.samples), spec.epochs, spec.batch)
    drawn = draw_row_order(len(rendered.samples), steps * spec.batch, context.seed)
    trainer = Trainer(
        model=loading.load(source),
        args=trl_arguments.sft(spec, context.runtime, out, steps=steps, seed=context.seed),
        train_dataset=training_set(rendered.samples).select(drawn),
        processing_class=fit.tokenizer(source),
        peft_config=trl_arguments.lora(spec.lora),
        callbacks=[Watcher(context, tokens_a_step=sum(len(rendered.samples[i].ids) for i in drawn) / steps)],
    )
    fit.train(trainer, source, out, context)
    return {
        "samples": len(rendered.samples),
        "dropped": rendered.dropped,
        "steps": steps,
        "supervised_tokens": sum(sum(sample.mask) for sample in rendered.samples),
    }


def training_set(samples: list[Sample]) -> datasets.Dataset:
    """input_ids and labels; -100 where a token is not in the loss."""
    return datasets.Dataset.from_dict(
        {
            "input_ids": [sample.ids for sample in samples],
            "labels": [
                [token if learnt else -100 for token, learnt in zip(sample.ids, sample.mask, strict=True)]
                for sample in samples
            ],
        }
    )
