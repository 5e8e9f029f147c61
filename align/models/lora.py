"""Builds PEFT's LoRA configuration from the settings of a recipe."""

from typing import Any

from qwen_align.align.settings.training import Lora


def build_lora_config(settings: Lora | None, *, head: str | None = None) -> Any:
    """Builds PEFT's LoRA config.

    Returns None without LoRA settings. `head` names a new head, trained in full.
    """
    if settings is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        task_type="SEQ_CLS" if head else "CAUSAL_LM",
        modules_to_save=[head] if head else None,
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
    )
