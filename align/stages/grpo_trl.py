"""Runs a grpo stage with TRL's GRPOTrainer and with our engine, prompts and rewards.

What it gains: another implementation to hold our loop against. On one batch loss and gradient agree within 1e-5, after
ten steps the weights within 1e-4 (tests/align/rl/test_trl_oracle.py). It gains no speed: whole steps of TRL's trainer
take 4.1 to 4.8 times as long as ours (docs/rl.md). It should go when TRL drops `rollout_func`, which is experimental,
or when golden values of our own losses stand in for it.

TRL is used through its constructor: `rollout_func` samples with the engine, the reward function judges with ours.
"""

import json
from collections.abc import Mapping
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import datasets
from torch import Tensor
from trl import GRPOTrainer

from qwen_align.align.context import Context
from qwen_align.align.generation.engine import Generation, Request
from qwen_align.align.generation.local import open_local_engine
from qwen_align.align.generation.requests import (
    RenderedProblem,
    build_completion,
    measure_prompts,
    render_problem,
)
from qwen_align.align.models import loading, quantized_base, reward_scorer
from qwen_align.align.models.attention_setting import set_attention
from qwen_align.align.models.length_limit import require_room_for_completions
from qwen_align.align.models.lora import build_lora_config, prepare_adapters
from qwen_align.align.models.quantization_error import measure_quantization
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rows import Problem, read_rows, require_row_type
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.sampling import Sampling
from qwen_align.align.training import fit, trl_arguments
from qwen_align.align.training.callbacks import ProgressCallback
from qwen_align.align.training.checkpointing import decide_checkpointing
from qwen_align.align.training.checkpoints import AtomicCheckpoints
from qwen_align.align.training.distributed import get_local_world_size
from qwen_align.align.training.measured_steps import MeasuredSteps
from qwen_align.align.training.reference_check import ReferenceStartCheck
from qwen_align.align.training.row_order import draw_row_order
from qwen_align.reward.base import share_cores
from qwen_align.reward.combine import judge_all
from qwen_align.reward.settings import check_rewards

SAMPLES_KEPT = 2  # completions a step written to samples.jsonl, to be read by eye


class GrpoTrainer(MeasuredSteps, AtomicCheckpoints, GRPOTrainer):  # type: ignore[misc]
    """TRL's GRPOTrainer with atomic checkpoints and measured memory. Its speed is not measured."""

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """Computes the gradients of a micro-batch, in the phase `update`."""
        step, rows = self.state.global_step + 1, self.args.per_device_train_batch_size
        with self.context.work_on("update", step=step, rows=rows):
            loss: Tensor = super().training_step(*args, **kwargs)
        return loss


