"""grpo: group-relative policy optimisation through TRL's GRPOTrainer, with our engine, prompts and rewards.

TRL is used through its constructor: `rollout_func` draws with the engine, the reward function judges with ours.
"""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
from trl import GRPOTrainer

from qwen_align.align import model, trl_args
from qwen_align.align.checkpoint import Watcher, WholeCheckpoints, order
from qwen_align.align.context import Context
from qwen_align.align.render import Renderer
from qwen_align.align.rollout.ask import Asked, as_row, put
from qwen_align.align.rollout.engine import Generation, Request
from qwen_align.align.rollout.local import LocalEngine
from qwen_align.align.rows import read_rows
from qwen_align.align.spec.grpo import Grpo
from qwen_align.align.spec.sampling import Sampling
from qwen_align.align.stages import training
from qwen_align.align.stages.parts import problems
from qwen_align.reward.settings import judge_all

SAMPLES_KEPT = 2  # completions a step written to samples.jsonl, to be read by eye


class Trainer(WholeCheckpoints, GRPOTrainer):  # type: ignore[misc]
    """TRL's GRPOTrainer with whole checkpoints."""


def run(spec: Grpo, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    source = inputs[spec.from_model]
    renderer = model.renderer_of(source)
    rows = problems(chain.from_iterable(read_rows(inputs[ref] / "rows.jsonl") for ref in spec.from_data))
    asked = [put(problem, renderer) for problem in rows]
    if not asked:
        return training.nothing_to_train(spec, source, out, {}, "from_data (no problem)")
    drawn = order(len(asked), spec.steps * spec.prompts, context.seed)
    sampling = spec.sampling.for_policy()
    game = Game(spec, asked, renderer, sampling, context)
    trainer = Trainer(
        model=model.load(source),
        reward_funcs=game.judge,
        args=trl_args.grpo(spec, sampling, context.runtime, out, seed=context.seed),
        # TRL repeats each row `samples` times; the row's number is all that has to pass through it.
        train_dataset=datasets.Dataset.from_dict({"prompt": [str(number) for number in drawn]}),
        processing_class=training.tokenizer(source),
        peft_config=trl_args.lora(spec.lora),
        rollout_func=game.play,
        callbacks=[Watcher(context)],
    )
    training.train(trainer, source, out, context)
    return {"problems": len(asked), "steps": spec.steps, "no_verdict": game.no_verdict}


class Game:
    """What TRL calls back: `play` draws the completions of a step, `judge` pays them."""

    def __init__(
        self, spec: Grpo, asked: list[Asked], renderer: Renderer, sampling: Sampling, context: Context
    ) -> None:
        self.spec, self.asked, self.renderer, self.sampling, self.context = spec, asked, renderer, sampling, context
        self.no_verdict = 0
        self._drawn: list[Generation] = []
        self._numbers: list[int] = []

    def play(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """TRL's rollout function: `prompts` come repeated, one completion each is returned in their order."""
        numbers = [int(prompt) for prompt in prompts]
        counts: dict[int, int] = {}
        order_in_group = []
        for number in numbers:
            order_in_group.append(counts.get(number, 0))
            counts[number] = counts.get(number, 0) + 1
        engine = LocalEngine(
            trainer.accelerator.unwrap_model(trainer.model),
            stop_ids=self.renderer.stop_ids,
            max_rows=self.context.runtime.rollout_rows,
        )
        first = self.spec.samples * trainer.accelerator.process_index
        requests = [
            Request(
                id=self.asked[number].problem.id,
                prompt_ids=self.asked[number].prompt.ids,
                n=n,
                sampling=self.sampling,
                seed=self.context.seed,
                step=trainer.state.global_step,
                first_sample=first,
            )
            for number, n in counts.items()
        ]
        drawn = {(one.request.id, one.sample - first): one for one in engine.generate(requests)}
        self._numbers = numbers
        self._drawn = [
            drawn[self.asked[number].problem.id, place] for number, place in zip(numbers, order_in_group, strict=True)
        ]
        return {
            "prompt_ids": [self.asked[number].prompt.ids for number in numbers],
            "completion_ids": [one.token_ids for one in self._drawn],
            "logprobs": [one.logps for one in self._drawn],
        }

    def judge(self, prompts: list[str], trainer_state: Any, **_: Any) -> list[float | None]:
        """TRL's reward function; None where there is no verdict, which trains nothing."""
        rows = [
            as_row(self.asked[number], one, self.renderer)
            for number, one in zip(self._numbers, self._drawn, strict=True)
        ]
        assert [int(prompt) for prompt in prompts] == self._numbers
        verdicts = [judge_all(self.spec.rewards, row) for row in rows]
        self.no_verdict += sum(verdict.value is None for verdict in verdicts)
        for row, verdict in list(zip(rows, verdicts, strict=True))[:SAMPLES_KEPT]:
            sample = row.model_copy(update={"verdicts": verdict.parts or {}}).model_dump(exclude_none=True)
            self.context.keep_sample(trainer_state.global_step + 1, {**sample, "value": verdict.value})
        return [verdict.value for verdict in verdicts]
