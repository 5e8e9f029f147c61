"""A step's completions as tensors, cut into micro-batches, and to and from a file bit by bit."""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

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
    # flat bool: the token is the policy's own choice, not forced or a tool's; all are where none is given
    loss_mask: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))

    def __post_init__(self) -> None:
        if not len(self.loss_mask):
            self.loss_mask = torch.ones(int(self.n_tokens.sum()), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self.n_prompt)

    @property
    def n_all_tokens(self) -> int:
        """Tokens in the loss."""
        return int(self.n_loss_tokens[self.counts].sum())

    @property
    def n_loss_tokens(self) -> Tensor:
        """Returns how many tokens each completion's loss mask leaves in the loss, whether it counts or not; (N,)."""
        return self.padded(self.loss_mask).sum(dim=1) if len(self) else self.n_tokens

    def mask(self, rows: Sequence[int] | None = None) -> Tensor:
        """1 on the tokens in the loss of these completions, or of all, 0 on all others; (B, T) float32.

        Neither a completion that does not count nor a token outside its loss mask is in the loss.
        """
        which = slice(None) if rows is None else list(rows)
        return (self.padded(self.loss_mask, rows) & self.counts[which][:, None]).float()

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


def shares(rollouts: Rollouts, rows: Sequence[int], n: int) -> list[list[int]]:
    """The rows of each of `n` processes, about as many tokens each; a prompt's stay together where each can have one.

    The longest first, each to the process that has least so far.
    """
    lengths = (rollouts.n_prompt + rollouts.n_tokens).tolist()
    units: dict[int, list[int]] = {}
    for row in rows:
        units.setdefault(int(rollouts.group[row]), []).append(row)
    together = list(units.values()) if len(units) >= n else [[row] for row in rows]
    dealt: list[list[int]] = [[] for _ in range(n)]
    n_tokens = [0] * n
    for unit in sorted(together, key=lambda unit: (-sum(lengths[row] for row in unit), unit[0])):
        least = n_tokens.index(min(n_tokens))
        dealt[least] += unit
        n_tokens[least] += sum(lengths[row] for row in unit)
    return dealt


class MicroBatch(NamedTuple):
    """Completions for one forward pass, with each prompt once, or once a completion.

    A prompt lies in `prompts` without its last token. That is the first of the row's `input_ids`, before the completion
    without its own last: each column of a row says the next token. All padding is on the right.
    """

    rows: list[int]
    prompts: Tensor  # (G, P)
    n_prompt: Tensor  # (G,) tokens there
    prompt_of: Tensor  # (B,) number of each row's prompt
    input_ids: Tensor  # (B, T)
    targets: Tensor  # (M,) the tokens that are scored, row by row
    tokens: Tensor  # (B, T) bool: which of the (B, T) of a completion's tokens are there

    def to(self, device: torch.device) -> "MicroBatch":
        return MicroBatch(self.rows, *(tensor.to(device) for tensor in self[1:]))

    @property
    def shares_prompts(self) -> bool:
        return len(self.prompts) < len(self.rows) and self.prompts.shape[1] > 0

    def whole(self) -> tuple[Tensor, Tensor]:
        """Prompts and completions in one, (B, L), and the columns that say the completions' tokens, (B, T)."""
        n_prompt = self.n_prompt[self.prompt_of][:, None]
        both = torch.cat([self.prompts[self.prompt_of], self.input_ids], dim=1)
        columns = torch.arange(int((n_prompt + self.tokens.sum(1, keepdim=True)).max()), device=both.device)
        source = torch.where(columns < n_prompt, columns, columns - n_prompt + self.prompts.shape[1])
        places = n_prompt + torch.arange(self.input_ids.shape[1], device=both.device)
        return both.gather(1, source.clamp(max=both.shape[1] - 1)), places.clamp(max=len(columns) - 1)


# On a CPU a pass over more tokens leaves the processor's caches even with half a million parameters: 28,000 at once
# took 4 times as long as 2,000 at a time (measured on 2 cores with 2 MiB of level-2 cache each).
CPU_TOKENS = 2048

# Into how many classes of length completions are sorted before those of one prompt are put side by side: one shares
# prompts most, many leave least padding. The cheapest is taken.
LENGTH_CLASSES = (1, 2, 4, 8, 16)


class _Row(NamedTuple):
    number: int
    prompt: bytes  # what names it: all but its last token, or a name of the row's own where prompts are not shared
    n_prompt: int
    n_tokens: int

    @property
    def length(self) -> int:
        return self.n_prompt + self.n_tokens


