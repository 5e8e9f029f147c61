"""Splits test assertions into calls of the candidate's code and checks of the values that the calls return.

`assert abs(f(1.5) - 0.5) < 1e-6` becomes the call `f(1.5)`, which is all that the candidate's cell ever sees, and the
check `abs(value - 0.5) < 1e-6`, which is evaluated outside the cell. Test code that is more than assertions is left
alone.
"""

import ast
from collections.abc import Sequence
from typing import Any

from qwen_align.reward.code.expression_evaluator import (
    DeepStepBudget,
    Evaluator,
    UnsupportedError,
    bind_names,
    is_supported,
)
from qwen_align.reward.code.expression_operations import FUNCTIONS
from qwen_align.reward.code.outcome_checks import Check, NoValueError, PendingCall, make_no_exception_check
from qwen_align.reward.code.value_serialization import NotPlainError, encode_value

_MAX_CALLS = 2_000  # of one gold; the longest list of tests in MBPP and HumanEval has 100
_MAX_STEPS = 1_000_000  # to plan one gold, about 1 s: those of MBPP and HumanEval take at most 1,651
_RAISED = (ArithmeticError, AttributeError, LookupError, StopIteration, TypeError, ValueError, RecursionError)
_MUTABLE = (list, dict, set, bytearray)

Call = tuple[str, Any, Any]


def split_assertions(
    trees: Sequence[ast.Module], functions: set[str], before: Sequence[ast.Module], check: ast.FunctionDef | None = None
) -> tuple[list[Call], list[list[Check]]] | None:
    """Splits test code into calls of the candidate's functions and checks of the values they return.

    Returns the calls of `functions` in the trees, and the checks of each tree, or of each assertion of the function
    `check`. None for test code that cannot be split so. Trees `before` only define what the tests use.
    """
    names = functions if check is None else functions | {check.args.args[0].arg}
    splitter = _AssertionSplitter(names, "" if check is None else next(iter(functions)))
    try:
        for tree in before:
            splitter.split_statements(tree.body)
        if check is None:
            tests = [splitter.split_statements(tree.body) for tree in trees]
        else:
            splitter.split_statements([node for tree in trees for node in tree.body if node is not check])
            tests = [[node] for node in splitter.split_statements(check.body)]
    except (UnsupportedError, NotPlainError, NoValueError, *_RAISED):
        return None
    return (splitter.calls, tests) if splitter.calls else None


