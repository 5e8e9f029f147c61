"""grpo: group-relative policy optimisation through TRL's GRPOTrainer, with our engine, prompts and rewards.

TRL is used through its constructor: `rollout_func` draws with the engine, the reward function judges with ours.
"""

import json
from collections.abc import Mapping
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import datasets
from trl import GRPOTrainer

from qwen_align.align.context import Context
from qwen_align.align.generation.engine import Generation, Request
from qwen_align.align.generation.local import LocalEngine
from qwen_align.align.generation.requests import Asked, as_row, put
from qwen_align.align.models import loading, reward_scorer
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rows import Problem, read_rows, require_row_type
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.sampling import Sampling
from qwen_align.align.training import fit, trl_arguments
from qwen_align.align.training.callbacks import ProgressCallback
from qwen_align.align.training.checkpoints import AtomicCheckpoints
from qwen_align.align.training.reference_check import ReferenceStartCheck
from qwen_align.align.training.row_order import draw_row_order
from qwen_align.reward.combine import judge_all
from qwen_align.reward.settings import check_rewards

SAMPLES_KEPT = 2  # completions a step written to samples.jsonl, to be read by eye


class Trainer(AtomicCheckpoints, GRPOTrainer):  # type: ignore[misc]
    """TRL's GRPOTrainer with atomic checkpoints."""


def run(spec: Grpo, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    source = inputs[spec.from_model]
    renderer = loading.load_renderer(source)
    rows = require_row_type(
        Problem, chain.from_iterable(read_rows(inputs[ref] / "rows.jsonl") for ref in spec.from_data)
    )
    asked = [put(problem, renderer) for problem in rows]
    if not asked:
        return fit.pass_model_through(spec, source, out, {}, "from_data (no problem)")
    check_rewards(spec.rewards)
    reward_scorer.bind_scorers(
        spec.rewards, inputs, device=loading.choose_device(context.runtime), max_rows=context.runtime.micro_batch
    )
    drawn = [asked[number] for number in draw_row_order(len(asked), spec.steps * spec.prompts_per_step, context.seed)]
    sampling = spec.sampling.for_policy()
    game = Game(spec, drawn, renderer, sampling, context)
    trainer = Trainer(
        model=loading.load_model(source),
        reward_funcs=game.judge,
        args=trl_arguments.build_grpo_arguments(spec, sampling, context.runtime, out, seed=context.seed),
        # TRL repeats each row `samples` times; the place among the drawn is all that has to pass through it.
        train_dataset=datasets.Dataset.from_dict({"prompt": [str(place) for place in range(len(drawn))]}),
        processing_class=fit.load_padding_tokenizer(source),
        peft_config=trl_arguments.build_lora_config(spec.lora),
        rollout_func=game.play,
        callbacks=[ProgressCallback(context), ReferenceStartCheck()],
    )
    if trainer.ref_model is not None:  # TRL has loaded the base by its name, without the adapters merged into it
        trainer.accelerator.unwrap_model(trainer.ref_model).load_state_dict(loading.load_model(source).state_dict())
    fit.train_and_save(trainer, source, out, context)
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()] if context.is_main else []
    completions = spec.prompts_per_step * spec.completions_per_prompt
    without = round(sum(line["no_verdict_share"] for line in logged) * completions)
    return {"problems": len(asked), "steps": spec.steps, "completions": spec.steps * completions, "no_verdict": without}


class Game:
    """What TRL calls back: `play` draws the completions of a step, `judge` pays them.

    `drawn` are the problems in the order they are trained. A completion's random numbers come from its problem, the
    problem's place in that order, and its number in the group, whichever process draws it.
    """

    def __init__(
        self, spec: Grpo, drawn: list[Asked], renderer: Renderer, sampling: Sampling, context: Context
    ) -> None:
        self.spec, self.drawn, self.renderer, self.sampling, self.context = spec, drawn, renderer, sampling, context
        self._last: list[Generation] = []
        self._places: list[int] = []

    def play(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """TRL's rollout function: `prompts` come repeated, one completion each is returned in their order.

        The prompts of a step go to the processes in equal runs, so a group may be shared by two.
        """
        places = [int(prompt) for prompt in prompts]
        begin = trainer.accelerator.process_index * len(places)
        samples = [(begin + number) % self.spec.completions_per_prompt for number in range(len(places))]
        engine = LocalEngine(
            trainer.accelerator.unwrap_model(trainer.model),
            stop_ids=self.renderer.stop_ids,
            max_rows=self.context.runtime.generation_batch,
        )
        requests = []
        for place, group in groupby(zip(places, samples, strict=True), key=itemgetter(0)):
            numbers = [sample for _, sample in group]
            requests.append(
                Request(
                    id=self._name(place),
                    prompt_ids=self.drawn[place].prompt.ids,
                    n=len(numbers),
                    sampling=self.sampling,
                    seed=self.context.seed,
                    step=trainer.state.global_step,
                    first_sample=numbers[0],
                )
            )
        done = {(one.request.id, one.sample): one for one in engine.generate(requests)}
        self._places = places
        self._last = [done[self._name(place), sample] for place, sample in zip(places, samples, strict=True)]
        return {
            "prompt_ids": [self.drawn[place].prompt.ids for place in places],
            "completion_ids": [one.token_ids for one in self._last],
            "logprobs": [one.logps for one in self._last],
        }

    def _name(self, place: int) -> str:
        """A request's id, which its random numbers come from; a problem may be drawn twice in a step."""
        return f"{self.drawn[place].problem.id} at {place}"

    def judge(self, prompts: list[str], trainer_state: Any, log_metric: Any, **_: Any) -> list[float | None]:
        """TRL's reward function; None where there is no verdict, which trains nothing."""
        assert [int(prompt) for prompt in prompts] == self._places
        rows = [
            as_row(self.drawn[place], one, self.renderer) for place, one in zip(self._places, self._last, strict=True)
        ]
        verdicts = judge_all(self.spec.rewards, rows)
        log_metric("no_verdict_share", sum(verdict.value is None for verdict in verdicts) / len(verdicts))
        for label in verdicts[0].parts or {}:
            said = [verdict.parts[label].value for verdict in verdicts if verdict.parts]
            values = [value for value in said if value is not None]
            log_metric(f"reward/{label}", sum(values) / max(len(values), 1))
        for row, verdict in list(zip(rows, verdicts, strict=True))[:SAMPLES_KEPT]:
            sample = row.model_copy(update={"verdicts": verdict.parts or {}}).model_dump(exclude_none=True)
            self.context.log_sample(trainer_state.global_step + 1, {**sample, "value": verdict.value})
        return [verdict.value for verdict in verdicts]
