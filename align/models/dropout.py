"""Switches a model's dropout off where two passes over a row are compared: in online RL, dpo and reward models."""

from torch import nn
from torch.nn.modules.dropout import _DropoutNd


def disable_dropout(model: nn.Module) -> None:
    """Sets every dropout of a model to 0, also those that its layers hold as a number; its config stays as it is.

    Log-probs of two passes would differ by chance: policy and reference, or the policy that drew and the one that is
    trained. TRL's own switch finds modules alone, and Qwen's attention_dropout is none.
    """
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if isinstance(value, float) and "drop" in name:
                setattr(module, name, 0.0)
