"""Nodes of a scalar expression: immutable trees whose hash, depth and size are known at construction."""

from collections.abc import Iterator
from fractions import Fraction

Value = Fraction | str


class Node:
    """One operation on its `args`; two nodes are equal when they are the same tree.

    Heads and what `value` holds for them:
    number (a Fraction), decimal (its digits as written, "0.25"), symbol (its name), constant ("pi", "e", "i",
    "infinity"), sum, product, negative, quotient, power, root (radicand, index), call (a known function's name),
    apply (an unknown function's name: `f(2)`), series ("sum" or "product"; args: variable, first, last, body).
    """

    __slots__ = ("_hash", "args", "depth", "head", "size", "value")

    def __init__(self, head: str, args: tuple["Node", ...] = (), value: Value = "") -> None:
        self.head = head
        self.args = args
        self.value = value
        self.depth: int = 1 + max((arg.depth for arg in args), default=0)
        self.size: int = 1 + sum(arg.size for arg in args)
        self._hash = hash((head, args, value))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, Node) or self._hash != other._hash:
            return False
        return self.head == other.head and self.value == other.value and self.args == other.args

    def __repr__(self) -> str:
        parts = [repr(self.head), *map(repr, self.args)]
        if self.value != "":
            parts.insert(1, str(self.value))
        return f"({' '.join(parts)})"


def number(value: int | Fraction) -> Node:
    """The node of an exact number."""
    return Node("number", (), Fraction(value))


def symbol(name: str) -> Node:
    """The node of a letter or another opaque name."""
    return Node("symbol", (), name)


def call(name: str, *args: Node) -> Node:
    """The node of a known function."""
    return Node("call", args, name)


def walk(node: Node) -> Iterator[Node]:
    """Every node of the tree, the root first."""
    waiting = [node]
    while waiting:
        one = waiting.pop()
        yield one
        waiting.extend(one.args)


def symbols(node: Node) -> frozenset[str]:
    """The names of the free letters, without those bound by a sum or product sign and without e, i and pi."""
    if node.head == "symbol":
        return frozenset((str(node.value),))
    if node.head == "series":
        variable, first, last, body = node.args
        return symbols(first) | symbols(last) | (symbols(body) - symbols(variable))
    return frozenset().union(*map(symbols, node.args)) if node.args else frozenset()


def applied(node: Node) -> frozenset[str]:
    """The names of the unknown functions: `f` of `f(2)`."""
    return frozenset(str(one.value) for one in walk(node) if one.head == "apply")


def is_number(node: Node) -> bool:
    """Whether the expression has no letter besides e, i and pi, and no unknown function."""
    return not any(one.head == "apply" for one in walk(node)) and not symbols(node)
