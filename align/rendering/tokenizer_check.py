"""Whether a folder's tokenizer is its model's own: another one's would train on wrong ids without a word."""

from pathlib import Path
from typing import Any

from qwen_align.align.errors import RecipeError
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.store.files import read_json

CONFIGS = ("config.json", "generation_config.json")


def check_vocabulary(folder: Path, renderer: Renderer) -> None:
    """Raises RecipeError when the model has no embedding for a token, or ends its turns with none that ends them here.

    What a folder does not say is not held against it.
    """
    said = [read_json(folder / name) for name in CONFIGS if (folder / name).is_file()]
    sizes = [size for one in said if isinstance(size := _of_text(one).get("vocab_size"), int)]
    largest = max(renderer.tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if sizes and largest >= sizes[0]:
        raise RecipeError(
            f"{folder}: its tokenizer has ids up to {largest}, but the model has embeddings for {sizes[0]} "
            "(vocab_size in config.json): the tokenizer is another model's; copy the model's own tokenizer files there"
        )
    ends = [token for one in said for token in _ends(one)]
    if ends and not set(ends) & set(renderer.stop_ids):
        meant = ", ".join(f"{token} ({renderer.tokenizer.id_to_token(token)!r})" for token in dict.fromkeys(ends))
        known = ", ".join(f"{token} ({renderer.tokenizer.id_to_token(token)!r})" for token in renderer.stop_ids)
        raise RecipeError(
            f"{folder}: the model stops at id {meant}, but its tokenizer ends turns and texts with {known}: "
            "the tokenizer is another model's, or eos_token_id in config.json is wrong"
        )


def _of_text(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a config that speaks of the language model; models that also see have one apart."""
    part = config.get("text_config")
    return part if isinstance(part, dict) else config


def _ends(config: dict[str, Any]) -> list[int]:
    found = config.get("eos_token_id", _of_text(config).get("eos_token_id"))
    return [token for token in (found if isinstance(found, list) else [found]) if isinstance(token, int)]
