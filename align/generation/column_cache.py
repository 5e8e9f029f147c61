"""Defines the key-value cache of local decoding, whose columns are written in place, and fills it with prompts."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from qwen_align.align.generation.decoding_rows import DecodingRow

# Tokens times columns of a piece of a long prompt that has a mask: 64 MiB of booleans, which torch writes out in the
# type of the scores on a CPU. Without it a piece of 16,384 tokens behind as many others had 2.5 GiB of masks in fp32.
MAX_MASK = 1 << 26


class ColumnCache(Cache):  # type: ignore[misc]
    """A key-value cache of which each decoding step writes one column for all rows.

    Tensors are (rows, heads, columns, size), one pair per layer. Prefixes lie in the columns before `width`.
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
            move_rows(tensor[:, :, self.start : self.column + 1], to, source)

    def resize(self, *, n_rows: int, first: int, n_columns: int) -> None:
        """Keeps the first rows and the columns from `first` to the one last written, with room for `n_columns`.

        One layer is copied at a time, so that no more than one is held twice.
        """
        end = self.column + 1
        for tensors in (self.keys, self.values):
            for index, old in enumerate(tensors):
                new = old.new_empty(n_rows, old.shape[1], n_columns, old.shape[3])
                new[:, :, : end - first] = old[:n_rows, :, first:end]
                tensors[index] = new
        self.n_rows, self.n_columns, self.width = n_rows, n_columns, self.width - first
        self.set_visible_columns(self.start - first, self.column - first)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.column - self.start


def move_rows(tensor: Tensor, to: Tensor, source: Tensor) -> Tensor:
    """Copies the rows `source` of a tensor to the rows `to`, in place."""
    return tensor.index_copy_(0, to, tensor.index_select(0, source))


def prefill_cache(
    model: PreTrainedModel, rows: Sequence[DecodingRow], *, n_columns: int, prefill_tokens: int
) -> ColumnCache:
    """Builds a key-value cache of each row's prefix without its last token, right-aligned.

    Each prefix is computed once. A forward pass reads at most `prefill_tokens` tokens, padding included: as many
    prefixes as fit, or a piece of one. `rows` come with the longest prefixes first and equal ones side by side.
    """
    width = rows[0].n_prefix - 1
    cache = ColumnCache(len(rows), n_columns, width=width)
    prefixes = [(ids[:-1], len(list(same))) for ids, same in groupby(row.prefix_ids for row in rows)]
    row = 0
    for part in _split_into_passes(prefixes, prefill_tokens):
        layers = _read_prefixes(model, [ids for ids, _ in part], prefill_tokens)
        while len(cache.keys) < len(layers):
            cache.add_layer(*layers[len(cache.keys)])
        for place, (ids, n) in enumerate(part):
            columns = slice(width - len(ids), width)
            for (layer_keys, layer_values), keys, values in zip(layers, cache.keys, cache.values, strict=True):
                keys[row : row + n, :, columns] = layer_keys[place, :, : len(ids)]
                values[row : row + n, :, columns] = layer_values[place, :, : len(ids)]
            row += n
    return cache


def _split_into_passes(
    prefixes: Sequence[tuple[list[int], int]], prefill_tokens: int
) -> Iterator[Sequence[tuple[list[int], int]]]:
    """Yields as many prefixes at a time as fit a pass when they are padded to the first. Empty ones need no pass."""
    start = 0
    while start < len(prefixes) and prefixes[start][0]:
        n = max(1, prefill_tokens // len(prefixes[start][0]))
        yield prefixes[start : start + n]
        start += n


def _split_prefix(n_tokens: int, prefill_tokens: int) -> list[int]:
    """Splits a prefix into pieces that are read behind one another; their lengths.

    The first has causal attention and no mask. Those behind it have one of all columns for each of their tokens, so
    they are shorter in long prefixes.
    """
    lengths = [min(n_tokens, prefill_tokens)]
    shorter = max(1, min(prefill_tokens, MAX_MASK // n_tokens))
    while (rest := n_tokens - sum(lengths)) > 0:
        lengths.append(min(rest, shorter))
    return lengths


def _read_prefixes(
    model: PreTrainedModel, prefixes: Sequence[list[int]], prefill_tokens: int
) -> list[tuple[Tensor, Tensor]]:
    """Computes keys and values of prefixes, longest first; (prefixes, heads, T, size) of each layer."""
    width = len(prefixes[0])
    # Padded on the right, where causal attention needs no mask.
    padded = torch.tensor([ids + [0] * (width - len(ids)) for ids in prefixes], device=model.device)
    cache = DynamicCache(config=model.config)
    trunk: Any = (
        model.base_model
    )  # without the head: its product with a few rows takes 8 bytes a weight in bf16 on a CPU
    for piece in torch.split(padded, _split_prefix(width, prefill_tokens), dim=1):
        cache = trunk(input_ids=piece, past_key_values=cache, use_cache=True).past_key_values
    return [(layer.keys, layer.values) for layer in cache.layers]
