"""What we take from TRL beside its trainers' constructors. Contract tests fail when a new version moves it."""

from typing import NamedTuple

from torch import Tensor, nn
from trl.kernels.chunked_logprob import ChunkedLogProbFunction
from trl.trainer.utils import maybe_gather_lm_head_ctx

_MOST_COLUMNS = 32_768  # of the vocabulary in one tile, as TRL's fused head has it


class TokenScores(NamedTuple):
    """Natural logarithms of the tokens' probabilities, and the entropies of the distributions they are of; (N,)."""

    logps: Tensor
    entropies: Tensor


def token_scores(hidden: Tensor, head: nn.Linear, tokens: Tensor, temperature: float) -> TokenScores:
    """Scores of `tokens` (N,) under the head over `hidden` (N, H), no (N, vocabulary) of logits ever in memory.

    The logits are over `temperature`. Both scores have gradients.
    """
    weight, bias = head.weight, head.bias
    with maybe_gather_lm_head_ctx(weight, bias):
        logps, entropies, *_ = ChunkedLogProbFunction.apply(
            hidden, weight, bias, tokens, temperature, min(_MOST_COLUMNS, weight.shape[0]), None, 1.0, ("entropy",)
        )
    return TokenScores(logps, entropies)
