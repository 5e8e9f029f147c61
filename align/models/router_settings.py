"""Decides how a stage trains the routers of a mixture of experts. Nothing here imports torch."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from qwen_align.align.errors import RecipeError
from qwen_align.align.models.tensor_table import ARCHITECTURES, list_tensors
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.settings.strategy import choose_strategy
from qwen_align.align.settings.training import Lora, Optimizer

COEFFICIENT = "router_aux_loss_coef"  # of config.json
DEFAULT_COEFFICIENT = 0.001  # what transformers' configurations of Qwen's mixtures have where config.json leaves it out
MIXTURES = tuple(name for name, architecture in ARCHITECTURES.items() if architecture.has_experts)


class RouterSettings(NamedTuple):
    """Whether a stage trains a mixture's routers, and the coefficient of its load-balancing loss, 0 for none."""

    are_trained: bool
    load_balancing: float


def resolve_router_settings(settings: Optimizer, config: Mapping[str, Any], runtime: Runtime) -> RouterSettings | None:
    """Returns how a stage trains the routers of a model. Returns None for a model that has none.

    `config`: its config.json. Raises RecipeError for settings that the model, LoRA or the strategy has no use for.
    """
    asked = settings.experts
    if not has_routers(config):
        if asked != type(asked)():
            raise RecipeError(f"experts: this {config.get('model_type')} model is no mixture of experts; leave it out")
        return None
    if settings.lora and asked.train_router is not None:
        raise RecipeError(
            "experts.train_router: with lora the routers that lora.target_modules names get adapters, and no others; "
            "leave it out"
        )
    are_trained = _adapts_routers(settings.lora) if settings.lora else asked.train_router is not False
    if asked.load_balancing and not are_trained:
        raise RecipeError(
            "experts.load_balancing: no router is trained that could send tokens elsewhere; leave it out, or train them"
        )
    coefficient = asked.load_balancing
    if coefficient is None:
        coefficient = float(config.get(COEFFICIENT, DEFAULT_COEFFICIENT)) if are_trained else 0.0
    if coefficient:
        _check_balancing(settings, config, runtime)
    return RouterSettings(are_trained, coefficient)


def has_routers(config: Mapping[str, Any]) -> bool:
    """Returns whether a layer of a model is a mixture of experts."""
    architecture = ARCHITECTURES.get(str(config.get("model_type")))
    if architecture is None:
        return max(int(config.get(name) or 0) for name in ("num_experts", "num_local_experts")) > 1
    return architecture.has_experts and any(".mlp.gate." in name for name in list_tensors(config, None) or {})


def describe_routers(found: RouterSettings) -> str:
    """Returns how routers are trained, as text."""
    how = "trained" if found.are_trained else "not trained"
    loss = f"{found.load_balancing:g} x the load-balancing loss of each step's whole batch"
    return f"routers {how}, {loss if found.load_balancing else 'no load-balancing loss'}"


def _adapts_routers(lora: Lora) -> bool:
    """Returns whether adapters are put on the routers that choose experts."""
    names = [] if isinstance(lora.target_modules, str) else lora.target_modules
    return any(name.rpartition(".")[2] in ("gate", "router") for name in names)


def _check_balancing(settings: Optimizer, config: Mapping[str, Any], runtime: Runtime) -> None:
    """Raises RecipeError where there is no load-balancing loss over a whole step."""
    reason = None
    if config.get("model_type") not in MIXTURES:
        reason = f"is known of {', '.join(MIXTURES)}, not of {config.get('model_type')}"
    elif _has_windows(config):
        reason = "reads packed rows, which this model with sliding windows cannot"
    elif not settings.sees_whole_steps:
        reason = "needs trainer: native, for TRL's is a mean over passes"
    elif choose_strategy(runtime) == "zero3":
        reason = "was never run under zero3, whose passes have to be alike; take strategy fsdp2"
    if reason:
        raise RecipeError(
            f"experts.load_balancing: a loss over a step's whole batch {reason}, or set experts: {{load_balancing: 0}}"
        )


def _has_windows(config: Mapping[str, Any]) -> bool:
    """Returns whether a layer of one of Qwen's mixtures attends to near tokens alone."""
    if (kinds := config.get("layer_types")) is not None:
        return set(kinds) != {"full_attention"}
    n_full = int(config.get("max_window_layers", 28))  # as transformers has it
    n_layers = int(config.get("num_hidden_layers", 24))
    return bool(config.get("use_sliding_window")) and n_full < n_layers
