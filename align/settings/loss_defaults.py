"""Holds what each policy loss takes for settings that a recipe leaves out: the values of its paper."""

from typing import Literal, NamedTuple

AdvantageScale = Literal["group", "batch", "none"]


class LossDefaults(NamedTuple):
    """The clip bounds of the importance ratio and the scale of advantages that a policy loss has by itself."""

    clip_low: float
    clip_high: float
    source: str
    advantage_scale: AdvantageScale = "group"


# A ratio is bounded by 1 - clip_low and 1 + clip_high. DeepSeekMath and Dr. GRPO clip as PPO does and print no number:
# theirs is PPO's. CISPO bounds its weights from above only, and names no number either: ScaleRL's bound is 5
# (arXiv:2510.13786).
LOSS_DEFAULTS: dict[str, LossDefaults] = {
    "ppo": LossDefaults(0.2, 0.2, "arXiv:1707.06347"),
    "grpo": LossDefaults(0.2, 0.2, "arXiv:2402.03300"),
    "dr_grpo": LossDefaults(0.2, 0.2, "arXiv:2503.20783", advantage_scale="none"),
    "dapo": LossDefaults(0.2, 0.28, "arXiv:2503.14476"),
    "gspo": LossDefaults(3e-4, 4e-4, "arXiv:2507.18071"),
    "cispo": LossDefaults(1.0, 4.0, "arXiv:2506.13585"),
}
DEFAULT_LOSS = "dapo"


def get_loss_defaults(loss: str) -> LossDefaults:
    """Returns the defaults of a policy loss. A loss without a paper has those of the default loss."""
    return LOSS_DEFAULTS.get(loss, LOSS_DEFAULTS[DEFAULT_LOSS])
