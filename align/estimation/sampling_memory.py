"""Bytes that the local engine needs while it draws completions: keys and values, prompts, logits."""

from typing import NamedTuple

from qwen_align.align.estimation.layer_tape import LayerNumerics, write_layer_tape
from qwen_align.align.estimation.model_shape import ModelShape

# Of a sampling step over all rows and words: logits in fp32, over the temperature, as probabilities, their running sum
# in fp64, and what the model gave (align/generation/token_sampling.py).
_BYTES_PER_LOGIT = 3 * 4 + 8


class Drawing(NamedTuple):
    """What is drawn at once: completions side by side, columns of cache of each, prompt tokens read in one pass.

    prompt_columns: of the columns of a completion, those of its prompt.

    weight_bytes: of a weight as it is drawn with.
    """

    rows: int
    columns: int
    prompt_columns: int
    prefill_tokens: int
    weight_bytes: int


class DrawingMemory(NamedTuple):
    """Bytes of drawing.

    one_row, all_rows: keys and values of one completion and of all, with their prompts. prompts: of all prompts alone.
    reading, sampling: beside them, of a forward pass over prompts and of a step over all rows.
    """

    one_row: float
    all_rows: float
    prompts: float
    reading: float
    sampling: float


def count_cache_bytes(shape: ModelShape, weight_bytes: int) -> int:
    """Counts the bytes of one token's keys and values in all layers."""
    return 2 * shape.n_layers * shape.layer.keys * weight_bytes


def measure_drawing(shape: ModelShape, drawing: Drawing) -> DrawingMemory:
    """Returns what drawing needs beside the weights."""
    of_token = count_cache_bytes(shape, drawing.weight_bytes)
    one_row = float(of_token * drawing.columns)
    numerics = LayerNumerics(stored=drawing.weight_bytes, autocast=False)
    tape = write_layer_tape(shape.layer, numerics, drawing.prefill_tokens)
    width = float(shape.layer.hidden * drawing.weight_bytes * drawing.prefill_tokens)
    # Keys and values of the prompts of a pass are there beside the cache that they are copied to.
    reading = width + tape.find_forward_peak(keeps_saved=False) + of_token * drawing.prefill_tokens
    sampling = float(drawing.rows * shape.vocabulary * (_BYTES_PER_LOGIT + drawing.weight_bytes))
    prompts = float(of_token * drawing.prompt_columns * drawing.rows)
    return DrawingMemory(one_row, one_row * drawing.rows, prompts, reading, sampling)
