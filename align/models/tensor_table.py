"""Lists the tensors of a model by name and shape from its config.json, for the architectures that the docs name.

The tables are formulas over config.json; a test holds them to models that transformers builds on the meta device.
Nothing here imports torch.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Shape = tuple[int, ...]
Head = Literal["lm_head", "score"]

HEADS: dict[Head, str] = {"lm_head": "lm_head.weight", "score": "score.weight"}
EMBEDDINGS = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Architecture:
    """What sets an architecture apart, and what its fields mean where config.json leaves them out.

    qkv_bias, mlp_bias: whether these layers have biases, or the field of config.json that says so. o_bias: the same of
    the attention's output. has_query_norm: queries and keys are normed per head. has_experts: layers may be mixtures.
    """

    defaults: Mapping[str, Any]
    qkv_bias: bool | str = False
    o_bias: bool | str = False
    mlp_bias: bool | str = False
    has_query_norm: bool = False
    has_experts: bool = False
    has_shared_expert: bool = False


_LLAMA_SIZES = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "head_dim": None,
}
_QWEN_SIZES = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "tie_word_embeddings": False,
}
_MIXTURE_SIZES = {"hidden_size": 2048, "num_hidden_layers": 24, "decoder_sparse_step": 1, "mlp_only_layers": None}

# Defaults are those of transformers' configuration classes.
ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture(_LLAMA_SIZES, qkv_bias="attention_bias", o_bias="attention_bias", mlp_bias="mlp_bias"),
    "qwen2": Architecture(_QWEN_SIZES, qkv_bias=True),
    "qwen3": Architecture(
        {**_QWEN_SIZES, "head_dim": 128, "attention_bias": False},
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        has_query_norm=True,
    ),
    "qwen2_moe": Architecture(
        {
            **_QWEN_SIZES,
            **_MIXTURE_SIZES,
            "intermediate_size": 5632,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632,
            "num_experts": 60,
            "qkv_bias": True,
        },
        qkv_bias="qkv_bias",
        has_experts=True,
        has_shared_expert=True,
    ),
    "qwen3_moe": Architecture(
        {
            **_QWEN_SIZES,
            **_MIXTURE_SIZES,
            "intermediate_size": 6144,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 768,
            "num_experts": 128,
            "attention_bias": False,
        },
        qkv_bias="attention_bias",
        o_bias="attention_bias",
        has_query_norm=True,
        has_experts=True,
    ),
}
_OTHER_NAMES = {"num_local_experts": "num_experts"}  # transformers 5 writes qwen3_moe's so


def list_tensors(config: Mapping[str, Any], head: Head | None) -> dict[str, Shape] | None:
    """Returns the shape of every tensor of a model by its name in the file, in transformers' published form.

    The experts of a mixture are one tensor each, as on the hub. `head`: the layer behind the trunk; None for the trunk
    alone. A head that is tied to the embeddings is among them. Returns None for an architecture without a table.
    Raises ValueError for a size in config.json that is no number.
    """
    architecture = ARCHITECTURES.get(str(config.get("model_type")))
    if architecture is None:
        return None
    sizes = _read_sizes(architecture, config)
    hidden = sizes["hidden_size"]
    shapes: dict[str, Shape] = {EMBEDDINGS: (sizes["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    for layer in range(sizes["num_hidden_layers"]):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in _list_layer(architecture, sizes, layer)}
    if head == "lm_head":
        shapes[HEADS[head]] = (sizes["vocab_size"], hidden)
    if head == "score":
        shapes[HEADS[head]] = (1, hidden)
    return shapes


def list_fused_experts(config: Mapping[str, Any], shapes: Mapping[str, Shape]) -> dict[str, tuple[Shape, list[str]]]:
    """Returns the other form in which transformers reads a mixture's experts: all of a layer in one tensor.

    By the name of the fused tensor: its shape, and the names of the tensors that it stands for.
    """
    architecture = ARCHITECTURES[str(config.get("model_type"))]
    if not architecture.has_experts:
        return {}
    sizes = _read_sizes(architecture, config)
    n, hidden, inner = sizes["num_experts"], sizes["hidden_size"], sizes["moe_intermediate_size"]
    fused: dict[str, tuple[Shape, list[str]]] = {}
    for name in shapes:
        experts, found, rest = name.partition(".mlp.experts.")
        if found:
            is_down = rest.endswith(".down_proj.weight")
            fused_name = f"{experts}.mlp.experts.{'down_proj' if is_down else 'gate_up_proj'}"
            shape = (n, hidden, inner) if is_down else (n, 2 * inner, hidden)
            fused.setdefault(fused_name, (shape, []))[1].append(name)
    return fused


def ties_head(config: Mapping[str, Any]) -> bool:
    """Returns whether a model's head is its embeddings (tie_word_embeddings)."""
    architecture = ARCHITECTURES.get(str(config.get("model_type")))
    default = bool(architecture and architecture.defaults["tie_word_embeddings"])
    return bool(config.get("tie_word_embeddings", default))


