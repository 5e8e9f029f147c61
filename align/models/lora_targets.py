"""Says which layers of a model LoRA can adapt, and checks the target modules of a recipe against them.

Nothing here imports torch.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from qwen_align.align.errors import RecipeError
from qwen_align.align.models.tensor_table import ARCHITECTURES, HEADS, Head, list_tensors, ties_head
from qwen_align.align.settings.base import format_suggestion
from qwen_align.align.settings.training import Lora

ROUTERS = ("gate", "router", "shared_expert_gate")  # what the routers of mixtures are called in transformers
# What PEFT 0.21 takes for the tensors of all experts of a layer, which transformers 5 has in one: `gate` is the router.
EXPERTS = ("gate_proj", "up_proj", "down_proj")
_WITH_ADAPTED_EXPERTS = {"qwen3_moe"}  # of qwen2_moe PEFT 0.21 adapts only the shared expert


class ModelLayers(NamedTuple):
    """The layers of a model by their full names.

    adaptable: linear layers and embeddings. others: what else has a name. tied: layers that share their weights with
    another. expert_names: names that PEFT takes for tensors of all experts of a layer.
    """

    adaptable: frozenset[str]
    others: frozenset[str]
    tied: frozenset[str]
    expert_names: frozenset[str]
    kind: str


def list_layers(config: Mapping[str, Any], head: Head) -> ModelLayers | None:
    """Returns the layers of a model from its config.json. Returns None for an architecture without a table."""
    shapes = list_tensors(config, head)
    if shapes is None:
        return None
    kind = str(config["model_type"])
    layers = {name.rpartition(".")[0] for name in shapes if ".mlp.experts." not in name}
    adaptable = {name for name in layers if not name.endswith(("norm", "mlp.gate", "score"))}
    if kind in _WITH_ADAPTED_EXPERTS:  # there PEFT takes these names for the experts' and passes over other layers
        adaptable = {name for name in adaptable if _get_leaf(name) not in EXPERTS}
    parents = {name.rsplit(".", n)[0] for name in layers for n in range(1, name.count(".") + 1)}
    experts = {name.partition(".experts.")[0] + ".experts" for name in shapes if ".mlp.experts." in name}
    tied = {HEADS["lm_head"].rpartition(".")[0], "model.embed_tokens"} if ties_head(config) else set[str]()
    expert_names = {*EXPERTS, "gate"} if kind in _WITH_ADAPTED_EXPERTS and experts else set[str]()
    return ModelLayers(
        frozenset(adaptable),
        frozenset((layers | parents | experts) - adaptable),
        frozenset(tied & adaptable) if head == "lm_head" else frozenset(),
        frozenset(expert_names),
        kind,
    )


def check_lora_targets(settings: Lora, layers: ModelLayers) -> None:
    """Checks that each name of target_modules is that of layers which LoRA can adapt.

    Raises RecipeError otherwise: PEFT passes over a name that it does not find, and an adapter on weights that two
    layers share cannot be merged.
    """
    targets = settings.target_modules
    if settings.base_weights == "nf4" and any(name.endswith(".experts") for name in layers.others):
        raise RecipeError(
            f"lora.base_weights: nf4: the experts of a {layers.kind} model are no linear layers to bitsandbytes and "
            "would stay as they are; take another base_weights"
        )
    if isinstance(targets, str):
        if layers.expert_names:
            _check_adapters_of_experts(settings)
        return
    if not targets:
        raise RecipeError("lora.target_modules: is empty; name layers, or leave it out for all linear layers")
    for target in targets:
        _check_target(target, layers)
    used = {_get_leaf(target) for target in targets} & layers.expert_names
    if used:
        _check_adapters_of_experts(settings)
    if len(used & {"gate_proj", "up_proj"}) == 1:
        raise RecipeError(
            f"lora.target_modules: the experts of a {layers.kind} model have gate_proj and up_proj in one tensor; "
            "name both or none"
        )


def _check_adapters_of_experts(settings: Lora) -> None:
    """Raises RecipeError for settings that PEFT 0.21 does not have for adapters on the experts of a mixture."""
    if settings.dropout:
        raise RecipeError("lora.dropout: PEFT has no dropout on the experts of a mixture; set it to 0")
    if settings.dora:
        raise RecipeError("lora.dora: PEFT has no DoRA on the experts of a mixture; leave it out")


def _check_target(target: str, layers: ModelLayers) -> None:
    """Raises RecipeError unless a name of target_modules is that of layers which LoRA can adapt."""
    found = _find_layers(target, layers.adaptable)
    if found & layers.tied:
        raise RecipeError(
            f"lora.target_modules: {target} shares its weights with another layer in this model (the head is the "
            "embeddings), and an adapter on one of the two cannot be merged; leave it out"
        )
    if found or _get_leaf(target) in layers.expert_names:
        return
    leaves = sorted({_get_leaf(name) for name in layers.adaptable - layers.tied} | layers.expert_names)
    if _find_layers(target, layers.others):
        raise RecipeError(
            f"lora.target_modules: {target} is no layer that LoRA can adapt in a {layers.kind} model; those are "
            f"{', '.join(leaves)}"
        )
    raise RecipeError(
        f"lora.target_modules: '{target}' is no layer of a {layers.kind} model{format_suggestion(target, leaves)}"
    )


def describe_all_linear(layers: ModelLayers, config: Mapping[str, Any]) -> str | None:
    """Returns what all-linear leaves out in a mixture of experts, as text. Returns None for other models."""
    architecture = ARCHITECTURES[layers.kind]
    if not architecture.has_experts:
        return None
    if layers.kind in _WITH_ADAPTED_EXPERTS:
        return "all-linear: attention and experts get adapters, routers and the MLPs of layers without experts none"
    is_mixture = any(name.endswith(".experts") for name in layers.others)
    return (
        "all-linear: attention and shared experts get adapters, routers and the other experts none (PEFT cannot adapt "
        f"those of {config['model_type']})"
        if is_mixture
        else None
    )


def _find_layers(target: str, names: Iterable[str]) -> set[str]:
    """Returns the names that a target means: the same, or ending with it after a dot, as PEFT reads it."""
    return {name for name in names if name == target or name.endswith(f".{target}")}


def _get_leaf(name: str) -> str:
    """Returns the last part of a layer's dotted name."""
    return name.rpartition(".")[2]
