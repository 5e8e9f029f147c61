"""Holds a step's completions as tensors, and saves and loads them bit by bit."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass
class Rollouts:
    """Tensors of N completions that are ready to train on.

    A completion without a verdict never counts: it is in no loss and in no mean. A flat tensor holds the tokens of all
    completions, one completion after another.
    """

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
    # flat bool: the token is the policy's own choice, not forced or a tool's; all are where none is given
    loss_mask: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))

    def __post_init__(self) -> None:
        if not len(self.loss_mask):
            self.loss_mask = torch.ones(int(self.n_tokens.sum()), dtype=torch.bool)
        self.counts = self.counts & self.is_judged

    def __len__(self) -> int:
        return len(self.n_prompt)

    @property
    def is_judged(self) -> Tensor:
        """Returns whether each completion has a verdict; (N,) bool."""
        return ~self.reward.isnan()

    @property
    def n_tokens_in_loss(self) -> int:
        """Returns the number of tokens in the loss, over all completions that count."""
        return int(self.n_loss_tokens[self.counts].sum())

    @property
    def n_loss_tokens(self) -> Tensor:
        """Returns the number of tokens that each completion's loss mask keeps; (N,).

        Completions that do not count are included.
        """
        return self.pad_tokens(self.loss_mask).sum(dim=1) if len(self) else self.n_tokens

    def get_mask(self, rows: Sequence[int] | None = None) -> Tensor:
        """Returns a mask that is 1 at the tokens in the loss of the given rows, else 0; (B, T) float32.

        Without rows it is that of all completions. Neither a completion that does not count nor a token outside its
        loss mask is in the loss.
        """
        which = slice(None) if rows is None else list(rows)
        return (self.pad_tokens(self.loss_mask, rows) & self.counts[which][:, None]).float()

    def pad_tokens(self, flat: Tensor, rows: Sequence[int] | None = None) -> Tensor:
        """Pads a flat tensor to one row per completion, with zeros behind each; (B, T)."""
        parts = self.split_by_completion(flat)
        chosen = parts if rows is None else [parts[row] for row in rows]
        return torch.nn.utils.rnn.pad_sequence(list(chosen), batch_first=True) if chosen else flat.new_zeros(0, 0)

    def split_by_completion(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Splits a flat tensor into one tensor per completion."""
        return torch.split(flat, self.n_tokens.tolist())

    def flatten_tokens(self, padded: Tensor) -> Tensor:
        """Flattens a padded tensor (N, T) to the tokens of all completions, one after another."""
        positions = torch.arange(padded.shape[1])
        return padded[positions < self.n_tokens[:, None]]

    def get_token_ids(self, row: int) -> list[int]:
        """Returns the token ids of a completion with its prompt in front."""
        start = int((self.n_prompt[:row] + self.n_tokens[:row]).sum())
        return self.ids[start : start + int(self.n_prompt[row] + self.n_tokens[row])].tolist()

    def select_trained_rows(self, *, without_signal: bool) -> list[int]:
        """Returns the row numbers of the completions that count and have a nonzero advantage.

        With `without_signal` those whose advantages are all zero are included.
        """
        has_signal = torch.tensor([bool(part.any()) for part in self.split_by_completion(self.advantages)])
        kept = self.counts & (has_signal | without_signal)
        return kept.nonzero()[:, 0].tolist()

    def save(self, path: Path) -> None:
        """Writes all tensors of the rollouts to a safetensors file."""
        tensors = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "share"}
        given = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
        save_file(given | {"share": torch.tensor(self.share, dtype=torch.float64)}, path)

    @classmethod
    def load(cls, path: Path) -> "Rollouts":
        """Loads rollouts from a safetensors file.

        In a file without a loss mask every token is in the loss.
        """
        tensors = load_file(path)
        return cls(**{**tensors, "share": float(tensors["share"])})
