"""Defines the source formats of questions with gold answers, solutions or long traces, such as GSM8K and MATH.

The others are LIMO, s1K and SVAMP.
"""

import re
from functools import partial
from typing import Any

from qwen_align.align.rows import Chat, Message, Problem, Row, Text, Trace
from qwen_align.data_builders.bad_row_errors import BadValue, shorten_repr
from qwen_align.data_builders.chat_formats import GSM8K_MARK, QUESTION_KEYS, choose_key, make_conversation_row
from qwen_align.data_builders.format_definition import (
    RowFormat,
    Target,
    Values,
    has_values,
    read_optional_text,
    read_prompt,
    read_required,
    read_text,
)
from qwen_align.data_builders.message_conversion import convert_reply, convert_turns
from qwen_align.reward.boxed_answers import find_last_boxes
from qwen_align.reward.settings import OWN_REWARD

_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")  # openai/grade-school-math, calculator.py: what its calculator writes over
_GOLD_KEYS = ("gold", "answer", "target")
_MATH = "math_answer"
_KEYS_OF_OTHER_FORMATS = ("role", "label", "test_list", "code", "answer", "response", "completion", "summary")


def extract_gold_after(value: Any, mark: str) -> str:
    """Returns the gold answer that follows the last occurrence of a mark, such as `####`, in a text.

    Raises BadValue if the value is no text or has no mark.
    """
    if not isinstance(value, str) or mark not in value:
        raise BadValue("no gold", f"gold: no '{mark}' in {shorten_repr(value)}")
    return value.rpartition(mark)[2].strip()


def _make_problem(messages: list[Message], gold: Any, target: Target) -> Row:
    """Makes a problem row of a prompt and its gold answer."""
    return Problem(messages=messages, gold=gold, reward=target.reward or _MATH, **target.shared_fields)


def _convert_gsm8k(values: Values, target: Target) -> Row:
    """Converts a GSM8K row to a problem, chat or trace row, as the target asks.

    A chat's reply is the solution as written; a trace's thinking is its steps, the answer the boxed gold.
    """
    messages, solution = read_prompt(values, "question", target), read_text(values, "answer")
    gold = extract_gold_after(solution, GSM8K_MARK)
    if not gold:
        raise BadValue("no gold", f"answer: nothing follows the last '{GSM8K_MARK}'")
    if target.kind == "problem":
        return _make_problem(messages, gold, target)
    if target.calculator_marks == "remove":
        target.conversion_counts["calculator marks removed"] += len(_CALCULATOR_MARK.findall(solution))
        solution = _CALCULATOR_MARK.sub("", solution)
    if target.kind == "chat":
        return make_conversation_row([*messages, convert_reply(solution, "answer", target.conversion_counts)], target)
    steps = solution.rpartition(GSM8K_MARK)[0].strip()
    if not steps:
        raise BadValue("no thinking", f"answer: no step before '{GSM8K_MARK}'")
    answer, reward = f"\\boxed{{{gold}}}", target.reward or _MATH
    return Trace(messages=messages, thinking=steps, answer=answer, gold=gold, reward=reward, **target.shared_fields)


def _convert_s1k(thinking_key: str, attempt_key: str, values: Values, target: Target) -> Row:
    """Converts an s1K row to a trace row without a gold answer.

    s1K's traces are graded by a model against a whole `solution`; put that into meta.

    Several trajectories are one thinking, joined by line breaks and stripped as s1's data/tokenization.py does.
    """
    thinking_value = read_required(values, thinking_key)
    parts = thinking_value if isinstance(thinking_value, list) else [thinking_value]
    if not all(isinstance(part, str) for part in parts):
        raise BadValue(
            "wrong type", f"{thinking_key}: is {shorten_repr(thinking_value)}, not a text or a list of texts"
        )
    thinking = "\n".join(parts).strip()
    if not thinking:
        raise BadValue("no thinking", f"{thinking_key}: is blank")
    messages, answer = read_prompt(values, "question", target), read_text(values, attempt_key).strip()
    reward = target.reward or _MATH
    return Trace(messages=messages, thinking=thinking, answer=answer, reward=reward, **target.shared_fields)


def _convert_prompt_trace(values: Values, target: Target) -> Row:
    """Converts a row with a prompt, thinking and an answer to a trace row, or to a chat row where thinking is blank."""
    messages = read_prompt(values, choose_key(values, QUESTION_KEYS, target), target)
    thinking, answer = read_optional_text(values, "thinking"), read_text(values, "answer")
    if target.kind == "chat" or not thinking.strip():
        return Chat(
            messages=[*messages, Message(role="assistant", content=answer, thinking=thinking)], **target.shared_fields
        )
    gold, reward = values.get("gold"), target.reward or _MATH
    return Trace(messages=messages, thinking=thinking, answer=answer, gold=gold, reward=reward, **target.shared_fields)


def _convert_limo(values: Values, target: Target) -> Row:
    """Converts a LIMO row to a problem, chat or trace row, as the target asks."""
    messages = read_prompt(values, "question", target)
    if target.kind == "problem":
        return _make_problem(messages, _read_gold(values), target)
    return make_conversation_row(
        [*messages, convert_reply(read_text(values, "solution"), "solution", target.conversion_counts)], target
    )


def _convert_prompt_gold(values: Values, target: Target) -> Row:
    """Converts a row with a prompt and a gold answer to a problem row."""
    messages = read_prompt(values, choose_key(values, QUESTION_KEYS, target), target)
    has_gold = target.reward != OWN_REWARD or has_any_gold(values)
    return _make_problem(messages, _read_gold(values) if has_gold else None, target)


