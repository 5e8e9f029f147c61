"""Says how many tokens a model can read, from its config. `check`, every stage and every engine ask here.

Nothing here imports torch.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qwen_align.align.errors import RecipeError
from qwen_align.align.models.rotary_scaling import find_positions, list_scalings
from qwen_align.align.store.files import read_json


def compute_length_limit(config: Mapping[str, Any]) -> int | None:
    """Returns the number of tokens that a model with this config can read. None if it has no limit.

    With rotary positions that are scaled it is what the scaling says. Of kinds of layers that have scalings of their
    own the longest counts.
    """
    config = config.get("text_config") or config
    positions = find_positions(config)
    if positions is None:
        return None
    return max((scaling.compute_length_limit(positions) for scaling in list_scalings(config)), default=positions)


def read_length_limit(folder: Path) -> int | None:
    """Returns the number of tokens that the model in a Hugging Face folder can read. None if it has no limit."""
    return compute_length_limit(read_json(folder / "config.json"))


def require_length(limit: int | None, n_tokens: int, what: str) -> None:
    """Raises RecipeError if a training sequence of `n_tokens` tokens is longer than the model can read."""
    if limit is not None and n_tokens > limit:
        raise RecipeError(
            f"{what} takes up to {n_tokens} tokens, but the model has {limit} positions; lower max_tokens"
        )


def require_room_for_completions(
    limit: int | None, prompt_lengths: Iterable[tuple[str, int]], max_tokens: int, *, setting: str = "sampling"
) -> None:
    """Raises RecipeError if the model cannot read a prompt and `max_tokens` tokens after it.

    `prompt_lengths`: the id and the number of tokens of each prompt. `setting`: where `max_tokens` is said.
    """
    too_long = [length for length in prompt_lengths if limit is not None and length[1] + max_tokens > limit]
    if too_long:
        name, longest = max(too_long, key=lambda length: length[1])
        raise RecipeError(
            f"{len(too_long):,} {'prompt is' if len(too_long) == 1 else 'prompts are'} too long: '{name}' and "
            f"{setting}.max_tokens take up to {longest} + {max_tokens} tokens, but the model has {limit} positions; "
            f"lower {setting}.max_tokens, or leave such prompts out"
        )
