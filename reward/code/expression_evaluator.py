"""Evaluates a safe subset of Python expressions, in which only listed functions and methods can be called.

The expressions are a data set's, the values in them a candidate's. Each operation is bounded in time and memory for the
largest values that cross (see `value_serialization`), and all of them together by a number of steps.
"""

import ast
from collections.abc import Callable, Iterator, Mapping, Set, Sized
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
    """Raised for an expression outside the supported subset."""


class StepBudget:
    """A number of steps that evaluating several expressions may take together.

    A step is a node evaluated, an item that an operation reads or makes, or 64 bits of an integer it makes.
    """

    def __init__(self, n_steps: int) -> None:
        self.n_left = n_steps

    def spend(self, n_steps: int) -> None:
        """Subtracts steps. Raises UnsupportedError when none remain."""
        self.n_left -= n_steps
        if self.n_left < 0:
            raise UnsupportedError("too many steps")

    def spend_for(self, value: Any) -> None:
        """Subtracts the steps that it takes to read or make a value, by its own size and not its items'."""
        if isinstance(value, int):
            self.spend(value.bit_length() // 64)
        elif isinstance(value, Sized):
            self.spend(len(value))


class DeepStepBudget(StepBudget):
    """A number of steps by which a value costs as much as all that is in it, each time that it is read or made.

    `x = [x, x]`, written sixty times, is short and takes a comparison 2**60 steps.
    """

    def spend_for(self, value: Any) -> None:
        """Subtracts the steps that it takes to go through a value and what it holds, at any depth."""
        waiting = [value]
        while waiting:
            part = waiting.pop()
            super().spend_for(part)
            if isinstance(part, dict):
                waiting += [*part.keys(), *part.values()]
            elif isinstance(part, list | tuple | set | frozenset | type({}.values()) | type({}.items())):
                waiting += part


class Evaluator:
    """An evaluator of Python expressions over known variables.

    `calls` gives the values of the candidate's functions.
    """

    def __init__(
        self, names: Mapping[str, Any], functions: Set[str], calls: Callable[[ast.Call], Any], budget: StepBudget
    ) -> None:
        self.names = names
        self.functions = functions
        self.calls = calls
        self.budget = budget

    def evaluate(self, node: ast.AST) -> Any:
        """Evaluates an expression and returns its value.

        Raises UnsupportedError for other expressions, and whatever Python raises for the operation.
        """
        evaluate_node = _NODES.get(type(node))
        if evaluate_node is None:
            raise UnsupportedError(type(node).__name__)
        self.budget.spend(1)
        return evaluate_node(self, node)

    def evaluate_all(self, nodes: list[ast.expr]) -> list[Any]:
        """Evaluates a list of expressions, unpacking starred ones."""
        values = []
        for node in nodes:
            if isinstance(node, ast.Starred):
                values.extend(self.check_iterable(self.evaluate(node.value)))
            else:
                values.append(self.evaluate(node))
        return values

    def check_iterable(self, value: Any) -> Any:
        """Returns an iterable unchanged, after spending the steps of going through it.

        Raises NotPlainError or UnsupportedError if it is too long.
        """
        self.budget.spend_for(check_length(value))
        return value

    def look_up_name(self, node: ast.Name) -> Any:
        """Returns the value of a variable, or a listed built-in function that may be passed as an argument."""
        if node.id in self.names:
            return self.names[node.id]
        if node.id in PASSABLE_FUNCTIONS:
            return PASSABLE_FUNCTIONS[node.id]
        raise UnsupportedError(node.id)

    def evaluate_call(self, node: ast.Call) -> Any:
        """Evaluates a call of a listed function or method, or of a candidate's function."""
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
        args = [self.check_iterable(argument) for argument in self.evaluate_all(node.args)]
        result = function(*args, **kwargs)
        self.budget.spend_for(result)
        return result

    def _find_function(self, node: ast.expr) -> Callable[..., Any] | None:
        """Returns the listed function or method that a call names. Returns None if it is a candidate's function."""
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
        self.budget.spend_for(receiver)
        if node.attr == "join":
            return lambda parts: join_texts(receiver, parts)
        method: Callable[..., Any] = getattr(receiver, node.attr)
        return method

    def evaluate_comparison(self, node: ast.Compare) -> Any:
        """Evaluates a comparison, which may be a chain such as `a < b < c`."""
        left = self.evaluate(node.left)
        result: Any = True
        for operation, right_node in zip(node.ops, node.comparators, strict=True):
            right = self.evaluate(right_node)
            self.budget.spend_for(left)
            self.budget.spend_for(right)
            result = COMPARISONS[type(operation)](left, right)
            if not result:
                break
            left = right
        return result

    def evaluate_and_or(self, node: ast.BoolOp) -> Any:
        """Evaluates an `and` or `or` expression with short-circuiting."""
        value: Any = None
        for operand in node.values:
            value = self.evaluate(operand)
            if bool(value) is isinstance(node.op, ast.Or):
                break
        return value

    def evaluate_comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp) -> Any:
        """Evaluates a list, set or generator comprehension. A generator is returned as a list."""
        values = list(self._run_loops(node.generators, node.elt))
        return _build_set(self, values) if isinstance(node, ast.SetComp) else values

    def _run_loops(self, loops: list[ast.comprehension], element: ast.expr) -> Iterator[Any]:
        """Runs the nested loops of a comprehension and yields the element's value in each iteration."""
        loop, *inner = loops
        for item in self.check_iterable(self.evaluate(loop.iter)):
            names = {**self.names, **bind_names(loop.target, item)}
            inner_evaluator = Evaluator(names, self.functions, self.calls, self.budget)
            if all(inner_evaluator.evaluate(condition) for condition in loop.ifs):
                if inner:
                    yield from inner_evaluator._run_loops(inner, element)
                else:
                    yield inner_evaluator.evaluate(element)


