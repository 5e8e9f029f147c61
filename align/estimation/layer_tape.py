"""Writes the tape of one decoder layer, operation by operation, as transformers, PEFT and autocast compute it.

The operations are those of `modeling_qwen3.py` (transformers 5.23) with PEFT 0.21's LoRA layers: norms in fp32, rotary
embeddings, attention that keeps no scores, a gated MLP, residual sums. A test holds the sums to traces.
"""

from collections.abc import Mapping
from typing import NamedTuple

from qwen_align.align.estimation.tape import Tape, Tensor


class LayerShape(NamedTuple):
    """The widths of a decoder layer: hidden states, queries, keys, MLP, heads, and whether queries are normed.

    n_experts: that a router chooses from, 0 for a layer without.
    """

    hidden: int
    queries: int
    keys: int
    inner: int
    heads: int
    head_dim: int
    has_query_norm: bool
    n_experts: int = 0


class Tokens(NamedTuple):
    """The tokens of a pass through a layer: those that are computed, and those that attention sees.

    keys, queries: of all rows with their prompts, where rows share prompts that are computed once. Attention may pick
    the queries of a prompt once for each of its rows, too.
    """

    computed: int
    keys: int
    queries: int


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
    """Writes the tape of a layer for a pass over tokens."""

    def __init__(self, shape: LayerShape, numerics: LayerNumerics, tokens: Tokens) -> None:
        self.shape, self.numerics, self.tokens, self.n_tokens = shape, numerics, tokens, tokens.computed
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

    def pick(self, x: Tensor, n: int, *, of: int | None = None) -> Tensor:
        """Picks `n` tokens of the `of` that a tensor has. As many are taken as they are."""
        of = of or self.n_tokens
        return x if n == of else self.tape.record([x], x.n_bytes * n / of)

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
        # Rows are picked from the sequence, each with its own prompt.
        q = self.pick(q, self.tokens.queries)
        k, v = self.pick(k, self.tokens.keys), self.pick(v, self.tokens.keys)
        out = self.tape.record([q, k, v], q.n_bytes, saves=[q, k, v])
        sums = self.tape.add_tensor(
            float(_FP32 * shape.heads * self.tokens.queries), needs_gradient=False
        )  # logarithms of the sums of exponentiated scores
        self.tape.save_output(out, sums)
        out = self.pick(out, self.n_tokens, of=self.tokens.queries)
        return self.hold(x, self.linear(out, "o_proj", shape.hidden, shape.queries))

    def feed_forward(self, x: Tensor) -> Tensor:
        """The gated MLP: down(silu(gate(x)) * up(x))."""
        shape = self.shape
        if shape.n_experts:
            self.route(x)
        gate = self.linear(x, "gate_proj", shape.inner, shape.hidden)
        active = self.tape.record([gate], gate.n_bytes, saves=[gate])
        up = self.linear(x, "up_proj", shape.inner, shape.hidden)
        product = self.tape.record([active, up], up.n_bytes, saves=[active, up])
        return self.hold(x, self.linear(product, "down_proj", shape.hidden, shape.inner))

    def route(self, x: Tensor) -> None:
        """A router's probabilities of its experts: for the choice, and for the load-balancing loss."""
        n_numbers = float(self.shape.n_experts * self.n_tokens)
        logits = self.tape.record(
            [x], n_numbers * self.numerics.compute, saves=[x] if self.numerics.trains_base else []
        )
        for _ in range(2):
            full = self.convert(logits, self.shape.n_experts, _FP32)
            probabilities = self.tape.record([full], n_numbers * _FP32)
            self.tape.save_output(probabilities, probabilities)

    def hold(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns y, until which x is alive too."""
        return self.tape.record([y], 0.0, holds=[x])


def write_layer_tape(shape: LayerShape, numerics: LayerNumerics, tokens: int | Tokens) -> Tape:
    """Returns the tape of a decoder layer for a number of tokens; sizes in bytes."""
    of_pass = Tokens(tokens, tokens, tokens) if isinstance(tokens, int) else tokens
    writer = _Writer(shape, numerics, of_pass)
    width = float(shape.hidden * numerics.stored * of_pass.computed)
    x = writer.tape.add_tensor(width, needs_gradient=numerics.trains_base or bool(numerics.adapter_ranks))
    x = writer.tape.record([x, writer.attend(writer.norm(x, shape.hidden))], width)
    writer.tape.record([x, writer.feed_forward(writer.norm(x, shape.hidden))], width)
    return writer.tape
