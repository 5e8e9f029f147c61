"""Assertions taken apart: calls of the candidate with plain arguments, and what is asserted of the values they give.

`assert abs(f(1.5) - 0.5) < 1e-6` becomes the call `f(1.5)`, all that its cell ever sees, and the check
`abs(value - 0.5) < 1e-6`, which is evaluated here. Test code that is more than assertions is left alone.
"""

import ast
from collections.abc import Sequence, Set
from typing import Any, NamedTuple

from qwen_align.reward.code.evaluate import Evaluator, UnsupportedError, bound, supported
from qwen_align.reward.code.operations import FUNCTIONS
from qwen_align.reward.code.values import NotPlainError, encode

_MAX_CALLS = 2_000  # of one gold; the longest list of tests in MBPP and HumanEval has 100
_RAISED = (ArithmeticError, AttributeError, LookupError, StopIteration, TypeError, ValueError, RecursionError)
_MUTABLE = (list, dict, set, bytearray)

Call = tuple[str, Any, Any]


class NoValueError(Exception):
    """A call gave no value."""


class Outcome(NamedTuple):
    """What came back of a call: a value, or the countable reason why there is none."""

    value: Any
    missing: str | None = None

    def get(self) -> Any:
        """The value; raises NoValueError."""
        if self.missing is not None:
            raise NoValueError(self.missing)
        return self.value


class _Pending(NamedTuple):
    number: int


class Check(NamedTuple):
    """An expression that has to be true; `slots` gives the number of each call in it, by the node's id."""

    said: ast.expr
    names: dict[str, Any]
    slots: dict[int, int]
    functions: Set[str]


def planned_asserts(
    trees: Sequence[ast.Module], functions: set[str], before: Sequence[ast.Module], check: ast.FunctionDef | None = None
) -> tuple[list[Call], list[list[Check]]] | None:
    """The calls of `functions` in the trees, and the checks of each tree, or of each assertion of the function `check`.

    None for test code that cannot be taken apart so.
    """
    names = functions if check is None else functions | {check.args.args[0].arg}
    planner = _Planner(names, "" if check is None else next(iter(functions)))
    try:
        for tree in before:
            planner.run(tree.body)
        if check is None:
            tests = [planner.run(tree.body) for tree in trees]
        else:
            planner.run([one for tree in trees for one in tree.body if one is not check])
            tests = [[one] for one in planner.run(check.body)]
    except (UnsupportedError, NotPlainError, NoValueError, *_RAISED):
        return None
    return (planner.calls, tests) if planner.calls and len(planner.calls) <= _MAX_CALLS else None


def holds(checks: list[Check], outcomes: Sequence[Outcome]) -> bool:
    """Whether all checks are true of the outcomes; raises NoValueError, UnsupportedError.

    What Python raises for an operation on the values fails the check, as it fails the assertion.
    """
    try:
        return all(_is_true(check, outcomes) for check in checks)
    except (NotPlainError, *_RAISED):
        return False


def asserts_something(check: Check) -> bool:
    """Whether the check is more than that a call does not raise."""
    return not isinstance(check.said, ast.Constant)


def needed(checks: list[Check]) -> int:
    """How many outcomes the checks need."""
    pending = [value.number for check in checks for value in check.names.values() if isinstance(value, _Pending)]
    return max([*pending, *(number for check in checks for number in check.slots.values())], default=-1) + 1


def _is_true(check: Check, outcomes: Sequence[Outcome]) -> bool:
    names = {
        name: outcomes[value.number].get() if isinstance(value, _Pending) else value
        for name, value in check.names.items()
    }
    return bool(Evaluator(names, check.functions, lambda node: outcomes[check.slots[id(node)]].get()).value(check.said))


