"""Runs one decoding step of a small dense model on a CPU with fused operations.

That takes about a third of the operations of its modules. At a hidden size of a few hundred a step spends more time
starting operations than in them. This is the same arithmetic with projections joined and norms fused; any model it does
not know exactly runs through its modules.

What it gains: tokens per CPU second of the embedded base (0.5 M parameters), 64 tokens a completion, one thread, fused
over modules in turns: 2.0 times with 8 rows at once, 1.3 to 1.8 with 64, 1.04 to 1.10 with 512 (three pairs each, Intel
Xeon with AVX-512, 2026-11-29, other work beside it). It pays in chats, evaluations and small batches of models that run
on a CPU. It should go when the smallest model here is beyond `MAX_PARAMETERS`, or when a static cache and torch.compile
start as quickly.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import Cache, LlamaForCausalLM, PreTrainedModel, Qwen2ForCausalLM, Qwen3ForCausalLM
from transformers.activations import SiLUActivation

from qwen_align.align.models.packed_attention import uses_torch_attention

# (next inputs (B, 1), their positions (B, 1), additive mask (B, 1, 1, columns), cache) -> logits (B, V)
DecodingStep = Callable[[Tensor, Tensor, Tensor, Cache], Tensor]

FAMILIES = (Qwen3ForCausalLM, Qwen2ForCausalLM, LlamaForCausalLM)
PLAIN = (nn.ModuleList, nn.Linear, nn.Embedding, nn.SiLU, SiLUActivation)
# The kinds of rotary embedding whose frequencies do not change with the length.
STEADY_ROPE = ("default", "linear", "llama3", "yarn")
MAX_PARAMETERS = 20_000_000  # the joined copy stays below 80 MB; beyond, arithmetic outweighs what is saved


def build_decoding_step(model: PreTrainedModel, n_positions: int) -> DecodingStep:
    """Builds a function that runs one decoding step of a model, fused where the model allows it.

    Other models run through their modules. The fused step holds copies of the weights as they are now and has room for
    `n_positions` positions.
    """
    if can_be_fused(model):
        return build_fused_step(model, n_positions)

    def run_modules(tokens: Tensor, positions: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        done = model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        logits: Tensor = done.logits[:, -1]
        return logits

    return run_modules


def can_be_fused(model: PreTrainedModel) -> bool:
    """Returns whether the fused step computes exactly what the model's modules would.

    It does for known families on a CPU in fp32, with torch's attention and nothing replaced, hooked or cast.
    """
    if type(model) not in FAMILIES or torch.is_autocast_enabled("cpu") or not uses_torch_attention(model.config):
        return False
    family, weights = type(model).__module__, list(model.parameters())
    return (
        model.config.hidden_act == "silu"
        and model.config.rope_parameters["rope_type"] in STEADY_ROPE
        and all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)
        and sum(weight.numel() for weight in weights) <= MAX_PARAMETERS
        and all(
            (type(module) in PLAIN or type(module).__module__ == family)
            and not (module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))
            for module in model.modules()
        )
    )


class _Linear(NamedTuple):
    weight: Tensor  # (in, out)
    bias: Tensor | None


class _Norm(NamedTuple):
    weight: Tensor
    epsilon: float


class _Layer(NamedTuple):
    before_attention: _Norm
    queries_keys_values: _Linear
    query: _Norm | None
    key: _Norm | None
    out: _Linear
    before_mlp: _Norm
    gate_up: _Linear
    down: _Linear
    scale: float


def build_fused_step(model: PreTrainedModel, n_positions: int) -> DecodingStep:
    """Builds the fused decoding step of a model that `can_be_fused` accepts."""
    config, base = model.config, model.model
    layers = [_fuse_layer(layer) for layer in base.layers]
    final, head, embedding = _read_norm(base.norm), _join_linears(model.lm_head), base.embed_tokens.weight
    size = base.layers[0].self_attn.head_dim
    n_queries, n_keys = config.num_attention_heads, config.num_key_value_heads
    cos, sin = (table[0] for table in base.rotary_emb(embedding, torch.arange(n_positions)[None]))
    sin = torch.cat([-sin[:, : size // 2], sin[:, size // 2 :]], dim=-1)

    def run_fused_step(tokens: Tensor, positions: Tensor, mask: Tensor, cache: Cache) -> Tensor:
        n_rows = len(tokens)
        hidden = functional.embedding(tokens[:, 0], embedding)
        cos_here, sin_here = cos[positions], sin[positions]
        for index, layer in enumerate(layers):
            joined = _apply_linear(_apply_norm(hidden, layer.before_attention), layer.queries_keys_values)
            heads = joined.view(n_rows, n_queries + 2 * n_keys, size)
            turning = heads[:, : n_queries + n_keys]
            if layer.query and layer.key:
                queries, keys = turning[:, :n_queries], turning[:, n_queries:]
                turning = torch.cat([_apply_norm(queries, layer.query), _apply_norm(keys, layer.key)], dim=1)
            turned = torch.addcmul(turning * cos_here, turning.roll(size // 2, -1), sin_here)
            keys, values = cache.update(turned[:, n_queries:, None], heads[:, n_queries + n_keys :, None], index)
            # The queries that share a key head are rows of one product, so no key is repeated.
            queries = turned[:, :n_queries].reshape(n_rows, n_keys, -1, size)
            attended = functional.scaled_dot_product_attention(queries, keys, values, mask, scale=layer.scale)
            hidden = _add_linear(hidden, attended.reshape(n_rows, -1), layer.out)
            gate, up = _apply_linear(_apply_norm(hidden, layer.before_mlp), layer.gate_up).chunk(2, dim=-1)
            hidden = _add_linear(hidden, functional.silu(gate).mul_(up), layer.down)
        return _apply_linear(_apply_norm(hidden, final), head)

    return run_fused_step


def _fuse_layer(layer: Any) -> _Layer:
    """Joins the projections of a decoder layer and reads its norms."""
    attention, mlp = layer.self_attn, layer.mlp
    has_norms = hasattr(attention, "q_norm")  # Qwen3 alone norms queries and keys
    return _Layer(
        before_attention=_read_norm(layer.input_layernorm),
        queries_keys_values=_join_linears(attention.q_proj, attention.k_proj, attention.v_proj),
        query=_read_norm(attention.q_norm) if has_norms else None,
        key=_read_norm(attention.k_norm) if has_norms else None,
        out=_join_linears(attention.o_proj),
        before_mlp=_read_norm(layer.post_attention_layernorm),
        gate_up=_join_linears(mlp.gate_proj, mlp.up_proj),
        down=_join_linears(mlp.down_proj),
        scale=attention.scaling,
    )


def _join_linears(*linears: nn.Linear) -> _Linear:
    """Joins linear layers that share their input into one."""
    weights: list[Tensor] = [linear.weight for linear in linears]
    biases: list[Tensor] = [linear.bias for linear in linears if linear.bias is not None]
    return _Linear(torch.cat(weights).t().contiguous(), torch.cat(biases) if biases else None)


def _read_norm(module: Any) -> _Norm:
    """Reads weight and epsilon of an RMS norm."""
    return _Norm(module.weight, module.variance_epsilon)


def _apply_norm(x: Tensor, norm: _Norm) -> Tensor:
    return functional.rms_norm(x, norm.weight.shape, norm.weight, norm.epsilon)


def _apply_linear(x: Tensor, to: _Linear) -> Tensor:
    return x @ to.weight if to.bias is None else torch.addmm(to.bias, x, to.weight)


def _add_linear(hidden: Tensor, x: Tensor, to: _Linear) -> Tensor:
    more = torch.addmm(hidden, x, to.weight)
    return more if to.bias is None else more + to.bias
