"""Evaluates a small part of Python's expressions: no attribute of a class, no call of anything unlisted.

The expressions are a data set's, the values in them a candidate's: each step is bounded in time and memory for the
largest values that cross (see `value_serialization`), because it holds the interpreter's lock.
"""

import ast
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

from qwen_align.reward.code.expression_operations import (
    BINARY,
    COMPARISONS,
    FUNCTIONS,
    KEY_FUNCTIONS,
    KEYWORDS,
    MATH_CONSTANTS,
    MATH_FUNCTIONS,
    METHODS,
    PASSABLE_FUNCTIONS,
    TYPES_WITH_METHODS,
    UNARY,
    check_length,
    join_texts,
)
from qwen_align.reward.code.value_serialization import build_dict, build_set


class UnsupportedError(Exception):
    """Raised for an expression that is not evaluated here."""


class Evaluator:
    """Evaluates expressions over `names`; `calls` gives the value of a call of one of the candidate's `functions`."""

    def __init__(self, names: Mapping[str, Any], functions: Set[str], calls: Callable[[ast.Call], Any]) -> None:
        self.names = names
        self.functions = functions
        self.calls = calls

    def evaluate(self, node: ast.AST) -> Any:
        """Returns the value of an expression.

        Raises UnsupportedError for other expressions, and whatever Python raises for the operation.
        """
        evaluate_node = _NODES.get(type(node))
        if evaluate_node is None:
            raise UnsupportedError(type(node).__name__)
        return evaluate_node(self, node)

    def evaluate_all(self, nodes: list[ast.expr]) -> list[Any]:
        """Returns the values of expressions; starred ones are spread."""
        values = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                values.extend(check_length(self.evaluate(node.value)))
            else:
                values.append(self.evaluate(node))
        return values

    def look_up_name(self, node: ast.Name) -> Any:
        """Returns the value of a name, or a listed built-in function where one may be passed."""
        if node.id in self.names:
            return self.names[node.id]
        if node.id in PASSABLE_FUNCTIONS:
            return PASSABLE_FUNCTIONS[node.id]
        raise UnsupportedError(node.id)

    def evaluate_call(self, node: ast.Call) -> Any:
        """Returns the value of a call of a listed function or method, or of the candidate's."""
        function = self._find_function(node.func)
        if function is None:
            return self.calls(node)
        kwargs = {}
        for keyword in node.keywords:
            if keyword.arg not in KEYWORDS:
                raise UnsupportedError(str(keyword.arg))
            kwargs[keyword.arg] = self.evaluate(keyword.value)
        if kwargs.get("key", len) not in KEY_FUNCTIONS:
            raise UnsupportedError("key")
        args = [
            check_length(argument) if isinstance(argument, range) else argument
            for argument in self.evaluate_all(node.args)
        ]
        return function(*args, **kwargs)

    def _find_function(self, node: ast.expr) -> Callable[..., Any] | None:
        """Returns the listed function or method that a call names, None where it is the candidate's."""
        if isinstance(node, ast.Name):
            if node.id in self.functions:
                return None
            return FUNCTIONS[node.id] if node.id in FUNCTIONS else _raise_unsupported(node.id)
        if not isinstance(node, ast.Attribute):
            raise UnsupportedError(type(node).__name__)
        if isinstance(node.value, ast.Name) and node.value.id == "math" and "math" not in self.names:
            return MATH_FUNCTIONS[node.attr] if node.attr in MATH_FUNCTIONS else _raise_unsupported(node.attr)
        receiver = self.evaluate(node.value)
        if node.attr not in METHODS or type(receiver) not in TYPES_WITH_METHODS:
            raise AttributeError(node.attr)
        if node.attr == "join":
            return lambda parts: join_texts(receiver, parts)
        method: Callable[..., Any] = getattr(receiver, node.attr)
        return method

    def evaluate_comparison(self, node: ast.Compare) -> Any:
        """Returns the value of a chain of comparisons."""
        left = self.evaluate(node.left)
        result: Any = True
        for operation, right_node in zip(node.ops, node.comparators, strict=True):
            right = self.evaluate(right_node)
            result = COMPARISONS[type(operation)](left, right)
            if not result:
                break
            left = right
        return result

    def evaluate_and_or(self, node: ast.BoolOp) -> Any:
        """Returns the value of `and` or `or`; operands after the one that decides are not evaluated."""
        value: Any = None
        for operand in node.values:
            value = self.evaluate(operand)
            if bool(value) is isinstance(node.op, ast.Or):
                break
        return value

    def evaluate_comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp) -> Any:
        """Returns the values of a comprehension, as a list also for a generator."""
        values = list(self._run_loops(node.generators, node.elt))
        return build_set(values) if isinstance(node, ast.SetComp) else values

    def _run_loops(self, loops: list[ast.comprehension], element: ast.expr) -> Iterator[Any]:
        """Yields the element's value for each turn of the loops of a comprehension."""
        loop, *inner = loops
        for item in check_length(self.evaluate(loop.iter)):
            names = {**self.names, **bind_names(loop.target, item)}
            inner_evaluator = Evaluator(names, self.functions, self.calls)
            if all(inner_evaluator.evaluate(condition) for condition in loop.ifs):
                if inner:
                    yield from inner_evaluator._run_loops(inner, element)
                else:
                    yield inner_evaluator.evaluate(element)


