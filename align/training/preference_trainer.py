"""Trains on preference pairs of token ids with TRL's DPOTrainer, packed, and with losses of our own."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from trl import DPOTrainer
from trl.models.utils import prepare_deepspeed
from trl.trainer import dpo_trainer

from qwen_align.align.training.fsdp2 import shard_trained_model
from qwen_align.align.training.packed_forward import replace_fused_head
from qwen_align.align.training.preference_losses import PairLogps, PreferenceLoss
from qwen_align.align.training.reference_logps import COLUMNS, add_reference_logps
from qwen_align.align.training.strategies import open_deepspeed_autocast
from qwen_align.align.training.whole_steps import Batch, Row, WholeSteps


class _RecordedForward:
    """A model that keeps the output of its one forward pass, so that a term can be added to TRL's loss."""

    def __init__(self, model: Any) -> None:
        self.model, self.output = model, None

    def __call__(self, **inputs: Any) -> Any:
        assert self.output is None, "TRL's loss calls the policy once"
        self.output = self.model(**inputs)
        return self.output


class PreferenceTrainer(WholeSteps, DPOTrainer):  # type: ignore[misc]
    """A DPOTrainer for pairs of token ids, whose loss is taken from the table of preference losses.

    TRL's own loss types run in TRL's code alone. Without adapters to switch off, the arguments ask for
    `precompute_ref_log_probs`: TRL then loads no reference by the model's name. The two sides of a pair are packed
    behind what they begin with in common.
    """

    are_pairs = True

    def __init__(self, *args: Any, loss: PreferenceLoss, sft_weight: float = 0.0, **kwargs: Any) -> None:
        self.preference_loss, self.sft_weight = loss, sft_weight
        with replace_fused_head(dpo_trainer, are_pairs=True):
            super().__init__(*args, **kwargs)
        self.n_reference_passes = int(loss.needs_reference and not self.precompute_ref_logps)

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """Returns the data set unchanged, because its rows are already token ids."""
        return dataset

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Adds the reference's log-probs to the data set, for a loss that needs them. The policy is not trained yet."""
        if not self.preference_loss.needs_reference:
            return dataset
        shard_trained_model(self)
        with self._open_scoring_model() as model:
            dataset = add_reference_logps(self, dataset, batch_size, partial(self.compute_ref_log_probs, model))
        if isinstance(model, FSDPModule):
            model.reshard()  # an optimiser has to find the shards
        return dataset

    @contextmanager
    def _open_scoring_model(self) -> Iterator[Any]:
        """Provides the policy as it is going to be computed. DeepSpeed has not placed its weights on the device yet.

        Under ZeRO-3 it is the policy in parts, in an engine whose hooks go afterwards: with those of two the weights
        would stay whole while it is trained.
        """
        plugin = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        if plugin is None:
            yield self.model
        elif plugin.zero_stage == 3:
            # A copy that shares the weights: DeepSpeed's hooks, which fetch them, stay with the modules they are put
            # into. A forward pass that pads is TRL's own of this very model, which a copy has not.
            shared = {id(weight): weight for weight in self.model.parameters()}
            model = copy.deepcopy(self.model, shared) if self.reads_packed else self.model
            engine = prepare_deepspeed(model, self.accelerator)
            yield engine
            for weight in self.model.parameters():
                weight.ds_persist = False  # as it is by DeepSpeed's default for small ones, which TRL does not change
            engine.optimizer.partition_all_parameters()
            engine.destroy()
        else:
            with open_deepspeed_autocast(self.accelerator, self.args.device):
                yield self.model.to(self.args.device)

    def count_tokens(self, row: Row) -> int:
        """Returns how many tokens a pair has, its prompt's once."""
        return sum(len(row[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids"))

    def count_totals(self, batches: Sequence[Batch]) -> Tensor:
        """Returns the number of pairs and of chosen tokens."""
        n_pairs = sum(len(batch["completion_mask"]) // 2 for batch in batches)
        return torch.tensor([n_pairs, sum(int(_count_side_tokens(batch)[0]) for batch in batches)])

    def compute_part(self, model: Any, batch: Batch, totals: Tensor) -> Tensor:
        """Returns the sum of the pairs' losses over the number of the step's pairs, and the SFT term.

        That is a mean over the step's chosen tokens. TRL has a loss type of that name, but it averages over the chosen
        tokens of a forward pass.
        """
        recorded = _RecordedForward(model)
        n_pairs = len(batch["completion_mask"]) // 2
        part: Tensor = self.compute_loss(recorded, batch) * n_pairs / totals[0]
        if self.sft_weight:
            assert recorded.output is not None
            part = part - self.sft_weight * recorded.output.log_probs.chunk(2)[0].sum() / totals[1]
        return part * int(self.args.world_size)

    def read_rows(self, model: Any, batch: Batch) -> None:
        """Has the model read a micro-batch's tokens as far as the head."""
        model(**_select_read_inputs(batch), states_only=True)

    def weigh_metrics(self, batch: Batch) -> tuple[float, Mapping[str, float]]:
        """Returns the number of a micro-batch's pairs, and of tokens for what TRL averages over tokens."""
        n_chosen, n_rejected = _count_side_tokens(batch).tolist()
        of_tokens = {"entropy": n_chosen + n_rejected, "mean_token_accuracy": n_chosen}
        of_sides = {"logits/chosen": n_chosen, "logits/rejected": n_rejected}
        return len(batch["completion_mask"]) // 2, of_tokens | of_sides

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        """Computes the mean preference loss of a micro-batch and logs its metrics.

        A TRL loss type is left to TRL.
        """
        if self.preference_loss.compute is None:
            return super()._compute_loss(model, inputs, return_outputs)
        assert not return_outputs, "of evaluation during training, which no stage asks for"
        chosen, rejected = self._score_sides(model, inputs)
        n_chosen, n_rejected = inputs["completion_mask"].sum(dim=1).chunk(2)
        reference_chosen = reference_rejected = None
        if self.precompute_ref_logps and self.preference_loss.needs_reference:
            reference_chosen, reference_rejected = (inputs[name] for name in COLUMNS)
        elif self.preference_loss.needs_reference:
            with torch.no_grad(), self.accelerator.unwrap_model(self.model).disable_adapter():
                reference_chosen, reference_rejected = self._score_sides(self.model, inputs)
        logps = PairLogps(chosen, rejected, reference_chosen, reference_rejected, n_chosen, n_rejected)
        loss = self.preference_loss.compute(logps, self.beta, self.label_smoothing).mean()
        self._log_pairs(logps)
        return loss

    def _score_sides(self, model: Any, inputs: Any) -> tuple[Tensor, Tensor]:
        """Returns the log-probs of the chosen and of the rejected completions, summed over tokens; (pairs,) each."""
        logps: Tensor = model(**_select_read_inputs(inputs), fused_lm_head=True).log_probs
        chosen, rejected = logps.sum(dim=1).chunk(2)
        return chosen, rejected

    def _log_pairs(self, logps: PairLogps) -> None:
        """Logs the implied rewards and log-probs of a batch of pairs under TRL's metric names.

        Without a reference the rewards are beta times the log-probability.
        """
        with torch.no_grad():
            chosen, rejected = logps.chosen, logps.rejected
            if logps.reference_chosen is not None and logps.reference_rejected is not None:
                chosen, rejected = chosen - logps.reference_chosen, rejected - logps.reference_rejected
            figures = {
                "rewards/chosen": self.beta * chosen,
                "rewards/rejected": self.beta * rejected,
                "rewards/accuracies": (chosen > rejected).float(),
                "rewards/margins": self.beta * (chosen - rejected),
                "logps/chosen": logps.chosen,
                "logps/rejected": logps.rejected,
            }
            for name, values in figures.items():
                self._metrics["train"][name].append(self.accelerator.gather(values).mean().item())


def _select_read_inputs(batch: Batch) -> dict[str, Any]:
    """Returns what a model is given of a micro-batch, with its completions as labels."""
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    read = {name: value for name, value in batch.items() if name not in ("completion_mask", *COLUMNS)}
    return {**read, "use_cache": False, "labels": labels}


def _count_side_tokens(batch: Batch) -> Tensor:
    """Counts the tokens of a micro-batch's chosen and of its rejected completions; (2,)."""
    n_tokens: Tensor = batch["completion_mask"].sum(dim=1)
    return torch.stack([side.sum() for side in n_tokens.chunk(2)])
