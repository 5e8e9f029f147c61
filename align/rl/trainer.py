"""The loop of online RL on transformers' Trainer: play, credit, update, and a checkpoint that holds all of it.

Trainer gives the optimiser, devices, DeepSpeed, clipping and checkpoints. For every optimiser step it asks for a batch,
which here is a list of completions of the step's play, trained on in micro-batches of our own.
"""

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments, get_scheduler

from qwen_align.align.context import Context
from qwen_align.align.errors import StageError
from qwen_align.align.rl.actor import POLICY_ADAPTER, Actor, Scores
from qwen_align.align.rl.assign_advantages import credit, reference_kl
from qwen_align.align.rl.collect import assembled
from qwen_align.align.rl.controllers import EntropyCoefficient, KlCoefficient, RewardScale
from qwen_align.align.rl.objective import Sums, Terms, Whole, loss_of, moves_without_advantage
from qwen_align.align.rl.ptx import Texts
from qwen_align.align.rl.rollout_batches import Experience
from qwen_align.align.rl.rollouts import CPU_TOKENS, MicroBatch, Rollouts, of_process, turns
from qwen_align.align.rl.step_metrics import of_play, samples_to_read
from qwen_align.align.rl.watchdogs import Watchdogs
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.ppo import Ppo
from qwen_align.align.store.files import read_json, write_json
from qwen_align.align.training.checkpoints import AtomicCheckpoints
from qwen_align.align.training.distributed import gather_objects, sum_over_processes
from qwen_align.align.training.reference_check import check_first_kl

WEIGHTS, REFERENCE, ROLLOUTS, STATE = (
    "trained.safetensors",
    "reference.safetensors",
    "rollouts.safetensors",
    "online_rl.json",
)


