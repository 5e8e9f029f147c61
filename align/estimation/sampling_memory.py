"""Bytes that the local engine needs while it draws completions: keys and values, prompts, logits."""

from typing import NamedTuple

from qwen_align.align.estimation.layer_tape import LayerNumerics, write_layer_tape
from qwen_align.align.estimation.model_shape import ModelShape

# Of a sampling step over all rows and words: logits in fp32, over the temperature, as probabilities, their running sum
# in fp64, and what the model gave (align/generation/token_sampling.py).
_BYTES_PER_LOGIT = 3 * 4 + 8


class Drawing(NamedTuple):
    """What is drawn at once: completions side by side, columns of cache of each, prompt tokens read in one pass.

    weight_bytes: of a weight as it is drawn with.
    """

    rows: int
    columns: int
    prefill_tokens: int
    weight_bytes: int


class DrawingMemory(NamedTuple):
    """Bytes of drawing. one_row, all_rows: keys and values of one completion and of all. step: of a forward pass."""

    one_row: float
    all_rows: float
    activations: float
    logits: float


def count_cache_bytes(shape: ModelShape, weight_bytes: int) -> int:
    """Counts the bytes of one token's keys and values in all layers."""
    return 2 * shape.n_layers * shape.layer.keys * weight_bytes


def measure_drawing(shape: ModelShape, drawing: Drawing) -> DrawingMemory:
    """Returns what drawing needs beside the weights; a step reads prompts or samples, whichever takes more."""
    one_row = float(count_cache_bytes(shape, drawing.weight_bytes) * drawing.columns)
    numerics = LayerNumerics(stored=drawing.weight_bytes, autocast=False)
    tape = write_layer_tape(shape.layer, numerics, drawing.prefill_tokens)
    width = float(shape.layer.hidden * drawing.weight_bytes * drawing.prefill_tokens)
    prefill = width + tape.find_forward_peak(keeps_saved=False)
    sampling = float(drawing.rows * shape.vocabulary * (_BYTES_PER_LOGIT + drawing.weight_bytes))
    is_prefill = prefill >= sampling
    return DrawingMemory(one_row, one_row * drawing.rows, prefill * is_prefill, sampling * (not is_prefill))
