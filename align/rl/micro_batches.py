"""Packs a step's completions into micro-batches within a token budget, for all processes.

Prompts are computed once.
"""

from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qwen_align.align.models.packed_attention import PackedLayout
from qwen_align.align.rl.rollouts import Rollouts
from qwen_align.align.settings.pass_limits import PassLimits
from qwen_align.align.training.micro_batches import fill_passes


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
    """The tokens of several completions and their prompts, one behind another without padding, for one forward pass.

    A prompt of several completions is there once, without its last token, which is the first of each completion's own
    row. Any other completion's row begins with its prompt. No row has the completion's last token, which predicts
    nothing.
    """

    rows: list[int]
    layout: PackedLayout
    input_ids: Tensor  # (N,)
    places: Tensor  # (M,) the tokens of the N that predict one which is scored, row by row
    targets: Tensor  # (M,) the tokens that are scored
    tokens: Tensor  # (B, T) bool: which of the (B, T) of a completion's tokens are there

    def to(self, device: torch.device) -> "MicroBatch":
        return MicroBatch(self.rows, self.layout, *(tensor.to(device) for tensor in self[2:]))

    @property
    def shares_prompts(self) -> bool:
        """Returns whether at least two completions share a prompt that is computed once."""
        return any(prompt is not None for prompt in self.layout.prompts)


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
    rollouts: Rollouts,
    rows: Sequence[int],
    *,
    max_rows: int | None = None,
    max_tokens: int | None = None,
    share_prompts: bool = True,
) -> Iterator[MicroBatch]:
    """Packs completions into micro-batches within the `PassLimits` and yields these.

    So short completions go in larger numbers, and more of them where they share a prompt.
    """
    n_prompt, n_tokens = rollouts.n_prompt.tolist(), rollouts.n_tokens.tolist()
    parts = torch.split(rollouts.ids, (rollouts.n_prompt + rollouts.n_tokens).tolist())
    names = {row: parts[row][: n_prompt[row] - 1].numpy().tobytes() if share_prompts else b"%d" % row for row in rows}
    all_rows = [_Row(row, names[row], n_prompt[row], n_tokens[row]) for row in rows]
    budget = PassLimits(max_rows, max_tokens).compute_budget(row.length for row in all_rows)
    for numbers in _plan_passes(all_rows, budget):
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


def _plan_passes(rows: Sequence[_Row], budget: int) -> list[list[int]]:
    """Packs rows into forward passes within the token budget and returns the row numbers of each.

    Rows of one prompt stay together as far as they fit into one pass.
    """
    groups: dict[bytes, list[_Row]] = {}
    for row in sorted(rows, key=lambda row: (-row.n_tokens, row.number)):
        groups.setdefault(row.prompt, []).append(row)
    units: list[tuple[int, list[int]]] = []  # tokens, and the numbers of rows that stay together
    for group in groups.values():
        n_prompt, n_tokens, numbers = group[0].n_prompt, 0, list[int]()
        for row in group:
            if numbers and n_prompt + n_tokens + row.n_tokens > budget:
                units.append((n_prompt + n_tokens, numbers))
                n_tokens, numbers = 0, []
            n_tokens += row.n_tokens
            numbers.append(row.number)
        units.append((n_prompt + n_tokens, numbers))
    return [[number for _, numbers in part for number in numbers] for part in fill_passes(units, budget)]


def build_micro_batch(
    rows: list[int], ids: Sequence[Tensor], n_prompt: Sequence[int], prompts: Sequence[Hashable] | None = None
) -> MicroBatch:
    """Packs rows of token ids into a micro-batch in which the first `n_prompt` tokens of each are not scored.

    `n_prompt` is at least one. Rows of equal `prompts` share what they have before their prompt's last token; without,
    none do.
    """
    names: Sequence[Hashable] = range(len(rows)) if prompts is None else prompts
    counts = Counter(names)
    shared = {
        name: part[: n - 1] for name, part, n in zip(names, ids, n_prompt, strict=True) if counts[name] > 1 and n > 1
    }
    numbers = {name: number for number, name in enumerate(shared)}
    own = [
        part[n - 1 : -1] if name in shared else part[:-1] for name, part, n in zip(names, ids, n_prompt, strict=True)
    ]
    n_tokens = torch.tensor([len(part) - n for part, n in zip(ids, n_prompt, strict=True)])
    layout = PackedLayout(
        (*map(len, shared.values()), *map(len, own)), (*(None for _ in shared), *(numbers.get(name) for name in names))
    )
    ends = [start + len(part) for start, part in zip(layout.starts[len(shared) :], own, strict=True)]
    return MicroBatch(
        rows,
        layout,
        input_ids=torch.cat([*shared.values(), *own]),
        places=torch.cat([torch.arange(end - n, end) for end, n in zip(ends, n_tokens.tolist(), strict=True)]),
        targets=torch.cat([part[n:] for part, n in zip(ids, n_prompt, strict=True)]),
        tokens=torch.arange(int(n_tokens.max())) < n_tokens[:, None],
    )
