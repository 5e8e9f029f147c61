"""Runs the online RL training loop: collect rollouts, assign advantages, update, save checkpoints.

The loop is that of transformers' Trainer. Trainer gives devices, DeepSpeed, clipping and checkpoints. For every
optimiser step it asks for a batch, which here is a list of the step's completions, trained on in micro-batches of our
own.
"""

import copy
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate.utils import DistributedType
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from qwen_align.align.context import Context
from qwen_align.align.errors import StageError
from qwen_align.align.rl.actor import POLICY_ADAPTER, Actor
from qwen_align.align.rl.algorithm import Algorithm
from qwen_align.align.rl.assign_advantages import compute_mean_kl, estimate_reference_kl
from qwen_align.align.rl.collect import RolloutBatch, build_rollouts
from qwen_align.align.rl.controllers import EntropyCoefficient, KlCoefficient, RewardScale
from qwen_align.align.rl.held_out import HeldOutFigures
from qwen_align.align.rl.losses import StepTotals
from qwen_align.align.rl.micro_batches import MicroBatch, add_idle_batches, pack_micro_batches
from qwen_align.align.rl.objective import Sums, UpdateTerms, compute_loss, count_step_totals
from qwen_align.align.rl.optimizer import build_schedule, group_parameters, keep_embeddings_in_32_bits
from qwen_align.align.rl.prefetched import save_batch
from qwen_align.align.rl.ptx import RawTexts
from qwen_align.align.rl.rollout_batches import PENDING, RolloutSource
from qwen_align.align.rl.rollouts import Rollouts
from qwen_align.align.rl.scoring import Scorer, set_old_logps
from qwen_align.align.rl.step_metrics import choose_samples, compute_batch_metrics, compute_mask_metrics
from qwen_align.align.rl.watchdogs import Watchdogs
from qwen_align.align.rl.zero_parts import ZeroParts, let_passes_differ
from qwen_align.align.settings.pass_limits import PassLimits, get_pass_limits
from qwen_align.align.store.files import read_json, write_json
from qwen_align.align.training.checkpoints import AtomicCheckpoints
from qwen_align.align.training.distributed import sum_over_processes
from qwen_align.align.training.expert_load import ExpertLoad
from qwen_align.align.training.frozen_models import prepare_frozen
from qwen_align.align.training.gathered_weights import gather_state, save_gathered_model
from qwen_align.align.training.measured_steps import MeasuredSteps
from qwen_align.align.training.reference_check import check_first_kl
from qwen_align.align.training.whole_copy import copy_weights, set_weight

WEIGHTS, REFERENCE, ROLLOUTS, STATE = (
    "trained.safetensors",
    "reference.safetensors",
    "rollouts.safetensors",
    "online_rl.json",
)


class UnfinishedStep(NamedTuple):
    """The trainer's state before a step, or its batch, was begun: what a checkpoint holds of it if the step fails.

    after_step: the optimiser step whose weights it belongs to. `prefetched`: the batch sampled a step ahead.
    """

    after_step: int
    state: dict[str, Any]
    prefetched: RolloutBatch | None


