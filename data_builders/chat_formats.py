"""Defines the source formats of conversations, instructions and prompts with completions."""

from collections.abc import Sequence

from qwen_align.align.answer_modes import has_thinking
from qwen_align.align.rows import Chat, Message, Row, Trace
from qwen_align.data_builders.bad_row_errors import BadValue
from qwen_align.data_builders.column_meanings import is_empty
from qwen_align.data_builders.format_definition import (
    RowFormat,
    Target,
    Values,
    has_list,
    has_values,
    is_label,
    read_history,
    read_optional_text,
    read_prompt,
    read_text,
    read_tools,
    read_turns,
)
from qwen_align.data_builders.message_conversion import Tools, convert_reply, prepend_system_message

QUESTION_KEYS = ("prompt", "question", "problem", "input")
REPLY_KEYS = ("answer", "response")
REJECTED_KEYS = ("rejected", "rejected_response", "rejected_messages")  # the last two are ms-swift's
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

    LLaMA-Factory joins them in the same way. Either may be blank, not both.
    """
    input_text = read_optional_text(values, "input")
    if not input_text.strip():
        return read_text(values, "instruction")
    instruction = read_optional_text(values, "instruction")
    return f"{instruction}\n{input_text}" if instruction.strip() else input_text


def read_alpaca_prompt(values: Values, target: Target) -> list[Message]:
    """Reads the prompt of an Alpaca row: its system message, its history and its instruction."""
    user_turn = Message(role="user", content=join_instruction_and_input(values))
    return prepend_system_message(values.get("system"), [*read_history(values, target), user_turn])


def choose_key(values: Values, keys: Sequence[str], target: Target) -> str:
    """Returns which of the alternative keys of a row is read: the one that the recipe names, else the only one.

    Raises BadValue if none is there, or if several are and differ.
    """
    # By its items, so that what is not chosen does not count as read.
    present = {key: item for key, item in values.items() if key in keys and item is not None}
    present = {key: item for key, item in present.items() if not is_empty(item)} or present
    if not present:
        raise BadValue("missing field", f"none of {', '.join(keys)} is there; the row's keys: {', '.join(values)}")
    first, *others = sorted(present, key=lambda key: (key not in target.named_fields, keys.index(key)))
    differing = [key for key in others if present[key] != present[first]]
    if differing and first not in target.named_fields:
        advice = (
            f"say which, beside the format's name: columns: {{{keys[0]}: {first}}} or {{{keys[0]}: {differing[0]}}}"
        )
        raise BadValue("two values", f"{first} and {differing[0]} are both there and differ; {advice}")
    for key in present.keys() - set(differing):
        values.get(key)  # says the same, so it is read too
    return first


def _convert_messages(values: Values, target: Target) -> Row:
    """Converts a row in OpenAI's messages format to a chat or trace row."""
    return make_conversation_row(read_turns(values, "messages", target), target, read_tools(values, target))


def _convert_sharegpt(values: Values, target: Target) -> Row:
    """Converts a row in ShareGPT format to a chat or trace row."""
    return make_conversation_row(read_turns(values, "conversations", target), target, read_tools(values, target))


def _convert_alpaca(values: Values, target: Target) -> Row:
    """Converts a row in Alpaca format to a chat or trace row."""
    output = values.get("output")
    reply = output if isinstance(output, list | dict) else read_optional_text(values, "output")
    answer = convert_reply(reply, "output", target.conversion_counts)
    return make_conversation_row([*read_alpaca_prompt(values, target), answer], target, read_tools(values, target))


def _convert_prompt_completion(values: Values, target: Target) -> Row:
    """Converts a row with a prompt and a completion to a chat or trace row."""
    answer = convert_reply(values.get("completion", ""), "completion", target.conversion_counts)
    return make_conversation_row([*read_prompt(values, "prompt", target), answer], target, read_tools(values, target))


def _convert_question_answer(values: Values, target: Target) -> Row:
    """Converts a row with a question and the answer to be learnt to a chat or trace row."""
    prompt = read_prompt(values, choose_key(values, QUESTION_KEYS, target), target)
    key = choose_key(values, REPLY_KEYS, target)
    reply = values[key] if isinstance(values[key], list | dict) else read_text(values, key)
    answer = convert_reply(reply, "answer", target.conversion_counts)
    return make_conversation_row([*prompt, answer], target, read_tools(values, target))


def is_preference(values: Values) -> bool:
    """Returns whether a row has a chosen answer, or a rejected one."""
    return has_values(values, "chosen") or any(not is_empty(values.get(key)) for key in REJECTED_KEYS)


def _is_labelled_row(values: Values) -> bool:
    """Returns whether a row has a label for its completion, as KTO data sets have."""
    return has_values(values, "kto_tag") or is_label(values.get("label"))


def _is_question_answer_row(values: Values) -> bool:
    """Returns whether a row has a question and a plain answer, and no key of another format."""
    is_other_format = any(has_values(values, key) for key in ("solution", "thinking", "completion", "test"))
    has_question = any(has_values(values, key) for key in QUESTION_KEYS[:3])
    replies = [values[key] for key in REPLY_KEYS if isinstance(values.get(key), str | list | dict)]
    return (
        has_question
        and not is_other_format
        and not _is_labelled_row(values)
        and any(GSM8K_MARK not in reply for reply in replies)
    )


CHAT_FORMATS = (
    RowFormat(
        "messages",
        "messages: turns of role and content",
        ("messages", "system", "tools"),
        ("chat", "trace"),
        lambda values: has_list(values, "messages") and not is_preference(values) and not _is_labelled_row(values),
        _convert_messages,
    ),
    RowFormat(
        "sharegpt",
        "conversations: turns of from and value",
        ("conversations", "system", "tools"),
        ("chat", "trace"),
        lambda values: has_list(values, "conversations") and not is_preference(values) and not _is_labelled_row(values),
        _convert_sharegpt,
    ),
    RowFormat(
        "alpaca",
        "instruction, output; input, history, system",
        ("instruction", "input", "output", "history", "system", "tools"),
        ("chat", "trace"),
        lambda values: has_values(values, "instruction", "output") and not _is_labelled_row(values),
        _convert_alpaca,
    ),
    RowFormat(
        "prompt_completion",
        "prompt, completion",
        ("prompt", "completion", "history", "system", "tools"),
        ("chat", "trace"),
        lambda values: has_values(values, "prompt", "completion") and not _is_labelled_row(values),
        _convert_prompt_completion,
    ),
    RowFormat(
        "question_answer",
        "prompt, question or problem; answer or response: the text to learn",
        (*QUESTION_KEYS, *REPLY_KEYS, "history", "system", "tools"),
        ("chat", "trace"),
        _is_question_answer_row,
        _convert_question_answer,
    ),
)
