"""Decodes many completions together, in slots of a key-value cache that is written in place.

Prompts are right-aligned, so every step writes one column for all rows. A prompt without its last token is
computed once and copied to its rows; the last token is each row's first input. A finished row gives its slot
to the last live row, so that a step computes only rows that still need it.
"""

from collections.abc import Collection, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from qwen_align.align.generation.engine import FinishReason, Generation, Request, compute_sample_key
from qwen_align.align.generation.fused_decoding import build_decoding_step
from qwen_align.align.generation.token_sampling import draw_uniforms, sample_tokens


class DecodingRow(NamedTuple):
    """One completion that is to be decoded: its request and its sample number."""

    request: Request
    sample: int

    @property
    def n_prompt(self) -> int:
        return len(self.request.prompt_ids)

    @property
    def max_tokens(self) -> int:
        return self.request.sampling.max_tokens

    @property
    def sampling_key(self) -> tuple[float, float, int, float]:
        """Returns the settings that the row's tokens are sampled by.

        Rows sampled in one call share them.
        """
        sampling = self.request.sampling
        return sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p


def count_cache_columns(n_prompt: int, max_tokens: int) -> int:
    """Counts the key-value cache columns that a prompt and its completion need.

    The last token sampled is never an input.
    """
    return n_prompt + max_tokens - 1


class DecodingSlots:
    """The unfinished rows of a micro-batch in decoding, where `rows[i]` lies in slot i of every tensor.

    `rows` come with the longest prompts first and those of one prompt side by side; all share one way of
    sampling.
    """

    def __init__(self, model: PreTrainedModel, rows: Sequence[DecodingRow], *, stop_ids: Collection[int]) -> None:
        self.rows = list(rows)
        self.sampling = rows[0].request.sampling
        self.width = rows[0].n_prompt
        self.start = 0  # first column a live row's prompt lies in
        self.n_made = 0
        self.stop_ids = frozenset(stop_ids)
        self.stops = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=model.device)
        self.stops[list(stop_ids)] = True
        self.state = _build_slot_state(model, rows)
        self.forward = build_decoding_step(model, self.state.mask.shape[-1])
        self.cache = _prefill_cache(model, rows, n_columns=self.state.mask.shape[-1])

    def decode_until_finished(self, compact_at: float) -> list[Generation]:
        """Decodes until a share `compact_at` of the rows is finished, drops these and returns their generations.

        At least one row has to be finished.
        """
        while True:
            self._decode_step()
            n_done = int((self.state.ends > 0).sum())
            if n_done == len(self.rows) or n_done >= max(1, compact_at * len(self.rows)):
                return self._drop_finished()

    def decode_token(self) -> tuple[int, bool]:
        """Decodes the next token of the first row and returns it, and whether the row has ended."""
        self._decode_step()
        return int(self.state.tokens[0, self.n_made - 1]), bool(self.state.ends[0])

    def _decode_step(self) -> None:
        """Samples one more token of every unfinished row."""
        state, made = self.state, self.n_made
        column = self.width - 1 + made
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

    def _drop_finished(self) -> list[Generation]:
        """Drops the finished rows, moves unfinished rows into their slots and returns the finished generations."""
        ends = self.state.ends.tolist()
        done = [slot for slot, end in enumerate(ends) if end]
        generations = self._build_generations(done, ends)
        n_live = len(ends) - len(done)
        holes = [slot for slot in done if slot < n_live]
        movers = [slot for slot in range(n_live, len(ends)) if not ends[slot]]
        for hole, mover in zip(holes, movers, strict=True):
            self.rows[hole] = self.rows[mover]
        del self.rows[n_live:]
        self.start = self.width - max((row.n_prompt for row in self.rows), default=self.width)
        to, source = torch.tensor([holes, movers], dtype=torch.int64, device=self.stops.device)
        self.state = _SlotState(*(_move_rows(tensor, to, source)[:n_live] for tensor in self.state))
        self.cache.move_rows(to, source)
        return generations

    def _build_generations(self, done: list[int], ends: list[int]) -> list[Generation]:
        """Builds the generations of the rows in the given slots.

        Raises FloatingPointError where the model's logits were NaN.
        """
        which = torch.tensor(done, device=self.stops.device)
        state = self.state
        records = [record.index_select(0, which)[:, : self.n_made] for record in (state.policy, state.sampled)]
        policy, sampled = (record.log().tolist() for record in records)
        tokens = state.tokens.index_select(0, which)[:, : self.n_made].tolist()
        generations = []
        for position, slot in enumerate(done):
            row, end = self.rows[slot], ends[slot]
            ids, logps = tokens[position][:end], policy[position][:end]
            if any(logp != logp for logp in logps):
                raise FloatingPointError(
                    f"request '{row.request.id}', sample {row.sample}: the model's logits are not numbers; "
                    "its weights are broken, or its precision too small"
                )
            reason: FinishReason = "stop" if ids[-1] in self.stop_ids else "length"
            generations.append(Generation(row.request, row.sample, ids, logps, sampled[position][:end], reason))
        return generations


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


