"""A small part of Python's expressions, evaluated here: no attribute of a class, no call of anything unlisted.

The expressions are a data set's, the values in them a candidate's: each step is bounded in time and memory for the
largest values that cross (see `value_serialization`), because it holds the interpreter's lock.
"""

import ast
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

from qwen_align.reward.code.expression_operations import (
    BINARY,
    COMPARISONS,
    CONSTANTS,
    FUNCTIONS,
    KEYS,
    KEYWORDS,
    MATH,
    METHODS,
    PASSED,
    UNARY,
    WITH_METHODS,
    bounded,
    join,
)
from qwen_align.reward.code.value_serialization import build_dict, build_set


class UnsupportedError(Exception):
    """The expression is none of those evaluated here."""


class Evaluator:
    """Values of expressions over `names`; `calls` gives the value of a call of one of the candidate's `functions`."""

    def __init__(self, names: Mapping[str, Any], functions: Set[str], calls: Callable[[ast.Call], Any]) -> None:
        self.names = names
        self.functions = functions
        self.calls = calls

    def value(self, node: ast.AST) -> Any:
        """The value; raises UnsupportedError for other expressions and whatever Python raises for the operation."""
        evaluate = _NODES.get(type(node))
        if evaluate is None:
            raise UnsupportedError(type(node).__name__)
        return evaluate(self, node)

    def values(self, nodes: list[ast.expr]) -> list[Any]:
        """Their values; starred ones are spread."""
        found = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                found.extend(bounded(self.value(node.value)))
            else:
                found.append(self.value(node))
        return found

    def name(self, node: ast.Name) -> Any:
        """The value of a name; a listed built-in function may be passed where a function is."""
        if node.id in self.names:
            return self.names[node.id]
        if node.id in PASSED:
            return PASSED[node.id]
        raise UnsupportedError(node.id)

    def call(self, node: ast.Call) -> Any:
        """The value of a call of a listed function or method, or of the candidate's."""
        function = self._function(node.func)
        if function is None:
            return self.calls(node)
        kwargs = {}
        for keyword in node.keywords:
            if keyword.arg not in KEYWORDS:
                raise UnsupportedError(str(keyword.arg))
            kwargs[keyword.arg] = self.value(keyword.value)
        if kwargs.get("key", len) not in KEYS:
            raise UnsupportedError("key")
        args = [bounded(one) if isinstance(one, range) else one for one in self.values(node.args)]
        return function(*args, **kwargs)

    def _function(self, node: ast.expr) -> Callable[..., Any] | None:
        if isinstance(node, ast.Name):
            if node.id in self.functions:
                return None
            return FUNCTIONS[node.id] if node.id in FUNCTIONS else _unsupported(node.id)
        if not isinstance(node, ast.Attribute):
            raise UnsupportedError(type(node).__name__)
        if isinstance(node.value, ast.Name) and node.value.id == "math" and "math" not in self.names:
            return MATH[node.attr] if node.attr in MATH else _unsupported(node.attr)
        on = self.value(node.value)
        if node.attr not in METHODS or type(on) not in WITH_METHODS:
            raise AttributeError(node.attr)
        if node.attr == "join":
            return lambda parts: join(on, parts)
        method: Callable[..., Any] = getattr(on, node.attr)
        return method

    def compare(self, node: ast.Compare) -> Any:
        """The value of a chain of comparisons."""
        left = self.value(node.left)
        held: Any = True
        for symbol, right_node in zip(node.ops, node.comparators, strict=True):
            right = self.value(right_node)
            held = COMPARISONS[type(symbol)](left, right)
            if not held:
                break
            left = right
        return held

    def logic(self, node: ast.BoolOp) -> Any:
        """The value of `and` or `or`, of whose operands only the first that decides is evaluated last."""
        value: Any = None
        for one in node.values:
            value = self.value(one)
            if bool(value) is isinstance(node.op, ast.Or):
                break
        return value

    def comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp) -> Any:
        """The values of a comprehension, as a list also for a generator."""
        found = list(self._looped(node.generators, node.elt))
        return build_set(found) if isinstance(node, ast.SetComp) else found

    def _looped(self, loops: list[ast.comprehension], element: ast.expr) -> Iterator[Any]:
        loop, *inner = loops
        for item in bounded(self.value(loop.iter)):
            names = {**self.names, **bound(loop.target, item)}
            here = Evaluator(names, self.functions, self.calls)
            if all(here.value(condition) for condition in loop.ifs):
                if inner:
                    yield from here._looped(inner, element)
                else:
                    yield here.value(element)