class OnlineTrainer(MeasuredSteps, AtomicCheckpoints, Trainer):  # type: ignore[misc]
    """A transformers Trainer for online RL, which makes `updates` optimiser steps on each rollout batch.

    `reference` is the model the stage started from, if a KL to it is asked for and the policy has no adapters.
    """

    model: Actor
    optimizer: torch.optim.Optimizer | None
    lr_scheduler: Any
    weight_files = WEIGHTS
    extra_files = (STATE,)
    expert_load: ExpertLoad | None = None  # of a mixture of experts

    def __init__(
        self,
        actor: Actor,
        args: TrainingArguments,
        algorithm: Algorithm,
        rollout_source: RolloutSource,
        context: Context,
        *,
        reference: Actor | None = None,
        texts: RawTexts | None = None,
        callbacks: Sequence[Any] = (),
    ) -> None:
        super().__init__(model=actor, args=args, train_dataset=list(range(args.max_steps)), callbacks=list(callbacks))
        settings = algorithm.settings
        self.algorithm, self.settings = algorithm, settings
        self.rollout_source, self.context = rollout_source, context
        self.reference, self.texts = reference, texts
        self.kl_coefficient = KlCoefficient.from_settings(settings.kl)
        self.entropy_coefficient = EntropyCoefficient.from_settings(settings.entropy)
        self.reward_scale = RewardScale()
        self.watchdogs = Watchdogs(settings.watchdogs)
        self.skipped = 0  # optimiser steps
        self.rollouts: Rollouts | None = None
        self.minibatches: list[list[int]] = []  # of this batch's optimiser steps that are still to come
        self.metrics: dict[str, float] = {}
        self._batch_metrics: dict[str, float] = {}  # for the watchdogs, which check a batch after its last update
        self._is_first_update = True  # of its batch's optimiser steps
        self._unfinished: UnfinishedStep | None = None
        self._sums: Sums = {}
        # As accelerate's, and also for a whole reference beside a policy that DeepSpeed runs under its own autocast.
        in_bf16 = settings.precision == "bf16"
        autocast = partial(torch.autocast, self.args.device.type, dtype=torch.bfloat16, enabled=in_bf16)
        self.scorer = Scorer(self._pack_micro_batches, autocast, self.args.device)
        rollout_source.score_drawn = self._score_drawn
        self._zero_parts: ZeroParts | None = None
        self._is_zero_prepared = False
        self._was_skipped = False  # the present step's update
        self._reference_state: dict[str, Tensor] = {}  # while a checkpoint is saved
        self._score_reference: Any = None if reference is None else prepare_frozen(reference, self.accelerator)

    # --- what Trainer asks for

    def get_train_dataloader(self) -> "DataLoader[int]":
        """Returns a data loader with one placeholder entry per optimiser step.

        What each trains on is decided when it comes.
        """
        return DataLoader(self.train_dataset, batch_size=1)

    def get_batch_samples(self, *_: Any) -> tuple[list[dict[str, Any]], None]:
        """Returns the row numbers of the completions for the next optimiser step.

        Collects new rollouts when a batch has been used up.
        """
        if self.is_deepspeed_enabled and not self._is_zero_prepared:
            self._prepare_zero(self.model_wrapped.optimizer)
        self.metrics = {}
        if not self.minibatches:
            self._is_first_update = True
            self._record_state()
            self._start_batch()
            self._batch_metrics = self.metrics.copy()
        elif self._is_first_update:  # of a batch that a checkpoint held before any update on it
            self.metrics = self._batch_metrics.copy()
        self._record_state()
        return [{"rows": self.minibatches.pop(0)}], None

    def _prepare_zero(self, zero: Any) -> None:
        """Adapts DeepSpeed's optimiser to the passes and parts of online RL."""
        if self.accelerator.state.deepspeed_plugin.zero_stage == 3:
            let_passes_differ(zero)
        if self.algorithm.critic:
            self._zero_parts = ZeroParts(zero, self.args.max_grad_norm, lambda: self._is_critic_warmup)
        self._is_zero_prepared = True

    def training_step(self, model: Any, inputs: Mapping[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Computes the gradients of an optimiser step and returns its loss.

        There are no gradients, and the loss is 0, when no completion trains anything.
        """
        started = time.monotonic()
        model.train()
        self._sums = {}
        loss = torch.zeros((), device=self.args.device)
        passes = self._plan_passes(inputs["rows"])
        self._was_skipped = not passes
        experts = None if self._is_critic_warmup else self.expert_load
        if experts is not None:
            experts.start_step()
            self._count_experts(experts, passes)
        for number, compute_part in enumerate(passes, start=1):
            batch: MicroBatch = compute_part.keywords["batch"]
            self._count_pass(batch)
            with self._update_in_phase(batch), self._sync_gradients_if_last(model, number == len(passes)):
                with self.compute_loss_context_manager():
                    part = compute_part(model)
                # Gradients are averaged over devices, and these are parts of one sum.
                self.accelerator.backward(part * self._world)
                if experts is not None:
                    experts.end_pass()
            loss += part.detach()
        if self._is_critic_warmup:
            for _, parameter in self.model.policy_parameters():
                parameter.grad = None
        self._summarise_update(loss, is_skipped=not passes)
        if experts is not None and passes:
            self.metrics |= experts.summarise()
        self.metrics["time/update"] = time.monotonic() - started
        if not self.minibatches:
            self._check_watchdogs()
        self._is_first_update = False
        return loss * self._world  # Trainer takes the mean over devices

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = logs | self.metrics  # Trainer's loss is rounded
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Creates the AdamW optimiser, with a separate learning rate for the critic's parameters."""
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(self.model))
            critic = self.algorithm.critic
            groups = group_parameters(self.model, decayed, self.args, critic.learning_rate if critic else None)
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = kind(groups, **settings)
            keep_embeddings_in_32_bits(self.model, settings)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Creates the learning-rate scheduler of the policy and the critic.

        The policy's begins after the critic's warm-up.
        """
        if self.lr_scheduler is None:
            late = self.algorithm.n_critic_updates
            optimizer = optimizer or self.optimizer
            self.lr_scheduler = build_schedule(optimizer, self.args, num_training_steps, late)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # --- a batch of completions

    def _start_batch(self) -> None:
        """Collects a rollout batch, scores its tokens, assigns advantages and schedules its optimiser steps."""
        rollout_source = self.rollout_source
        if rollout_source.batches == 0:
            rollout_source.report_first_rollouts()
        if rollout_source.is_evaluation_due:
            self._evaluate_held_out()
        batch = rollout_source.collect_next_batch(self.model.causal_lm, self.state.global_step + 1)
        self.metrics |= compute_batch_metrics(batch)
        if not batch.groups:
            self.rollouts, self.minibatches = None, [[] for _ in range(self.settings.updates.count)]
            return
        self.rollouts = build_rollouts(batch, mask_truncated=self.settings.mask_truncated)
        self.metrics |= compute_mask_metrics(self.rollouts)
        all_rows = range(len(self.rollouts))
        if batch.scored_logps is not None:
            self.metrics["mismatch/mean"] = set_old_logps(self.rollouts, batch.scored_logps)
        if self.algorithm.critic:
            with self._score_in_phase(self.rollouts):
                self.rollouts.values = self.scorer.score_values(self.model_wrapped, self.rollouts, all_rows)
        if self.algorithm.needs_reference_everywhere:
            self._score_before_updates(self.rollouts, all_rows)
        self.algorithm.assign_advantages(self.rollouts, self.kl_coefficient.value, self.reward_scale)
        if not self.algorithm.needs_reference_everywhere:
            self._score_before_updates(self.rollouts, self._select_trained_rows(all_rows))
        self.minibatches = self._schedule_minibatches(len(self.rollouts))
        if self.rollouts.reference_logps is not None:
            self._measure_reference_kl(self.rollouts)
        for sample in choose_samples(batch, self.rollouts, self.settings.keep_samples):
            self.context.log_sample(self.state.global_step + 1, sample)

    def _score_drawn(self, batch: RolloutBatch) -> Tensor:
        """Returns the present policy's log-probs of a batch that it has drawn and that may not be judged yet; flat."""
        rollouts = build_rollouts(batch, with_verdicts=False)
        with self._score_in_phase(rollouts):
            return self.scorer.score_logps(self.model_wrapped, rollouts, range(len(rollouts)))

    def _score_in_phase(self, rollouts: Rollouts) -> AbstractContextManager[None]:
        """Returns a context manager in which the context's phase is `score`."""
        return self.context.work_on(
            "score",
            step=self.state.global_step + 1,
            longest_row=int((rollouts.n_prompt + rollouts.n_tokens).max()),
        )

    def _score_before_updates(self, rollouts: Rollouts, rows: Sequence[int]) -> None:
        """Sets the log-probs of the given completions that are computed before their updates: old and reference ones.

        Both come of the same passes over the same rows, so that they differ by the weights alone.
        """
        if self._needs_scored_logps:
            with self._score_in_phase(rollouts):
                scored = self.scorer.score_logps(self.model_wrapped, rollouts, rows)
            self.metrics["mismatch/mean"] = set_old_logps(rollouts, scored)
        if self.settings.kl:
            with self._score_in_phase(rollouts):
                self._score_by_reference(rollouts, rows)
            if self.state.global_step == self.skipped:  # nothing has been trained yet
                self._check_reference_start(rollouts, rows)

    def _check_reference_start(self, rollouts: Rollouts, rows: Sequence[int]) -> None:
        """Checks that the reference is the policy, which has not been trained yet. Raises StageError otherwise."""
        logps = rollouts.old_logps
        if self.settings.async_steps:  # those were scored in other passes
            logps = self.scorer.score_logps(self.model_wrapped, rollouts, rows)
        check_first_kl(compute_mean_kl(logps, rollouts))

    def _score_by_reference(self, rollouts: Rollouts, rows: Sequence[int]) -> None:
        """Sets the reference policy's log-probs of the given completions.

        Tokens of other completions are NaN.
        """
        if self.reference is not None:
            rollouts.reference_logps = self.scorer.score_logps(self._score_reference, rollouts, rows)
        else:
            with self.model.disable_policy_adapter():
                rollouts.reference_logps = self.scorer.score_logps(self.model_wrapped, rollouts, rows)

    def _schedule_minibatches(self, n: int) -> list[list[int]]:
        """Shuffles `n` completions into minibatches and returns their row numbers, one list per optimiser step.

        Every epoch shuffles all of them anew.
        """
        updates, minibatches = self.settings.updates, []
        if updates.count == 1:
            return [list(range(n))]
        for epoch in range(updates.epochs):
            order = list(range(n))
            random.Random(f"{self.context.seed}: {self.rollout_source.batches}: {epoch}").shuffle(order)
            minibatches += [order[part :: updates.minibatches] for part in range(updates.minibatches)]
        return minibatches

    def _measure_reference_kl(self, rollouts: Rollouts) -> None:
        """Logs the KL to the reference policy, adapts its coefficient and updates a reference that is due."""
        settings = self.settings.kl
        assert settings is not None
        mean = compute_mean_kl(rollouts.old_logps, rollouts)
        self.metrics |= {"kl": mean, "kl/coefficient": self.kl_coefficient.value}
        if settings.target is not None and rollouts.counts.any():
            per_completion = estimate_reference_kl(rollouts, "k1").sum(dim=1)[rollouts.counts]
            self.kl_coefficient.adapt(settings, float(per_completion.mean()), len(per_completion))
        if settings.reference_sync_steps and self.rollout_source.batches % settings.reference_sync_steps == 0:
            assert self.reference is not None
            copy_weights(self.model.policy, self.reference.policy, self.args.device)

    def measure_held_out_now(self) -> HeldOutFigures:
        """Measures the present policy on the held-out set."""
        return self.rollout_source.measure_held_out(self.model.causal_lm)

    def _evaluate_held_out(self) -> None:
        """Evaluates the held-out set, logs its accuracy and notes watchdog alerts."""
        figures = self.measure_held_out_now()
        self.metrics |= {f"held_out/{name}": value for name, value in figures._asdict().items()}
        for alert in self.watchdogs.check_held_out(self.state.global_step, figures.accuracy, figures.stderr):
            self.context.log_note(alert.step, alert.watchdog, alert.message)

    # --- an optimiser step

    def _plan_passes(self, rows: list[int]) -> list[partial[Tensor]]:
        """Returns this process's forward passes for an optimiser step, each as a function from model to loss."""
        trained = self._select_trained_rows(rows)
        if not trained:
            return []
        assert self.rollouts is not None
        totals = count_step_totals(self.rollouts, rows, self.rollout_source.setup.sampling.max_tokens)
        mine, idle = self._pack_micro_batches(self.rollouts, trained)
        passes = [partial(self._compute_completion_loss, batch=batch, totals=totals) for batch in mine]
        passes += [
            partial(self._compute_completion_loss, batch=batch, totals=totals._replace(share=0.0)) for batch in idle
        ]
        # Devices exchange gradients in the last pass, and only of what it uses: texts, which have no value, go first.
        return [*self._plan_text_passes(), *passes]

    def _update_in_phase(self, batch: MicroBatch) -> AbstractContextManager[None]:
        """Returns a context manager in which the context's phase is `update`."""
        longest = max(before + n for before, n in zip(batch.layout.n_before, batch.layout.lengths, strict=True))
        return self.context.work_on(
            "update", step=self.state.global_step + 1, rows=len(batch.rows), longest_row=longest + 1
        )

    def _count_pass(self, batch: MicroBatch) -> None:
        """Counts the tokens and pairs of a training pass over a micro-batch, shared prompts once."""
        rows = zip(batch.layout.n_before, batch.layout.lengths, strict=True)
        pairs = sum(n * before + n * (n + 1) / 2 for before, n in rows)
        self.meter.count_pass(torch.tensor(float(batch.layout.n_tokens)), torch.tensor(pairs))

    def measure_step(self) -> dict[str, float]:
        """Returns the speed of the step's update; that of drawing is its batch's."""
        return self.meter.read_speed(self.metrics["time/update"])

    def _select_trained_rows(self, rows: Iterable[int]) -> list[int]:
        """Returns the row numbers of the completions that train the model."""
        if self.rollouts is None:
            return []
        kept = set(self.rollouts.select_trained_rows(without_signal=self.algorithm.trains_without_advantage))
        return [row for row in rows if row in kept]

    def _compute_completion_loss(self, model: Any, *, batch: MicroBatch, totals: StepTotals) -> Tensor:
        """Returns the loss of a micro-batch of completions.

        An idle micro-batch, whose totals have a share of 0, has a loss of 0.
        """
        assert self.rollouts is not None
        terms = UpdateTerms(
            on_policy=self._is_on_policy,
            policy=not self._is_critic_warmup,
            value=self.algorithm.critic is not None,
            kl_coefficient=self.kl_coefficient.value,
            entropy_coefficient=self.entropy_coefficient.effective_value,
        )
        batch = batch.to(self.args.device)
        experts = self.expert_load if terms.policy else None
        if experts is not None:
            experts.start_pass(is_idle=not totals.share)
        scores = model(batch, policy=terms.policy, values=terms.value)
        loss, sums = compute_loss(scores, batch, self.rollouts, totals, terms, self.algorithm)
        if experts is not None and experts.coefficient:
            loss = loss + totals.share * experts.compute_part()
        # Devices add up the same figures, also one that has idle passes alone.
        self._add_sums(sums if totals.share else {name: torch.zeros_like(value) for name, value in sums.items()})
        return loss

    def _count_experts(self, experts: ExpertLoad, passes: Sequence[partial[Tensor]]) -> None:
        """Counts which experts the completions of a step of several passes are sent to, before its first update.

        PPO-ptx's texts, which are no part of the batch that is balanced, are left out.
        """
        counted = [each.keywords for each in passes if "totals" in each.keywords]
        if not experts.needs_counting(len(counted)):
            return
        with experts.count_passes():
            for keywords in counted:
                with self._update_in_phase(keywords["batch"]), self.compute_loss_context_manager():
                    experts.start_pass(is_idle=not keywords["totals"].share)
                    self.model_wrapped(keywords["batch"].to(self.args.device), states_only=True)
                    experts.end_pass()

    def _plan_text_passes(self) -> list[partial[Tensor]]:
        """Returns this process's forward passes over PPO-ptx's raw texts for an optimiser step."""
        if self.texts is None or self._is_critic_warmup:
            return []
        numbers = self.texts.choose_texts(self.state.global_step)
        n_tokens, world = self.texts.count_loss_tokens(numbers), self._world
        batches = [list(self.texts.pack_micro_batches(numbers[r::world], self._pass_limits)) for r in range(world)]
        mine, idle = add_idle_batches(batches, self._rank)
        passes = [partial(self._compute_text_loss, batch=batch, n_tokens=n_tokens) for batch in mine]
        return passes + [partial(self._compute_text_loss, batch=batch, n_tokens=n_tokens, share=0.0) for batch in idle]

    def _compute_text_loss(self, model: Any, *, batch: MicroBatch, n_tokens: int, share: float = 1.0) -> Tensor:
        """Returns the next-token loss of a micro-batch of raw texts, times PPO-ptx's coefficient.

        Under DeepSpeed the critic reads the texts too, to no effect: of a parameter without a gradient in a step's
        first pass ZeRO 3 keeps that of the step before, and of one without any in the last pass offloading keeps none.
        """
        assert self.texts is not None
        scores = model(batch.to(self.args.device), entropies=False, temperature=1.0, values=self.is_deepspeed_enabled)
        loss = share * self.texts.compute_loss(scores, n_tokens)
        if scores.values is not None:
            loss = loss + 0 * scores.values.sum()
        self._add_sums({"ptx/loss": loss.detach()})
        assert self.algorithm.ptx is not None
        return self.algorithm.ptx.coefficient * loss

    def _add_sums(self, sums: Sums) -> None:
        """Adds the metric sums of a micro-batch to those of the optimiser step."""
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value

    def _summarise_update(self, loss: Tensor, *, is_skipped: bool) -> None:
        """Sums the optimiser step's metric sums over all devices and sets its metrics."""
        self.skipped += is_skipped
        names = sorted(self._sums)
        totals = torch.stack([loss, *(self._sums[name].float() for name in names)])
        sum_over_processes(totals)
        total, *values = totals.tolist()
        sums = dict(zip(names, values, strict=True))
        if not self._is_first_update or "mismatch/mean" in self.metrics:
            sums.pop("mismatch/mean", None)  # the policy has moved since it drew, or it has been measured before
        self.metrics |= {"loss": total, "skipped": float(is_skipped)}
        n = max(sums.pop("tokens", 0.0), 1.0)
        if "ptx/loss" in sums:
            self.metrics["ptx/loss"] = sums.pop("ptx/loss")
        if "value/loss" in sums:
            error, returns = sums.pop("value/squared_error"), sums.pop("value/returns")
            variance = sums.pop("value/squared_returns") / n - (returns / n) ** 2
            self.metrics["value/explained"] = 1 - error / n / variance if variance > 0 else 0.0
        self.metrics |= {name: value / n for name, value in sums.items()}
        if self._is_first_update and "mismatch/mean" in self.metrics:
            self._batch_metrics["mismatch/mean"] = self.metrics["mismatch/mean"]
        if "entropy" in self.metrics:
            self.entropy_coefficient.adapt(self.settings.entropy, self.metrics["entropy"])
        if self.settings.entropy:
            self.metrics["entropy/coefficient"] = self.entropy_coefficient.value

    def _check_watchdogs(self) -> None:
        """Checks a batch's metrics against the watchdogs after its last update and notes their alerts."""
        metrics = {**self._batch_metrics, **self.metrics}
        for alert in self.watchdogs.check_step(self.state.global_step + 1, metrics):
            self.context.log_note(alert.step, alert.watchdog, alert.message)

    # --- checkpoints, and what the stage hands on

    def save_trained_model(self, folder: Path) -> None:
        """Saves the policy alone, as a model folder or an adapter folder in Hugging Face form."""
        policy = self.model.policy
        only_policy = {"selected_adapters": [POLICY_ADAPTER]} if isinstance(policy, PeftModel) else {}
        save_gathered_model(self, policy, folder, **only_policy)

    def _clip_grad_norm(self, model: Any) -> Any:
        """Clips the gradients of policy and critic, each to the limit, and returns the policy's norm before that.

        Together the critic's, which are larger by orders of magnitude, would scale the policy's. DeepSpeed has clipped
        by itself when this is called, and made its step.
        """
        if self.is_deepspeed_enabled and self._was_skipped:
            return 0.0  # DeepSpeed's norm is still that of the step before
        if self._zero_parts is not None:
            self.metrics["value/grad_norm"] = self._zero_parts.norms[True]
            return self._zero_parts.norms[False]
        if self.algorithm.critic is None:
            return super()._clip_grad_norm(model)
        parts = (self.model.value_parameters(), self.model.policy_parameters())
        value_norm, policy_norm = (
            self.accelerator.clip_grad_norm_([parameter for _, parameter in part], self.args.max_grad_norm)
            for part in parts
        )
        self.metrics["value/grad_norm"] = float(value_norm)
        return policy_norm

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """Saves the trained weights of policy and critic into a checkpoint."""
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            trained = {name for name, weight in self.model.named_parameters() if weight.requires_grad}
            weights = dict(self.model.named_parameters()) if state_dict is None else state_dict
            save_file({name: weights[name].detach().contiguous() for name in sorted(trained)}, folder / WEIGHTS)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Saves a checkpoint, with the reference where the policy has taken its place."""
        if self.reference is not None and self.settings.kl and self.settings.kl.reference_sync_steps:
            self._reference_state = gather_state(self, self.reference.policy)
        super()._save_checkpoint(model, trial)
        self._reference_state = {}

    def _save_extra_state(self, folder: Path) -> None:
        """Saves into a checkpoint the other state needed to resume: controllers, watchdogs, rollouts, prompt stream.

        Trainer itself saves weights and optimiser.
        """
        unfinished = self._unfinished
        if unfinished is None or unfinished.after_step != self.state.global_step:  # no step has been begun since
            unfinished = self._collect_state()
        state = unfinished.state
        if state["is_new"]:
            state["logged"] = self.context.read_logs_after(self.state.global_step)
        write_json(folder / STATE, state)
        if unfinished.prefetched is not None:
            save_batch(unfinished.prefetched, folder / PENDING)
        if state["minibatches"] and self.rollouts is not None:
            self.rollouts.save(folder / ROLLOUTS)
        if self._reference_state:
            save_file(self._reference_state, folder / REFERENCE)

    def _collect_state(self) -> "UnfinishedStep":
        """Returns what a checkpoint of the present weights has to hold beside them and the rollouts."""
        state = {
            "experience": self.rollout_source.to_state(),
            "kl": self.kl_coefficient.to_state(),
            "entropy": self.entropy_coefficient.to_state(),
            "rewards": self.reward_scale.to_state(),
            "watchdogs": self.watchdogs.to_state(),
            "skipped": self.skipped,
            "minibatches": self.minibatches,
            "of_batch": self._batch_metrics,
            "is_new": bool(self.minibatches) and self._is_first_update,
        }
        return UnfinishedStep(self.state.global_step, copy.deepcopy(state), self.rollout_source.prefetched)

    def _record_state(self) -> None:
        """Records the present state, to which a step that fails goes back."""
        self._unfinished = self._collect_state()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Loads the trained weights from a checkpoint folder."""
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            _load_weights(self.model, Path(resume_from_checkpoint) / WEIGHTS)

    def load_extra_state(self, folder: Path) -> None:
        """Loads from a checkpoint what `_save_extra_state` saved."""
        state = read_json(folder / STATE)
        self.rollout_source.restore_state(state["experience"], folder)
        self.kl_coefficient.restore_state(state["kl"])
        self.entropy_coefficient.restore_state(state["entropy"])
        self.reward_scale.restore_state(state["rewards"])
        self.watchdogs.restore_state(state["watchdogs"])
        self.skipped, self.minibatches, self._batch_metrics = state["skipped"], state["minibatches"], state["of_batch"]
        self._is_first_update = state.get("is_new", False)
        self.context.restore_logs(state.get("logged", {}))
        if (folder / ROLLOUTS).exists():
            self.rollouts = Rollouts.load(folder / ROLLOUTS)
        if (folder / REFERENCE).exists():
            assert self.reference is not None
            weights = dict(self.reference.policy.named_parameters())
            for name, weight in load_file(folder / REFERENCE).items():
                set_weight(weights[name], weight)

    # --- devices

    @property
    def _rank(self) -> int:
        return int(self.args.process_index)

    @property
    def _world(self) -> int:
        return int(self.args.world_size)

    def _pack_micro_batches(self, rollouts: Rollouts, rows: Sequence[int]) -> tuple[list[MicroBatch], list[MicroBatch]]:
        """Returns this process's micro-batches of the given completions, and its idle micro-batches."""
        return pack_micro_batches(
            rollouts,
            rows,
            (self._rank, self._world),
            share_prompts=self.model.can_share_prompts,
            **self._pass_limits._asdict(),
        )

    @property
    def _pass_limits(self) -> PassLimits:
        return get_pass_limits(self.context.runtime, self.args.device.type)

    def _sync_gradients_if_last(self, model: Any, is_last: bool) -> AbstractContextManager[Any]:
        """Returns a context manager in which devices exchange gradients only in the last forward pass.

        Those that hold parts of the gradients exchange them in every pass: else each would hold all of them.
        """
        self.accelerator.gradient_state._set_sync_gradients(is_last)
        if is_last or self.accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP):
            return nullcontext()
        return self.accelerator.no_sync(model)  # type: ignore[no-any-return]

    # --- where the run stands

    @property
    def _is_on_policy(self) -> bool:
        """Returns whether the policy being updated is the policy that sampled the completions."""
        return self.settings.updates.count == 1 and not self.settings.async_steps

    @property
    def _needs_scored_logps(self) -> bool:
        """Returns whether the old log-probs are computed here, before the updates, in place of the engine's.

        So it is where they are compared with other passes of ours, of a policy that has moved or of the reference, and
        the engine's differ by more than float32's rounding. With `async_steps` they were computed when they were drawn.
        """
        is_exact = not self.rollout_source.engine.has_own_weights and self.settings.precision == "fp32"
        is_compared = self.settings.updates.count > 1 or self.settings.kl is not None
        return is_compared and not is_exact and not self.settings.async_steps

    @property
    def _is_critic_warmup(self) -> bool:
        """Returns whether the present optimiser step trains only the critic."""
        return bool(self.state.global_step < self.algorithm.n_critic_updates)


def _load_weights(module: torch.nn.Module, path: Path) -> None:
    """Loads the weights of a checkpoint file into a module.

    Raises StageError for weights that the module does not have.
    """
    unknown = module.load_state_dict(load_file(path), strict=False).unexpected_keys
    if unknown:
        raise StageError(f"{path}: holds weights the model has not, such as {unknown[0]}; --force the stage")
