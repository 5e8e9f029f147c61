"""Trains TRL's trainers on whole optimiser steps, cut into micro-batches of our own.

A trainer of TRL cuts a batch by rows and averages what each pass gives. Here a process gets its share of an optimiser
step's rows at once, and the loss of each micro-batch has its true weight in the step's, so neither the losses nor what
is logged depends on how a batch is cut.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from qwen_align.align.models.packed_attention import can_pack
from qwen_align.align.models.router_settings import COEFFICIENT
from qwen_align.align.settings.pass_limits import get_pass_limits
from qwen_align.align.training.checkpoints import AtomicCheckpoints
from qwen_align.align.training.distributed import gather_objects, sum_over_processes
from qwen_align.align.training.expert_load import ExpertLoad
from qwen_align.align.training.measured_steps import MeasuredSteps, StepMeter, count_tokens_and_pairs
from qwen_align.align.training.micro_batches import plan_micro_batches
from qwen_align.align.training.packed_forward import applies_head_alone, count_common_tokens

Row = dict[str, Any]
Batch = dict[str, Any]  # what a TRL trainer's collator makes of rows
EXTREMES: dict[str, Callable[[list[float]], float]] = {"min_reward": min, "max_reward": max}


class StepRows(Dataset[list[Row]]):
    """A process's rows of each optimiser step: the next `batch` rows of a data set, dealt in equal shares."""

    def __init__(self, rows: Any, batch: int, rank: int, world: int) -> None:
        self.rows, self.batch, self.share, self.rank = rows, batch, batch // world, rank

    def __len__(self) -> int:
        return len(self.rows) // self.batch

    def __getitem__(self, step: int) -> list[Row]:
        start = step * self.batch + self.rank * self.share
        columns = self.rows[start : start + self.share]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


