"""Counts a model's parameters from its config.json, by what becomes of them in memory."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from qwen_align.align.estimation.layer_tape import LayerShape
from qwen_align.align.models.tensor_table import EMBEDDINGS, HEADS, Shape, list_tensors, ties_head
from qwen_align.align.settings.training import Lora


@dataclass(frozen=True)
class ModelShape:
    """The shape of a language model: the widths of its layers, and its parameters by kind.

    head: 0 where it is the embeddings. others: norms, biases and routers. active: weights of linear layers that a token
    passes through, which in a mixture of experts are a part of them. stored_bytes: of a weight in the model's files.
    """

    layer: LayerShape
    n_layers: int
    vocabulary: int
    embeddings: int
    head: int
    linear: int
    others: int
    active: int
    linear_shapes: tuple[tuple[str, Shape], ...]
    is_mixture: bool
    stored_bytes: int

    @property
    def n_parameters(self) -> int:
        """Returns the number of parameters; a head that is tied to the embeddings counts once."""
        return self.embeddings + self.head + self.linear + self.others

    def without_head(self) -> "ModelShape":
        """Returns the shape of the trunk alone, as a reward model has it."""
        return replace(self, head=0)

    @property
    def largest_linear(self) -> int:
        """Returns the number of weights of the largest linear layer that is not the head."""
        return max(prod(shape) for _, shape in self.linear_shapes)


def read_model_shape(config: Mapping[str, Any]) -> ModelShape:
    """Reads the shape of a model from its config.json. Raises ValueError for an architecture without a table."""
    tensors = list_tensors(config, "lm_head")
    if tensors is None:
        raise ValueError(f"the memory of a {config.get('model_type')} model is not known; see docs/scaling.md")
    first = {name.removeprefix("model.layers.0."): shape for name, shape in tensors.items() if ".layers.0." in name}
    layers = {name.split(".")[2] for name in tensors if name.startswith("model.layers.")}
    linear = {name: shape for name, shape in tensors.items() if _is_linear(name, shape)}
    head = 0 if ties_head(config) else prod(tensors[HEADS["lm_head"]])
    embeddings = prod(tensors[EMBEDDINGS])
    others = sum(prod(shape) for name, shape in tensors.items() if name not in (*linear, EMBEDDINGS, HEADS["lm_head"]))
    experts = sum(prod(shape) for name, shape in linear.items() if ".experts." in name)
    active = sum(prod(shape) for shape in linear.values()) - experts
    if experts:
        active += experts * int(config.get("num_experts_per_tok", 8)) // _count_experts(config)
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return ModelShape(
        layer=_read_layer(config, first),
        n_layers=len(layers),
        vocabulary=tensors[EMBEDDINGS][0],
        embeddings=embeddings,
        head=head,
        linear=sum(prod(shape) for shape in linear.values()),
        others=others,
        active=active,
        linear_shapes=tuple(linear.items()),
        is_mixture=experts > 0,
        stored_bytes=2 if dtype.endswith("bfloat16") else 4,  # fp16 is held as fp32
    )


def list_adapter_ranks(lora: Lora, shape: ModelShape) -> dict[str, int]:
    """Returns the rank of the adapter of each kind of linear layer that has one, by names such as q_proj."""
    kinds = {_get_kind(name) for name, _ in shape.linear_shapes}
    targets = (
        kinds if isinstance(lora.target_modules, str) else {name.rpartition(".")[2] for name in lora.target_modules}
    )
    return dict.fromkeys(sorted(kinds & targets), lora.rank)


def count_adapter_parameters(lora: Lora, shape: ModelShape) -> int:
    """Counts the parameters of LoRA adapters: rank times both widths of each layer, with DoRA one more per output.

    The experts of a layer share no adapter: each has its own.
    """
    ranks = list_adapter_ranks(lora, shape)
    total = 0
    for name, (rows, columns) in shape.linear_shapes:
        rank = ranks.get(_get_kind(name), 0)
        total += rank * (rows + columns) + (rows if lora.dora and rank else 0)
    if not isinstance(lora.target_modules, str) and "embed_tokens" in lora.target_modules:
        total += lora.rank * (shape.vocabulary + shape.layer.hidden)
    return total


def _is_linear(name: str, shape: Shape) -> bool:
    """Returns whether a tensor is the weight of a linear layer inside a decoder layer, and no router."""
    kind = _get_kind(name)
    return len(shape) == 2 and ".layers." in name and kind not in ("gate", "shared_expert_gate")


def _get_kind(name: str) -> str:
    return name.removesuffix(".weight").rpartition(".")[2]


def _count_experts(config: Mapping[str, Any]) -> int:
    return int(config.get("num_experts") or config.get("num_local_experts") or 1)


def _read_layer(config: Mapping[str, Any], tensors: Mapping[str, Shape]) -> LayerShape:
    """Reads the widths of a decoder layer. Of a mixture the MLP is as wide as the experts that a token is sent to."""
    queries, hidden = tensors["self_attn.q_proj.weight"]
    keys, _ = tensors["self_attn.k_proj.weight"]
    heads = int(config["num_attention_heads"])
    n_experts = 0
    if "mlp.gate_proj.weight" in tensors:
        inner = tensors["mlp.gate_proj.weight"][0]
    else:
        n_experts = _count_experts(config)
        inner = tensors["mlp.experts.0.gate_proj.weight"][0] * int(config.get("num_experts_per_tok", 8))
        inner += tensors.get("mlp.shared_expert.gate_proj.weight", (0,))[0]
    has_query_norm = "self_attn.q_norm.weight" in tensors
    return LayerShape(hidden, queries, keys, inner, heads, queries // heads, has_query_norm, n_experts)