def run(spec: Grpo, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Trains a policy with TRL's GRPOTrainer and returns the stage's summary."""
    source = inputs[spec.from_model]
    renderer = loading.load_renderer(source)
    rows = require_row_type(
        Problem, chain.from_iterable(read_rows(inputs[ref] / "rows.jsonl") for ref in spec.from_data)
    )
    prompts = [render_problem(problem, renderer) for problem in rows]
    if not prompts:
        return fit.pass_model_through(spec, source, out, {}, "from_data (no problem)")
    require_room_for_completions(loading.find_length_limit(source), measure_prompts(prompts), spec.sampling.max_tokens)
    share_cores(get_local_world_size())
    check_rewards(spec.rewards)
    reward_scorer.bind_scorers(spec.rewards, inputs, context.runtime)
    draws = [
        prompts[number] for number in draw_row_order(len(prompts), spec.steps * spec.prompts_per_step, context.seed)
    ]
    sampling = spec.sampling.resolve_for_policy()
    callbacks = TrlCallbacks(spec, draws, renderer, sampling, context)
    model = quantized_base.load_for_training(source, spec, context.runtime)
    device_type = loading.choose_device(context.runtime).type
    set_attention(model, context.runtime.attention, device_type)
    runtime = decide_checkpointing(spec, context.runtime, loading.read_model_config(source))
    trainer = GrpoTrainer(
        model=model,
        reward_funcs=callbacks.judge,
        args=trl_arguments.build_grpo_arguments(spec, sampling, runtime, out, seed=context.seed),
        # TRL repeats each row `samples` times; the place among the drawn is all that has to pass through it.
        train_dataset=datasets.Dataset.from_dict({"prompt": [str(position) for position in range(len(draws))]}),
        processing_class=fit.load_padding_tokenizer(source),
        peft_config=build_lora_config(spec.lora, model),
        rollout_func=callbacks.sample_rollouts,
        callbacks=[ProgressCallback(context), ReferenceStartCheck()],
    )
    prepare_adapters(trainer.model)
    if trainer.ref_model is not None:  # TRL has loaded the base by its name, without the adapters merged into it
        reference = trainer.accelerator.unwrap_model(trainer.ref_model)
        reference.load_state_dict(loading.load_model(source, "fp32").state_dict())
        set_attention(reference, context.runtime.attention, device_type)
    fit.train_and_save(trainer, spec, source, out, context)
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()] if context.is_main else []
    completions = spec.prompts_per_step * spec.completions_per_prompt
    without = round(sum(line["no_verdict_share"] for line in logged) * completions)
    return {
        "problems": len(prompts),
        "steps": spec.steps,
        "completions": spec.steps * completions,
        "no_verdict": without,
        **measure_quantization(trainer.model, out, prompts[0].prompt.ids, context),
    }


class TrlCallbacks:
    """The callbacks of TRL's trainer: `sample_rollouts` samples the completions of a step, `judge` judges them.

    `draws` are the problems in training order. A completion's random numbers come from its problem, the
    problem's place in that order, and its number in the group, whichever process draws it.
    """

    def __init__(
        self, spec: Grpo, draws: list[RenderedProblem], renderer: Renderer, sampling: Sampling, context: Context
    ) -> None:
        self.spec, self.draws, self.renderer, self.sampling, self.context = spec, draws, renderer, sampling, context
        self._generations: list[Generation] = []
        self._positions: list[int] = []

    def sample_rollouts(self, prompts: list[str], trainer: Any) -> dict[str, Any]:
        """Samples one completion for each prompt, in order, as TRL's rollout function.

        Prompts come repeated.

        The prompts of a step go to the processes in equal runs, so a group may be shared by two.
        """
        positions = [int(prompt) for prompt in prompts]
        begin = trainer.accelerator.process_index * len(positions)
        samples = [(begin + number) % self.spec.completions_per_prompt for number in range(len(positions))]
        model = trainer.accelerator.unwrap_model(trainer.model)
        engine = open_local_engine(model, self.renderer, self.context.runtime)
        requests = []
        for position, group in groupby(zip(positions, samples, strict=True), key=itemgetter(0)):
            numbers = [sample for _, sample in group]
            requests.append(
                Request(
                    id=self._build_request_id(position),
                    prompt_ids=self.draws[position].prompt.ids,
                    n=len(numbers),
                    sampling=self.sampling,
                    seed=self.context.seed,
                    step=trainer.state.global_step,
                    first_sample=numbers[0],
                )
            )
        with self.context.work_on(
            "draw",
            step=trainer.state.global_step + 1,
            rows=len(positions),
            longest_row=max(len(each.prompt_ids) for each in requests) + self.sampling.max_tokens,
        ):
            done = {(one.request.id, one.sample): one for one in engine.generate(requests)}
        self._positions = positions
        self._generations = [
            done[self._build_request_id(position), sample] for position, sample in zip(positions, samples, strict=True)
        ]
        rollouts = {
            "prompt_ids": [self.draws[position].prompt.ids for position in positions],
            "completion_ids": [one.token_ids for one in self._generations],
            "logprobs": [one.logps for one in self._generations],
        }
        if all(all(one.loss_mask) for one in self._generations):
            return rollouts
        return {**rollouts, "env_mask": [list(map(int, one.loss_mask)) for one in self._generations]}

    def _build_request_id(self, position: int) -> str:
        """Returns the id of a generation request, which determines its random numbers.

        A problem may come twice in a step.
        """
        return f"{self.draws[position].problem.id} at {position}"

    def judge(self, prompts: list[str], trainer_state: Any, log_metric: Any, **_: Any) -> list[float | None]:
        """Returns the reward of each completion, or None where there is no verdict.

        TRL names metrics after this function.
        """
        assert [int(prompt) for prompt in prompts] == self._positions
        rows = [
            build_completion(self.draws[position], one, self.renderer)
            for position, one in zip(self._positions, self._generations, strict=True)
        ]
        verdicts = judge_all(self.spec.rewards, rows)
        log_metric("no_verdict_share", sum(verdict.value is None for verdict in verdicts) / len(verdicts))
        for label in dict.fromkeys(label for verdict in verdicts for label in verdict.parts or {}):
            part_values = [
                verdict.parts[label].value for verdict in verdicts if verdict.parts and label in verdict.parts
            ]
            values = [value for value in part_values if value is not None]
            log_metric(f"reward/{label}", sum(values) / max(len(values), 1))
        for row, verdict in list(zip(rows, verdicts, strict=True))[:SAMPLES_KEPT]:
            sample = row.model_copy(update={"verdicts": verdict.parts or {}}).model_dump(exclude_none=True)
            self.context.log_sample(trainer_state.global_step + 1, {**sample, "value": verdict.value})
        return [verdict.value for verdict in verdicts]
