"""A step's completions as tensors, cut into micro-batches, and to and from a file bit by bit."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass
class Rollouts:
    """N completions. What is said of tokens is flat: all completions' tokens, one completion after another."""

    ids: Tensor  # of prompts and completions, each prompt before its completion
    n_prompt: Tensor  # (N,) tokens
    n_tokens: Tensor  # (N,) tokens of the completion
    group: Tensor  # (N,) number of its prompt among the step's
    reward: Tensor  # (N,) what the verdicts come to; NaN for none
    truncated: Tensor  # (N,) bool
    old_logps: Tensor  # flat: under the policy that drew, at the temperature
    sampled_logps: Tensor  # flat: under the distribution drawn from
    counts: Tensor  # (N,) bool: its tokens are trained and in the means
    advantages: Tensor  # flat
    share: float = 1.0  # of a full step's groups
    reference_logps: Tensor | None = None  # flat
    values: Tensor | None = None  # flat: of the critic before this step's updates
    returns: Tensor | None = None  # flat

    def __len__(self) -> int:
        return len(self.n_prompt)

    @property
    def n_all_tokens(self) -> int:
        """Tokens that count."""
        return int(self.n_tokens[self.counts].sum())

    def mask(self, rows: Sequence[int] | None = None) -> Tensor:
        """1 on the tokens of these completions that count, or of all; (B, T) float32."""
        which = slice(None) if rows is None else list(rows)
        n_tokens, counts = self.n_tokens[which], self.counts[which]
        places = torch.arange(int(n_tokens.max()) if len(n_tokens) else 0)
        return ((places < n_tokens[:, None]) & counts[:, None]).float()

    def padded(self, flat: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """A flat tensor by completion, zeros behind each; (B, T)."""
        parts = self.of_rows(flat)
        chosen = parts if rows is None else [parts[row] for row in rows]
        return torch.nn.utils.rnn.pad_sequence(list(chosen), batch_first=True) if chosen else flat.new_zeros(0, 0)

    def of_rows(self, flat: Tensor) -> tuple[Tensor, ...]:
        """A flat tensor's part of each completion."""
        return torch.split(flat, self.n_tokens.tolist())

    def flat(self, padded: Tensor) -> Tensor:
        """What `padded` gives of all completions, flat again."""
        places = torch.arange(padded.shape[1])
        return padded[places < self.n_tokens[:, None]]

    def prompt_and_completion(self, row: int) -> list[int]:
        start = int((self.n_prompt[:row] + self.n_tokens[:row]).sum())
        return self.ids[start : start + int(self.n_prompt[row] + self.n_tokens[row])].tolist()

    def trained(self, *, without_signal: bool) -> list[int]:
        """The completions that count; those whose advantages are all zero only `without_signal`."""
        has_signal = torch.tensor([bool(part.any()) for part in self.of_rows(self.advantages)])
        kept = self.counts & (has_signal | without_signal)
        return kept.nonzero()[:, 0].tolist()

    def save(self, path: Path) -> None:
        tensors = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "share"}
        whole = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
        save_file(whole | {"share": torch.tensor(self.share, dtype=torch.float64)}, path)

    @classmethod
    def load(cls, path: Path) -> "Rollouts":
        tensors = load_file(path)
        return cls(**{**tensors, "share": float(tensors["share"])})


class MicroBatch(NamedTuple):
    """Rows for one forward pass: right-padded, so that causal attention needs no mask.

    `places` are those whose next token belongs to a completion, row by row, as numbers in the flattened (B, L).
    """

    rows: list[int]
    input_ids: Tensor  # (B, L)
    places: Tensor  # (M,)
    targets: Tensor  # (M,) the tokens at them
    tokens: Tensor  # (B, T) bool: which of the (B, T) of a completion's tokens are there

    def to(self, device: torch.device) -> "MicroBatch":
        return MicroBatch(self.rows, *(tensor.to(device) for tensor in self[1:]))


# On a CPU a pass over more tokens leaves the processor's caches even with half a million parameters: 28,000 at once
# took 4 times as long as 2,000 at a time (measured on 2 cores with 2 MiB of level-2 cache each).
CPU_TOKENS = 2048


def micro_batches(
    rollouts: Rollouts, rows: Sequence[int], *, max_rows: int, max_tokens: int | None = None
) -> Iterator[MicroBatch]:
    """The rows, longest first, in as many tokens a pass as `max_rows` of the longest have, and at most `max_tokens`.

    So short completions go in larger numbers, and padding is what neighbours differ by. A longer row goes alone.
    """
    lengths = (rollouts.n_prompt + rollouts.n_tokens).tolist()
    starts = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    ordered = sorted(rows, key=lambda row: (-lengths[row], row))
    budget = max_rows * lengths[ordered[0]] if ordered else 0
    budget = budget if max_tokens is None else min(budget, max_tokens)
    while ordered:
        n = max(1, budget // lengths[ordered[0]])
        part, ordered = ordered[:n], ordered[n:]
        yield _micro_batch(rollouts, part, [starts[row] for row in part], [lengths[row] for row in part])


def _micro_batch(rollouts: Rollouts, rows: list[int], starts: list[int], lengths: list[int]) -> MicroBatch:
    parts = [rollouts.ids[start : start + n] for start, n in zip(starts, lengths, strict=True)]
    return micro_batch(rows, parts, rollouts.n_prompt[rows])


def micro_batch(rows: list[int], ids: Sequence[Tensor], n_prompt: Tensor) -> MicroBatch:
    """Rows of token ids, of which the first `n_prompt` each are only seen and the others are scored."""
    n_tokens = torch.tensor([len(part) for part in ids]) - n_prompt
    input_ids = torch.nn.utils.rnn.pad_sequence(list(ids), batch_first=True)
    columns = torch.arange(input_ids.shape[1])
    # A token's score comes from the place before it.
    before = (columns >= (n_prompt - 1)[:, None]) & (columns < (n_prompt + n_tokens - 1)[:, None])
    places = before.flatten().nonzero()[:, 0]
    tokens = torch.arange(int(n_tokens.max())) < n_tokens[:, None]
    return MicroBatch(rows, input_ids, places, input_ids.flatten()[places + 1], tokens)
