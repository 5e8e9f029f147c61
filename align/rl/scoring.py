"""Computes log-probs and critic values of all tokens of a step's completions, split among the processes.

Without gradients, in the precision that training has.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qwen_align.align.rl.micro_batches import MicroBatch
from qwen_align.align.rl.rollouts import Rollouts
from qwen_align.align.training.distributed import gather_objects


class Scorer(NamedTuple):
    """A forward-pass runner that packs completions into micro-batches and scores their tokens on a device.

    `pack` cuts rows into this process's micro-batches and idle ones; `autocast` is the precision of forward passes.
    """

    pack: Callable[[Rollouts, Sequence[int]], tuple[list[MicroBatch], list[MicroBatch]]]
    autocast: Callable[[], AbstractContextManager[Any]]
    device: torch.device

    def score_logps(self, model: Any, rollouts: Rollouts, rows: Sequence[int]) -> Tensor:
        """Returns a model's log-prob of every token of the given completions, as a flat tensor.

        Tokens of other completions are NaN.
        """
        return self._score_tokens(rollouts, rows, lambda batch: model(batch, entropies=False).logps)

    def score_values(self, model: Any, rollouts: Rollouts, rows: Sequence[int]) -> Tensor:
        """Returns the critic's value of every token of the given completions, as a flat tensor.

        Tokens of other completions are NaN.
        """
        return self._score_tokens(rollouts, rows, lambda batch: model(batch, policy=False, values=True).values)

    @torch.no_grad()
    def _score_tokens(
        self, rollouts: Rollouts, rows: Sequence[int], score: Callable[[MicroBatch], Tensor | None]
    ) -> Tensor:
        """Scores every token of the given completions by a function and returns a flat tensor.

        Tokens of other completions are NaN. The processes share the rows.
        """
        n_tokens = rollouts.n_tokens.tolist()
        parts: dict[int, Tensor] = {}
        mine, idle = self.pack(rollouts, rows)
        for number, batch in enumerate([*mine, *idle]):
            with self.autocast():
                scores = score(batch.to(self.device))
            if number >= len(mine):
                continue
            assert scores is not None
            for row, row_scores in zip(batch.rows, scores.float().cpu(), strict=True):
                parts[row] = row_scores[: n_tokens[row]]
        parts = {row: row_scores for part in gather_objects(parts) for row, row_scores in part.items()}
        return torch.cat(
            [parts[row] if row in parts else torch.full((n,), torch.nan) for row, n in enumerate(n_tokens)]
        )


def set_old_logps(rollouts: Rollouts, scored: Tensor) -> float:
    """Sets the rollouts' old log-probs to the trainer's and returns how far those are from the engine's.

    `scored` is flat and NaN for completions that were not scored, which keep the engine's. The distance is a mean over
    the scored tokens in the loss, in nats.
    """
    is_scored = ~scored.isnan()
    in_loss = rollouts.flatten_tokens(rollouts.get_mask() > 0) & is_scored
    distances = (scored - rollouts.old_logps)[in_loss].abs()
    rollouts.old_logps = torch.where(is_scored, scored, rollouts.old_logps)
    return float(distances.mean()) if len(distances) else 0.0
