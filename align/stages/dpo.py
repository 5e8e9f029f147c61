"""dpo: preference training on pairs, through TRL's DPOTrainer; the reference is the model the stage starts from."""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import DPOTrainer

from qwen_align.align.context import Context
from qwen_align.align.errors import StageError
from qwen_align.align.models import loading
from qwen_align.align.rendering.renderer import PairIds, render_pairs
from qwen_align.align.rows import Pair, only, read_rows
from qwen_align.align.settings.dpo import Dpo
from qwen_align.align.settings.training import count_optimizer_steps
from qwen_align.align.training import fit, trl_arguments
from qwen_align.align.training.callbacks import Watcher
from qwen_align.align.training.checkpoints import WholeCheckpoints
from qwen_align.align.training.row_order import draw_row_order

FIRST_REWARD_TOLERANCE = 1e-3  # moves the sigmoid loss from ln 2 by at most that; float rounding is about 1e-6


class Trainer(WholeCheckpoints, DPOTrainer):  # type: ignore[misc]
    """TRL's DPOTrainer with whole checkpoints, on rows that are token ids already."""

    def _prepare_dataset(self, dataset: datasets.Dataset, *_: Any, **__: Any) -> datasets.Dataset:
        return dataset


class StartsAtReference(TrainerCallback):  # type: ignore[misc]
    """Raises after the first step when policy and reference did not start as one model.

    At equal models the implied rewards are 0 and the sigmoid loss is ln 2.
    """

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs = kwargs.get("logs") or {}
        if state.global_step == 1 and "rewards/chosen" in logs:
            apart = max(abs(logs["rewards/chosen"]), abs(logs["rewards/rejected"]))
            if not apart < FIRST_REWARD_TOLERANCE:
                raise StageError(f"the first implied reward is {apart:.3g}, not 0: the reference is another model")


def run(spec: Dpo, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    source = inputs[spec.from_model]
    rows = chain.from_iterable(read_rows(inputs[ref] / "rows.jsonl") for ref in spec.from_data)
    rendered = render_pairs(loading.renderer_of(source), only(Pair, rows), max_tokens=spec.max_tokens)
    if not rendered.pairs:
        return fit.nothing_to_train(spec, source, out, rendered.dropped, "from_data (no pair) or max_tokens")
    steps = count_optimizer_steps(len(rendered.pairs), spec.epochs, spec.batch)
    drawn = draw_row_order(len(rendered.pairs), steps * spec.batch, context.seed)
    tokens = sum(len(ids) for i in drawn for ids in rendered.pairs[i])
    trainer = Trainer(
        model=loading.load(source),
        ref_model=None if spec.lora else loading.load(source),  # with adapters: the policy with the new adapter off
        args=trl_arguments.dpo(spec, context.runtime, out, steps=steps, seed=context.seed),
        train_dataset=training_set(rendered.pairs).select(drawn),
        processing_class=fit.tokenizer(source),
        peft_config=trl_arguments.lora(spec.lora),
        callbacks=[Watcher(context, tokens_a_step=tokens / steps), StartsAtReference()],
    )
    fit.train(trainer, source, out, context)
    return {"samples": len(rendered.pairs), "dropped": rendered.dropped, "steps": steps}


def training_set(pairs: list[PairIds]) -> datasets.Dataset:
    """TRL's columns of token ids."""
    return datasets.Dataset.from_dict(
        {
            "prompt_ids": [pair.prompt for pair in pairs],
            "chosen_ids": [pair.chosen for pair in pairs],
            "rejected_ids": [pair.rejected for pair in pairs],
        }
    )