def bind_names(target: ast.expr, value: Any) -> dict[str, Any]:
    """Returns the variables that assigning a value to a target binds, with their values."""
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
    """Raises UnsupportedError for the given name."""
    raise UnsupportedError(name)


def _evaluate_constant(evaluator: Evaluator, node: ast.Attribute) -> Any:
    """Evaluates a constant of the `math` module, the only attribute that is supported without a call."""
    if isinstance(node.value, ast.Name) and node.value.id == "math" and node.attr in MATH_CONSTANTS:
        return MATH_CONSTANTS[node.attr]
    raise UnsupportedError(node.attr)


def _evaluate_binary(evaluator: Evaluator, node: ast.BinOp) -> Any:
    """Evaluates a binary operation."""
    operate = BINARY.get(type(node.op))
    if operate is None:
        raise UnsupportedError(type(node.op).__name__)
    result = operate(evaluator.evaluate(node.left), evaluator.evaluate(node.right))
    evaluator.budget.spend_for(result)
    return result


def _evaluate_dict(evaluator: Evaluator, node: ast.Dict) -> Any:
    """Evaluates a dict literal."""
    if None in node.keys:
        raise UnsupportedError("**")
    keys = [evaluator.evaluate(key) for key in node.keys if key is not None]
    evaluator.budget.spend_for(keys)
    return build_dict(zip(keys, evaluator.evaluate_all(node.values), strict=True))


def _build_set(evaluator: Evaluator, values: list[Any]) -> set[Any]:
    """Builds a set of values, after spending the steps of hashing them."""
    evaluator.budget.spend_for(values)
    return build_set(values)


def _evaluate_subscript(evaluator: Evaluator, node: ast.Subscript) -> Any:
    """Evaluates a subscript, whose key is hashed where it is that of a dict."""
    value, key = evaluator.evaluate(node.value), evaluator.evaluate(node.slice)
    if isinstance(key, tuple):
        evaluator.budget.spend_for(key)
    return value[key]


def _evaluate_slice(evaluator: Evaluator, node: ast.Slice) -> slice:
    """Evaluates the slice of a subscript."""
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
    ast.Set: lambda evaluator, node: _build_set(evaluator, evaluator.evaluate_all(node.elts)),
    ast.Dict: _evaluate_dict,
    ast.IfExp: lambda evaluator, node: evaluator.evaluate(node.body if evaluator.evaluate(node.test) else node.orelse),
    ast.Subscript: _evaluate_subscript,
    ast.Slice: _evaluate_slice,
    ast.ListComp: Evaluator.evaluate_comprehension,
    ast.SetComp: Evaluator.evaluate_comprehension,
    ast.GeneratorExp: Evaluator.evaluate_comprehension,
    ast.Attribute: _evaluate_constant,
}


def is_supported(node: ast.AST, names: Set[str]) -> bool:
    """Returns whether an expression has a supported form, given the known names."""
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
    """Returns whether the function of a call expression is supported."""
    if isinstance(node, ast.Name):
        return node.id in names or node.id in FUNCTIONS
    if not isinstance(node, ast.Attribute):
        return False
    if isinstance(node.value, ast.Name) and node.value.id == "math":
        return node.attr in MATH_FUNCTIONS
    return node.attr in METHODS and is_supported(node.value, names)