class _AssertionSplitter:
    """A walker over test code that collects the calls of the candidate's functions and the checks of their values.

    `entry` is the name every call is made by; empty where each call is made by its own name.
    """

    def __init__(self, functions: set[str], entry: str) -> None:
        self.functions = functions
        self.entry = entry
        self.calls: list[Call] = []
        self.names: dict[str, Any] = {}
        self.passed_mutables: dict[int, Any] = {}
        """The mutable values that the candidate's code was given, by their `id`."""
        self.budget = DeepStepBudget(_MAX_STEPS)

    def split_statements(self, body: Sequence[ast.stmt]) -> list[Check]:
        """Splits test statements and returns their checks in the order in which they would run."""
        return [check for statement in body for check in self.split_statement(statement)]

    def split_statement(self, node: ast.stmt) -> list[Check]:
        """Splits one test statement and returns its checks.

        Raises UnsupportedError for a kind of statement that cannot be split, and for too many.
        """
        self.budget.spend(1)
        match node:
            case ast.Assert():
                return self.split_assertion(node.test)
            case ast.Expr(value=ast.Constant() | ast.Name()) | ast.Pass():
                return []
            case ast.Expr(value=ast.Call(func=ast.Name(id=name)) as call) if name in self.functions:
                return [make_no_exception_check(self.record_call(call))]
            case ast.Assign(targets=[target], value=value):
                return self.split_assignment(target, value)
            case ast.For(target=target, iter=over, body=body, orelse=[]):
                return [
                    check for item in self.list_loop_items(over) for check in self.split_loop_turn(target, item, body)
                ]
            case ast.If(test=test, body=body, orelse=other):
                return self.split_statements(body if self.evaluate_expression(test) else other)
            case ast.Import(names=[ast.alias(name="math" | "typing", asname=None)]):
                return []
        raise UnsupportedError(type(node).__name__)

    def split_assertion(self, expression: ast.expr) -> list[Check]:
        """Splits one asserted expression and returns its check, or none if it holds without a call.

        Raises UnsupportedError.
        """
        call_numbers = self.assign_call_numbers(expression)
        used_names = {node.id for node in self.list_nodes_outside_calls(expression) if isinstance(node, ast.Name)}
        names = {name: self.load_name(name) for name in used_names if name in self.names}
        if not call_numbers and not any(isinstance(value, PendingCall) for value in names.values()):
            if not self.evaluate_expression(expression):
                raise UnsupportedError("false")
            return []
        if not is_supported(expression, self.names.keys() | self.functions):
            raise UnsupportedError("form")
        calls = [
            (node, call_numbers[id(node)])
            for node in _list_nodes_in_order(expression)
            if isinstance(node, ast.Call) and id(node) in call_numbers
        ]
        return [Check(self.evaluate_expected_side(expression), names, calls, frozenset(self.functions))]

    def evaluate_expected_side(self, expression: ast.expr) -> ast.expr:
        """Evaluates the right side of a comparison in advance if it needs no call, and returns the comparison."""
        if (
            isinstance(expression, ast.Compare)
            and len(expression.ops) == 1
            and not self.assign_call_numbers(expression.comparators[0], dry=True)
        ):
            try:
                expected = self.evaluate_expression(expression.comparators[0])
            except UnsupportedError:
                return expression
            encode_value(expected)
            if not hasattr(expected, "__next__"):
                return ast.Compare(expression.left, expression.ops, [ast.Constant(expected)])
        return expression

    def assign_call_numbers(self, expression: ast.expr, *, dry: bool = False) -> dict[int, int]:
        """Assigns a number to each call of the candidate's code in an expression. Returns the numbers by the node's id.

        With `dry`, the calls are only found and not recorded. Raises UnsupportedError for a call within a loop.
        """
        call_numbers: dict[int, int] = {}
        for node in _list_nodes_in_order(expression):
            if isinstance(node, ast.Call) and self.is_candidate_call(node):
                call_numbers[id(node)] = 0 if dry else self.record_call(node)
        if len(call_numbers) < sum(map(self.is_candidate_call, ast.walk(expression))):
            raise UnsupportedError("call in a loop")
        return call_numbers

    def list_nodes_outside_calls(self, node: ast.AST) -> list[ast.AST]:
        """Lists the nodes of an expression except those inside calls of the candidate's code."""
        if self.is_candidate_call(node):
            return []
        return [
            node,
            *(inner for child in ast.iter_child_nodes(node) for inner in self.list_nodes_outside_calls(child)),
        ]

    def is_candidate_call(self, node: ast.AST) -> bool:
        """Returns whether a syntax-tree node is a call of one of the candidate's functions."""
        return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in self.functions

    def record_call(self, node: ast.Call) -> int:
        """Records a call with its evaluated arguments and returns its number.

        Raises UnsupportedError or NotPlainError if its arguments cannot be sent.
        """
        assert isinstance(node.func, ast.Name)
        evaluator = self.make_evaluator()
        args = tuple(evaluator.evaluate_all(node.args))
        if any(keyword.arg is None for keyword in node.keywords):
            raise UnsupportedError("**")
        kwargs = {str(keyword.arg): evaluator.evaluate(keyword.value) for keyword in node.keywords}
        call = (self.entry or node.func.id, encode_value(args), encode_value(kwargs))
        for name in (
            name_node.id
            for part in (*node.args, *node.keywords)
            for name_node in ast.walk(part)
            if isinstance(name_node, ast.Name)
        ):
            self.mark_as_passed_to_candidate(name)
        self.calls.append(call)
        if len(self.calls) > _MAX_CALLS:
            raise UnsupportedError("too many calls")
        return len(self.calls) - 1

    def mark_as_passed_to_candidate(self, name: str) -> None:
        """Marks a variable as passed to the candidate's code, which may have changed its mutable value.

        A test that looks at the value afterwards needs the real thing: see `load_name`.
        """
        if name in self.names:
            self.passed_mutables |= {id(part): part for part in self.list_mutable_parts(self.names[name])}

    def load_name(self, name: str) -> Any:
        """Returns the value of a variable. Raises UnsupportedError if the candidate's code may have changed it."""
        value = self.names[name]
        if self.passed_mutables and any(id(part) in self.passed_mutables for part in self.list_mutable_parts(value)):
            raise UnsupportedError("changed by the candidate")
        return value

    def make_evaluator(self) -> Evaluator:
        """Makes an expression evaluator that knows the variables whose values do not depend on the candidate's code."""
        known = {name: value for name, value in self.names.items() if not isinstance(value, PendingCall)}
        return Evaluator(known, self.functions, _reject_candidate_call, self.budget)

    def list_mutable_parts(self, value: Any) -> list[Any]:
        """Lists all mutable containers in a value: the value itself and those nested inside it."""
        parts = [value] if isinstance(value, _MUTABLE) else []
        if isinstance(value, dict):
            value = [*value.keys(), *value.values()]
        if isinstance(value, list | tuple):
            self.budget.spend(len(value))
            parts += [part for item in value for part in self.list_mutable_parts(item)]
        return parts

    def evaluate_expression(self, node: ast.expr) -> Any:
        """Evaluates an expression that calls no candidate function. Raises UnsupportedError if it does."""
        for name_node in ast.walk(node):
            if isinstance(name_node, ast.Name) and name_node.id in self.names:
                self.load_name(name_node.id)
        return self.make_evaluator().evaluate(node)

    def list_loop_items(self, over: ast.expr) -> Sequence[Any]:
        """Lists the items that a `for` loop iterates over."""
        evaluator = self.make_evaluator()
        return [*evaluator.check_iterable(self.evaluate_expression(over))]

    def split_loop_turn(self, target: ast.expr, item: Any, body: Sequence[ast.stmt]) -> list[Check]:
        """Splits the body of a `for` loop for one item and returns its checks."""
        self.names = {**self.names, **bind_names(target, item)}
        return self.split_statements(body)

    def split_assignment(self, target: ast.expr, value: ast.expr) -> list[Check]:
        """Splits an assignment and returns the check that a call on its right side does not raise."""
        checks = []
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in self.functions:
            if not isinstance(target, ast.Name):
                raise UnsupportedError("unpacking")
            new_names: Any = {target.id: PendingCall(self.record_call(value))}
            checks = [make_no_exception_check(new_names[target.id].number)]
        else:
            assigned = self.evaluate_expression(value)
            if hasattr(assigned, "__next__"):
                raise UnsupportedError("iterator")
            new_names = bind_names(target, assigned)
        if new_names.keys() & (self.functions | FUNCTIONS.keys()):
            raise UnsupportedError("hides a function")
        self.names = {**self.names, **new_names}
        return checks


def _reject_candidate_call(node: ast.Call) -> Any:
    """Raises UnsupportedError for a call of the candidate's code in an expression evaluated before the code runs."""
    raise UnsupportedError("call")


def _list_nodes_in_order(expression: ast.AST) -> list[ast.AST]:
    """Lists the nodes of an expression in the order of evaluation. Loops and lambdas are not entered."""
    nodes = [expression]
    for child in ast.iter_child_nodes(expression):
        if not isinstance(expression, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp | ast.Lambda):
            nodes += _list_nodes_in_order(child)
    return nodes