def _read_sizes(architecture: Architecture, config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the sizes of a model, with the architecture's own where config.json leaves them out."""
    given = {_OTHER_NAMES.get(name, name): value for name, value in config.items()}
    sizes = {name: given.get(name, default) for name, default in architecture.defaults.items()}
    sizes["num_key_value_heads"] = sizes["num_key_value_heads"] or sizes["num_attention_heads"]
    sizes["mlp_only_layers"] = sizes.get("mlp_only_layers") or []
    head_dim = given.get("head_dim", architecture.defaults.get("head_dim"))
    for name in ("hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers", "vocab_size"):
        if not isinstance(sizes[name], int) or sizes[name] < 1:
            raise ValueError(f"{name} is {sizes[name]!r}, where a number is wanted")
    sizes["head_dim"] = head_dim or sizes["hidden_size"] // sizes["num_attention_heads"]
    return sizes


def _list_layer(architecture: Architecture, sizes: Mapping[str, Any], layer: int) -> Iterator[tuple[str, Shape]]:
    """Yields (name inside the layer, shape) of the tensors of a decoder layer."""

    def has_bias(said: bool | str) -> bool:
        return bool(sizes[said]) if isinstance(said, str) else said

    hidden, head_dim = sizes["hidden_size"], sizes["head_dim"]
    queries, keys = sizes["num_attention_heads"] * head_dim, sizes["num_key_value_heads"] * head_dim
    for name in ("input_layernorm", "post_attention_layernorm"):
        yield f"{name}.weight", (hidden,)
    for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        yield from _list_linear(f"self_attn.{name}", rows, hidden, has_bias(architecture.qkv_bias))
    yield from _list_linear("self_attn.o_proj", hidden, queries, has_bias(architecture.o_bias))
    if architecture.has_query_norm:
        yield "self_attn.q_norm.weight", (head_dim,)
        yield "self_attn.k_norm.weight", (head_dim,)
    if not (architecture.has_experts and _is_mixture(sizes, layer)):
        yield from _list_mlp("mlp", hidden, sizes["intermediate_size"], has_bias(architecture.mlp_bias))
        return
    yield "mlp.gate.weight", (sizes["num_experts"], hidden)
    for expert in range(sizes["num_experts"]):
        yield from _list_mlp(f"mlp.experts.{expert}", hidden, sizes["moe_intermediate_size"], False)
    if architecture.has_shared_expert:
        yield from _list_mlp("mlp.shared_expert", hidden, sizes["shared_expert_intermediate_size"], False)
        yield "mlp.shared_expert_gate.weight", (1, hidden)


def _is_mixture(sizes: Mapping[str, Any], layer: int) -> bool:
    """Returns whether a layer of a mixture of experts has experts, and is not an ordinary layer between them."""
    is_turn = (layer + 1) % (sizes["decoder_sparse_step"] or 1) == 0
    return layer not in sizes["mlp_only_layers"] and sizes["num_experts"] > 0 and is_turn


def _list_mlp(name: str, hidden: int, inner: int, bias: bool) -> Iterator[tuple[str, Shape]]:
    """Yields (name, shape) of the tensors of a gated feed-forward block."""
    yield from _list_linear(f"{name}.gate_proj", inner, hidden, bias)
    yield from _list_linear(f"{name}.up_proj", inner, hidden, bias)
    yield from _list_linear(f"{name}.down_proj", hidden, inner, bias)


def _list_linear(name: str, rows: int, columns: int, bias: bool) -> Iterator[tuple[str, Shape]]:
    """Yields (name, shape) of the weight of a linear layer, and of its bias if it has one."""
    yield f"{name}.weight", (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)
