"""Computes PPO-ptx's next-token loss on raw texts, which is added to PPO's against forgetting."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qwen_align.align.rendering.samples import Sample
from qwen_align.align.rl.actor import Scores
from qwen_align.align.rl.micro_batches import MicroBatch, build_micro_batch
from qwen_align.align.settings.pass_limits import PassLimits
from qwen_align.align.training.micro_batches import fill_passes


@dataclass(frozen=True)
class RawTexts:
    """A set of tokenised texts from which a batch is taken at every optimiser step.

    Passes over all of them follow one another.
    """

    samples: Sequence[Sample]
    batch: int
    seed: int
    dropped: dict[str, int] = field(default_factory=dict)  # texts that are none of the samples, by reason

    def choose_texts(self, step: int) -> list[int]:
        """Returns the indices of the texts that an optimiser step trains on.

        Steps are counted from 0.
        """
        numbers = []
        for position in range(step * self.batch, (step + 1) * self.batch):
            epoch, within = divmod(position, len(self.samples))
            order = list(range(len(self.samples)))
            random.Random(f"{self.seed}: ptx {epoch}").shuffle(order)
            numbers.append(order[within])
        return numbers

    def count_loss_tokens(self, numbers: Sequence[int]) -> int:
        """Counts the tokens in the loss of the texts with these indices.

        A text's first token has nothing before it.
        """
        return sum(len(self.samples[number].ids) - 1 for number in numbers)

    @staticmethod
    def compute_loss(scores: Scores, n_tokens: int) -> Tensor:
        """Returns the summed next-token loss of a micro-batch of texts, divided by `n_tokens`."""
        assert scores.logps is not None
        return -scores.logps.sum() / max(n_tokens, 1)

    def pack_micro_batches(self, numbers: Sequence[int], limits: PassLimits) -> Iterator[MicroBatch]:
        """Packs the texts with these indices into micro-batches, the longest first.

        The first token of each is not scored.
        """
        units = [(len(self.samples[number].ids), [number]) for number in numbers]
        for part in fill_passes(units, limits.compute_budget(n_tokens for n_tokens, _ in units)):
            chosen = [number for _, (number,) in part]
            ids = [torch.tensor(self.samples[number].ids) for number in chosen]
            yield build_micro_batch(chosen, ids, [1] * len(chosen))
