"""Writes the tape of one decoder layer, operation by operation, as transformers, PEFT and autocast compute it.

The operations are those of `modeling_qwen3.py` (transformers 5.23) with PEFT 0.21's LoRA layers: norms in fp32, rotary
embeddings, attention that keeps no scores, a gated MLP, residual sums. A test holds the sums to traces.
"""

from collections.abc import Mapping
from typing import NamedTuple

from qwen_align.align.estimation.tape import Tape, Tensor


class LayerShape(NamedTuple):
    """The widths of a decoder layer: hidden states, queries, keys, MLP, heads, and whether queries are normed."""

    hidden: int
    queries: int
    keys: int
    inner: int
    heads: int
    head_dim: int
    has_query_norm: bool


class LayerNumerics(NamedTuple):
    """In which precision a layer computes, and what of it is trained.

    stored: bytes of a weight that is not quantised, which is that of the hidden states between layers. autocast:
    matrices are multiplied in bf16 whatever their inputs. trains_base: gradients of the layer's own weights.
    adapter_ranks: rank by the names of the layers that have a LoRA adapter, whose weights are fp32. is_quantised:
    linear layers are in 4 bits. has_dora: adapters have a magnitude per output. repeats_keys: attention has a mask, so
    that keys and values are copied for every head that shares them. adapts_as_given: adapters read a layer's input in
    the precision it has (PEFT on 4-bit layers under autocast of a GPU); else they read a copy in fp32.
    """

    stored: int
    autocast: bool
    trains_base: bool = False
    adapter_ranks: Mapping[str, int] = {}
    is_quantised: bool = False
    has_dora: bool = False
    repeats_keys: bool = False
    adapts_as_given: bool = False

    @property
    def compute(self) -> int:
        """Returns the bytes of a number that comes out of a matrix product."""
        return 2 if self.autocast else self.stored


_FP32 = 4


