"""Defines the source formats of preference pairs, and of answers labelled good or bad."""

from typing import Any

from qwen_align.align.rows import Labelled, Message, Pair, Row
from qwen_align.data_builders.bad_row_errors import BadValue, shorten_repr
from qwen_align.data_builders.chat_formats import (
    QUESTION_KEYS,
    REJECTED_KEYS,
    REPLY_KEYS,
    choose_key,
    is_preference,
    read_alpaca_prompt,
)
from qwen_align.data_builders.finite_numbers import parse_finite_float
from qwen_align.data_builders.format_definition import (
    RowFormat,
    Target,
    Values,
    has_list,
    has_values,
    is_label,
    parse_label,
    read_prompt,
    read_required,
    read_tools,
    read_turns,
)
from qwen_align.data_builders.message_conversion import convert_reply, convert_turns, prepend_system_message

PROMPT_KEYS = QUESTION_KEYS[:3]
LABEL_KEYS = ("kto_tag", "label")
_TURNS_KEYS = ("messages", "conversations")
# UltraFeedback's in TRL's form, distilabel's and argilla's, and the same with other words.
_SCORE_KEYS = tuple(
    pair
    for word in ("score", "rating", "reward")
    for pair in ((f"{word}_chosen", f"{word}_rejected"), (f"chosen_{word}", f"rejected_{word}"))
)
_MARGIN_KEYS = ("margin", *(key for pair in _SCORE_KEYS for key in pair))


def _make_pair(prompt: list[Message], chosen: Message, rejected: Message, values: Values, target: Target) -> Row:
    """Makes a preference pair row of a prompt, a chosen and a rejected answer.

    Raises BadValue if the answers are equal.
    """
    read_tools(values, target)
    if chosen == rejected:
        raise BadValue("chosen equals rejected", "chosen and rejected are equal, so nothing is preferred")
    return Pair(messages=prompt, chosen=chosen, rejected=rejected, margin=_read_margin(values), **target.shared_fields)


def _read_margin(values: Values) -> float | None:
    """Returns a preference row's margin, or the difference of its two scores. Returns None without either.

    Raises BadValue where the rejected side has the higher score.
    """
    margin = parse_number(values["margin"], "margin") if has_values(values, "margin") else None
    for of_chosen, of_rejected in _SCORE_KEYS:
        if not has_values(values, of_chosen, of_rejected):
            continue
        chosen, rejected = (parse_number(values[key], key) for key in (of_chosen, of_rejected))
        if chosen < rejected:
            raise BadValue(
                "scores contradict the sides",
                f"{of_chosen} is {chosen:g} and {of_rejected} {rejected:g}: by its scores the rejected side is "
                "the better one; exchange the sides, or leave the scores out: "
                f"ignore_columns: [{of_chosen}, {of_rejected}]",
            )
        difference = parse_number(chosen - rejected, f"{of_chosen} - {of_rejected}")
        margin = difference if margin is None else margin
    return margin


def parse_number(value: Any, field: str) -> float:
    """Converts a number or a numeric text to a float. Raises BadValue for anything else."""
    number = parse_finite_float(value)
    if number is None:
        raise BadValue("wrong type", f"{field}: is {shorten_repr(value)}, not a number that a float can hold")
    return number


def _convert_preference(values: Values, target: Target) -> Row:
    """Converts a row with a chosen and a rejected answer to a pair row.

    The prompt may stand in both. Without a chosen answer it is the last turn of the conversation, as in ms-swift.
    """
    rejected = _read_side(values, choose_key(values, REJECTED_KEYS, target), target)
    if not has_values(values, "chosen"):
        key = choose_key(values, _TURNS_KEYS, target)
        *prompt, last = read_turns(values, key, target)
        chosen = [last]
        if not prompt:
            raise BadValue("no reply", f"{key}: has one turn; a prompt and the chosen answer are needed")
    else:
        chosen = _read_side(values, "chosen", target)
        prompt = _read_pair_prompt(values, chosen, rejected, target)
    return _make_pair(
        prompt, _extract_reply(prompt, chosen, "chosen"), _extract_reply(prompt, rejected, "rejected"), values, target
    )


