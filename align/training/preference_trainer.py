"""Trains on preference pairs of token ids with TRL's DPOTrainer, atomic checkpoints and losses of our own."""

from typing import Any

import torch
from torch import Tensor
from trl import DPOTrainer
from trl.models.utils import prepare_deepspeed

from qwen_align.align.training.checkpoints import AtomicCheckpoints
from qwen_align.align.training.measured_steps import MeasuredSteps
from qwen_align.align.training.preference_losses import PairLogps, PreferenceLoss
from qwen_align.align.training.reference_logps import COLUMNS, add_reference_logps


class PreferenceTrainer(MeasuredSteps, AtomicCheckpoints, DPOTrainer):  # type: ignore[misc]
    """A DPOTrainer for pairs of token ids, whose loss is taken from the table of preference losses.

    TRL's own loss types run in TRL's code alone. Without adapters to switch off, the arguments ask for
    `precompute_ref_log_probs`: TRL then loads no reference by the model's name.
    """

    def __init__(self, *args: Any, loss: PreferenceLoss, sft_weight: float = 0.0, **kwargs: Any) -> None:
        self.preference_loss, self.sft_weight = loss, sft_weight
        self.n_reference_passes = int(loss.needs_reference)
        super().__init__(*args, **kwargs)

    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        """Returns the data set unchanged, because its rows are already token ids."""
        return dataset

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Adds the reference's log-probs to the data set, for a loss that needs them. The policy is not trained yet."""
        if not self.preference_loss.needs_reference:
            return dataset
        # As TRL does it: DeepSpeed has not placed the weights on the device yet, or has split them.
        model = prepare_deepspeed(self.model, self.accelerator) if self.is_deepspeed_enabled else self.model
        return add_reference_logps(self, dataset, batch_size, lambda batch: self.compute_ref_log_probs(model, batch))

    def _compute_loss(self, model: Any, inputs: Any, return_outputs: bool) -> Any:
        """Computes the preference loss of a batch and logs its metrics.

        A TRL loss type is left to TRL.
        """
        if self.preference_loss.compute is None:
            return super()._compute_loss(model, inputs, return_outputs)
        assert not return_outputs, "of evaluation during training, which no stage asks for"
        token_logps = self._score_tokens(model, inputs)
        chosen, rejected = token_logps.sum(dim=1).chunk(2)
        n_chosen, n_rejected = inputs["completion_mask"].sum(dim=1).chunk(2)
        reference_chosen = reference_rejected = None
        if self.precompute_ref_logps and self.preference_loss.needs_reference:
            reference_chosen, reference_rejected = (inputs[name] for name in COLUMNS)
        elif self.preference_loss.needs_reference:
            with torch.no_grad(), self.accelerator.unwrap_model(self.model).disable_adapter():
                reference = self._score_tokens(self.model, inputs)
            reference_chosen, reference_rejected = reference.sum(dim=1).chunk(2)
        logps = PairLogps(chosen, rejected, reference_chosen, reference_rejected, n_chosen, n_rejected)
        loss = self.preference_loss.compute(logps, self.beta, self.label_smoothing).mean()
        if self.sft_weight:  # as TRL's loss type "sft": a mean over the chosen tokens of the forward pass
            loss = loss - self.sft_weight * token_logps.chunk(2)[0].sum() / n_chosen.sum()
        self._log_pairs(logps)
        return loss

    def _score_tokens(self, model: Any, inputs: Any) -> Tensor:
        """Returns the log-probs of the completions' tokens, 0 elsewhere; (2 x pairs, tokens - 1), chosen first."""
        labels = inputs["input_ids"].masked_fill(inputs["completion_mask"] == 0, -100)
        read = {name: value for name, value in inputs.items() if name not in ("completion_mask", *COLUMNS)}
        logps: Tensor = model(**read, use_cache=False, labels=labels, fused_lm_head=True).log_probs
        return logps

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
