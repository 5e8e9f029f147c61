"""A small part of Python's expressions, evaluated here: no attribute of a class, no call of anything unlisted.

The expressions are a data set's, the values in them a candidate's: each step is bounded in time and memory for the
largest values that cross (see `values`), because it holds the interpreter's lock.
"""

import ast
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Set
from typing import Any

from qwen_align.reward.code.values import MAX_BITS, MAX_BYTES, MAX_ITEMS, NotPlainError, build_dict, build_set


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
                found.extend(_bounded(self.value(node.value)))
            else:
                found.append(self.value(node))
        return found

    def name(self, node: ast.Name) -> Any:
        """The value of a name; a listed built-in function may be passed where a function is."""
        if node.id in self.names:
            return self.names[node.id]
        if node.id in _PASSED:
            return _PASSED[node.id]
        raise UnsupportedError(node.id)

    def call(self, node: ast.Call) -> Any:
        """The value of a call of a listed function or method, or of the candidate's."""
        function = self._function(node.func)
        if function is None:
            return self.calls(node)
        kwargs = {}
        for keyword in node.keywords:
            if keyword.arg not in _KEYWORDS:
                raise UnsupportedError(str(keyword.arg))
            kwargs[keyword.arg] = self.value(keyword.value)
        if kwargs.get("key", len) not in _KEYS:
            raise UnsupportedError("key")
        args = [_bounded(one) if isinstance(one, range) else one for one in self.values(node.args)]
        return function(*args, **kwargs)

    def _function(self, node: ast.expr) -> Callable[..., Any] | None:
        if isinstance(node, ast.Name):
            if node.id in self.functions:
                return None
            return FUNCTIONS[node.id] if node.id in FUNCTIONS else _unsupported(node.id)
        if not isinstance(node, ast.Attribute):
            raise UnsupportedError(type(node).__name__)
        if isinstance(node.value, ast.Name) and node.value.id == "math" and "math" not in self.names:
            return _MATH[node.attr] if node.attr in _MATH else _unsupported(node.attr)
        on = self.value(node.value)
        if node.attr not in METHODS or type(on) not in _WITH_METHODS:
            raise AttributeError(node.attr)
        if node.attr == "join":
            return lambda parts: _join(on, parts)
        method: Callable[..., Any] = getattr(on, node.attr)
        return method

    def compare(self, node: ast.Compare) -> Any:
        """The value of a chain of comparisons."""
        left = self.value(node.left)
        held: Any = True
        for symbol, right_node in zip(node.ops, node.comparators, strict=True):
            right = self.value(right_node)
            held = _COMPARISONS[type(symbol)](left, right)
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
        for item in _bounded(self.value(loop.iter)):
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


def _bounded(value: Any) -> Any:
    """The iterable, if it is no longer than what crosses; raises NotPlainError."""
    if isinstance(value, range) and len(value) > MAX_ITEMS:
        raise NotPlainError("too large")
    return value


def _bits(value: Any) -> int:
    return value.bit_length() if isinstance(value, int) else 0


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple) else 0


def _multiply(left: Any, right: Any) -> Any:
    many, times = (left, right) if _size(left) else (right, left)
    if _bits(left) + _bits(right) > 2 * MAX_BITS or (
        _size(many) and isinstance(times, int) and _size(many) * times > MAX_ITEMS
    ):
        raise NotPlainError("too large")
    return left * right


def _power(left: Any, right: Any) -> Any:
    if not isinstance(left, int | float | complex) or not isinstance(right, int | float | complex):
        raise NotPlainError("power")  # of a Fraction or by one, whose result has no bound as cheap as the next
    if isinstance(left, int) and isinstance(right, int) and _bits(left) * abs(right) > MAX_BITS:
        raise NotPlainError("too large")
    return left**right


def _modulo(left: Any, right: Any) -> Any:
    if isinstance(left, str | bytes):  # a format may ask for a gigabyte of blanks
        raise NotPlainError("format")
    return left % right


def _join(separator: Any, parts: Any) -> Any:
    parts = list(parts)
    if len(separator) * len(parts) > MAX_BYTES:
        raise NotPlainError("too large")
    return separator.join(parts)


def _round(number: Any, ndigits: Any = None) -> Any:
    if isinstance(ndigits, int) and abs(ndigits) > 400:  # more than a float has; an integer is raised to that power
        raise NotPlainError("too large")
    return round(number, ndigits)