def bind_names(target: ast.expr, value: Any) -> dict[str, Any]:
    """Returns the names that an assignment of the value to the target binds, with their values."""
    if isinstance(target, ast.Name):
        return {target.id: value}
    if isinstance(target, ast.Tuple | ast.List) and isinstance(value, tuple | list):
        if len(target.elts) != len(value):
            raise ValueError("cannot unpack")
        return {
            name: bound_value
            for target_part, value_part in zip(target.elts, value, strict=True)
            for name, bound_value in bind_names(target_part, value_part).items()
        }
    raise UnsupportedError(type(target).__name__)


def _raise_unsupported(name: str) -> Any:
    """Raises UnsupportedError for a name."""
    raise UnsupportedError(name)


def _evaluate_constant(evaluator: Evaluator, node: ast.Attribute) -> Any:
    """Returns a constant of the `math` module, the only attribute that may stand without a call."""
    if isinstance(node.value, ast.Name) and node.value.id == "math" and node.attr in MATH_CONSTANTS:
        return MATH_CONSTANTS[node.attr]
    raise UnsupportedError(node.attr)


def _evaluate_binary(evaluator: Evaluator, node: ast.BinOp) -> Any:
    """Returns the value of an operation on two operands."""
    operate = BINARY.get(type(node.op))
    if operate is None:
        raise UnsupportedError(type(node.op).__name__)
    return operate(evaluator.evaluate(node.left), evaluator.evaluate(node.right))


def _evaluate_dict(evaluator: Evaluator, node: ast.Dict) -> Any:
    """Returns the value of a dict display."""
    if None in node.keys:
        raise UnsupportedError("**")
    keys = [evaluator.evaluate(key) for key in node.keys if key is not None]
    return build_dict(zip(keys, evaluator.evaluate_all(node.values), strict=True))


def _evaluate_slice(evaluator: Evaluator, node: ast.Slice) -> slice:
    """Returns the slice of a subscript."""
    parts = (node.lower, node.upper, node.step)
    return slice(*(None if part is None else evaluator.evaluate(part) for part in parts))


_NODES: dict[type[ast.AST], Callable[[Evaluator, Any], Any]] = {
    ast.Constant: lambda evaluator, node: node.value,
    ast.Name: Evaluator.look_up_name,
    ast.Call: Evaluator.evaluate_call,
    ast.Compare: Evaluator.evaluate_comparison,
    ast.BoolOp: Evaluator.evaluate_and_or,
    ast.BinOp: _evaluate_binary,
    ast.UnaryOp: lambda evaluator, node: UNARY[type(node.op)](evaluator.evaluate(node.operand)),
    ast.List: lambda evaluator, node: evaluator.evaluate_all(node.elts),
    ast.Tuple: lambda evaluator, node: tuple(evaluator.evaluate_all(node.elts)),
    ast.Set: lambda evaluator, node: build_set(evaluator.evaluate_all(node.elts)),
    ast.Dict: _evaluate_dict,
    ast.IfExp: lambda evaluator, node: evaluator.evaluate(node.body if evaluator.evaluate(node.test) else node.orelse),
    ast.Subscript: lambda evaluator, node: evaluator.evaluate(node.value)[evaluator.evaluate(node.slice)],
    ast.Slice: _evaluate_slice,
    ast.ListComp: Evaluator.evaluate_comprehension,
    ast.SetComp: Evaluator.evaluate_comprehension,
    ast.GeneratorExp: Evaluator.evaluate_comprehension,
    ast.Attribute: _evaluate_constant,
}


def is_supported(node: ast.AST, names: Set[str]) -> bool:
    """Returns whether an expression has a form that is evaluated here; `names` are known."""
    if isinstance(node, ast.ListComp | ast.SetComp | ast.GeneratorExp):
        targets = {part.id for loop in node.generators for part in ast.walk(loop.target) if isinstance(part, ast.Name)}
        names = names | targets
    if isinstance(node, ast.Name):
        return node.id in names or node.id in PASSABLE_FUNCTIONS or isinstance(node.ctx, ast.Store)
    if isinstance(node, ast.Call):
        return _is_supported_function(node.func, names) and all(
            is_supported(part, names) for part in (*node.args, *(keyword.value for keyword in node.keywords))
        )
    if isinstance(node, ast.expr) and type(node) not in _NODES and not isinstance(node, ast.Starred):
        return False
    if (isinstance(node, ast.BinOp) and type(node.op) not in BINARY) or (
        isinstance(node, ast.Dict) and None in node.keys
    ):
        return False
    if isinstance(node, ast.Attribute):
        return isinstance(node.value, ast.Name) and node.value.id == "math" and node.attr in MATH_CONSTANTS
    return all(is_supported(part, names) for part in ast.iter_child_nodes(node))


def _is_supported_function(node: ast.expr, names: Set[str]) -> bool:
    """Returns whether what a call calls is evaluated here."""
    if isinstance(node, ast.Name):
        return node.id in names or node.id in FUNCTIONS
    if not isinstance(node, ast.Attribute):
        return False
    if isinstance(node.value, ast.Name) and node.value.id == "math":
        return node.attr in MATH_FUNCTIONS
    return node.attr in METHODS and is_supported(node.value, names)