class OnlineTrainer(AtomicCheckpoints, Trainer):  # type: ignore[misc]
    """GRPO and PPO: each batch of completions is trained on in `updates` optimiser steps.

    `reference` is the model the stage started from, if a KL to it is asked for and the policy has no adapters.
    """

    model: Actor
    optimizer: torch.optim.Optimizer | None
    lr_scheduler: Any

    def __init__(
        self,
        actor: Actor,
        args: TrainingArguments,
        spec: Grpo | Ppo,
        experience: Experience,
        context: Context,
        *,
        reference: Actor | None = None,
        texts: Texts | None = None,
        callbacks: Sequence[Any] = (),
    ) -> None:
        super().__init__(model=actor, args=args, train_dataset=list(range(args.max_steps)), callbacks=list(callbacks))
        self.spec, self.experience, self.context = spec, experience, context
        self.reference, self.texts = reference, texts
        self.kl_coefficient = KlCoefficient.of(spec.kl)
        self.entropy_coefficient = EntropyCoefficient.of(spec.entropy)
        self.reward_scale = RewardScale()
        self.watchdogs = Watchdogs(spec.watchdogs)
        self.skipped = 0  # optimiser steps
        self.rollouts: Rollouts | None = None
        self.minibatches: list[list[int]] = []  # of this batch's optimiser steps that are still to come
        self.figures: dict[str, float] = {}
        self._of_batch: dict[str, float] = {}  # for the watchdogs, which look when a batch is done with
        self._is_first = True  # of its batch's optimiser steps
        self._sums: Sums = {}
        if reference is not None:
            reference.to(self.args.device).eval().requires_grad_(False)

    # --- what Trainer asks for

    def get_train_dataloader(self) -> "DataLoader[int]":
        """As many entries as there are optimiser steps; what each trains on is decided when it comes."""
        return DataLoader(self.train_dataset, batch_size=1)

    def get_batch_samples(self, *_: Any) -> tuple[list[dict[str, Any]], None]:
        """The completions of the next optimiser step; plays first when a batch has been used up."""
        self.figures = {}
        self._is_first = not self.minibatches
        if self._is_first:
            self._next_batch()
            self._of_batch = self.figures.copy()
        return [{"rows": self.minibatches.pop(0)}], None

    def training_step(self, model: Any, inputs: Mapping[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Gradients of the whole optimiser step; none, and a loss of 0, when there is nothing to learn from."""
        started = time.monotonic()
        model.train()
        self._sums = {}
        loss = torch.zeros((), device=self.args.device)
        passes = self._passes(inputs["rows"])
        for number, one in enumerate(passes, start=1):
            with self._synchronised(model, number == len(passes)):
                with self.compute_loss_context_manager():
                    part = one(model)
                # Gradients are averaged over devices, and these are parts of one sum.
                self.accelerator.backward(part * self._world)
            loss += part.detach()
        if self._is_warmup:
            for _, parameter in self.model.policy_parameters():
                parameter.grad = None
        self._summarise(loss, is_skipped=not passes)
        self.figures["time/update"] = time.monotonic() - started
        if not self.minibatches:
            self._watch()
        return loss * self._world  # Trainer takes the mean over devices

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            logs = logs | self.figures  # Trainer's loss is rounded
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: Any) -> int:
        return 0

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW; the critic's parameters have a learning rate of their own."""
        if self.optimizer is None:
            decayed = set(self.get_decay_parameter_names(self.model))
            kinds = [(False, self.args.learning_rate, list(self.model.policy_parameters()))]
            if isinstance(self.spec, Ppo):
                kinds.append((True, self.spec.critic.learning_rate, list(self.model.value_parameters())))
            groups = [
                {
                    "params": [one for name, one in named if (name in decayed) == is_decayed],
                    "weight_decay": self.args.weight_decay if is_decayed else 0.0,
                    "lr": rate,
                    "is_value": is_value,
                }
                for is_value, rate, named in kinds
                for is_decayed in (True, False)
            ]
            kind, settings = self.get_optimizer_cls_and_kwargs(self.args)
            self.optimizer = kind([group for group in groups if group["params"]], **settings)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The recipe's schedule; the policy's begins after the critic's warm-up."""
        if self.lr_scheduler is None:
            optimizer = optimizer or self.optimizer
            late = self._value_steps

            def factor(steps: int) -> Callable[[int], float]:
                name, warmup = self.args.lr_scheduler_type, self.args.warmup_steps
                made = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=max(1, steps))
                return made.lr_lambdas[0]  # type: ignore[no-any-return]

            policy, value = factor(num_training_steps - late), factor(num_training_steps)
            self.lr_scheduler = LambdaLR(
                optimizer,
                [
                    value if group["is_value"] else lambda step: policy(step - late) if step >= late else 0.0
                    for group in optimizer.param_groups
                ],
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    # --- a batch of completions

    def _next_batch(self) -> None:
        experience = self.experience
        if experience.batches == 0:
            experience.preflight()
        if experience.evaluates_now:
            self._evaluate()
        played = experience.next(self.model.causal_lm, self.state.global_step + 1)
        self.figures |= of_play(played)
        if not played.groups:
            self.rollouts, self.minibatches = None, [[] for _ in range(self.spec.updates.count)]
            return
        self.rollouts = assembled(played, mask_truncated=self.spec.mask_truncated)
        everything = range(len(self.rollouts))
        self._score(self.rollouts)
        if self._is_kl_of_all:
            self._score_by_reference(self.rollouts, everything)
        credit(self.rollouts, self.spec, self.kl_coefficient.value, self.reward_scale)
        if self.spec.kl and not self._is_kl_of_all:
            self._score_by_reference(self.rollouts, self._with_signal(everything))
        self.minibatches = self._schedule(len(self.rollouts))
        if self.rollouts.reference_logps is not None:
            self._follow_reference(self.rollouts)
        for sample in samples_to_read(played, self.rollouts, self.spec.keep_samples):
            self.context.log_sample(self.state.global_step + 1, sample)

    def _score(self, rollouts: Rollouts) -> None:
        """What the policy and the critic say of the completions before they are trained on."""
        policy, everything = self.model_wrapped, range(len(rollouts))
        if not self._is_on_policy and not self._engine_is_exact:
            rollouts.old_logps = self._scores(rollouts, everything, policy, lambda one: one.logps)
        if isinstance(self.spec, Ppo):
            rollouts.values = self._scores(rollouts, everything, policy, lambda one: one.values, values=True)

    def _score_by_reference(self, rollouts: Rollouts, rows: Sequence[int]) -> None:
        """What the reference says of these completions; NaN of the others' tokens."""
        if self.reference is not None:
            rollouts.reference_logps = self._scores(rollouts, rows, self.reference, lambda one: one.logps)
        else:
            with self.model.as_reference():
                rollouts.reference_logps = self._scores(rollouts, rows, self.model_wrapped, lambda one: one.logps)

    @torch.no_grad()
    def _scores(
        self,
        rollouts: Rollouts,
        rows: Sequence[int],
        model: Any,
        what: Callable[[Scores], Tensor | None],
        *,
        values: bool = False,
    ) -> Tensor:
        """One score of every token of the rows, flat, NaN elsewhere; the rows are shared among the processes."""
        n_tokens = rollouts.n_tokens.tolist()
        parts: dict[int, Tensor] = {}
        mine, idle = self._turns(rollouts, rows)
        for number, batch in enumerate([*mine, *idle]):
            with self.compute_loss_context_manager():
                scores = what(model(batch.to(self.args.device), policy=not values, values=values))
            if number >= len(mine):
                continue
            assert scores is not None
            for row, said in zip(batch.rows, scores.float().cpu(), strict=True):
                parts[row] = said[: n_tokens[row]]
        parts = {row: said for part in gather_objects(parts) for row, said in part.items()}
        return torch.cat(
            [parts[row] if row in parts else torch.full((n,), torch.nan) for row, n in enumerate(n_tokens)]
        )

    def _schedule(self, n: int) -> list[list[int]]:
        """The completions of each optimiser step of this batch: every pass deals all of them out anew."""
        updates, minibatches = self.spec.updates, []
        if updates.count == 1:
            return [list(range(n))]
        for epoch in range(updates.epochs):
            order = list(range(n))
            random.Random(f"{self.context.seed}: {self.experience.batches}: {epoch}").shuffle(order)
            minibatches += [order[part :: updates.minibatches] for part in range(updates.minibatches)]
        return minibatches

    def _follow_reference(self, rollouts: Rollouts) -> None:
        settings = self.spec.kl
        assert settings is not None
        apart = reference_kl(rollouts, "k3")
        scored = rollouts.mask() * ~apart.isnan()
        mean = float((apart.nan_to_num() * scored).sum() / scored.sum().clamp(min=1))
        self.figures |= {"kl": mean, "kl/coefficient": self.kl_coefficient.value}
        if self.experience.batches == 1:
            check_first_kl(mean)
        whole = float(reference_kl(rollouts, "k1").sum(dim=1).mean())
        self.kl_coefficient.follow(settings, whole, len(rollouts))
        if settings.reference_sync_steps and self.experience.batches % settings.reference_sync_steps == 0:
            assert self.reference is not None
            self.reference.policy.load_state_dict(self.model.policy.state_dict())

    def held_out_now(self) -> tuple[float, float]:
        """Accuracy on the questions held out, and its standard error."""
        return self.experience.held_out(self.model.causal_lm)

    def _evaluate(self) -> None:
        mean, stderr = self.held_out_now()
        self.figures |= {"held_out/accuracy": mean, "held_out/stderr": stderr}
        for bark in self.watchdogs.look_held_out(self.state.global_step, mean, stderr):
            self.context.log_note(bark.step, bark.watchdog, bark.message)

    # --- an optimiser step

    def _passes(self, rows: list[int]) -> list[Callable[[Any], Tensor]]:
        """The forward passes of this process."""
        trained = self._with_signal(rows)
        if not trained:
            return []
        assert self.rollouts is not None
        whole = Whole.of(self.rollouts, rows, self.experience.player.sampling.max_tokens)
        mine, idle = self._turns(self.rollouts, trained)
        passes = [partial(self._loss, batch=batch, whole=whole) for batch in mine]
        passes += [partial(self._loss, batch=batch, whole=whole._replace(share=0.0)) for batch in idle]
        return [*passes, *self._text_passes()]

    def _with_signal(self, rows: Iterable[int]) -> list[int]:
        """Those that move something."""
        if self.rollouts is None:
            return []
        kept = set(self.rollouts.trained(without_signal=moves_without_advantage(self.spec)))
        return [row for row in rows if row in kept]

    def _loss(self, model: Any, *, batch: MicroBatch, whole: Whole) -> Tensor:
        assert self.rollouts is not None
        terms = Terms(
            on_policy=self._is_on_policy,
            policy=not self._is_warmup,
            value=isinstance(self.spec, Ppo),
            kl_coefficient=self.kl_coefficient.value,
            entropy_coefficient=self.entropy_coefficient.paid,
        )
        here = batch.to(self.args.device)
        scores = model(here, policy=terms.policy, values=terms.value)
        loss, sums = loss_of(scores, here, self.rollouts, whole, terms, self.spec)
        if whole.share:
            self._add(sums)
        return loss

    def _text_passes(self) -> list[Callable[[Any], Tensor]]:
        if self.texts is None or self._is_warmup:
            return []
        numbers = self.texts.drawn(self.state.global_step)
        n_tokens, rows = self.texts.n_tokens(numbers), self.context.runtime.micro_batch
        batches = [list(self.texts.batches(numbers[r :: self._world], max_rows=rows)) for r in range(self._world)]
        mine, idle = of_process(batches, self._rank)
        passes: list[Callable[[Any], Tensor]]
        passes = [partial(self._text_loss, batch=batch, n_tokens=n_tokens) for batch in mine]
        return passes + [partial(self._text_loss, batch=batch, n_tokens=n_tokens, share=0.0) for batch in idle]

    def _text_loss(self, model: Any, *, batch: MicroBatch, n_tokens: int, share: float = 1.0) -> Tensor:
        assert self.texts is not None
        loss = share * self.texts.loss(model(batch.to(self.args.device), temperature=1.0), n_tokens)
        self._add({"ptx/loss": loss.detach()})
        assert isinstance(self.spec, Ppo)
        assert self.spec.ptx is not None
        return self.spec.ptx.coefficient * loss

    def _add(self, sums: Sums) -> None:
        for name, value in sums.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value

    def _summarise(self, loss: Tensor, *, is_skipped: bool) -> None:
        """The optimiser step's figures, over all devices."""
        self.skipped += is_skipped
        names = sorted(self._sums)
        whole = torch.stack([loss, *(self._sums[name].float() for name in names)])
        sum_over_processes(whole)
        total, *values = whole.tolist()
        sums = dict(zip(names, values, strict=True))
        if not self._is_first or self.spec.async_steps:
            sums.pop("mismatch/mean", None)  # the policy itself has moved since
        self.figures |= {"loss": total, "skipped": float(is_skipped)}
        n = max(sums.pop("tokens", 0.0), 1.0)
        if "ptx/loss" in sums:
            self.figures["ptx/loss"] = sums.pop("ptx/loss")
        if "value/loss" in sums:
            error, returns = sums.pop("value/squared_error"), sums.pop("value/returns")
            variance = sums.pop("value/squared_returns") / n - (returns / n) ** 2
            self.figures["value/explained"] = 1 - error / n / variance if variance > 0 else 0.0
        self.figures |= {name: value / n for name, value in sums.items()}
        if "entropy" in self.figures:
            self.entropy_coefficient.follow(self.spec.entropy, self.figures["entropy"])
        if self.spec.entropy:
            self.figures["entropy/coefficient"] = self.entropy_coefficient.value

    def _watch(self) -> None:
        """The watchdogs look at a batch after its last update: at its play, and at what its updates have done."""
        seen = {**self._of_batch, **self.figures}
        for bark in self.watchdogs.look(self.state.global_step + 1, seen):
            self.context.log_note(bark.step, bark.watchdog, bark.message)

    # --- checkpoints, and what the stage hands on

    def save_policy(self, folder: str) -> None:
        """The policy alone, as a model folder or an adapter folder in Hugging Face form."""
        policy, only_policy = self.model.policy, dict[str, Any]()
        if isinstance(policy, PeftModel):
            only_policy["selected_adapters"] = [POLICY_ADAPTER]
        if self.is_deepspeed_enabled:
            whole = self.accelerator.get_state_dict(self.model_wrapped)
            only_policy["state_dict"] = {
                name.removeprefix("policy."): one for name, one in whole.items() if name.startswith("policy.")
            }
        if self.args.should_save:
            policy.save_pretrained(folder, **only_policy)

    def _save(self, output_dir: str | None = None, state_dict: Mapping[str, Tensor] | None = None) -> None:
        """The weights that training changes, policy's and critic's."""
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            trained = {name for name, one in self.model.named_parameters() if one.requires_grad}
            weights = dict(self.model.named_parameters()) if state_dict is None else state_dict
            save_file({name: weights[name].detach().contiguous() for name in sorted(trained)}, folder / WEIGHTS)

    def _save_extra_state(self, folder: Path) -> None:
        state = {
            "experience": self.experience.state(),
            "kl": self.kl_coefficient.state(),
            "entropy": self.entropy_coefficient.state(),
            "rewards": self.reward_scale.state(),
            "watchdogs": self.watchdogs.state(),
            "skipped": self.skipped,
            "minibatches": self.minibatches,
            "of_batch": self._of_batch,
        }
        write_json(folder / STATE, state)
        self.experience.save_ahead(folder)
        if self.minibatches and self.rollouts is not None:
            self.rollouts.save(folder / ROLLOUTS)
        if self.reference is not None and self.spec.kl and self.spec.kl.reference_sync_steps:
            save_file(dict(self.reference.policy.named_parameters()), folder / REFERENCE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        _load(self.model, folder / WEIGHTS)
        state = read_json(folder / STATE)
        self.experience.restore(state["experience"], folder)
        self.kl_coefficient.restore(state["kl"])
        self.entropy_coefficient.restore(state["entropy"])
        self.reward_scale.restore(state["rewards"])
        self.watchdogs.restore(state["watchdogs"])
        self.skipped, self.minibatches, self._of_batch = state["skipped"], state["minibatches"], state["of_batch"]
        if (folder / ROLLOUTS).exists():
            self.rollouts = Rollouts.load(folder / ROLLOUTS)
        if (folder / REFERENCE).exists():
            assert self.reference is not None
            _load(self.reference.policy, folder / REFERENCE)

    # --- devices

    @property
    def _rank(self) -> int:
        return int(self.args.process_index)

    @property
    def _world(self) -> int:
        return int(self.args.world_size)

    def _turns(self, rollouts: Rollouts, rows: Sequence[int]) -> tuple[list[MicroBatch], list[MicroBatch]]:
        return turns(
            rollouts,
            rows,
            (self._rank, self._world),
            max_rows=self.context.runtime.micro_batch,
            max_tokens=CPU_TOKENS if self.args.device.type == "cpu" else None,
            share_prompts=self.model.can_share_prompts,
        )

    def _synchronised(self, model: Any, is_last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged between devices after the last pass alone."""
        self.accelerator.gradient_state._set_sync_gradients(is_last)
        if is_last or self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return nullcontext()
        return self.accelerator.no_sync(model)  # type: ignore[no-any-return]

    # --- where the run stands

    @property
    def _is_kl_of_all(self) -> bool:
        """Whether the KL of completions counts that do not train: it has a price or a target there."""
        kl = self.spec.kl
        return kl is not None and (
            kl.apply_to == "reward" or kl.target is not None or moves_without_advantage(self.spec)
        )

    @property
    def _is_on_policy(self) -> bool:
        """Whether the policy that is updated is the one that drew."""
        return self.spec.updates.count == 1 and not self.spec.async_steps

    @property
    def _engine_is_exact(self) -> bool:
        """Whether the engine's log-probs are those the trainer would compute, but for float32's rounding."""
        return not self.experience.engine.holds_a_copy and self.spec.precision == "fp32"

    @property
    def _value_steps(self) -> int:
        """Optimiser steps that train the critic alone."""
        return self.spec.critic.warmup_steps * self.spec.updates.count if isinstance(self.spec, Ppo) else 0

    @property
    def _is_warmup(self) -> bool:
        return bool(self.state.global_step < self._value_steps)


def _load(module: torch.nn.Module, path: Path) -> None:
    """Weights of a checkpoint into the module; raises StageError for names that it has not."""
    strange = module.load_state_dict(load_file(path), strict=False).unexpected_keys
    if strange:
        raise StageError(f"{path}: holds weights the model has not, such as {strange[0]}; --force the stage")
