"""Defines the settings of YaRN, by which a model reads longer texts than it was pretrained for."""

from pydantic import Field

from qwen_align.align.settings.base import Strict


class Yarn(Strict):
    """Scaling of a model's rotary positions by YaRN (arXiv:2309.00071), for texts longer than it was pretrained for."""

    factor: float = Field(
        gt=1,
        description="how many times as many tokens the model is to read; Qwen tests up to 4 and warns that short "
        "texts may suffer",
    )
    original_positions: int | None = Field(
        None,
        ge=1,
        description="tokens that it was pretrained for; null = max_position_embeddings of its config.json. For Qwen3, "
        "whose config.json may say 40,960, Qwen gives 32,768",
    )