def has_any_gold(values: Values) -> bool:
    """Returns whether a row has a gold answer, or a solution that could box one. A reward of one's own needs none."""
    return any(values.get(key) not in (None, "") for key in (*_GOLD_KEYS, "solution"))


def _read_gold(values: Values) -> Any:
    """Returns the gold answer of a row, or the boxed answer in its solution.

    The solution is read where no key holds the gold. Raises BadValue for a gold that is null or blank.
    """
    present_keys = [key for key in _GOLD_KEYS if key in values]
    key = next((key for key in present_keys if values[key] is not None), present_keys[0] if present_keys else None)
    if key is None:
        boxes = find_last_boxes(read_text(values, "solution"))
        if isinstance(boxes, str):
            raise BadValue("no gold", f"solution: {boxes}, and there is no other gold")
        return ", ".join(box.content for box in boxes)
    gold = values[key]
    if gold is None or (isinstance(gold, str) and not gold.strip()):
        raise BadValue("no gold", f"{key}: is {'null' if gold is None else 'blank'}; a problem needs a gold")
    return gold


def _convert_svamp(values: Values, target: Target) -> Row:
    """Converts an SVAMP row to a problem row.

    Body and question are joined by a space, as in both chain-of-thought papers' code.
    """
    question = f"{read_text(values, 'Body').strip()} {read_text(values, 'Question').strip()}"
    return _make_problem(
        convert_turns(question, "Question", target.conversion_counts), read_required(values, "Answer"), target
    )


def _convert_text(values: Values, target: Target) -> Row:
    """Converts a row with a raw text to a text row."""
    if target.meta:
        raise BadValue("no meta", "keep_columns: text rows have no meta to keep them in; leave it out")
    language = read_optional_text(values, "language") or None
    return Text(id=target.id, text=read_text(values, "text"), language=language, source=target.source)


def _is_gsm8k_row(values: Values) -> bool:
    """Returns whether a row has a question and an answer that contains GSM8K's `####` mark."""
    answer = values.get("answer")
    return (
        has_values(values, "question")
        and isinstance(answer, str)
        and GSM8K_MARK in answer
        and not has_values(values, "solution")
    )


def _is_limo_row(values: Values) -> bool:
    """Returns whether a row has the keys of the LIMO data set."""
    return has_values(values, "question", "solution", "answer")


def _is_prompt_gold_row(values: Values) -> bool:
    """Returns whether a row has a prompt and a gold answer, and no key of another format."""
    has_prompt = any(has_values(values, key) for key in QUESTION_KEYS[:3])
    other_keys = ("chosen", "completion", "instruction", "thinking", "test", "test_list", "attempt", "deepseek_attempt")
    if any(has_values(values, key) for key in (*other_keys, "gemini_attempt")) or _is_gsm8k_row(values):
        return False
    if _is_limo_row(values) and not has_values(values, "problem"):
        return False
    is_number = isinstance(values.get("target"), int | float)
    return (has_prompt and any(has_values(values, key) for key in ("gold", "answer", "solution"))) or (
        is_number and (has_prompt or "input" in values)
    )


def _make_s1k_format(name: str, thinking_key: str, attempt_key: str) -> RowFormat:
    """Makes the source format for one of the sets of traces in s1K."""
    return RowFormat(
        name,
        f"question, {thinking_key}, {attempt_key}",
        ("question", thinking_key, attempt_key, "system"),
        ("trace",),
        lambda values: has_values(values, "question", thinking_key, attempt_key),
        partial(_convert_s1k, thinking_key, attempt_key),
    )


PROBLEM_FORMATS = (
    RowFormat(
        "gsm8k",
        f"question, answer with a gold after {GSM8K_MARK}",
        ("question", "answer", "system"),
        ("problem", "chat", "trace"),
        _is_gsm8k_row,
        _convert_gsm8k,
    ),
    _make_s1k_format("s1k", "thinking_trajectories", "attempt"),
    _make_s1k_format("s1k_deepseek", "deepseek_thinking_trajectory", "deepseek_attempt"),
    _make_s1k_format("s1k_gemini", "gemini_thinking_trajectory", "gemini_attempt"),
    RowFormat(
        "prompt_trace",
        "prompt, question or problem; thinking, answer",
        (*QUESTION_KEYS, "thinking", "answer", "gold", "system"),
        ("trace", "chat"),
        lambda values: (
            any(has_values(values, key) for key in QUESTION_KEYS[:3]) and has_values(values, "thinking", "answer")
        ),
        _convert_prompt_trace,
    ),
    RowFormat(
        "limo",
        "question, solution, answer; the solution is the reply, as a problem the answer is the gold",
        ("question", "solution", "answer", "system"),
        ("chat", "problem", "trace"),
        _is_limo_row,
        _convert_limo,
    ),
    RowFormat(
        "prompt_gold",
        "prompt, question, problem or input; gold, answer or target, else what the solution boxes",
        (*QUESTION_KEYS, *_GOLD_KEYS, "solution", "system"),
        ("problem",),
        _is_prompt_gold_row,
        _convert_prompt_gold,
    ),
    RowFormat(
        "svamp",
        "Body, Question, Answer",
        ("Body", "Question", "Answer"),
        ("problem",),
        lambda values: has_values(values, "Body", "Question", "Answer"),
        _convert_svamp,
    ),
    RowFormat(
        "text",
        "text; language",
        ("text", "language"),
        ("text",),
        lambda values: (
            isinstance(values.get("text"), str) and not any(has_values(values, key) for key in _KEYS_OF_OTHER_FORMATS)
        ),
        _convert_text,
    ),
)