class _Planner:
    def __init__(self, functions: set[str], require_row_type: str) -> None:
        self.functions = functions
        self.require_row_type = require_row_type
        self.calls: list[Call] = []
        self.names: dict[str, Any] = {}
        self.lent: list[Any] = []

    def run(self, body: Sequence[ast.stmt]) -> list[Check]:
        """The checks of the statements, in the order in which they would run."""
        return [check for statement in body for check in self.statement(statement)]

    def statement(self, node: ast.stmt) -> list[Check]:
        match node:
            case ast.Assert():
                return self.asserted(node.test)
            case ast.Expr(value=ast.Constant() | ast.Name()) | ast.Pass():
                return []
            case ast.Expr(value=ast.Call(func=ast.Name(id=name)) as call) if name in self.functions:
                return [_returns(self.call(call))]
            case ast.Assign(targets=[target], value=value):
                return self.assign(target, value)
            case ast.For(target=target, iter=over, body=body, orelse=[]):
                return [one for item in self.items(over) for one in self.turn(target, item, body)]
            case ast.If(test=test, body=body, orelse=other):
                return self.run(body if self.evaluate(test) else other)
            case ast.Import(names=[ast.alias(name="math" | "typing", asname=None)]):
                return []
        raise UnsupportedError(type(node).__name__)

    def asserted(self, said: ast.expr) -> list[Check]:
        slots = self.slots(said)
        used = {one.id for one in self.outside_calls(said) if isinstance(one, ast.Name)}
        names = {name: self.load(name) for name in used if name in self.names}
        if not slots and not any(isinstance(value, _Pending) for value in names.values()):
            if not self.evaluate(said):
                raise UnsupportedError("false")
            return []
        if not supported(said, self.names.keys() | self.functions):
            raise UnsupportedError("form")
        return [Check(self.with_expected(said), names, slots, self.functions)]

    def with_expected(self, said: ast.expr) -> ast.expr:
        """The comparison with its right side already evaluated, where no call is needed for that."""
        if isinstance(said, ast.Compare) and len(said.ops) == 1 and not self.slots(said.comparators[0], dry=True):
            try:
                expected = self.evaluate(said.comparators[0])
            except UnsupportedError:
                return said
            encode(expected)
            if not hasattr(expected, "__next__"):
                return ast.Compare(said.left, said.ops, [ast.Constant(expected)])
        return said

    def slots(self, said: ast.expr, *, dry: bool = False) -> dict[int, int]:
        found: dict[int, int] = {}
        for node in _outside_loops(said):
            if isinstance(node, ast.Call) and self.is_call(node):
                found[id(node)] = 0 if dry else self.call(node)
        if len(found) < sum(map(self.is_call, ast.walk(said))):
            raise UnsupportedError("call in a loop")
        return found

    def outside_calls(self, node: ast.AST) -> list[ast.AST]:
        if self.is_call(node):
            return []
        return [node, *(found for one in ast.iter_child_nodes(node) for found in self.outside_calls(one))]

    def is_call(self, node: ast.AST) -> bool:
        return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in self.functions

    def call(self, node: ast.Call) -> int:
        assert isinstance(node.func, ast.Name)
        plain = self.evaluator()
        args = tuple(plain.values(node.args))
        if any(keyword.arg is None for keyword in node.keywords):
            raise UnsupportedError("**")
        kwargs = {str(keyword.arg): plain.value(keyword.value) for keyword in node.keywords}
        called = (self.require_row_type or node.func.id, encode(args), encode(kwargs))
        for name in (
            one.id for part in (*node.args, *node.keywords) for one in ast.walk(part) if isinstance(one, ast.Name)
        ):
            self.lend(name)
        self.calls.append(called)
        return len(self.calls) - 1

    def lend(self, name: str) -> None:
        """A candidate may change what it is given, so a test that looks at it afterwards needs the real thing."""
        if name in self.names:
            self.lent += _mutables(self.names[name])

    def load(self, name: str) -> Any:
        value = self.names[name]
        if self.lent and any(one is other for one in _mutables(value) for other in self.lent):
            raise UnsupportedError("changed by the candidate")
        return value

    def evaluator(self) -> Evaluator:
        known = {name: value for name, value in self.names.items() if not isinstance(value, _Pending)}
        return Evaluator(known, self.functions, _no_call)

    def evaluate(self, node: ast.expr) -> Any:
        for one in ast.walk(node):
            if isinstance(one, ast.Name) and one.id in self.names:
                self.load(one.id)
        return self.evaluator().value(node)

    def items(self, over: ast.expr) -> Sequence[Any]:
        return [*self.evaluate(over)]

    def turn(self, target: ast.expr, item: Any, body: Sequence[ast.stmt]) -> list[Check]:
        self.names = {**self.names, **bound(target, item)}
        return self.run(body)

    def assign(self, target: ast.expr, value: ast.expr) -> list[Check]:
        checks = []
        if isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in self.functions:
            if not isinstance(target, ast.Name):
                raise UnsupportedError("unpacking")
            new: Any = {target.id: _Pending(self.call(value))}
            checks = [_returns(new[target.id].number)]
        else:
            found = self.evaluate(value)
            if hasattr(found, "__next__"):
                raise UnsupportedError("iterator")
            new = bound(target, found)
        if new.keys() & (self.functions | FUNCTIONS.keys()):
            raise UnsupportedError("hides a function")
        self.names = {**self.names, **new}
        return checks


def _returns(number: int) -> Check:
    """The check that a call does not raise."""
    return Check(ast.Constant(True), {"_": _Pending(number)}, {}, set())


def _no_call(node: ast.Call) -> Any:
    raise UnsupportedError("call")


def _outside_loops(said: ast.AST) -> list[ast.AST]:
    """The nodes of an expression in the order of evaluation; none in a loop may be a call with a value of its own."""
    found = [said]
    for one in ast.iter_child_nodes(said):
        if not isinstance(said, ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp | ast.Lambda):
            found += _outside_loops(one)
    return found


def _mutables(value: Any) -> list[Any]:
    found = [value] if isinstance(value, _MUTABLE) else []
    if isinstance(value, dict):
        value = [*value.keys(), *value.values()]
    if isinstance(value, list | tuple):
        found += [other for one in value for other in _mutables(one)]
    return found
