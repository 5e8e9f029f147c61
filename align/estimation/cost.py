"""Estimates time, price and disk of a stage: operations over a GPU's speed, bytes over its bandwidth.

They are bounds: rows are taken as long as they may be, completions as long as they may get.
"""

from typing import Any, NamedTuple

from qwen_align.align.estimation.model_shape import ModelShape
from qwen_align.align.estimation.numerics import count_optimizer_bytes
from qwen_align.align.estimation.sampling_memory import count_cache_bytes
from qwen_align.align.estimation.stage_estimate import StageEstimate
from qwen_align.align.models.weight_precision import Precision, resolve_precision
from qwen_align.align.settings.training import count_optimizer_steps
from qwen_align.align.settings.workload import DrawnRows, Workload

# Of the GPU's peak: what training reaches (Megatron-LM and PaLM report 0.4 to 0.6 on many GPUs; one small one with
# transformers less), what reading prompts reaches, and of the bandwidth what decoding reaches. Our choice.
TRAINING_SHARE, DECODING_SHARE = 0.35, 0.5
_BF16_BYTES = 2
_TOKENIZER_BYTES = 75  # for each word of the vocabulary, in tokenizer.json: 11.4 MB for Qwen3's


class Speed(NamedTuple):
    """Peak of a GPU: dense bf16 operations and bytes of memory a second."""

    name: str
    flops: float
    bandwidth: float


# NVIDIA's data sheets, without sparsity; by the GB that the cards are sold with, the commonest of a size.
SPEEDS = (
    (16, Speed("RTX 4080", 97.5e12, 0.72e12)),
    (24, Speed("RTX 4090", 165.2e12, 1.01e12)),
    (32, Speed("RTX 5090", 209.5e12, 1.79e12)),
    (48, Speed("L40S", 362.0e12, 0.86e12)),
    (80, Speed("A100 80GB", 312.0e12, 2.04e12)),
    (96, Speed("H20", 148.0e12, 4.0e12)),
    (141, Speed("H200", 989.5e12, 4.8e12)),
)


class Tokens(NamedTuple):
    """Tokens of a stage at most: of a row, and of all that is drawn, trained on, and scored without gradients."""

    of_row: int
    drawn: float
    trained: float
    scored: float


class Cost(NamedTuple):
    """What a stage takes at most: tokens trained and drawn, operations, seconds.

    seconds are those of all devices together, over their number.
    """

    trained_tokens: float
    drawn_tokens: float
    flops: float
    seconds: float


class DiskUse(NamedTuple):
    """Bytes of the model that a stage leaves in the store, and of one of its checkpoints."""

    stored: float
    checkpoint: float


def choose_speed(device_bytes: int) -> Speed:
    """Returns the speed of the commonest card with about so much memory."""
    return min(SPEEDS, key=lambda entry: abs(entry[0] * 1e9 - device_bytes))[1]


def count_flops_per_token(shape: ModelShape, *, length: int, is_trained: bool, has_frozen_base: bool) -> float:
    """Counts the operations of a token in a row of `length` tokens: of a training pass, or of one without gradients.

    Twice a weight forward, twice for the gradient of its input, twice for its own where it is trained; attention 4
    times the queries' width for each token seen, thrice that where it is trained (arXiv:2204.02311, appendix B). What
    is computed again for checkpointing is not counted.
    """
    head = shape.vocabulary * shape.layer.hidden
    weights = (shape.active + head) * (2 if not is_trained else 4 if has_frozen_base else 6)
    attention = 4.0 * shape.layer.queries * shape.n_layers * length / 2
    return weights + attention * (3 if is_trained else 1)


def count_tokens(workload: Workload, n_rows: int, prompt_tokens: int) -> Tokens:
    """Counts the tokens of a stage that reads so many rows.

    Of a stage that draws, rows are prompts.
    """
    rows, training, drawn = workload.rows, workload.training, 0
    if isinstance(rows, DrawnRows):
        n_prompts = rows.steps * rows.prompts_per_step or n_rows
        length, n_texts = prompt_tokens + rows.max_tokens, n_prompts * rows.completions_per_prompt
        drawn = n_texts * rows.max_tokens
    else:
        length = rows.max_tokens
        n_texts = count_optimizer_steps(n_rows, rows.epochs, rows.per_step) * rows.per_step * rows.sides
    trained, scored = (training.passes, training.scoring_passes) if training else (0, 0)
    return Tokens(length, float(drawn), float(n_texts * length * trained), float(n_texts * length * scored))


def estimate_cost(estimate: StageEstimate, speed: Speed, *, n_devices: int, n_rows: int, prompt_tokens: int) -> Cost:
    """Estimates the cost of a stage that reads `n_rows` rows on `n_devices` GPUs."""
    shape, model = estimate.shape, estimate.model
    length, drawn, trained, scored = count_tokens(estimate.workload, n_rows, prompt_tokens)
    has_frozen_base = model is not None and model.lora is not None
    of_training = count_flops_per_token(shape, length=length, is_trained=True, has_frozen_base=has_frozen_base)
    of_scoring = count_flops_per_token(shape, length=length, is_trained=False, has_frozen_base=has_frozen_base)
    flops = trained * of_training + (scored + drawn) * of_scoring
    computed = trained * (of_training + of_scoring * bool(estimate.checkpointing)) + scored * of_scoring
    seconds = computed / (speed.flops * TRAINING_SHARE)
    if drawn:  # every step reads all weights, and the keys and values of the rows, half of their columns on average
        at_once = max(1, estimate.rows_at_once or 1)
        cached = count_cache_bytes(shape, 2) * length / 2
        seconds += drawn * (2.0 * shape.n_parameters / at_once + cached) / (speed.bandwidth * DECODING_SHARE)
    return Cost(trained, drawn, flops, seconds / n_devices)


def estimate_disk_use(settings: Any, estimate: StageEstimate) -> DiskUse:
    """Estimates what a stage writes: its model, and in a checkpoint the trained weights in fp32 and their moments."""
    model, n_trained = estimate.model, estimate.n_trained
    if model is None:
        return DiskUse(0.0, 0.0)
    checkpoint = 4.0 * n_trained + count_optimizer_bytes(settings.optimizer.removeprefix("paged_"), n_trained)
    tokenizer = float(_TOKENIZER_BYTES * model.shape.vocabulary)  # what a stage hands on has a copy
    if model.lora is not None:
        return DiskUse(4.0 * model.trained + tokenizer, checkpoint)
    stored: Precision = "bf16" if model.shape.stored_bytes == _BF16_BYTES else "fp32"
    saved = resolve_precision(settings, stored).save_weights
    return DiskUse((2.0 if saved == "bf16" else 4.0) * model.shape.n_parameters + tokenizer, checkpoint)
