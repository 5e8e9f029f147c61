"""Bytes that a language model's head needs beside its weights to score tokens, forward and backward."""

from typing import NamedTuple

# TRL 1.16's fused head (kernels/chunked_logprob.py) multiplies so many tokens by so many words at a time.
TILE_TOKENS, TILE_WORDS = 4096, 32_768


class HeadMemory(NamedTuple):
    """Bytes alive beside the hidden states while the head is computed. gradient: of its weight, which stays."""

    forward: float
    backward: float
    gradient: float


class HeadWork(NamedTuple):
    """What a head computes: scores of `n_tokens` hidden states of `hidden` numbers over `vocabulary` words.

    state_bytes, weight_bytes: of a number of the states and of the weight. compute: bytes of a logit. trained: the
    head's weight has a gradient. entropy: entropies have a gradient too.
    """

    n_tokens: int
    hidden: int
    vocabulary: int
    state_bytes: int
    weight_bytes: int
    compute: int
    trained: bool
    entropy: bool = False


def measure_tiled_head(work: HeadWork, *, is_on_gpu: bool) -> HeadMemory:
    """Returns the memory of TRL's fused head, which holds one tile of the logits at a time.

    On a GPU a Triton kernel turns a tile into gradients in place. In torch, on a CPU, the tile is written out in fp32
    by each operation: three at once forward; backward seven, with a gradient of entropies eight, and one of booleans;
    or one and the words' weights, for the products with a tile.
    """
    words = min(TILE_WORDS, work.vocabulary)
    tile = float(min(work.n_tokens, TILE_TOKENS) * words)
    # The states that are scored are picked from all; a chunk of them and of the weight is cast where it has to be.
    chosen = float(work.n_tokens * work.hidden * work.state_bytes)
    cast = 0.0
    if work.state_bytes != work.compute:
        cast += min(work.n_tokens, TILE_TOKENS) * work.hidden * work.compute
    if work.weight_bytes != work.compute:
        cast += words * work.hidden * work.compute
    gradient = 4.0 * work.vocabulary * work.hidden if work.trained else 0.0
    rounded = gradient * work.weight_bytes / 4 if work.trained and work.weight_bytes != 4 else 0.0
    # The gradient of the states is summed in fp32 and rounded at the end.
    states = 4.0 * work.n_tokens * work.hidden
    at_end = max(0.0, rounded, chosen if work.state_bytes != 4 else 0.0)
    tiles_forward, tiles_backward = work.compute * tile, work.compute * tile
    if not is_on_gpu:
        tiles_forward += 3 * 4 * tile
        products = 4 * tile + 4.0 * words * work.hidden  # both factors in fp32
        tiles_backward += max((8 if work.entropy else 7) * 4 * tile + tile, products)
    return HeadMemory(
        forward=chosen + cast + tiles_forward,
        backward=chosen + cast + states + gradient + max(tiles_backward, at_end),
        gradient=gradient * work.weight_bytes / 4,
    )


def measure_full_logits(work: HeadWork) -> HeadMemory:
    """Returns the memory of transformers' own loss, which has all logits at once, three times in fp32."""
    logits = float(work.n_tokens * work.vocabulary)
    gradient = float(work.weight_bytes * work.vocabulary * work.hidden) if work.trained else 0.0
    n_bytes = logits * 3 * 4
    return HeadMemory(forward=n_bytes, backward=n_bytes, gradient=gradient)
