"""Says what config.json of the models of shipped recipes has, for where such a model is not on the machine yet.

Sizes are those of the Qwen3 technical report (arXiv:2505.09388, table 1) and of the models' own files.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class _Sizes(NamedTuple):
    """hidden, intermediate, layers, attention heads, whether the head is tied to the embeddings."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    tied: bool


_SIZES = {
    "0.6B": _Sizes(1024, 3072, 28, 16, True),
    "1.7B": _Sizes(2048, 6144, 28, 16, True),
    "4B": _Sizes(2560, 9728, 36, 32, True),
    "8B": _Sizes(4096, 12288, 36, 32, False),
    "14B": _Sizes(5120, 17408, 40, 40, False),
    "32B": _Sizes(5120, 25600, 64, 64, False),
}
QWEN3_SIZES = tuple(_SIZES)  # of the dense ones, ascending


def build_qwen3_config(size: str) -> dict[str, Any]:
    """Builds what an estimate reads of the config.json of a dense Qwen3 by its size, such as 8B."""
    sizes = _SIZES[size]
    return {
        "model_type": "qwen3",
        "vocab_size": 151_936,
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": sizes.tied,
        "max_position_embeddings": 40_960,
        "attention_bias": False,
        "torch_dtype": "bfloat16",
    }


_QWEN2_5_32B = {
    "model_type": "qwen2",
    "vocab_size": 152_064,
    "hidden_size": 5120,
    "intermediate_size": 27_648,
    "num_hidden_layers": 64,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
    "max_position_embeddings": 32_768,
    "torch_dtype": "bfloat16",
}

# Bases read 32,768 positions, the others 40,960; all else is the same. There is no base of 32B.
KNOWN_CONFIGS: Mapping[str, Mapping[str, Any]] = {
    **{f"Qwen/Qwen3-{size}": build_qwen3_config(size) for size in _SIZES},
    **{
        f"Qwen/Qwen3-{size}-Base": {**build_qwen3_config(size), "max_position_embeddings": 32_768}
        for size in _SIZES
        if size != "32B"
    },
    "Qwen/Qwen2.5-32B-Instruct": _QWEN2_5_32B,
}
