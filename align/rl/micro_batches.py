"""Packs a step's completions into micro-batches within a token budget, for all processes.

Prompts are computed once.
"""

from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qwen_align.align.rl.rollouts import Rollouts


def split_among_processes(rollouts: Rollouts, rows: Sequence[int], n: int) -> list[list[int]]:
    """Splits the completions among `n` processes, with about as many tokens each.

    The rows of a prompt stay together where every process can have a prompt. The longest go first, each to the process
    that has least so far.
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
    """Padded token tensors of several completions and their prompts, for one forward pass.

    Each prompt is there once, or once a completion. A prompt lies in `prompts` without its last token. That is the
    first of the row's `input_ids`, before the completion without its own last: each column of a row says the next
    token. All padding is on the right.
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
        """Returns whether at least two completions share a prompt that is encoded once."""
        return len(self.prompts) < len(self.rows) and self.prompts.shape[1] > 0

    def join_prompts(self) -> tuple[Tensor, Tensor]:
        """Joins each completion to its prompt and returns the token ids (B, L) and predicting columns (B, T).

        The hidden state at such a column predicts a token of the completion.
        """
        n_prompt = self.n_prompt[self.prompt_of][:, None]
        both = torch.cat([self.prompts[self.prompt_of], self.input_ids], dim=1)
        columns = torch.arange(int((n_prompt + self.tokens.sum(1, keepdim=True)).max()), device=both.device)
        source = torch.where(columns < n_prompt, columns, columns - n_prompt + self.prompts.shape[1])
        positions = n_prompt + torch.arange(self.input_ids.shape[1], device=both.device)
        return both.gather(1, source.clamp(max=both.shape[1] - 1)), positions.clamp(max=len(columns) - 1)


# On a CPU a pass over more tokens leaves the processor's caches even with half a million parameters: 28,000 at once
# took 4 times as long as 2,000 at a time (measured on 2 cores with 2 MiB of level-2 cache each).
CPU_TOKENS = 2048

# Into how many classes of length completions are sorted before those of one prompt are put side by side: one shares
# prompts most, many leave least padding. The cheapest is taken.
LENGTH_CLASSES = (1, 2, 4, 8, 16)


class _Row(NamedTuple):
    """The length and prompt of a completion that is to be packed."""

    number: int
    prompt: bytes  # what names it: all but its last token, or a name of the row's own where prompts are not shared
    n_prompt: int
    n_tokens: int

    @property
    def length(self) -> int:
        return self.n_prompt + self.n_tokens


def iterate_micro_batches(
    rollouts: Rollouts, rows: Sequence[int], *, max_rows: int, max_tokens: int | None = None, share_prompts: bool = True
) -> Iterator[MicroBatch]:
    """Packs completions into micro-batches within a token budget and yields these.

    The budget is that of `max_rows` of the longest rows, and at most `max_tokens`. So short completions go in larger
    numbers, and more of them where they share a prompt. A longer row goes alone.
    """
    n_prompt, n_tokens = rollouts.n_prompt.tolist(), rollouts.n_tokens.tolist()
    parts = torch.split(rollouts.ids, (rollouts.n_prompt + rollouts.n_tokens).tolist())
    names = {row: parts[row][: n_prompt[row] - 1].numpy().tobytes() if share_prompts else b"%d" % row for row in rows}
    all_rows = [_Row(row, names[row], n_prompt[row], n_tokens[row]) for row in rows]
    budget = max_rows * max((row.length for row in all_rows), default=0)
    budget = budget if max_tokens is None else min(budget, max_tokens)
    for rows_of_pass in _plan_passes(all_rows, budget):
        numbers = [row.number for row in rows_of_pass]
        yield build_micro_batch(
            numbers, [parts[n] for n in numbers], [n_prompt[n] for n in numbers], [names[n] for n in numbers]
        )


def pack_micro_batches(
    rollouts: Rollouts, rows: Sequence[int], process: tuple[int, int], **packing: Any
) -> tuple[list[MicroBatch], list[MicroBatch]]:
    """Packs completions for all processes and returns one process's micro-batches and its idle micro-batches.

    `process` is its rank and the number of processes.
    """
    rank, world = process
    return add_idle_batches(
        [
            list(iterate_micro_batches(rollouts, part, **packing))
            for part in split_among_processes(rollouts, rows, world)
        ],
        rank,
    )


def add_idle_batches(batches: Sequence[list[MicroBatch]], rank: int) -> tuple[list[MicroBatch], list[MicroBatch]]:
    """Returns the micro-batches of process `rank` and idle micro-batches that fill it up to the largest count.

    Idle ones have no effect on the loss. With these all processes make equally many passes, as those that wait for each
    other at every pass have to.
    """
    return batches[rank], batches[0][:1] * (max(map(len, batches)) - len(batches[rank]))


def _plan_passes(rows: Sequence[_Row], budget: int) -> list[list[_Row]]:
    """Sorts the rows in several ways and returns the cheapest packing into forward passes."""
    plans = [_pack_neighbours(sorted(rows, key=lambda row: (-row.length, row.number)), budget)]
    ordered = sorted(rows, key=lambda row: (-row.n_tokens, row.number))
    for classes in LENGTH_CLASSES:
        length_class = {row.number: position * classes // len(rows) for position, row in enumerate(ordered)}
        alike = sorted(ordered, key=lambda row: (length_class[row.number], -row.n_prompt, row.prompt, row.number))
        plans.append(_pack_neighbours(alike, budget))
    return min(plans, key=lambda plan: plan[1])[0]


def _pack_neighbours(rows: Sequence[_Row], budget: int) -> tuple[list[list[_Row]], int]:
    """Packs neighbouring rows into forward passes within the token budget and returns these and their cost.

    The cost is the number of tokens computed, padding included.
    """
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


def build_micro_batch(
    rows: list[int], ids: Sequence[Tensor], n_prompt: Sequence[int], prompts: Sequence[Hashable] | None = None
) -> MicroBatch:
    """Pads rows of token ids into a micro-batch in which the first `n_prompt` tokens of each are not scored.

    `n_prompt` is at least one. Rows of equal `prompts` share what they have before their prompt's last token; without,
    none do.
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