def _within(left: Any, right: Any) -> bool:
    """Whether `in`; all but an integer is looked for in a range one by one."""
    return left in (right if isinstance(left, int) else _bounded(right))


def _sum(values: Any, start: int | float = 0) -> Any:
    if not isinstance(start, int | float):  # lists added up take quadratic time
        raise NotPlainError("sum")
    return sum(values, start)


def _dict(pairs: Any = ()) -> dict[Any, Any]:
    return build_dict(pairs.items() if isinstance(pairs, dict) else pairs)


FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{one.__name__: one for one in (abs, all, any, bool, complex, enumerate, float, int, isinstance, iter, len, list)},
    **{one.__name__: one for one in (max, min, next, ord, chr, repr, reversed, sorted, str, tuple, zip)},
    "range": lambda *parts: _bounded(range(*parts)),
    "set": lambda values=(): build_set(values),
    "frozenset": lambda values=(): frozenset(build_set(values)),
    "dict": _dict,
    "sum": _sum,
    "round": _round,
    "type": lambda value: type(value),
}
_KEYS = (len, abs, str, int, float)
_PASSED: dict[str, Any] = {
    one.__name__: one
    for one in (int, float, str, bool, list, tuple, dict, set, frozenset, bytes, complex, len, abs, sum)
}
_KEYWORDS = frozenset({"reverse", "key", "default", "rel_tol", "abs_tol", "strict", "ndigits", "start", "base"})
_MATH: dict[str, Callable[..., Any]] = {
    **{one.__name__: one for one in (math.isclose, math.fabs, math.sqrt, math.floor, math.ceil, math.trunc, math.gcd)},
    **{one.__name__: one for one in (math.isnan, math.isinf, math.isfinite, math.log, math.log2, math.log10, math.exp)},
    **{one.__name__: one for one in (math.sin, math.cos, math.tan, math.atan, math.atan2, math.asin, math.acos)},
    **{one.__name__: one for one in (math.hypot, math.radians, math.degrees, math.copysign)},
}
_CONSTANTS = {"pi": math.pi, "e": math.e, "inf": math.inf, "nan": math.nan, "tau": math.tau}
METHODS = frozenset(
    {"lower", "upper", "strip", "lstrip", "rstrip", "split", "splitlines", "startswith", "endswith", "count", "index"}
    | {"find", "keys", "values", "items", "get", "isdigit", "isalpha", "isupper", "islower", "title", "capitalize"}
    | {"copy", "is_integer", "join", "swapcase"}
)
_WITH_METHODS = frozenset({str, bytes, list, tuple, dict, set, frozenset, int, float})
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: _within,
    ast.NotIn: lambda left, right: not _within(left, right),
}
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: _multiply,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: _modulo,
    ast.Pow: _power,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.RShift: operator.rshift,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.Not: operator.not_,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Invert: operator.invert,
}


def _attribute(evaluator: Evaluator, node: ast.Attribute) -> Any:
    if isinstance(node.value, ast.Name) and node.value.id == "math" and node.attr in _CONSTANTS:
        return _CONSTANTS[node.attr]
    raise UnsupportedError(node.attr)


def _binary(evaluator: Evaluator, node: ast.BinOp) -> Any:
    operate = _BINARY.get(type(node.op))
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
    ast.UnaryOp: lambda evaluator, node: _UNARY[type(node.op)](evaluator.value(node.operand)),
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
        return node.id in names or node.id in _PASSED or isinstance(node.ctx, ast.Store)
    if isinstance(node, ast.Call):
        return _supported_function(node.func, names) and all(
            supported(one, names) for one in (*node.args, *(keyword.value for keyword in node.keywords))
        )
    if isinstance(node, ast.expr) and type(node) not in _NODES and not isinstance(node, ast.Starred):
        return False
    if (isinstance(node, ast.BinOp) and type(node.op) not in _BINARY) or (
        isinstance(node, ast.Dict) and None in node.keys
    ):
        return False
    if isinstance(node, ast.Attribute):
        return isinstance(node.value, ast.Name) and node.value.id == "math" and node.attr in _CONSTANTS
    return all(supported(one, names) for one in ast.iter_child_nodes(node))


def _supported_function(node: ast.expr, names: Set[str]) -> bool:
    if isinstance(node, ast.Name):
        return node.id in names or node.id in FUNCTIONS
    if not isinstance(node, ast.Attribute):
        return False
    if isinstance(node.value, ast.Name) and node.value.id == "math":
        return node.attr in _MATH
    return node.attr in METHODS and supported(node.value, names)
