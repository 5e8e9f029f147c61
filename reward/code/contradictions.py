"""Recognizes golds that no program can pass, because they expect two results of the same call."""

import ast
from collections.abc import Sequence
from typing import Any

from qwen_align.reward.code.outcome_checks import Check
from qwen_align.reward.code.value_serialization import NotPlainError, encode_value, write_json


def contradict_outputs(inputs: Sequence[Any], outputs: Sequence[Any]) -> bool:
    """Returns whether the same input has two outputs. Raises NotPlainError for an input that cannot be sent."""
    expected: dict[bytes, Any] = {}
    keys = [write_json(encode_value(item)) for item in inputs]
    return any(expected.setdefault(key, output) != output for key, output in zip(keys, outputs, strict=True))


def contradict_assertions(calls: Sequence[tuple[str, Any, Any]], tests: Sequence[Sequence[Check]]) -> bool:
    """Returns whether assertions such as `assert f(1) == 2` expect two values of the same call.

    A call without arguments may count how often it was made, and has any values.
    """
    expected: dict[bytes, Any] = {}
    for number, value in _list_expected_values(tests):
        name, args, kwargs = calls[number]
        key = write_json([name, args, kwargs])
        has_arguments = args != encode_value(()) or kwargs != encode_value({})
        if has_arguments and expected.setdefault(key, value) != value:
            return True
    return False


def _list_expected_values(tests: Sequence[Sequence[Check]]) -> list[tuple[int, Any]]:
    """Returns the number of each call that a test compares with a literal, and the literal's value."""
    found = []
    for check in (check for test in tests for check in test):
        expression = check.expression
        if not isinstance(expression, ast.Compare) or len(expression.ops) != 1 or len(check.calls) != 1:
            continue
        call, number = check.calls[0]
        if expression.left is call and isinstance(expression.ops[0], ast.Eq):
            try:
                value = ast.literal_eval(expression.comparators[0])
                encode_value(value)
            except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, NotPlainError):
                continue
            found.append((number, value))
    return found
