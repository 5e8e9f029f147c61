"""Conversations, instructions and prompts with completions, as chats or as traces."""

from collections.abc import Sequence
from typing import Any

from qwen_align.align.rows import Chat, Message, Row, Trace
from qwen_align.data_builders.bad_row_errors import BadValue, quoted
from qwen_align.data_builders.format_definition import (
    RowFormat,
    Target,
    Values,
    has,
    has_list,
    optional_text,
    prompt_turns,
    schemas,
    text,
    turn_list,
)
from qwen_align.data_builders.message_conversion import Tools, reply, with_system

QUESTIONS = ("prompt", "question", "problem", "input")
REPLIES = ("answer", "response")
GSM8K_MARK = "####"  # before the gold


def conversation(messages: Sequence[Message], target: Target, tools: Tools | None = None) -> Row:
    """The conversation as a chat; as a trace, if it ends with an assistant's turn that has thinking."""
    if all(message.role != "assistant" for message in messages):
        raise BadValue("no reply", "has no assistant's turn, so there is nothing to learn")
    last = messages[-1]
    if last.role != "assistant":
        target.seen[f"conversations that end with a {last.role}'s turn"] += 1
    if target.kind == "chat":
        return Chat(messages=list(messages), tools=tools, **target.shared)
    if last.role != "assistant" or last.thinking is None or last.tool_calls:
        raise BadValue("no thinking", "is no trace: the last turn is no assistant's with thinking and an answer")
    reward = target.reward or "math_answer"  # judges nothing: there is no gold
    before = list(messages[:-1])
    return Trace(messages=before, thinking=last.thinking, answer=last.content, reward=reward, **target.shared)


def asked(values: Values) -> str:
    """Alpaca's user turn: the instruction, and on the next line the input, as LLaMA-Factory joins them."""
    instruction, given = text(values, "instruction"), optional_text(values, "input")
    return f"{instruction}\n{given}" if given.strip() else instruction


def alpaca_prompt(values: Values) -> list[Message]:
    """System message, history and the instruction."""
    said: list[Message] = []
    history = values.get("history")
    for place, turn in enumerate(history if isinstance(history, list) else []):
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(part, str) for part in turn):
            raise BadValue("wrong type", f"history: {place}: is {quoted(turn)}, not two texts: user's and assistant's")
        said += [Message(role="user", content=turn[0]), reply(turn[1], f"history: {place}", Target("", "chat").seen)]
    if history is not None and not isinstance(history, list):
        raise BadValue("wrong type", f"history: is {quoted(history)}, not a list of turns")
    return with_system(values.get("system"), [*said, Message(role="user", content=asked(values))])


def one_of(values: Values, keys: Sequence[str]) -> str:
    """The one key that is there, the first of `keys` before all others; raises BadValue where others disagree."""
    there = [key for key in keys if values.get(key) is not None]
    if not there:
        raise BadValue("missing field", f"none of {', '.join(keys)} is there; the row's keys: {', '.join(values)}")
    others = [key for key in there if values[key] != values[there[0]]]
    if there[0] != keys[0] and others:
        said = f"{there[0]} and {others[0]} are both there and differ; say which: columns: {{{keys[0]}: {there[0]}}}"
        raise BadValue("two values", said)
    return there[0]


def _messages(values: Values, target: Target) -> Row:
    return conversation(turn_list(values, "messages", target), target, schemas(values, target))


def _sharegpt(values: Values, target: Target) -> Row:
    return conversation(turn_list(values, "conversations", target), target, schemas(values, target))


def _alpaca(values: Values, target: Target) -> Row:
    answer = reply(optional_text(values, "output"), "output", target.seen)
    return conversation([*alpaca_prompt(values), answer], target)


def _prompt_completion(values: Values, target: Target) -> Row:
    answer = reply(values.get("completion", ""), "completion", target.seen)
    return conversation([*prompt_turns(values, "prompt", target), answer], target, schemas(values, target))


def _question_answer(values: Values, target: Target) -> Row:
    key = one_of(values, QUESTIONS)
    answer: Any = reply(text(values, one_of(values, REPLIES)), "answer", target.seen)
    return conversation([*prompt_turns(values, key, target), answer], target)


def _is_labelled(values: Values) -> bool:
    return has(values, "kto_tag") or isinstance(values.get("label"), bool)


def _is_question_answer(values: Values) -> bool:
    is_other = any(has(values, key) for key in ("solution", "thinking", "completion", "test"))
    has_question = any(has(values, key) for key in QUESTIONS[:3])
    said = [values[key] for key in REPLIES if isinstance(values.get(key), str)]
    return has_question and not is_other and any(GSM8K_MARK not in text for text in said)


CHAT_FORMATS = (
    RowFormat(
        "messages",
        "messages: turns of role and content",
        ("messages", "system", "tools"),
        ("chat", "trace"),
        lambda values: has_list(values, "messages") and not has(values, "chosen") and not _is_labelled(values),
        _messages,
    ),
    RowFormat(
        "sharegpt",
        "conversations: turns of from and value",
        ("conversations", "system", "tools"),
        ("chat", "trace"),
        lambda values: has_list(values, "conversations") and not has(values, "chosen") and not _is_labelled(values),
        _sharegpt,
    ),
    RowFormat(
        "alpaca",
        "instruction, output; input, history, system",
        ("instruction", "input", "output", "history", "system"),
        ("chat", "trace"),
        lambda values: has(values, "instruction", "output") and not _is_labelled(values),
        _alpaca,
    ),
    RowFormat(
        "prompt_completion",
        "prompt, completion",
        ("prompt", "completion", "system", "tools"),
        ("chat", "trace"),
        lambda values: has(values, "prompt", "completion") and not _is_labelled(values),
        _prompt_completion,
    ),
    RowFormat(
        "question_answer",
        "prompt, question or problem; answer or response: the text to learn",
        (*QUESTIONS, *REPLIES, "system"),
        ("chat", "trace"),
        _is_question_answer,
        _question_answer,
    ),
)
