"""Decodes many completions together, in slots of a key-value cache that is written in place.

Prefixes are right-aligned, so every step writes one column for all rows. A prefix without its last token is computed
once and copied to its rows; the last token is each row's first input. A finished row gives its slot to the last live
row, so that a step computes only rows that still need it. The cache grows by blocks of columns; where a block more
would exceed it, the last rows are interrupted, and are decoded later from what they have.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from qwen_align.align.generation.column_cache import move_rows, prefill_cache
from qwen_align.align.generation.decoding_rows import DecodingRow, MadeTokens, count_cache_columns
from qwen_align.align.generation.engine import FinishReason, Generation, compute_sample_key
from qwen_align.align.generation.fused_decoding import build_decoding_step
from qwen_align.align.generation.token_sampling import advance_key, draw_uniforms, sample_tokens

# Columns that the cache grows by. A row of n columns is copied n / 512 times on average while it attends to its columns
# n / 2 times, so copying costs little at any length; and what is allocated too much stays small.
BLOCK = 256


class DecodingLimits(NamedTuple):
    """What a micro-batch in decoding may take: rows times columns of the cache, and prompt tokens of a forward pass.

    Whether rows have finished is looked up after `check_every` steps, which makes the host wait for the device.
    """

    max_cached_tokens: int
    prefill_tokens: int
    check_every: int = 1


class DecodingSlots:
    """The unfinished rows of a micro-batch in decoding, where `rows[i]` lies in slot i of every tensor.

    `rows` come with the longest prefixes first and equal ones side by side; all share one way of sampling.
    `interrupted` are those that found no room in the cache.
    """

    def __init__(
        self, model: PreTrainedModel, rows: Sequence[DecodingRow], *, stop_ids: Collection[int], limits: DecodingLimits
    ) -> None:
        self.rows = list(rows)
        self.interrupted: list[DecodingRow] = []
        self.limits = limits
        self.sampling = rows[0].request.sampling
        self.width = rows[0].n_prefix
        self.longest = max(row.max_tokens for row in rows)
        self.start = 0  # first column a live row's prefix lies in
        self.n_made = 0
        self.stop_ids = frozenset(stop_ids)
        self.stops = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=model.device)
        self.stops[list(stop_ids)] = True
        n_columns = count_cache_columns(self.width, min(BLOCK, self.longest))
        self.state = _build_slot_state(model, rows, n_columns)
        self.forward = build_decoding_step(model, count_cache_columns(self.width, self.longest))
        self.cache = prefill_cache(model, rows, n_columns=n_columns, prefill_tokens=limits.prefill_tokens)

    def decode_until_finished(self) -> list[Generation]:
        """Decodes until at least one row is found finished, drops those that are and returns their generations."""
        while True:
            self._make_room()
            free_columns = self.cache.n_columns - self._column
            for _ in range(min(self.limits.check_every, free_columns, self.longest - self.n_made)):
                self._decode_step()
            if bool((self.state.ends > 0).any()):
                return self._drop_finished()

    def decode_token(self) -> tuple[int, bool]:
        """Decodes the next token of the first row and returns it, and whether the row has ended."""
        self._make_room()
        self._decode_step()
        return int(self.state.tokens[0, self.n_made - 1]), bool(self.state.ends[0])

    @property
    def _column(self) -> int:
        """Returns the cache column that the next step writes."""
        return self.width - 1 + self.n_made

    def _decode_step(self) -> None:
        """Samples one more token of every row."""
        state, made, column = self.state, self.n_made, self._column
        self.cache.set_visible_columns(self.start, column)
        logits = self.forward(state.last, state.positions, state.mask[..., self.start : column + 1], self.cache)
        drawn = sample_tokens(logits, draw_uniforms(state.keys, made), self.sampling)
        state.tokens[:, made] = drawn.tokens
        state.policy[:, made] = drawn.policy
        state.sampled[:, made] = drawn.sampled
        state.last.copy_(drawn.tokens[:, None])
        state.positions.add_(1)
        self.n_made = made = made + 1
        finished = self.stops[drawn.tokens] | (state.limits <= made)
        state.ends.masked_fill_(finished & (state.ends == 0), made)

    def _make_room(self) -> None:
        """Lets the cache grow by a block of columns if it is full. No row is finished then.

        The last rows are interrupted where the block would exceed the cache. One row stays, however long.
        """
        if self._column < self.cache.n_columns:
            return
        n_more = min(BLOCK, self.longest - self.n_made)
        n_fitting = max(1, self.limits.max_cached_tokens // (self._column - self.start + n_more))
        if n_fitting < len(self.rows):
            slots = list(range(n_fitting, len(self.rows)))
            made = self._read_made(slots, [self.n_made] * len(slots))
            self.interrupted += [self.rows[slot].add_tokens(more) for slot, more in zip(slots, made, strict=True)]
            self._remove_rows(slots)
        first = self.start
        self.cache.resize(n_rows=len(self.rows), first=first, n_columns=self._column - first + n_more)
        self.state = self.state.add_columns(first, n_more)
        self.width -= first
        self.start = 0

    def _drop_finished(self) -> list[Generation]:
        """Drops the finished rows and returns their generations."""
        ends = self.state.ends.tolist()
        done = [slot for slot, end in enumerate(ends) if end]
        made = self._read_made(done, [ends[slot] for slot in done])
        rows = [self.rows[slot].add_tokens(more) for slot, more in zip(done, made, strict=True)]
        self._remove_rows(done)
        return [self._build_generation(row) for row in rows]

    def _remove_rows(self, removed: Sequence[int]) -> None:
        """Removes the rows in the given slots, in rising order, and moves the last rows into their slots."""
        n_live, gone = len(self.rows) - len(removed), set(removed)
        holes = [slot for slot in removed if slot < n_live]
        movers = [slot for slot in range(n_live, len(self.rows)) if slot not in gone]
        for hole, mover in zip(holes, movers, strict=True):
            self.rows[hole] = self.rows[mover]
        del self.rows[n_live:]
        self.start = self.width - max((row.n_prefix for row in self.rows), default=self.width)
        to, source = torch.tensor([holes, movers], dtype=torch.int64, device=self.stops.device)
        self.state = _SlotState(*(move_rows(tensor, to, source)[:n_live] for tensor in self.state))
        self.cache.move_rows(to, source)

    def _read_made(self, slots: Sequence[int], ends: Sequence[int]) -> list[MadeTokens]:
        """Reads the tokens that the rows in the given slots have made here, the first `ends[i]` of each."""
        which = torch.tensor(slots, device=self.stops.device)
        state = self.state
        records = [record.index_select(0, which)[:, : self.n_made] for record in (state.policy, state.sampled)]
        policy, sampled = (record.log().tolist() for record in records)
        tokens = state.tokens.index_select(0, which)[:, : self.n_made].tolist()
        return [
            MadeTokens(tokens[place][:end], policy[place][:end], sampled[place][:end]) for place, end in enumerate(ends)
        ]

    def _build_generation(self, row: DecodingRow) -> Generation:
        """Builds the generation of a finished row.

        Raises FloatingPointError where the model's logits were NaN.
        """
        if any(logp != logp for logp in row.made.logps):
            raise FloatingPointError(
                f"request '{row.request.id}', sample {row.sample}: the model's logits are not numbers; "
                "its weights are broken, or its precision too small"
            )
        reason: FinishReason = "stop" if row.made.token_ids[-1] in self.stop_ids else "length"
        return Generation(row.request, row.sample, *row.made, reason)


class _SlotState(NamedTuple):
    """The tensors that hold the decoding state of each slot, along their first axis."""

    last: Tensor  # (B, 1) the next input
    positions: Tensor  # (B, 1) its position
    keys: Tensor  # (B,) of the random numbers
    limits: Tensor  # (B,) most tokens
    ends: Tensor  # (B,) tokens made when the row finished, 0 while it lives
    tokens: Tensor  # (B, T) made so far
    policy: Tensor  # (B, T) their probabilities before any cut
    sampled: Tensor  # (B, T) and after
    mask: Tensor  # (B, 1, 1, columns) added to attention scores

    def add_columns(self, first: int, n_more: int) -> "_SlotState":
        """Returns the state with room for more tokens, and without the cache columns before `first`."""
        records = {name: functional.pad(getattr(self, name), (0, n_more)) for name in ("tokens", "policy", "sampled")}
        return self._replace(mask=functional.pad(self.mask[..., first:], (0, n_more)), **records)


def _build_slot_state(model: PreTrainedModel, rows: Sequence[DecodingRow], n_columns: int) -> _SlotState:
    """Builds the decoding state of the given rows before their first token, with room for `n_columns` columns."""

    def to_column(values: list[int]) -> Tensor:
        return torch.tensor(values, device=model.device)

    limits = to_column([row.max_tokens for row in rows])
    positions = to_column([row.n_prefix - 1 for row in rows])[:, None]
    width = rows[0].n_prefix
    dtype = find_compute_dtype(model)
    mask = torch.zeros(len(rows), n_columns, dtype=dtype, device=model.device)
    hidden = torch.arange(n_columns, device=model.device) < width - 1 - positions
    # Half the range: still finite in bfloat16, for a block of columns that are all -inf may become NaN.
    mask.masked_fill_(hidden, torch.finfo(dtype).min / 2)
    n_tokens = n_columns + 1 - width
    # In fp32 whatever the model computes in: log-probs enter the ratios of RL.
    probabilities = torch.ones(2, len(rows), n_tokens, dtype=torch.float32, device=model.device)
    return _SlotState(
        last=to_column([row.prefix_ids[-1] for row in rows])[:, None],
        positions=positions,
        keys=to_column(
            [advance_key(compute_sample_key(row.request, row.sample), len(row.made.token_ids)) for row in rows]
        ),
        limits=limits,
        ends=torch.zeros_like(limits),
        tokens=torch.zeros(len(rows), n_tokens, dtype=torch.int64, device=model.device),
        policy=probabilities[0],
        sampled=probabilities[1],
        mask=mask[:, None, None],
    )


def find_compute_dtype(model: PreTrainedModel) -> torch.dtype:
    """Returns the type that a model's layers compute in: that of its weights, or of the autocast around the call."""
    kind = model.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype
