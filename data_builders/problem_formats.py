"""Questions with golds, solutions or long traces, as published: GSM8K, MATH, LIMO, s1K, SVAMP, raw texts."""

import re
from functools import partial
from typing import Any

from qwen_align.align.rows import Message, Problem, Row, Text, Trace
from qwen_align.data_builders.bad_row import BadValue, quoted
from qwen_align.data_builders.chat_formats import GSM8K_MARK, QUESTIONS, conversation, one_of
from qwen_align.data_builders.row_format import (
    RowFormat,
    Target,
    Values,
    has,
    optional_text,
    prompt_turns,
    text,
    wanted,
)
from qwen_align.data_builders.turns import reply, turns
from qwen_align.reward.boxed_answers import find_last_boxes

_CALCULATOR = re.compile(r"<<[^<>]*>>")  # openai/grade-school-math, calculator.py: what its calculator writes over
_GOLDS = ("gold", "answer", "target")
_MATH = "math_answer"
_NO_RAW_TEXT = ("label", "test_list", "code", "answer", "response", "completion", "summary")


def gold_after(value: Any, mark: str) -> str:
    """What follows the mark's last occurrence; raises BadValue if the value is no text or has no mark."""
    if not isinstance(value, str) or mark not in value:
        raise BadValue("no gold", f"gold: no '{mark}' in {quoted(value)}")
    return value.rpartition(mark)[2].strip()


def _problem(messages: list[Message], gold: Any, target: Target) -> Row:
    return Problem(messages=messages, gold=gold, reward=target.reward or _MATH, **target.shared)


def _gsm8k(values: Values, target: Target) -> Row:
    """A chat's reply is the solution as written; a trace's thinking is its steps, the answer the boxed gold."""
    messages, solution = prompt_turns(values, "question", target), text(values, "answer")
    gold = gold_after(solution, GSM8K_MARK)
    if not gold:
        raise BadValue("no gold", f"answer: nothing follows the last '{GSM8K_MARK}'")
    if target.kind == "problem":
        return _problem(messages, gold, target)
    if target.calculator_marks == "remove":
        target.seen["calculator marks removed"] += len(_CALCULATOR.findall(solution))
        solution = _CALCULATOR.sub("", solution)
    if target.kind == "chat":
        return conversation([*messages, reply(solution, "answer", target.seen)], target)
    steps = solution.rpartition(GSM8K_MARK)[0].strip()
    if not steps:
        raise BadValue("no thinking", f"answer: no step before '{GSM8K_MARK}'")
    answer, reward = f"\\boxed{{{gold}}}", target.reward or _MATH
    return Trace(messages=messages, thinking=steps, answer=answer, gold=gold, reward=reward, **target.shared)


def _s1k(thinking_key: str, attempt_key: str, values: Values, target: Target) -> Row:
    """The trace without a gold: s1K's are graded by a model against a whole `solution`; put that into meta.

    Several trajectories are one thinking, joined by line breaks and stripped as s1's data/tokenization.py does.
    """
    said = wanted(values, thinking_key)
    parts = said if isinstance(said, list) else [said]
    if not all(isinstance(part, str) for part in parts):
        raise BadValue("wrong type", f"{thinking_key}: is {quoted(said)}, not a text or a list of texts")
    thinking = "\n".join(parts).strip()
    if not thinking:
        raise BadValue("no thinking", f"{thinking_key}: is blank")
    messages, answer = prompt_turns(values, "question", target), text(values, attempt_key).strip()
    reward = target.reward or _MATH
    return Trace(messages=messages, thinking=thinking, answer=answer, reward=reward, **target.shared)


def _prompt_trace(values: Values, target: Target) -> Row:
    messages = prompt_turns(values, one_of(values, QUESTIONS), target)
    thinking, answer = text(values, "thinking"), text(values, "answer")
    gold, reward = values.get("gold"), target.reward or _MATH
    return Trace(messages=messages, thinking=thinking, answer=answer, gold=gold, reward=reward, **target.shared)


def _limo(values: Values, target: Target) -> Row:
    messages = prompt_turns(values, "question", target)
    if target.kind == "problem":
        return _problem(messages, _gold(values), target)
    return conversation([*messages, reply(text(values, "solution"), "solution", target.seen)], target)


def _prompt_gold(values: Values, target: Target) -> Row:
    return _problem(prompt_turns(values, one_of(values, QUESTIONS), target), _gold(values), target)


