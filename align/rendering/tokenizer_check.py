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


def require_same_ids(renderer: Renderer, other: Renderer, setting: str) -> None:
    """Checks that the model of a setting gives texts the ids that the policy gives them, for it reads the policy's.

    Raises RecipeError otherwise.
    """
    ids, other_ids = (each.tokenizer.get_vocab(with_added_tokens=True) for each in (renderer, other))
    if ids != other_ids:
        tokens = sorted(ids.keys() | other_ids.keys(), key=lambda token: (ids.get(token, len(ids)), token))
        first = next(token for token in tokens if ids.get(token) != other_ids.get(token))
        raise RecipeError(
            f"{setting}: its tokenizer is not the policy's, whose token ids it reads: {first!r} is "
            f"{_describe_id(ids.get(first))} in the policy's and {_describe_id(other_ids.get(first))} in its own; take "
            "one that was trained from a model of the policy's family, or leave it out"
        )


def _describe_id(number: int | None) -> str:
    """Returns a token's id as text."""
    return "no token" if number is None else f"id {number}"


def _get_text_config(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the language-model part of a model config. Vision-language models keep it under `text_config`."""
    part = config.get("text_config")
    return part if isinstance(part, dict) else config


def _list_stop_ids(config: dict[str, Any]) -> list[int]:
    """Returns the end-of-sequence token ids of a model config as a list. The config holds a number or a list."""
    ids = config.get("eos_token_id", _get_text_config(config).get("eos_token_id"))
    return [token for token in (ids if isinstance(ids, list) else [ids]) if isinstance(token, int)]
