"""Tests of the values that calls of the candidate's code returned.

They are made where a gold is planned and evaluated in a cell of their own, which they reach as bytes.
"""

import ast
from collections.abc import Callable, Sequence, Set
from functools import partial
from typing import Any, NamedTuple

from qwen_align.reward.code.compare_outputs import equals_expected
from qwen_align.reward.code.expression_evaluator import Evaluator, StepBudget


class NoValueError(Exception):
    """Raised when a check needs the value of a call that returned none. The message is the reason."""


class CallOutcome(NamedTuple):
    """The outcome of a call of the candidate's code, which is a value or the reason why there is none."""

    value: Any
    missing: str | None = None

    def require_value(self) -> Any:
        """Returns the value of a call. Raises NoValueError if the call gave none."""
        if self.missing is not None:
            raise NoValueError(self.missing)
        return self.value


class OutcomeTest(NamedTuple):
    """A test of the values that the candidate's calls return, which needs the first `n_outcomes` of them."""

    n_outcomes: int
    passes: Callable[[Sequence[CallOutcome], StepBudget], bool]


class PendingCall(NamedTuple):
    """A placeholder for the value of a call that the candidate's code has not answered yet."""

    number: int


class Check(NamedTuple):
    """An expression that must be true of the values which the candidate's code returned.

    `calls` gives the number of each call in the expression.
    """

    expression: ast.expr
    names: dict[str, Any]
    calls: list[tuple[ast.Call, int]]
    functions: Set[str]


def pack_tests(tests: Sequence[OutcomeTest]) -> bytes | None:
    """Packs tests into bytes for the cell that evaluates them. Returns None if one holds what cannot be packed."""
    import pickle

    try:
        return pickle.dumps(tests)
    except (TypeError, ValueError, AttributeError, RecursionError, pickle.PicklingError):
        return None


def unpack_tests(packed: bytes) -> list[OutcomeTest]:
    """Unpacks the tests that this process's owner packed."""
    import pickle

    return list(pickle.loads(packed))


def are_checks_true(checks: list[Check], outcomes: Sequence[CallOutcome], budget: StepBudget) -> bool:
    """Returns whether all checks are true of the calls' outcomes.

    Raises NoValueError if a call gave no value, UnsupportedError for what cannot be evaluated within the budget, and
    whatever Python raises for an operation on the values.
    """
    return all(_is_check_true(check, outcomes, budget) for check in checks)


def is_output_expected(
    index: int, expected: Any, is_wrapped: bool, outcomes: Sequence[CallOutcome], budget: StepBudget
) -> bool:
    """Returns whether a call returned the expected output, which may be wrapped in a list of one."""
    value = outcomes[index].require_value()
    return equals_expected(value, expected) or (is_wrapped and equals_expected(value, expected[0]))


def expects_json(test: OutcomeTest) -> bool:
    """Returns whether a test compares with an output that was stored as JSON."""
    return isinstance(test.passes, partial) and test.passes.func is is_output_expected


def examines_value(check: Check) -> bool:
    """Returns whether a check examines a returned value, and not only whether a call raises."""
    return not isinstance(check.expression, ast.Constant)


def count_needed_outcomes(checks: list[Check]) -> int:
    """Counts how many calls, in order, must have an outcome before the checks can be evaluated."""
    numbers = [
        name_value.number
        for check in checks
        for name_value in check.names.values()
        if isinstance(name_value, PendingCall)
    ]
    return max([*numbers, *(number for check in checks for _, number in check.calls)], default=-1) + 1


def make_no_exception_check(number: int) -> Check:
    """Makes the check that a call of the given number does not raise."""
    return Check(ast.Constant(True), {"_": PendingCall(number)}, [], frozenset())


def _is_check_true(check: Check, outcomes: Sequence[CallOutcome], budget: StepBudget) -> bool:
    """Returns whether a check's expression is true for the values that the calls returned."""
    names = {
        name: outcomes[value.number].require_value() if isinstance(value, PendingCall) else value
        for name, value in check.names.items()
    }
    numbers = {id(node): number for node, number in check.calls}
    evaluator = Evaluator(names, check.functions, lambda node: outcomes[numbers[id(node)]].require_value(), budget)
    return bool(evaluator.evaluate(check.expression))