def bound(target: ast.expr, value: Any) -> dict[str, Any]:
    """The names that an assignment of the value to the target binds."""
    if isinstance(target, ast.Name):
        return {target.id: value}
    if isinstance(target, ast.Tuple | ast.List) and isinstance(value, tuple | list):
        if len(target.elts) != len(value):
            raise ValueError("cannot unpack")
        return {
            name: one for part, each in zip(target.elts, value, strict=True) for name, one in bound(part, each).items()
        }
    raise UnsupportedError(type(target).__name__)


def _unsupported(name: str) -> Any:
    raise UnsupportedError(name)


def _attribute(evaluator: Evaluator, node: ast.Attribute) -> Any:
    if isinstance(node.value, ast.Name) and node.value.id == "math" and node.attr in CONSTANTS:
        return CONSTANTS[node.attr]
    raise UnsupportedError(node.attr)


def _binary(evaluator: Evaluator, node: ast.BinOp) -> Any:
    operate = BINARY.get(type(node.op))
    if operate is None:
        raise UnsupportedError(type(node.op).__name__)
    return operate(evaluator.value(node.left), evaluator.value(node.right))


def _mapping(evaluator: Evaluator, node: ast.Dict) -> Any:
    if None in node.keys:
        raise UnsupportedError("**")
    keys = [evaluator.value(key) for key in node.keys if key is not None]
    return build_dict(zip(keys, evaluator.values(node.values), strict=True))


def _slice(evaluator: Evaluator, node: ast.Slice) -> slice:
    parts = (node.lower, node.upper, node.step)
    return slice(*(None if part is None else evaluator.value(part) for part in parts))


_NODES: dict[type[ast.AST], Callable[[Evaluator, Any], Any]] = {
    ast.Constant: lambda evaluator, node: node.value,
    ast.Name: Evaluator.name,
    ast.Call: Evaluator.call,
    ast.Compare: Evaluator.compare,
    ast.BoolOp: Evaluator.logic,
    ast.BinOp: _binary,
    ast.UnaryOp: lambda evaluator, node: UNARY[type(node.op)](evaluator.value(node.operand)),
    ast.List: lambda evaluator, node: evaluator.values(node.elts),
    ast.Tuple: lambda evaluator, node: tuple(evaluator.values(node.elts)),
    ast.Set: lambda evaluator, node: build_set(evaluator.values(node.elts)),
    ast.Dict: _mapping,
    ast.IfExp: lambda evaluator, node: evaluator.value(node.body if evaluator.value(node.test) else node.orelse),
    ast.Subscript: lambda evaluator, node: evaluator.value(node.value)[evaluator.value(node.slice)],
    ast.Slice: _slice,
    ast.ListComp: Evaluator.comprehension,
    ast.SetComp: Evaluator.comprehension,
    ast.GeneratorExp: Evaluator.comprehension,
    ast.Attribute: _attribute,
}


def supported(node: ast.AST, names: Set[str]) -> bool:
    """Whether the expression is one that is evaluated here, so far as its form tells; `names` are known."""
    if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp):
        targets = {one.id for loop in node.generators for one in ast.walk(loop.target) if isinstance(one, ast.Name)}
        names = names | targets
    if isinstance(node, ast.Name):
        return node.id in names or node.id in PASSED or isinstance(node.ctx, ast.Store)
    if isinstance(node, ast.Call):
        return _supported_function(node.func, names) and all(
            supported(one, names) for one in (*node.args, *(keyword.value for keyword in node.keywords))
        )
    if isinstance(node, ast.expr) and type(node) not in _NODES and not isinstance(node, ast.Starred):
        return False
    if (isinstance(node, ast.BinOp) and type(node.op) not in BINARY) or (
        isinstance(node, ast.Dict) and None in node.keys
    ):
        return False
    if isinstance(node, ast.Attribute):
        return isinstance(node.value, ast.Name) and node.value.id == "math" and node.attr in CONSTANTS
    return all(supported(one, names) for one in ast.iter_child_nodes(node))


def _supported_function(node: ast.expr, names: Set[str]) -> bool:
    if isinstance(node, ast.Name):
        return node.id in names or node.id in FUNCTIONS
    if not isinstance(node, ast.Attribute):
        return False
    if isinstance(node.value, ast.Name) and node.value.id == "math":
        return node.attr in MATH
    return node.attr in METHODS and supported(node.value, names)