def _read_pair_prompt(values: Values, chosen: list[Message], rejected: list[Message], target: Target) -> list[Message]:
    """Reads the prompt of a pair: a text, turns, an instruction, or what both sides begin with."""
    if any(key in PROMPT_KEYS and item is not None for key, item in values.items()):
        return read_prompt(values, choose_key(values, PROMPT_KEYS, target), target)
    if has_values(values, "instruction"):
        return read_alpaca_prompt(values, target)
    if has_list(values, "messages") and len(chosen) == len(rejected) == 1:
        return read_prompt(values, "messages", target)
    return prepend_system_message(values.get("system"), _find_common_prompt(chosen, rejected))


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
            *read_alpaca_prompt(values, target),
            convert_reply(read_required(values, "output"), "output", target.conversion_counts),
        ]
    elif any(key in REPLY_KEYS and item is not None for key, item in values.items()):
        key = choose_key(values, REPLY_KEYS, target)
        prompt = read_prompt(values, choose_key(values, QUESTION_KEYS, target), target)
        messages = [*prompt, convert_reply(values[key], key, target.conversion_counts)]
    else:
        messages = read_turns(values, choose_key(values, _TURNS_KEYS, target), target)
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise BadValue("no reply", "does not end with an assistant's turn after a prompt, which the label would be of")
    key = choose_key(values, LABEL_KEYS, target)
    label = parse_label(values[key], key)
    return Labelled(messages=messages[:-1], completion=messages[-1], label=label, **target.shared_fields)


def _is_kto_row(values: Values) -> bool:
    """Returns whether a row has an answer and a label of true or false."""
    has_turns = has_list(values, "messages") or has_list(values, "conversations")
    has_prompt = any(has_values(values, key) for key in PROMPT_KEYS)
    has_reply = has_values(values, "completion") or any(isinstance(values.get(key), str) for key in REPLY_KEYS)
    has_answer = (has_prompt and has_reply) or has_values(values, "instruction", "output")
    value = values.get("kto_tag") if has_values(values, "kto_tag") else values.get("label")
    return is_label(value) and (has_turns or has_answer) and not is_preference(values)


def _is_preference_row(values: Values) -> bool:
    """Returns whether a row has a chosen and a rejected answer, or turns and a rejected answer."""
    if has_values(values, "chosen"):
        return has_values(values, "rejected") and not has_list(values, "conversations")
    return is_preference(values) and any(has_list(values, key) for key in _TURNS_KEYS)


PREFERENCE_FORMATS = (
    RowFormat(
        "preference",
        "prompt, chosen, rejected; the prompt may be an instruction and input, or stand in both sides; or messages, "
        "whose last turn is chosen, and rejected or rejected_response",
        (
            *(*PROMPT_KEYS, "chosen", *REJECTED_KEYS, "system", "tools", "instruction", "input", "history"),
            *_TURNS_KEYS,
            *_MARGIN_KEYS,
        ),
        ("pair",),
        _is_preference_row,
        _convert_preference,
    ),
    RowFormat(
        "sharegpt_preference",
        "conversations, chosen, rejected",
        ("conversations", "chosen", "rejected", "system", "tools", *_MARGIN_KEYS),
        ("pair",),
        lambda values: has_list(values, "conversations") and has_values(values, "chosen", "rejected"),
        _convert_sharegpt_preference,
    ),
    RowFormat(
        "kto",
        "kto_tag or label, with messages, conversations, prompt and completion or response, or instruction and output",
        (
            *("kto_tag", "label", "messages", "conversations", "prompt", "completion", "system", "tools"),
            *("instruction", "input", "output", "history", "question", "problem", *REPLY_KEYS),
        ),
        ("labelled",),
        _is_kto_row,
        _convert_kto,
    ),
)
