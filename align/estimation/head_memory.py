"""Bytes that a language model's head needs beside its weights to score tokens, forward and backward."""

from typing import Literal, NamedTuple

HeadKind = Literal["kernel", "tiles", "trl_on_cpu", "full_logits"]
"""How a head is computed: by TRL's kernel on a GPU, by our tiles on a CPU, by TRL's code there, or with all logits."""

# TRL 1.16's fused head (kernels/chunked_logprob.py) multiplies so many tokens by so many words at a time.
TRL_TOKENS, TRL_WORDS = 4096, 32_768
# Logits of a tile on a CPU (align/training/token_scores.py): whole rows of the vocabulary.
TILE_LOGITS = 1 << 25
_FP32 = 4


class HeadMemory(NamedTuple):
    """Bytes alive beside the hidden states while the head is computed.

    kept: from then until its backward pass. gradient: of its weight, which stays.
    """

    forward: float
    kept: float
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

    @property
    def chosen(self) -> float:
        """Returns the bytes of the states that are scored, which are picked from all."""
        return float(self.n_tokens * self.hidden * self.state_bytes)

    @property
    def states_gradient(self) -> float:
        """Returns the bytes of the gradient of the states in fp32."""
        return float(_FP32 * self.n_tokens * self.hidden)

    @property
    def weight_gradient(self) -> float:
        """Returns the bytes of the gradient of the weight in fp32, if it has one."""
        return float(_FP32 * self.vocabulary * self.hidden) if self.trained else 0.0


def measure_head(work: HeadWork, kind: HeadKind) -> HeadMemory:
    """Returns the memory of a head that is computed in a way."""
    if kind == "tiles":
        return _measure_tiles(work)
    return _measure_full_logits(work) if kind == "full_logits" else _measure_trl(work, is_on_gpu=kind == "kernel")


def _measure_trl(work: HeadWork, *, is_on_gpu: bool) -> HeadMemory:
    """Returns the memory of TRL's fused head, which holds one tile of the logits at a time.

    On a GPU a Triton kernel turns a tile into gradients in place. In torch, on a CPU, the tile is written out in fp32
    by each operation: three at once forward; backward seven, with a gradient of entropies eight, and one of booleans;
    or one and the words' weights, for the products with a tile.
    """
    words = min(TRL_WORDS, work.vocabulary)
    tokens = min(work.n_tokens, TRL_TOKENS)
    tile = float(tokens * words)
    cast = 0.0  # a chunk of states and of the weight, where they have another precision
    if work.state_bytes != work.compute:
        cast += tokens * work.hidden * work.compute
    if work.weight_bytes != work.compute:
        cast += words * work.hidden * work.compute
    tiles_forward, tiles_backward = work.compute * tile, work.compute * tile
    if not is_on_gpu:
        tiles_forward += 3 * _FP32 * tile
        products = _FP32 * (tile + words * work.hidden)  # both factors in fp32
        tiles_backward += max((8 if work.entropy else 7) * _FP32 * tile + tile, products)
    # At the end sums in fp32 are rounded to what they are gradients of.
    rounded = work.weight_gradient * work.weight_bytes / _FP32 if work.weight_bytes != _FP32 else 0.0
    at_end = max(rounded, work.chosen if work.state_bytes != _FP32 else 0.0)
    return HeadMemory(
        forward=work.chosen + cast + tiles_forward,
        kept=0.0,
        backward=work.chosen + cast + work.states_gradient + work.weight_gradient + max(tiles_backward, at_end),
        gradient=work.weight_gradient * work.weight_bytes / _FP32,
    )


def _measure_tiles(work: HeadWork) -> HeadMemory:
    """Returns the memory of our head on a CPU: products, logits and exponentials of a tile in buffers.

    A head in another precision is cast whole. Of several tiles a frozen head keeps the gradients of log-probs in the
    states, of a single one its log-probs; else the tiles are computed again.
    """
    rows = max(1, min(work.n_tokens, TILE_LOGITS // work.vocabulary))
    tile = float(rows * work.vocabulary)
    logits = _FP32 * tile
    buffers = work.compute * tile + logits * (1 + (work.compute != _FP32))
    cast = 0.0
    if work.state_bytes != work.compute:
        cast += work.n_tokens * work.hidden * work.compute
    if work.weight_bytes != work.compute:
        cast += work.vocabulary * work.hidden * work.compute
    is_single = work.n_tokens <= rows
    has_units = not is_single and not work.trained
    kept = work.chosen + (logits if is_single else work.states_gradient if has_units else 0.0)
    product = work.compute * tile * has_units if work.compute != _FP32 else 0.0  # of probabilities and weights
    forward = work.chosen + cast + buffers + (work.states_gradient if has_units else 0.0) + product
    if has_units and not work.entropy:  # units times the loss's gradient, rounded to the states' precision
        return HeadMemory(forward, kept, kept + work.states_gradient + work.chosen, 0.0)
    of_weight = work.weight_gradient
    rounded = work.compute * tile if work.compute != _FP32 else 0.0
    if work.trained and work.compute != _FP32:  # a tile's share of the weight's gradient, before it is added
        rounded += work.compute * work.vocabulary * work.hidden
    at_end = max(cast + buffers + rounded, work.chosen if work.state_bytes != _FP32 else 0.0)
    backward = kept + work.states_gradient + of_weight + at_end
    return HeadMemory(forward, kept, backward, of_weight)


def _measure_full_logits(work: HeadWork) -> HeadMemory:
    """Returns the memory of transformers' own loss, which has all logits at once, three times in fp32."""
    n_bytes = float(work.n_tokens * work.vocabulary) * 3 * _FP32
    return HeadMemory(n_bytes, 0.0, n_bytes, work.weight_gradient * work.weight_bytes / _FP32)
