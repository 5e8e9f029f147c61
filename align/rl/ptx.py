"""Raw texts beside PPO: PPO-ptx's next-token loss, against forgetting."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qwen_align.align.rendering.samples import Sample
from qwen_align.align.rl.actor import Scores
from qwen_align.align.rl.rollouts import MicroBatch, micro_batch


@dataclass(frozen=True)
class Texts:
    """Texts as token ids; a batch of them for every optimiser step, passes over all of them one after another."""

    samples: Sequence[Sample]
    batch: int
    seed: int
    dropped: dict[str, int] = field(default_factory=dict)  # texts that are none of the samples, by reason

    def drawn(self, step: int) -> list[int]:
        """Numbers of the texts of optimiser step `step`, counted from 0."""
        numbers = []
        for place in range(step * self.batch, (step + 1) * self.batch):
            epoch, within = divmod(place, len(self.samples))
            order = list(range(len(self.samples)))
            random.Random(f"{self.seed}: ptx {epoch}").shuffle(order)
            numbers.append(order[within])
        return numbers

    def n_tokens(self, numbers: Sequence[int]) -> int:
        """Tokens in the loss of these texts; a text's first token has nothing before it."""
        return sum(len(self.samples[number].ids) - 1 for number in numbers)

    @staticmethod
    def loss(scores: Scores, n_tokens: int) -> Tensor:
        """This pass's part of the mean next-token loss over `n_tokens`."""
        assert scores.logps is not None
        return -scores.logps.sum() / max(n_tokens, 1)

    def batches(self, numbers: Sequence[int], *, max_rows: int) -> Iterator[MicroBatch]:
        """The texts for forward passes; the first token of each is only seen."""
        ordered = sorted(numbers, key=lambda number: (-len(self.samples[number].ids), number))
        for start in range(0, len(ordered), max_rows):
            part = ordered[start : start + max_rows]
            ids = [torch.tensor(self.samples[number].ids) for number in part]
            yield micro_batch(part, ids, [1] * len(part))
