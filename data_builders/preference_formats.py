"""Defines the source formats of preference pairs, and of answers labelled good or bad."""

from typing import Any

from qwen_align.align.rows import Labelled, Message, Pair, Row
from qwen_align.data_builders.bad_row_errors import BadValue, shorten_repr
from qwen_align.data_builders.chat_formats import read_alpaca_prompt
from qwen_align.data_builders.finite_numbers import parse_finite_float
from qwen_align.data_builders.format_definition import (
    RowFormat,
    Target,
    Values,
    has_list,
    has_values,
    read_prompt,
    read_required,
    read_tools,
    read_turns,
)
from qwen_align.data_builders.message_conversion import convert_reply, convert_turns

_LABEL_OF_TEXT = {"true": True, "false": False}


def _make_pair(prompt: list[Message], chosen: Message, rejected: Message, values: Values, target: Target) -> Row:
    """Makes a preference pair row of a prompt, a chosen and a rejected answer.

    Raises BadValue if the answers are equal.
    """
    read_tools(values, target)
    if chosen == rejected:
        raise BadValue("chosen equals rejected", "chosen and rejected are equal, so nothing is preferred")
    return Pair(messages=prompt, chosen=chosen, rejected=rejected, margin=_read_margin(values), **target.shared_fields)


def _read_margin(values: Values) -> float | None:
    """Returns a preference row's margin, or the difference of its two scores as UltraFeedback names them.

    Returns None without either.
    """
    if has_values(values, "margin"):
        return parse_number(values["margin"], "margin")
    if has_values(values, "score_chosen", "score_rejected"):
        chosen, rejected = (parse_number(values[key], key) for key in ("score_chosen", "score_rejected"))
        return parse_number(chosen - rejected, "score_chosen - score_rejected")
    return None


def parse_number(value: Any, field: str) -> float:
    """Converts a number or a numeric text to a float. Raises BadValue for anything else."""
    number = parse_finite_float(value)
    if number is None:
        raise BadValue("wrong type", f"{field}: is {shorten_repr(value)}, not a number that a float can hold")
    return number


def _convert_preference(values: Values, target: Target) -> Row:
    """Converts a row with a chosen and a rejected answer to a pair row. The prompt may stand in both."""
    chosen, rejected = (_read_side(values, side, target) for side in ("chosen", "rejected"))
    if has_values(values, "prompt"):
        prompt = read_prompt(values, "prompt", target)
    elif has_values(values, "instruction"):
        prompt = read_alpaca_prompt(values)
    else:
        prompt = _find_common_prompt(chosen, rejected)
    return _make_pair(
        prompt, _extract_reply(prompt, chosen, "chosen"), _extract_reply(prompt, rejected, "rejected"), values, target
    )


def _read_side(values: Values, side: str, target: Target) -> list[Message]:
    """Reads the chosen or the rejected side of a preference row, as a single reply or a whole conversation."""
    value = read_required(values, side)
    if isinstance(value, list):
        return convert_turns(value, side, target.conversion_counts)
    return [convert_reply(value, side, target.conversion_counts)]


def _find_common_prompt(chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """Returns the turns that two conversations share from the beginning, as the prompt of a pair.

    It ends before the last assistant turn of either.
    """
    limit = min(len(chosen), len(rejected)) - 1
    n_common = next((index for index in range(limit) if chosen[index] != rejected[index]), limit)
    if n_common == 0:
        raise BadValue("missing field", "'prompt' is missing, and chosen and rejected begin with no common turns")
    return chosen[:n_common]


def _extract_reply(prompt: list[Message], side: list[Message], name: str) -> Message:
    """Returns the assistant turn that follows the prompt in one side of a pair.

    The side may repeat the prompt before it.
    """
    turn = side[-1]
    earlier = side[:-1]
    if earlier and earlier != prompt and earlier != [message for message in prompt if message.role != "system"]:
        raise BadValue("wrong roles", f"{name}: has {len(side)} turns, and those before the last are not the prompt's")
    if turn.role != "assistant":
        raise BadValue("wrong roles", f"{name}: ends with a {turn.role}'s turn; one assistant turn is needed")
    return turn


def _convert_sharegpt_preference(values: Values, target: Target) -> Row:
    """Converts a row in ShareGPT's preference format to a pair row."""
    prompt = read_prompt(values, "conversations", target)
    chosen, rejected = (
        convert_reply(read_required(values, side), side, target.conversion_counts) for side in ("chosen", "rejected")
    )
    return _make_pair(prompt, chosen, rejected, values, target)


def _convert_kto(values: Values, target: Target) -> Row:
    """Converts a KTO row, an answer with its label, to a labelled row."""
    read_tools(values, target)
    if has_values(values, "completion"):
        messages = [
            *read_prompt(values, "prompt", target),
            convert_reply(values["completion"], "completion", target.conversion_counts),
        ]
    elif has_values(values, "instruction"):
        messages = [
            *read_alpaca_prompt(values),
            convert_reply(read_required(values, "output"), "output", target.conversion_counts),
        ]
    else:
        key = "conversations" if has_values(values, "conversations") else "messages"
        messages = read_turns(values, key, target)
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise BadValue("no reply", "does not end with an assistant's turn after a prompt, which the label would be of")
    key = "kto_tag" if has_values(values, "kto_tag") else "label"
    label = parse_label(read_required(values, key), key)
    return Labelled(messages=messages[:-1], completion=messages[-1], label=label, **target.shared_fields)


def parse_label(value: Any, field: str) -> bool:
    """Converts true or false, or their spelling in CSV files, to a boolean. Raises BadValue for anything else."""
    label = _LABEL_OF_TEXT.get(value.strip().lower()) if isinstance(value, str) else value
    if not isinstance(label, bool):
        raise BadValue("wrong type", f"{field}: is {shorten_repr(value)}; a label is true or false")
    return label


def _is_kto_row(values: Values) -> bool:
    """Returns whether a row has an answer and a label of true or false."""
    has_turns = has_list(values, "messages") or has_list(values, "conversations")
    has_answer = has_values(values, "completion") or has_values(values, "instruction", "output")
    value = values.get("kto_tag") if has_values(values, "kto_tag") else values.get("label")
    is_label = isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in _LABEL_OF_TEXT)
    return is_label and (has_turns or has_answer)


PREFERENCE_FORMATS = (
    RowFormat(
        "preference",
        "prompt, chosen, rejected; the prompt may be an instruction and input, or stand in both sides",
        (
            *("prompt", "chosen", "rejected", "system", "tools", "instruction", "input", "history"),
            *("margin", "score_chosen", "score_rejected"),
        ),
        ("pair",),
        lambda values: has_values(values, "chosen", "rejected") and not has_list(values, "conversations"),
        _convert_preference,
    ),
    RowFormat(
        "sharegpt_preference",
        "conversations, chosen, rejected",
        ("conversations", "chosen", "rejected", "system", "tools", "margin", "score_chosen", "score_rejected"),
        ("pair",),
        lambda values: has_list(values, "conversations") and has_values(values, "chosen", "rejected"),
        _convert_sharegpt_preference,
    ),
    RowFormat(
        "kto",
        "kto_tag or label, with messages, conversations, prompt and completion, or instruction and output",
        (
            *("kto_tag", "label", "messages", "conversations", "prompt", "completion", "system", "tools"),
            *("instruction", "input", "output", "history"),
        ),
        ("labelled",),
        _is_kto_row,
        _convert_kto,
    ),
)
