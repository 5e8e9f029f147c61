"""Tells which keys of a conversation's turn say nothing more, and refuses those that change what the turn means."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from qwen_align.data_builders.bad_row_errors import BadValue, shorten_repr
from qwen_align.data_builders.column_meanings import is_empty, says_no, says_yes

THINKING_KEYS = ("thinking", "reasoning_content", "reasoning")
NAME_KEYS = ("name", "tool_call_id", "id")  # the speaker's name; Qwen's templates have no place for it
_KNOWN_KEYS = {"role", "content", "tool_calls", *THINKING_KEYS, *NAME_KEYS}
# OpenAI's weight, ms-swift's loss and loss_scale, Axolotl's train and training, TRL's and others' mask.
_TRAINING_KEYS = ("weight", "loss", "loss_scale", "loss_weight", "train", "training", "trainable")
_MASKING_KEYS = ("mask", "masked", "is_masked", "ignore_loss")


def refuse_unknown_keys(given: Mapping[str, Any], field: str, conversion_counts: Counter[str]) -> None:
    """Raises BadValue for a key of a turn that says something which a message has no place for.

    Keys that are empty, and weights and masks that say what holds anyway (assistants' turns are trained, others are
    not), are counted as left out.
    """
    for key, item in given.items():
        if key in _KNOWN_KEYS:
            continue
        flag = _read_training_flag(key, item)
        is_trained = given.get("role") == "assistant"
        if is_empty(item) or flag is is_trained:
            conversion_counts[f"turns' '{key}' left out"] += 1
        elif key in _TRAINING_KEYS or key in _MASKING_KEYS:
            raise BadValue(
                "unknown key of a turn",
                f"{field}: has '{key}' {shorten_repr(item)} in {given.get('role')}'s turn; all of an assistant's turns "
                "are trained and no other: end the conversation before what is not to be learnt, or leave the key out",
            )
        else:
            known = "role and content, or from and value; thinking, reasoning_content, tool_calls beside them"
            raise BadValue(
                "unknown key of a turn",
                f"{field}: has '{key}', which no turn has: {known}. Leave it out: ignore_columns: "
                f"[{field.partition(':')[0]}.{key}], by the file's name of the column",
            )


def _read_training_flag(key: str, item: Any) -> bool | None:
    """Returns whether a key of a turn says that the turn is trained. Returns None if it does not say so plainly."""
    is_said = True if says_yes(item) else False if says_no(item) else None
    if key in _TRAINING_KEYS:
        return is_said
    return not is_said if key in _MASKING_KEYS and is_said is not None else None