def _build_slot_state(model: PreTrainedModel, rows: Sequence[DecodingRow]) -> _SlotState:
    """Builds the decoding state of the given rows before their first token."""

    def to_column(values: list[int]) -> Tensor:
        return torch.tensor(values, device=model.device)

    limits = to_column([row.max_tokens for row in rows])
    longest = int(limits.max())
    positions = to_column([row.n_prompt - 1 for row in rows])[:, None]
    width = rows[0].n_prompt
    mask = torch.zeros(len(rows), count_cache_columns(width, longest), dtype=model.dtype, device=model.device)
    hidden = torch.arange(mask.shape[-1], device=model.device) < width - 1 - positions
    # Half the range: still finite in bfloat16, for a block of columns that are all -inf may become NaN.
    mask.masked_fill_(hidden, torch.finfo(model.dtype).min / 2)
    probabilities = torch.ones(2, len(rows), longest, device=model.device)
    return _SlotState(
        last=to_column([row.request.prompt_ids[-1] for row in rows])[:, None],
        positions=positions,
        keys=to_column([compute_sample_key(row.request, row.sample) for row in rows]),
        limits=limits,
        ends=torch.zeros_like(limits),
        tokens=torch.zeros(len(rows), longest, dtype=torch.int64, device=model.device),
        policy=probabilities[0],
        sampled=probabilities[1],
        mask=mask[:, None, None],
    )


def _move_rows(tensor: Tensor, to: Tensor, source: Tensor) -> Tensor:
    """Copies the rows `source` of a tensor to the rows `to`, in place."""
    return tensor.index_copy_(0, to, tensor.index_select(0, source))


class ColumnCache(Cache):  # type: ignore[misc]
    """A key-value cache of which each decoding step writes one column for all rows.

    Tensors are (rows, heads, columns, size), one pair per layer. Prompts lie in the columns before `width`.
    """

    def __init__(self, n_rows: int, n_columns: int, *, width: int) -> None:
        super().__init__(layers=[])
        self.n_rows, self.n_columns, self.width = n_rows, n_columns, width
        self.start = self.column = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def set_visible_columns(self, start: int, column: int) -> None:
        """Sets the cache column that the next step writes and the first column that it attends to."""
        self.start, self.column = start, column

    def add_layer(self, keys: Tensor, values: Tensor) -> None:
        """Allocates the keys and values of one more layer, with the shape and type of the given tensors."""
        for like, into in ((keys, self.keys), (values, self.values)):
            into.append(like.new_empty(self.n_rows, like.shape[1], self.n_columns, like.shape[3]))
            # What the mask hides is still multiplied, and must not be NaN; from `width` on a step writes what it reads.
            into[-1][:, :, : self.width] = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        if layer_idx == len(self.keys):
            self.add_layer(key_states, value_states)
        n_rows, end = key_states.shape[0], self.column + 1
        keys, values = self.keys[layer_idx][:n_rows], self.values[layer_idx][:n_rows]
        keys[:, :, self.column : end] = key_states
        values[:, :, self.column : end] = value_states
        return keys[:, :, self.start : end], values[:, :, self.start : end]

    def move_rows(self, to: Tensor, source: Tensor) -> None:
        """Moves each row `source[i]` of the cache to row `to[i]`."""
        for tensor in (*self.keys, *self.values):
            _move_rows(tensor[:, :, self.start : self.column + 1], to, source)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.column - self.start


def _prefill_cache(model: PreTrainedModel, rows: Sequence[DecodingRow], *, n_columns: int) -> ColumnCache:
    """Builds a key-value cache of each row's prompt without its last token.

    Each prompt is computed once.
    """
    width = rows[0].n_prompt - 1
    cache = ColumnCache(len(rows), n_columns, width=width)
    if not width:
        return cache
    prompts = [ids for ids, _ in groupby(row.request.prompt_ids for row in rows)]
    # Padded on the right, where causal attention needs no mask.
    padded = [ids[:-1] + [0] * (width + 1 - len(ids)) for ids in prompts]
    done = model(
        input_ids=torch.tensor(padded, device=model.device),
        past_key_values=DynamicCache(config=model.config),
        use_cache=True,
        logits_to_keep=1,
    ).past_key_values
    for layer in done.layers:
        cache.add_layer(layer.keys, layer.values)
    row = prompt = 0
    for ids, same in groupby(rows, key=lambda row: row.request.prompt_ids):
        n, columns = len(list(same)), slice(width + 1 - len(ids), width)
        for layer, keys, values in zip(done.layers, cache.keys, cache.values, strict=True):
            keys[row : row + n, :, columns] = layer.keys[prompt, :, : len(ids) - 1]
            values[row : row + n, :, columns] = layer.values[prompt, :, : len(ids) - 1]
        row, prompt = row + n, prompt + 1
    return cache
