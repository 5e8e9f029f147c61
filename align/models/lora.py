"""Builds PEFT's LoRA configuration from the settings of a recipe, for the model that it is to adapt."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from qwen_align.align.models.lora_targets import EXPERTS, ROUTERS, ModelLayers, check_lora_targets, list_layers
from qwen_align.align.settings.training import Lora


def build_lora_config(settings: Lora | None, model: PreTrainedModel, *, head: str | None = None) -> Any:
    """Builds PEFT's LoRA config.

    Returns None without LoRA settings. `head` names a new head, trained in full. Raises RecipeError for target modules
    that the model does not have.
    """
    if settings is None:
        return None
    from peft import LoraConfig

    config = model.config.to_dict()
    layers = list_layers(config, "score" if head else "lm_head") or _list_layers_of(model)
    check_lora_targets(settings, layers)
    return LoraConfig(
        task_type="SEQ_CLS" if head else "CAUSAL_LM",
        modules_to_save=[head] if head else None,
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=_resolve_targets(settings, model),
        use_dora=settings.dora,
        use_rslora=settings.rank_stabilized,
    )


def prepare_adapters(model: Any) -> None:
    """Holds what is trained of a model with adapters in fp32, and starts DoRA's magnitudes as norms in fp32.

    TRL makes adapters on a 4-bit base bf16, and PEFT computes the norms in the precision of the base: rounded, a policy
    would not start as the model that its adapters are on. Other models stay as they are.
    """
    from peft import PeftModel
    from peft.tuners.lora.dora import DoraLinearLayer
    from peft.tuners.lora.layer import LoraLayer
    from peft.utils.integrations import dequantize_module_weight

    if not isinstance(model, PeftModel):
        return
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype != torch.float32:
            parameter.data = parameter.data.float()
    for module in model.modules():
        vectors = module.lora_magnitude_vector.values() if isinstance(module, LoraLayer) else ()
        for vector in vectors:
            weight = dequantize_module_weight(module.get_base_layer())
            if type(vector) is DoraLinearLayer and weight.dtype != torch.float32:
                is_turned = isinstance(module.get_base_layer(), Conv1D)  # GPT-2's, (inputs, outputs)
                vector.weight.data = torch.linalg.norm(weight.detach().float(), dim=0 if is_turned else 1)


def _list_layers_of(model: PreTrainedModel) -> ModelLayers:
    """Returns the layers of a model whose architecture has no table, from the model itself."""
    modules = {name: module for name, module in model.named_modules() if name}
    adaptable = {name for name, one in modules.items() if isinstance(one, nn.Linear | Conv1D | nn.Embedding)}
    tied = {name.rpartition(".")[0] for pair in model.all_tied_weights_keys.items() for name in pair}
    expert_names = {*EXPERTS, "gate", "w1", "w2", "w3"} if _has_fused_experts(model) else set[str]()
    return ModelLayers(
        frozenset(adaptable),
        frozenset(modules.keys() - adaptable),
        frozenset(tied & adaptable),
        frozenset(expert_names),
        str(model.config.model_type),
    )


def _resolve_targets(settings: Lora, model: PreTrainedModel) -> list[str] | str:
    """Returns the target modules for PEFT. Its own all-linear adapts the routers of a mixture too."""
    if not isinstance(settings.target_modules, str):
        return settings.target_modules
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    leaves = {name.rpartition(".")[2] for name in linear if name not in _list_heads(model)}
    is_mixture = any(".experts." in name for name, _ in model.named_parameters())
    if not is_mixture:
        return "all-linear"
    return sorted((leaves | (set(EXPERTS) if _has_fused_experts(model) else set())) - set(ROUTERS))


def _list_heads(model: PreTrainedModel) -> set[str]:
    """Returns the names of a model's heads, which all-linear leaves out."""
    head = model.get_output_embeddings()
    return {name for name, module in model.named_modules() if module is head or name == "score"}


def _has_fused_experts(model: PreTrainedModel) -> bool:
    """Returns whether a mixture has all experts of a layer in one tensor, as in transformers 5."""
    return any(name.endswith(".experts.gate_up_proj") for name, _ in model.named_parameters())