def _gold(values: Values) -> Any:
    """The gold, or what the solution boxes if there is no key for one; a null or blank gold is a bad one."""
    there = [key for key in _GOLDS if key in values]
    key = next((key for key in there if values[key] is not None), there[0] if there else None)
    if key is None:
        boxes = find_last_boxes(text(values, "solution"))
        if isinstance(boxes, str):
            raise BadValue("no gold", f"solution: {boxes}, and there is no other gold")
        return ", ".join(box.content for box in boxes)
    gold = values[key]
    if gold is None or (isinstance(gold, str) and not gold.strip()):
        raise BadValue("no gold", f"{key}: is {'null' if gold is None else 'blank'}; a problem needs a gold")
    return gold


def _svamp(values: Values, target: Target) -> Row:
    """Body and question with a space between, as both chain-of-thought papers' code joins them."""
    question = f"{text(values, 'Body').strip()} {text(values, 'Question').strip()}"
    return _problem(turns(question, "Question", target.seen), wanted(values, "Answer"), target)


def _text(values: Values, target: Target) -> Row:
    if target.meta:
        raise BadValue("no meta", "keep_columns: text rows have no meta to keep them in; leave it out")
    language = optional_text(values, "language") or None
    return Text(id=target.id, text=text(values, "text"), language=language, source=target.source)


def _is_gsm8k(values: Values) -> bool:
    answer = values.get("answer")
    return has(values, "question") and isinstance(answer, str) and GSM8K_MARK in answer and not has(values, "solution")


def _is_limo(values: Values) -> bool:
    return has(values, "question", "solution", "answer")


def _is_prompt_gold(values: Values) -> bool:
    has_prompt = any(has(values, key) for key in QUESTIONS[:3])
    others = ("chosen", "completion", "instruction", "thinking", "test", "test_list", "attempt", "deepseek_attempt")
    if any(has(values, key) for key in (*others, "gemini_attempt")) or _is_gsm8k(values):
        return False
    if _is_limo(values) and not has(values, "problem"):
        return False
    is_number = isinstance(values.get("target"), int | float)
    return (has_prompt and any(has(values, key) for key in ("gold", "answer", "solution"))) or (
        is_number and (has_prompt or "input" in values)
    )


def _s1k_format(name: str, thinking_key: str, attempt_key: str) -> RowFormat:
    return RowFormat(
        name,
        f"question, {thinking_key}, {attempt_key}",
        ("question", thinking_key, attempt_key, "system"),
        ("trace",),
        lambda values: has(values, "question", thinking_key, attempt_key),
        partial(_s1k, thinking_key, attempt_key),
    )


PROBLEM_FORMATS = (
    RowFormat(
        "gsm8k",
        f"question, answer with a gold after {GSM8K_MARK}",
        ("question", "answer", "system"),
        ("problem", "chat", "trace"),
        _is_gsm8k,
        _gsm8k,
    ),
    _s1k_format("s1k", "thinking_trajectories", "attempt"),
    _s1k_format("s1k_deepseek", "deepseek_thinking_trajectory", "deepseek_attempt"),
    _s1k_format("s1k_gemini", "gemini_thinking_trajectory", "gemini_attempt"),
    RowFormat(
        "prompt_trace",
        "prompt, question or problem; thinking, answer",
        (*QUESTIONS, "thinking", "answer", "gold", "system"),
        ("trace",),
        lambda values: any(has(values, key) for key in QUESTIONS[:3]) and has(values, "thinking", "answer"),
        _prompt_trace,
    ),
    RowFormat(
        "limo",
        "question, solution, answer; the solution is the reply, as a problem the answer is the gold",
        ("question", "solution", "answer", "system"),
        ("chat", "problem", "trace"),
        _is_limo,
        _limo,
    ),
    RowFormat(
        "prompt_gold",
        "prompt, question, problem or input; gold, answer or target, else what the solution boxes",
        (*QUESTIONS, *_GOLDS, "solution", "system"),
        ("problem",),
        _is_prompt_gold,
        _prompt_gold,
    ),
    RowFormat(
        "svamp",
        "Body, Question, Answer",
        ("Body", "Question", "Answer"),
        ("problem",),
        lambda values: has(values, "Body", "Question", "Answer"),
        _svamp,
    ),
    RowFormat(
        "text",
        "text; language",
        ("text", "language"),
        ("text",),
        lambda values: isinstance(values.get("text"), str) and not any(has(values, key) for key in _NO_RAW_TEXT),
        _text,
    ),
)
