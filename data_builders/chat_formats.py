"""Defines the source formats of conversations, instructions and prompts with completions."""

from collections.abc import Sequence
from typing import Any

from qwen_align.align.answer_modes import has_thinking
from qwen_align.align.rows import Chat, Message, Row, Trace
from qwen_align.data_builders.bad_row_errors import BadValue, shorten_repr
from qwen_align.data_builders.format_definition import (
    RowFormat,
    Target,
    Values,
    has_list,
    has_values,
    read_optional_text,
    read_prompt,
    read_text,
    read_tools,
    read_turns,
)
from qwen_align.data_builders.message_conversion import Tools, convert_reply, prepend_system_message

QUESTION_KEYS = ("prompt", "question", "problem", "input")
REPLY_KEYS = ("answer", "response")
GSM8K_MARK = "####"  # before the gold


def make_conversation_row(messages: Sequence[Message], target: Target, tools: Tools | None = None) -> Row:
    """Makes a chat row or a trace row (if the last reply has thinking) of a conversation.

    The target's kind decides which. Raises BadValue for a conversation without a reply, or one that is no trace.
    """
    if all(message.role != "assistant" for message in messages):
        raise BadValue("no reply", "has no assistant's turn, so there is nothing to learn")
    last = messages[-1]
    if last.role != "assistant":
        target.conversion_counts[f"conversations that end with a {last.role}'s turn"] += 1
    if target.kind == "chat":
        return Chat(messages=list(messages), tools=tools, **target.shared_fields)
    if last.role != "assistant" or not has_thinking(last) or last.thinking is None or last.tool_calls:
        raise BadValue("no thinking", "is no trace: the last turn is no assistant's with thinking and an answer")
    reward = target.reward or "math_answer"  # judges nothing: there is no gold
    prompt = list(messages[:-1])
    return Trace(messages=prompt, thinking=last.thinking, answer=last.content, reward=reward, **target.shared_fields)


def join_instruction_and_input(values: Values) -> str:
    """Joins the instruction and the input of an Alpaca row into one user turn, on two lines.

    LLaMA-Factory joins them in the same way.
    """
    instruction, input_text = read_text(values, "instruction"), read_optional_text(values, "input")
    return f"{instruction}\n{input_text}" if input_text.strip() else instruction


def read_alpaca_prompt(values: Values) -> list[Message]:
    """Reads the prompt of an Alpaca row: its system message, its history and its instruction."""
    turns: list[Message] = []
    history = values.get("history")
    for index, turn in enumerate(history if isinstance(history, list) else []):
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise BadValue(
                "wrong type", f"history: {index}: is {shorten_repr(turn)}, not two texts: user's and assistant's"
            )
        turns += [
            Message(role="user", content=turn[0]),
            convert_reply(turn[1], f"history: {index}", Target("", "chat").conversion_counts),
        ]
    if history is not None and not isinstance(history, list):
        raise BadValue("wrong type", f"history: is {shorten_repr(history)}, not a list of turns")
    return prepend_system_message(
        values.get("system"), [*turns, Message(role="user", content=join_instruction_and_input(values))]
    )


def choose_key(values: Values, keys: Sequence[str]) -> str:
    """Returns the first of the alternative keys that a row has.

    Raises BadValue if none is there, or if several are and differ.
    """
    present = [key for key in keys if values.get(key) is not None]
    if not present:
        raise BadValue("missing field", f"none of {', '.join(keys)} is there; the row's keys: {', '.join(values)}")
    differing = [key for key in present if values[key] != values[present[0]]]
    if present[0] != keys[0] and differing:
        advice = f"say which: columns: {{{keys[0]}: {present[0]}}}"
        raise BadValue("two values", f"{present[0]} and {differing[0]} are both there and differ; {advice}")
    return present[0]


def _convert_messages(values: Values, target: Target) -> Row:
    """Converts a row in OpenAI's messages format to a chat or trace row."""
    return make_conversation_row(read_turns(values, "messages", target), target, read_tools(values, target))


def _convert_sharegpt(values: Values, target: Target) -> Row:
    """Converts a row in ShareGPT format to a chat or trace row."""
    return make_conversation_row(read_turns(values, "conversations", target), target, read_tools(values, target))


def _convert_alpaca(values: Values, target: Target) -> Row:
    """Converts a row in Alpaca format to a chat or trace row."""
    answer = convert_reply(read_optional_text(values, "output"), "output", target.conversion_counts)
    return make_conversation_row([*read_alpaca_prompt(values), answer], target)


def _convert_prompt_completion(values: Values, target: Target) -> Row:
    """Converts a row with a prompt and a completion to a chat or trace row."""
    answer = convert_reply(values.get("completion", ""), "completion", target.conversion_counts)
    return make_conversation_row([*read_prompt(values, "prompt", target), answer], target, read_tools(values, target))


def _convert_question_answer(values: Values, target: Target) -> Row:
    """Converts a row with a question and the answer to be learnt to a chat or trace row."""
    key = choose_key(values, QUESTION_KEYS)
    answer: Any = convert_reply(read_text(values, choose_key(values, REPLY_KEYS)), "answer", target.conversion_counts)
    return make_conversation_row([*read_prompt(values, key, target), answer], target)


def _is_labelled_row(values: Values) -> bool:
    """Returns whether a row has a label for its completion, as KTO data sets have."""
    return has_values(values, "kto_tag") or isinstance(values.get("label"), bool)


def _is_question_answer_row(values: Values) -> bool:
    """Returns whether a row has a question and a plain answer, and no key of another format."""
    is_other_format = any(has_values(values, key) for key in ("solution", "thinking", "completion", "test"))
    has_question = any(has_values(values, key) for key in QUESTION_KEYS[:3])
    reply_texts = [values[key] for key in REPLY_KEYS if isinstance(values.get(key), str)]
    return has_question and not is_other_format and any(GSM8K_MARK not in reply_text for reply_text in reply_texts)


CHAT_FORMATS = (
    RowFormat(
        "messages",
        "messages: turns of role and content",
        ("messages", "system", "tools"),
        ("chat", "trace"),
        lambda values: (
            has_list(values, "messages") and not has_values(values, "chosen") and not _is_labelled_row(values)
        ),
        _convert_messages,
    ),
    RowFormat(
        "sharegpt",
        "conversations: turns of from and value",
        ("conversations", "system", "tools"),
        ("chat", "trace"),
        lambda values: (
            has_list(values, "conversations") and not has_values(values, "chosen") and not _is_labelled_row(values)
        ),
        _convert_sharegpt,
    ),
    RowFormat(
        "alpaca",
        "instruction, output; input, history, system",
        ("instruction", "input", "output", "history", "system"),
        ("chat", "trace"),
        lambda values: has_values(values, "instruction", "output") and not _is_labelled_row(values),
        _convert_alpaca,
    ),
    RowFormat(
        "prompt_completion",
        "prompt, completion",
        ("prompt", "completion", "system", "tools"),
        ("chat", "trace"),
        lambda values: has_values(values, "prompt", "completion") and not _is_labelled_row(values),
        _convert_prompt_completion,
    ),
    RowFormat(
        "question_answer",
        "prompt, question or problem; answer or response: the text to learn",
        (*QUESTION_KEYS, *REPLY_KEYS, "system"),
        ("chat", "trace"),
        _is_question_answer_row,
        _convert_question_answer,
    ),
)
