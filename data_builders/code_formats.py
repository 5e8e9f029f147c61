"""Defines the source formats of the programming benchmarks HumanEval and MBPP, whose gold answers are tests."""

from typing import Any

from qwen_align.align.rows import Message, Problem, Row
from qwen_align.data_builders.bad_row_errors import BadValue, shorten_repr
from qwen_align.data_builders.format_definition import (
    RowFormat,
    Target,
    Values,
    has_values,
    read_optional_text,
    read_required,
    read_text,
)

_REWARD = "code_tests"


def _convert_humaneval(values: Values, target: Target) -> Row:
    """Converts a HumanEval row to a problem row. The prompt is the function's head with its docstring, unchanged."""
    gold = {key: read_text(values, key) for key in ("prompt", "test", "entry_point")}
    if has_values(values, "canonical_solution"):
        gold["canonical_solution"] = read_text(values, "canonical_solution")
    return _make_problem(gold["prompt"], gold, target)


def _convert_mbpp(values: Values, target: Target) -> Row:
    """Converts an MBPP row to a problem row whose prompt contains the tests.

    Without them nobody knows the function's name (arXiv:2108.07732, section 3).
    """
    tests = read_required(values, "test_list")
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) and test.strip() for test in tests):
        raise BadValue("wrong type", f"test_list: is {shorten_repr(tests)}, not a list of texts")
    gold: dict[str, Any] = {"tests": tests}
    for key, gold_key in (("test_setup_code", "test_setup_code"), ("code", "code")):
        if read_optional_text(values, key).strip():
            gold[gold_key] = values[key]
    if values.get("test_imports"):
        gold["imports"] = values["test_imports"]
    task = read_text(values, "text" if has_values(values, "text") else "prompt").strip()
    return _make_problem(f"{task} Your code should pass these tests:\n\n" + "\n".join(tests), gold, target)


def _make_problem(prompt: str, gold: dict[str, Any], target: Target) -> Row:
    """Makes a problem row of a programming task's prompt and its tests."""
    messages = [Message(role="user", content=prompt)]
    return Problem(messages=messages, gold=gold, reward=target.reward or _REWARD, **target.shared_fields)


CODE_FORMATS = (
    RowFormat(
        "humaneval",
        "prompt, test, entry_point; canonical_solution",
        ("prompt", "test", "entry_point", "canonical_solution"),
        ("problem",),
        lambda values: has_values(values, "prompt", "test", "entry_point"),
        _convert_humaneval,
    ),
    RowFormat(
        "mbpp",
        "text or prompt, test_list; code, test_setup_code, test_imports",
        ("text", "prompt", "test_list", "code", "test_setup_code", "test_imports"),
        ("problem",),
        lambda values: has_values(values, "test_list") and (has_values(values, "text") or has_values(values, "prompt")),
        _convert_mbpp,
    ),
)