class WholeSteps(MeasuredSteps, AtomicCheckpoints):
    """A mixin for a trainer of TRL that trains on whole optimiser steps.

    It comes before the trainer among the base classes. The trainer is told that a device's batch is its share of an
    optimiser step and accumulates nothing; the runtime of its context says how that is cut.
    """

    expert_load: ExpertLoad | None = None  # of a mixture of experts
    are_pairs = False  # whether a batch holds the chosen sides of pairs and then the rejected ones
    accelerator: Any
    state: Any
    is_deepspeed_enabled: bool
    is_fsdp_enabled: bool
    model: Any
    optimizer: Any
    data_collator: Any
    train_dataset: Any
    compute_loss_context_manager: Callable[[], AbstractContextManager[Any]]
    _prepare_inputs: Callable[[Batch], Batch]
    _metrics: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._figures: list[tuple[str, float, float]] = []  # name, value and weight of each micro-batch's metrics
        config = kwargs["model"].config.get_text_config()
        coefficient = getattr(config, COEFFICIENT, None)
        super().__init__(*args, **kwargs)
        if coefficient is not None:  # TRL has written that its own loss has none
            setattr(config, COEFFICIENT, coefficient)

    # --- what a trainer says of its rows

    def count_tokens(self, row: Row) -> int:
        """Returns how many tokens of a row are computed, at most."""
        raise NotImplementedError

    def count_totals(self, batches: Sequence[Batch]) -> Tensor:
        """Returns the figures by which the step's loss is divided, of this process's micro-batches, as a vector."""
        raise NotImplementedError

    def compute_part(self, model: Any, batch: Batch, totals: Tensor) -> Tensor:
        """Returns a micro-batch's part of the step's loss, times the number of processes; `totals` are of all of them.

        Gradients are averaged over processes, so these parts add up to the loss.
        """
        raise NotImplementedError

    def read_rows(self, model: Any, batch: Batch) -> None:
        """Has the model read a micro-batch's tokens as for its loss, as far as the head."""
        raise NotImplementedError

    def weigh_metrics(self, batch: Batch) -> tuple[float, Mapping[str, float]]:
        """Returns a micro-batch's weight in the means of the metrics, and the weight in those that have another."""
        raise NotImplementedError

    @property
    def reads_packed(self) -> bool:
        """Returns whether the model reads rows packed; else TRL's own forward pass pads them."""
        return can_pack(self.model.config) and applies_head_alone(self.model.config)

    # --- what transformers calls

    def get_train_dataloader(self) -> "DataLoader[list[Row]]":
        """Returns a loader of this process's rows of each optimiser step, in the data set's order."""
        rank, world = self.args.process_index, self.args.world_size
        rows = StepRows(self.train_dataset, self.args.per_device_train_batch_size * world, rank, world)
        return DataLoader(rows, batch_size=1, collate_fn=itemgetter(0))

    def get_batch_samples(self, epoch_iterator: Iterator[list[Row]], *_: Any) -> tuple[list[list[Row]], None]:
        """Returns the rows of the next optimiser step. What to divide its loss by is counted in `training_step`."""
        return [next(epoch_iterator)], None

    def training_step(self, model: Any, inputs: list[Row], num_items_in_batch: Any = None) -> Tensor:
        """Computes the gradients of an optimiser step and returns its loss, a process's part times their number."""
        model.train()
        meter = self.meter  # whose clock begins with the first step
        limits = get_pass_limits(self.context.runtime, self.args.device.type)
        lengths = [self.count_tokens(row) for row in inputs]
        plan = plan_micro_batches(lengths, limits, is_padded=not self.reads_packed)
        batches = [self.data_collator([inputs[number] for number in numbers]) for numbers in plan]
        totals = self.count_totals(batches).to(self.args.device)
        sum_over_processes(totals)
        n_idle = self._count_idle_passes(len(batches))
        loss = torch.zeros((), device=self.args.device)
        experts = self.expert_load
        if experts is not None:
            experts.start_step()
            self._count_experts(experts, model, batches, n_idle)
        for number, batch in enumerate([*batches, *batches[:1] * n_idle], start=1):
            is_idle = number > len(batches)
            with self._work_on_pass(batch), self._sync_if_last(model, number == len(batches) + n_idle):
                if experts is not None:
                    experts.start_pass(is_idle=is_idle)
                with self.compute_loss_context_manager(), _without_gathering(self.accelerator):
                    part = self.compute_part(model, self._prepare_inputs(batch), totals) * (not is_idle)
                    if experts is not None and experts.coefficient:
                        part = part + experts.compute_part() * self.args.world_size
                self.accelerator.backward(part)
                if experts is not None:
                    experts.end_pass()
            loss += part.detach()
            if not is_idle:
                self._count_pass(batch, meter)
            self._collect_metrics(batch, is_idle=is_idle)
        self._set_metrics()
        if experts is not None:
            self._metrics["train"] |= {name: [value] for name, value in experts.summarise().items()}
        return loss

    def _count_experts(self, experts: ExpertLoad, model: Any, batches: list[Batch], n_idle: int) -> None:
        """Counts which experts the tokens of a step of several passes are sent to, before the first is trained on."""
        if not experts.needs_counting(len(batches) + n_idle):
            return
        with experts.count_passes():
            for number, batch in enumerate([*batches, *batches[:1] * n_idle]):
                with self._work_on_pass(batch), self.compute_loss_context_manager():
                    experts.start_pass(is_idle=number >= len(batches))
                    self.read_rows(model, self._prepare_inputs(batch))
                    experts.end_pass()

    def floating_point_ops(self, inputs: Any) -> int:
        """Returns 0: transformers would estimate them from the padding too, and nothing reads them."""
        return 0

    # --- processes

    @property
    def _holds_parts(self) -> bool:
        """Returns whether processes hold parts of weights or gradients, and so wait for each other in every pass."""
        return bool(self.is_deepspeed_enabled or self.is_fsdp_enabled)

    def _count_idle_passes(self, n_passes: int) -> int:
        """Returns how many passes more another process makes, which this one has to make too where it holds parts."""
        return max(gather_objects(n_passes)) - n_passes if self._holds_parts else 0

    def _sync_if_last(self, model: Any, is_last: bool) -> AbstractContextManager[Any]:
        """Returns a context manager in which processes exchange gradients only in the last pass.

        Those that hold parts of the gradients exchange them in every pass: else each would hold all of them.
        """
        self.accelerator.gradient_state._set_sync_gradients(is_last)
        if is_last or self._holds_parts:
            return nullcontext()
        return self.accelerator.no_sync(model)  # type: ignore[no-any-return]

    # --- what is measured

    def _work_on_pass(self, batch: Batch) -> AbstractContextManager[None]:
        """Returns a context manager in which the context's phase is `update`."""
        lengths = batch["attention_mask"].sum(dim=1)
        return self.context.work_on(
            "update",
            step=self.state.global_step + 1,
            rows=len(lengths) // (2 if self.are_pairs else 1),
            longest_row=int(lengths.max()),
        )

    def _count_pass(self, batch: Batch, meter: StepMeter) -> None:
        """Counts the tokens of a pass and what they see, a common beginning once where it is computed once."""
        lengths = batch["attention_mask"].sum(dim=1)
        tokens, pairs = count_tokens_and_pairs(lengths)
        if self.are_pairs and self.reads_packed:
            shared_tokens, shared_pairs = count_tokens_and_pairs(count_common_tokens(batch["input_ids"], lengths))
            tokens, pairs = tokens - shared_tokens, pairs - shared_pairs
        meter.count_pass(tokens, pairs)
        for _ in range(self.n_reference_passes):
            meter.count_reference_pass(tokens, pairs)

    # --- metrics

    def _collect_metrics(self, batch: Batch, *, is_idle: bool) -> None:
        """Takes the metrics that TRL has computed of a micro-batch."""
        weight, weights = self.weigh_metrics(batch)
        figures = self._metrics["train"]
        if not is_idle:
            figures.pop("num_tokens", None)  # of this process since it started: the progress callback knows better
            self._figures += [(name, values[-1], weights.get(name, weight)) for name, values in figures.items()]
        figures.clear()

    def _set_metrics(self) -> None:
        """Sets the step's metrics to the weighted means, or extremes, of those of all processes' micro-batches."""
        figures: dict[str, list[tuple[float, float]]] = {}
        for name, value, weight in (one for part in gather_objects(self._figures) for one in part):
            figures.setdefault(name, []).append((value, weight))
        self._figures = []
        for name, found in figures.items():
            if name in EXTREMES:
                mean = EXTREMES[name]([value for value, _ in found])
            else:
                mean = sum(value * weight for value, weight in found) / max(sum(weight for _, weight in found), 1)
            self._metrics["train"][name] = [mean]


@contextmanager
def _without_gathering(accelerator: Any) -> Iterator[None]:
    """Leaves out that TRL gathers every metric of every pass: processes make different passes, and weigh them later."""
    accelerator.gather = accelerator.gather_for_metrics = _return_as_it_is
    try:
        yield
    finally:
        del accelerator.gather, accelerator.gather_for_metrics


def _return_as_it_is(value: Any) -> Any:
    return value