def split_into_micro_batches(
    rollouts: Rollouts, rows: Sequence[int], *, max_rows: int, max_tokens: int | None = None, share_prompts: bool = True
) -> Iterator[MicroBatch]:
    """The rows, in passes of as many tokens as `max_rows` of the longest have, and at most `max_tokens`.

    So short completions go in larger numbers, and more of them where they share a prompt. A longer row goes alone.
    """
    n_prompt, n_tokens = rollouts.n_prompt.tolist(), rollouts.n_tokens.tolist()
    parts = torch.split(rollouts.ids, (rollouts.n_prompt + rollouts.n_tokens).tolist())
    names = {row: parts[row][: n_prompt[row] - 1].numpy().tobytes() if share_prompts else b"%d" % row for row in rows}
    all_rows = [_Row(row, names[row], n_prompt[row], n_tokens[row]) for row in rows]
    budget = max_rows * max((row.length for row in all_rows), default=0)
    budget = budget if max_tokens is None else min(budget, max_tokens)
    for one in _plan(all_rows, budget):
        numbers = [row.number for row in one]
        yield micro_batch(
            numbers, [parts[n] for n in numbers], [n_prompt[n] for n in numbers], [names[n] for n in numbers]
        )


def turns(
    rollouts: Rollouts, rows: Sequence[int], process: tuple[int, int], **packing: Any
) -> tuple[list[MicroBatch], list[MicroBatch]]:
    """The micro-batches of one process, given by its rank and how many there are, and idle ones."""
    rank, world = process
    return of_process(
        [list(split_into_micro_batches(rollouts, part, **packing)) for part in shares(rollouts, rows, world)], rank
    )


def of_process(batches: Sequence[list[MicroBatch]], rank: int) -> tuple[list[MicroBatch], list[MicroBatch]]:
    """Of each process's micro-batches those of one, and idle ones, to pass for no effect.

    With these all processes make equally many passes, as those that wait for each other at every pass have to.
    """
    return batches[rank], batches[0][:1] * (max(map(len, batches)) - len(batches[rank]))


def _plan(rows: Sequence[_Row], budget: int) -> list[list[_Row]]:
    """The rows of each pass."""
    plans = [_packed(sorted(rows, key=lambda row: (-row.length, row.number)), budget)]
    ordered = sorted(rows, key=lambda row: (-row.n_tokens, row.number))
    for classes in LENGTH_CLASSES:
        length_class = {row.number: place * classes // len(rows) for place, row in enumerate(ordered)}
        alike = sorted(ordered, key=lambda row: (length_class[row.number], -row.n_prompt, row.prompt, row.number))
        plans.append(_packed(alike, budget))
    return min(plans, key=lambda plan: plan[1])[0]


def _packed(rows: Sequence[_Row], budget: int) -> tuple[list[list[_Row]], int]:
    """Passes of neighbours within the budget, and the tokens that are computed, padding included."""
    passes: list[list[_Row]] = []
    prompts: set[bytes] = set()
    n_prompt = n_tokens = length = cost = total = 0
    for row in rows:
        widest = max(n_prompt, row.n_prompt), max(n_tokens, row.n_tokens), max(length, row.length)
        n_rows = len(passes[-1]) + 1 if passes else 1
        n_prompts = len(prompts) + (row.prompt not in prompts)
        more = n_prompts * widest[0] + n_rows * widest[1] if n_prompts < n_rows else n_rows * widest[2]
        if not passes or more > budget:
            total += cost
            passes.append([])
            prompts, widest, more = set(), (row.n_prompt, row.n_tokens, row.length), row.length
        passes[-1].append(row)
        prompts.add(row.prompt)
        n_prompt, n_tokens, length = widest
        cost = more
    return passes, total + cost


def micro_batch(
    rows: list[int], ids: Sequence[Tensor], n_prompt: Sequence[int], prompts: Sequence[Hashable] | None = None
) -> MicroBatch:
    """Rows of token ids, of which the first `n_prompt` each, at least one, are only seen and the others are scored.

    Rows of equal `prompts` share what they have before their prompt's last token; without, none do.
    """
    names = range(len(rows)) if prompts is None else prompts
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    shared = {name: part[: n - 1] for name, part, n in zip(names, ids, n_prompt, strict=True)}
    before = [shared[name] for name in numbers]
    pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    n_tokens = torch.tensor([len(part) - n for part, n in zip(ids, n_prompt, strict=True)])
    return MicroBatch(
        rows,
        prompts=pad(before),
        n_prompt=torch.tensor([len(part) for part in before]),
        prompt_of=torch.tensor([numbers[name] for name in names]),
        input_ids=pad([part[n - 1 : -1] for part, n in zip(ids, n_prompt, strict=True)]),
        targets=torch.cat([part[n:] for part, n in zip(ids, n_prompt, strict=True)]),
        tokens=torch.arange(int(n_tokens.max())) < n_tokens[:, None],
    )