class _Writer:
    """Writes the tape of a layer for a number of tokens."""

    def __init__(self, shape: LayerShape, numerics: LayerNumerics, n_tokens: int) -> None:
        self.shape, self.numerics, self.n_tokens = shape, numerics, n_tokens
        self.tape = Tape()

    def convert(self, x: Tensor, width: int, precision: int) -> Tensor:
        """Converts a tensor of `width` numbers a token. One that has the precision already is taken as it is."""
        n_bytes = float(width * precision * self.n_tokens)
        return x if x.n_bytes == n_bytes else self.tape.record([x], n_bytes)

    def norm(self, x: Tensor, width: int, heads: int = 1) -> Tensor:
        """Root mean square norm of `heads` parts of a tensor, in fp32, times a weight."""
        tokens, numerics = self.n_tokens, self.numerics
        precision = round(x.n_bytes / tokens / width)
        full = self.convert(x, width, _FP32)
        # The mean of squares; backward it is spread again (one tensor) and multiplied by twice the input (another).
        scale = self.tape.record([full], _FP32 * heads * tokens, saves=[full], temporary=2.0 * full.n_bytes)
        normed = self.tape.record([full, scale], full.n_bytes, saves=[full, scale], temporary=full.n_bytes)
        normed = self.convert(normed, width, precision)
        gradient = float(width // heads * numerics.stored) if numerics.trains_base else 0.0
        return self.tape.record(
            [normed],
            max(precision, numerics.stored) * width * tokens,
            saves=[normed] if numerics.trains_base else [],
            weight_gradient=gradient,
        )

    def linear(self, x: Tensor, name: str, rows: int, columns: int) -> Tensor:
        """A linear layer from `columns` to `rows` numbers a token, with its adapter if it has one."""
        tokens, numerics, compute = self.n_tokens, self.numerics, self.numerics.compute
        read = self.convert(x, columns, compute)
        gradient = float(rows * columns * numerics.stored) if numerics.trains_base else 0.0
        saves = [read] if numerics.trains_base else []
        if compute != numerics.stored:  # the weight's copy in bf16
            saves.append(self.tape.add_tensor(float(rows * columns * compute), needs_gradient=False))
        y = self.tape.record(
            [read],
            float(rows * compute * tokens),
            saves=saves,
            holds=[x],
            # 4-bit weights are written out for the product.
            temporary=float(rows * columns * compute) if numerics.is_quantised else 0.0,
            weight_gradient=gradient,
            gradient_cast=gradient * compute / numerics.stored if compute != numerics.stored else 0.0,
        )
        rank = numerics.adapter_ranks.get(name)
        return y if rank is None else self.adapt(x, y, rank, rows, columns)

    def adapt(self, x: Tensor, y: Tensor, rank: int, rows: int, columns: int) -> Tensor:
        """Adds a LoRA adapter's output to that of its layer."""
        tokens, numerics = self.n_tokens, self.numerics
        compute = 2 if numerics.autocast else _FP32
        given = x
        if not numerics.adapts_as_given:
            x = self.convert(x, columns, _FP32)
        read = self.convert(x, columns, compute)
        inner = self.tape.record(
            [read], float(rank * compute * tokens), saves=[read], weight_gradient=rank * columns * 4.0
        )
        wide = float(rows * compute * tokens)
        out = self.tape.record([inner], wide, saves=[inner], weight_gradient=rank * rows * 4.0)
        scaled = self.tape.record([out], wide)
        if numerics.has_dora:  # (m - 1) * y + m * scaled, both products kept for the gradient of m
            y = self.tape.record([y], y.n_bytes, saves=[y], weight_gradient=rows * 4.0, temporary=y.n_bytes)
            scaled = self.tape.record([scaled], wide, saves=[scaled], temporary=wide)
        total = self.tape.record([y, scaled], max(y.n_bytes, wide), holds=[given, x])
        return self.convert(total, rows, round(y.n_bytes / tokens / rows))

    def rotate(self, x: Tensor) -> Tensor:
        """Rotary position embedding: x * cos + rotate_half(x) * sin."""
        straight = self.tape.record([x], x.n_bytes)
        turned = self.tape.record([x], x.n_bytes, temporary=x.n_bytes)
        turned = self.tape.record([turned], x.n_bytes)
        return self.tape.record([straight, turned], x.n_bytes)

    def attend(self, x: Tensor) -> Tensor:
        """Self-attention, from the normed input to the output projection."""
        shape, compute = self.shape, self.numerics.compute
        q = self.linear(x, "q_proj", shape.queries, shape.hidden)
        if shape.has_query_norm:
            q = self.norm(q, shape.queries, shape.heads)
        k = self.linear(x, "k_proj", shape.keys, shape.hidden)
        if shape.has_query_norm:
            k = self.norm(k, shape.keys, shape.keys // shape.head_dim)
        v = self.linear(x, "v_proj", shape.keys, shape.hidden)
        q, k = self.rotate(q), self.rotate(k)
        if self.numerics.repeats_keys:
            k = self.tape.record([k], k.n_bytes * shape.queries / shape.keys)
            v = self.tape.record([v], v.n_bytes * shape.queries / shape.keys)
        q = self.convert(q, shape.queries, compute)
        if not self.numerics.repeats_keys:
            k, v = (self.convert(one, shape.keys, compute) for one in (k, v))
        out = self.tape.record([q, k, v], q.n_bytes, saves=[q, k, v])
        sums = self.tape.add_tensor(
            float(_FP32 * shape.heads * self.n_tokens), needs_gradient=False
        )  # logarithms of the sums of exponentiated scores
        self.tape.save_output(out, sums)
        return self.hold(x, self.linear(out, "o_proj", shape.hidden, shape.queries))

    def feed_forward(self, x: Tensor) -> Tensor:
        """The gated MLP: down(silu(gate(x)) * up(x))."""
        shape = self.shape
        gate = self.linear(x, "gate_proj", shape.inner, shape.hidden)
        active = self.tape.record([gate], gate.n_bytes, saves=[gate])
        up = self.linear(x, "up_proj", shape.inner, shape.hidden)
        product = self.tape.record([active, up], up.n_bytes, saves=[active, up])
        return self.hold(x, self.linear(product, "down_proj", shape.hidden, shape.inner))

    def hold(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns y, until which x is alive too."""
        return self.tape.record([y], 0.0, holds=[x])


def write_layer_tape(shape: LayerShape, numerics: LayerNumerics, n_tokens: int) -> Tape:
    """Returns the tape of a decoder layer for a number of tokens; sizes in bytes."""
    writer = _Writer(shape, numerics, n_tokens)
    width = float(shape.hidden * numerics.stored * n_tokens)
    x = writer.tape.add_tensor(width, needs_gradient=numerics.trains_base or bool(numerics.adapter_ranks))
    x = writer.tape.record([x, writer.attend(writer.norm(x, shape.hidden))], width)
    writer.tape.record([x, writer.feed_forward(writer.norm(x, shape.hidden))], width)
    return writer.tape
