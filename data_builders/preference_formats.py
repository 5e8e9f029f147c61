"""Pairs of a chosen and a rejected answer, and answers with a thumb up or down."""

from typing import Any

from qwen_align.align.rows import Labelled, Message, Pair, Row
from qwen_align.data_builders.bad_row_errors import BadValue, quoted
from qwen_align.data_builders.chat_formats import alpaca_prompt
from qwen_align.data_builders.finite_numbers import finite_in
from qwen_align.data_builders.format_definition import (
    RowFormat,
    Target,
    Values,
    has,
    has_list,
    prompt_turns,
    schemas,
    turn_list,
    wanted,
)
from qwen_align.data_builders.message_conversion import reply, turns

_LABELS = {"true": True, "false": False}


def _pair(prompt: list[Message], chosen: Message, rejected: Message, values: Values, target: Target) -> Row:
    schemas(values, target)
    if chosen == rejected:
        raise BadValue("chosen equals rejected", "chosen and rejected are equal, so nothing is preferred")
    return Pair(messages=prompt, chosen=chosen, rejected=rejected, margin=_margin(values), **target.shared)


def _margin(values: Values) -> float | None:
    """The margin, or the difference of both sides' scores, as UltraFeedback names them."""
    if has(values, "margin"):
        return number(values["margin"], "margin")
    if has(values, "score_chosen", "score_rejected"):
        chosen, rejected = (number(values[key], key) for key in ("score_chosen", "score_rejected"))
        return number(chosen - rejected, "score_chosen - score_rejected")
    return None


def number(value: Any, field: str) -> float:
    """The number, or the one that a text writes; raises BadValue for anything else."""
    found = finite_in(value)
    if found is None:
        raise BadValue("wrong type", f"{field}: is {quoted(value)}, not a number that a float can hold")
    return found


def _preference(values: Values, target: Target) -> Row:
    chosen, rejected = (_side(values, side, target) for side in ("chosen", "rejected"))
    if has(values, "prompt"):
        prompt = prompt_turns(values, "prompt", target)
    elif has(values, "instruction"):
        prompt = alpaca_prompt(values)
    else:
        prompt = _common_prompt(chosen, rejected)
    return _pair(prompt, _after(prompt, chosen, "chosen"), _after(prompt, rejected, "rejected"), values, target)


def _side(values: Values, side: str, target: Target) -> list[Message]:
    value = wanted(values, side)
    if isinstance(value, list):
        return turns(value, side, target.seen)
    return [reply(value, side, target.seen)]


def _common_prompt(chosen: list[Message], rejected: list[Message]) -> list[Message]:
    """What two whole conversations begin with alike, up to the last assistant's turn of either."""
    limit = min(len(chosen), len(rejected)) - 1
    n = next((place for place in range(limit) if chosen[place] != rejected[place]), limit)
    if n == 0:
        raise BadValue("missing field", "'prompt' is missing, and chosen and rejected begin with no common turns")
    return chosen[:n]


def _after(prompt: list[Message], side: list[Message], name: str) -> Message:
    """The one assistant's turn of a side, which may repeat the prompt before it."""
    turn = side[-1]
    before = side[:-1]
    if before and before != prompt and before != [message for message in prompt if message.role != "system"]:
        raise BadValue("wrong roles", f"{name}: has {len(side)} turns, and those before the last are not the prompt's")
    if turn.role != "assistant":
        raise BadValue("wrong roles", f"{name}: ends with a {turn.role}'s turn; one assistant turn is needed")
    return turn


def _sharegpt_preference(values: Values, target: Target) -> Row:
    prompt = prompt_turns(values, "conversations", target)
    chosen, rejected = (reply(wanted(values, side), side, target.seen) for side in ("chosen", "rejected"))
    return _pair(prompt, chosen, rejected, values, target)


def _kto(values: Values, target: Target) -> Row:
    schemas(values, target)
    if has(values, "completion"):
        said = [*prompt_turns(values, "prompt", target), reply(values["completion"], "completion", target.seen)]
    elif has(values, "instruction"):
        said = [*alpaca_prompt(values), reply(wanted(values, "output"), "output", target.seen)]
    else:
        key = "conversations" if has(values, "conversations") else "messages"
        said = turn_list(values, key, target)
    if len(said) < 2 or said[-1].role != "assistant":
        raise BadValue("no reply", "does not end with an assistant's turn after a prompt, which the label would be of")
    key = "kto_tag" if has(values, "kto_tag") else "label"
    said_of_it = label(wanted(values, key), key)
    return Labelled(messages=said[:-1], completion=said[-1], label=said_of_it, **target.shared)


def label(value: Any, field: str) -> bool:
    """True or false, or as CSV writes them; raises BadValue for anything else."""
    found = _LABELS.get(value.strip().lower()) if isinstance(value, str) else value
    if not isinstance(found, bool):
        raise BadValue("wrong type", f"{field}: is {quoted(value)}; a label is true or false")
    return found


def _is_kto(values: Values) -> bool:
    has_turns = has_list(values, "messages") or has_list(values, "conversations")
    has_answer = has(values, "completion") or has(values, "instruction", "output")
    said = values.get("kto_tag") if has(values, "kto_tag") else values.get("label")
    is_label = isinstance(said, bool) or (isinstance(said, str) and said.strip().lower() in _LABELS)
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
        lambda values: has(values, "chosen", "rejected") and not has_list(values, "conversations"),
        _preference,
    ),
    RowFormat(
        "sharegpt_preference",
        "conversations, chosen, rejected",
        ("conversations", "chosen", "rejected", "system", "tools", "margin", "score_chosen", "score_rejected"),
        ("pair",),
        lambda values: has_list(values, "conversations") and has(values, "chosen", "rejected"),
        _sharegpt_preference,
    ),
    RowFormat(
        "kto",
        "kto_tag or label, with messages, conversations, prompt and completion, or instruction and output",
        (
            *("kto_tag", "label", "messages", "conversations", "prompt", "completion", "system", "tools"),
            *("instruction", "input", "output", "history"),
        ),
        ("labelled",),
        _is_kto,
        _kto,
    ),
)
