"""Wraps the functions of TRL that we use besides its trainers.

Contract tests fail when a new version moves them.
"""

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from trl.kernels.chunked_logprob import ChunkedLogProbFunction
from trl.trainer.utils import maybe_gather_lm_head_ctx

MAX_TILE_COLUMNS = 32_768  # of the vocabulary in one tile, as TRL's fused head has it


def gather_head(weight: Tensor, bias: Tensor | None) -> AbstractContextManager[Any]:
    """Returns a context manager in which a head that DeepSpeed has spread over devices is whole."""
    return maybe_gather_lm_head_ctx(weight, bias)  # type: ignore[no-any-return]


def score_tokens_in_kernel(
    hidden: Tensor, head: nn.Linear, tokens: Tensor, temperature: float, outputs: tuple[str, ...]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Computes scores of each of N tokens from hidden states (N, H) by TRL's Triton kernel.

    They are the log-prob and what of "entropy", "mean_logits" and "is_top1" is in `outputs`, in this order.
    """
    weight, width = head.weight, min(MAX_TILE_COLUMNS, head.weight.shape[0])
    logps, entropies, _, mean_logits, is_top1 = ChunkedLogProbFunction.apply(
        hidden, weight, head.bias, tokens, temperature, width, None, 1.0, outputs
    )
    return logps, entropies, mean_logits, is_top1
