"""Checks that the tokenizer in a model folder belongs to the model.

Another tokenizer would silently train on wrong ids.
"""

from pathlib import Path
from typing import Any

from qwen_align.align.errors import RecipeError
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.store.files import read_json

CONFIGS = ("config.json", "generation_config.json")


def check_tokenizer_fits_model(folder: Path, renderer: Renderer) -> None:
    """Checks that a model has an embedding for every token and stops at an end-of-turn token.

    Raises RecipeError otherwise.

    Settings that the folder's configs leave out are not checked.
    """
    configs = [read_json(folder / name) for name in CONFIGS if (folder / name).is_file()]
    sizes = [size for config in configs if isinstance(size := _get_text_config(config).get("vocab_size"), int)]
    largest = max(renderer.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if sizes and largest >= sizes[0]:
        raise RecipeError(
            f"{folder}: its tokenizer has ids up to {largest}, but the model has embeddings for {sizes[0]} "
            "(vocab_size in config.json): the tokenizer is another model's; copy the model's own tokenizer files there"
        )
    stop_ids = [token for config in configs for token in _list_stop_ids(config)]
    if stop_ids and not set(stop_ids) & set(renderer.stop_ids):
        model_stops = ", ".join(
            f"{token} ({renderer.tokenizer.id_to_token(token)!r})" for token in dict.fromkeys(stop_ids)
        )
        tokenizer_stops = ", ".join(
            f"{token} ({renderer.tokenizer.id_to_token(token)!r})" for token in renderer.stop_ids
        )
        raise RecipeError(
            f"{folder}: the model stops at id {model_stops}, but its tokenizer ends turns and texts "
            f"with {tokenizer_stops}: "
            "the tokenizer is another model's, or eos_token_id in config.json is wrong"
        )


def _get_text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the language-model part of a model config. Vision-language models keep it under `text_config`."""
    part = config.get("text_config")
    return part if isinstance(part, dict) else config


def _list_stop_ids(config: dict[str, Any]) -> list[int]:
    """Returns the end-of-sequence token ids of a model config as a list. The config holds a number or a list."""
    ids = config.get("eos_token_id", _get_text_config(config).get("eos_token_id"))
    return [token for token in (ids if isinstance(ids, list) else [ids]) if isinstance(token, int)]
