"""Measures how far a policy that was trained on a 4-bit base is from the same adapters on the full-precision base.

The second is what a stage hands on. They differ by the rounding of the base alone, which was there before training.
"""

from collections.abc import Callable, Sequence
from math import inf, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel

from qwen_align.align.context import Context
from qwen_align.align.errors import StageError
from qwen_align.align.models import loading
from qwen_align.align.models.adapters import merge_adapter
from qwen_align.align.models.attention_setting import set_attention
from qwen_align.align.models.model_description import ModelFiles, locate_model_files
from qwen_align.align.models.quantized_base import is_quantized
from qwen_align.align.models.weight_headers import read_stored_tensors

# nf4 rounds a weight by 9 % (RMS) and logits by 5 % (embedded base) to 30 % (random weights). Beyond half of their size
# they are those of another model: weights read in another layout, say, are off by 100 %.
LARGEST_ERROR = 0.5
# How many times the base's own error that of the trained policy may be before it is noted (our choice).
NOTED_GROWTH = 3.0
N_TOKENS = 64  # that it is measured on: 40 MB of logits at a vocabulary of 150,000
TOKENS_AT_ONCE = 8  # in doubles, of which there are six for each output
# The share of the host's free memory that loading the full-precision base may take.
_MEMORY_SHARE = 0.8


class QuantizationError(NamedTuple):
    """How far the logits of a 4-bit model are from those in full precision, on a row of tokens.

    relative: the root mean square of the difference over that of the logits (or scores). kl: the KL divergence of the
    distributions of the next token in full precision from those in 4 bits, in nats per token.
    """

    relative: float
    kl: float


def measure_quantization(policy: Any, folder: Path, ids: Sequence[int], context: Context) -> dict[str, float]:
    """Returns how far a policy on a 4-bit base is from the merged model of the stage's folder, for its summary.

    The same is returned of the two bases, without the stage's adapter. `ids`: the tokens that it is
    measured on. Returns nothing of a policy that is not in 4 bits, and where the full-precision base does not fit into
    free memory. Raises StageError where the two bases are different models.
    """
    if not _can_be_measured(policy, folder, context):
        return {}
    files = locate_model_files(folder)
    ids = list(ids)[:N_TOKENS]
    trained = compute_outputs(policy, ids)
    with policy.disable_adapter():
        untrained = compute_outputs(policy, ids)
    *below, own = files.adapters
    full = loading.load_with_adapters(ModelFiles(files.base, below), loading.find_precision(folder))
    set_attention(full, context.runtime.attention, full.device.type)
    before = compare_outputs(untrained, compute_outputs(full, ids))
    if not before.relative <= LARGEST_ERROR:
        raise StageError(
            f"{files.base}: its logits in 4 bits are {before.relative:.0%} off those in full precision, and rounding "
            f"explains {LARGEST_ERROR:.0%} at most: this model cannot be held in 4 bits (lora.base_weights)"
        )
    after = compare_outputs(trained, compute_outputs(merge_adapter(full, own), ids))
    if after.relative > NOTED_GROWTH * before.relative:
        context.log_note(
            0,
            "quantization",
            f"the merged model's logits are {after.relative:.0%} off those of the 4-bit policy that was trained, the "
            f"bases' {before.relative:.0%}: evaluate it before you use it",
        )
    return {
        "quantization_error": after.relative,
        "quantization_kl": after.kl,
        "quantization_error_of_base": before.relative,
        "quantization_kl_of_base": before.kl,
    }


def measure_score_quantization(
    scorer: Any, folder: Path, ids: Sequence[int], context: Context, load: Callable[[Path], PreTrainedModel]
) -> dict[str, float]:
    """Returns how far the scores of a reward model on a 4-bit base are from those of the merged one, at each token.

    `load` loads the merged one from the stage's folder. Otherwise as `measure_quantization`.
    """
    if not _can_be_measured(scorer, folder, context):
        return {}
    ids = list(ids)[:N_TOKENS]
    full = load(folder)
    set_attention(full, context.runtime.attention, full.device.type)
    error = compare_outputs(compute_outputs(scorer, ids), compute_outputs(full, ids))
    return {"quantization_error": error.relative}


def _can_be_measured(policy: Any, folder: Path, context: Context) -> bool:
    """Returns whether a policy is in 4 bits, in the main process, and the full-precision model fits into memory too."""
    if not is_quantized(policy) or not context.is_main:
        return False
    fits = _fits_in_memory(loading.fetch_base_folder(locate_model_files(folder)))
    if not fits:
        context.log_note(0, "quantization", "not measured: the full-precision base does not fit into free memory")
    return fits


def compare_outputs(quantised: Tensor, full: Tensor) -> QuantizationError:
    """Compares the outputs of a 4-bit model with those of the full-precision one; both (tokens, outputs).

    In doubles, a few tokens at a time.
    """
    squared_error = squared_size = kl = 0.0
    parts = (torch.split(quantised, TOKENS_AT_ONCE), torch.split(full, TOKENS_AT_ONCE))
    for ours, theirs in zip(*(map(Tensor.double, one) for one in parts), strict=True):
        squared_error += float((ours - theirs).square().sum())
        squared_size += float(theirs.square().sum())
        logps = theirs.log_softmax(dim=-1)
        kl += float((logps.exp() * (logps - ours.log_softmax(dim=-1))).sum())
    return QuantizationError(sqrt(squared_error / squared_size) if squared_size else inf, kl / len(full))


@torch.no_grad()
def compute_outputs(model: Any, ids: Sequence[int]) -> Tensor:
    """Computes the outputs of a model's head at each of some tokens, in evaluation mode; (tokens, outputs)."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    training = [module for module in model.modules() if module.training]
    model.eval()
    hidden = base.base_model(input_ids=torch.tensor([list(ids)], device=base.device), use_cache=False).last_hidden_state
    head = base.score if hasattr(base, "score") else base.get_output_embeddings()
    weight = head.weight if isinstance(head, nn.Linear) else next(head.parameters())
    outputs: Tensor = head(hidden[0].to(weight.dtype))
    for module in training:
        module.training = True
    return outputs.float().cpu()


def _fits_in_memory(base: Path) -> bool:
    """Returns whether a base as its files have it takes less than `_MEMORY_SHARE` of free memory, as Linux says it."""
    needed = sum(tensor.n_bytes for tensor in read_stored_tensors(base).values())
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return True
    (free,) = (int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return needed < _MEMORY_SHARE * free
