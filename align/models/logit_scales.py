"""Says whether a model's logits are more than its head's output. Nothing here imports torch."""

from collections.abc import Mapping
from typing import Any

# Settings of architectures by which the logits are more than a linear layer of the hidden states.
_LOGIT_SCALES = (
    "final_logit_softcapping",
    "logit_scale",
    "output_multiplier",
    "lm_head_multiplier",
    "logits_scaling",
)


def find_logit_scale(config: Mapping[str, Any]) -> str | None:
    """Returns the setting of a config.json by which logits are scaled or capped, such as `logit_scale: 0.25`.

    Returns None where the head's output is all.
    """
    config = config.get("text_config") or config
    for name in _LOGIT_SCALES:
        value = config.get(name)
        if value is not None and (value != 1 or name == "final_logit_softcapping"):
            return f"{name}: {value}"
    return None
