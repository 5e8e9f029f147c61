"""The expression tree of a scalar expression, with immutable nodes that know their hash, depth and size."""

from collections.abc import Iterator
from fractions import Fraction

NodeValue = Fraction | str


_NO_NAMES: frozenset[str] = frozenset()
_NAMING_HEADS = frozenset(("symbol", "apply", "series"))


class Node:
    """A node of an expression tree: an operation on its `args`.

    Two nodes are equal when they are the same tree.

    Heads and the meaning of `value` for them:
    number (a Fraction), decimal (its digits as written, "0.25"), symbol (its name), constant ("pi", "e", "i",
    "infinity"), sum, product, negative, quotient, power, root (radicand, index), call (a known function's name),
    apply (an unknown function's name: `f(2)`), series ("sum" or "product"; args: variable, first, last, body).
    """

    __slots__ = ("_hash", "args", "depth", "head", "letters", "size", "unknown_functions", "value")

    depth: int
    size: int
    letters: frozenset[str]
    unknown_functions: frozenset[str]

    def __init__(self, head: str, args: tuple["Node", ...] = (), value: NodeValue = "") -> None:
        self.head = head
        self.args = args
        self.value = value
        self._hash = hash((head, args, value))
        depth, size = 0, 1
        letters = unknown_functions = _NO_NAMES
        for arg in args:
            depth = arg.depth if arg.depth > depth else depth
            size += arg.size
            letters = letters | arg.letters if arg.letters else letters
            unknown_functions = (
                unknown_functions | arg.unknown_functions if arg.unknown_functions else unknown_functions
            )
        if head in _NAMING_HEADS:
            letters, unknown_functions = _collect_names(head, args, str(value), letters, unknown_functions)
        self.depth, self.size, self.letters, self.unknown_functions = depth + 1, size, letters, unknown_functions

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


def make_number(value: int | Fraction) -> Node:
    """Makes the expression tree node of an exact number."""
    return Node("number", (), Fraction(value))


def make_symbol(name: str) -> Node:
    """Makes the expression tree node of a variable or other opaque name."""
    return Node("symbol", (), name)


def make_call(name: str, *args: Node) -> Node:
    """Makes the expression tree node of a known function's call."""
    return Node("call", args, name)


def make_product(factors: list[Node]) -> Node:
    """Makes the expression tree node of a product, without nested products. A single factor is returned itself."""
    if len(factors) == 1:
        return factors[0]
    flat: list[Node] = []
    for factor in factors:
        flat.extend(factor.args if factor.head == "product" else (factor,))
    return Node("product", tuple(flat))


def iterate_nodes(node: Node) -> Iterator[Node]:
    """Yields every node of an expression tree, starting with the root."""
    pending = [node]
    while pending:
        current = pending.pop()
        yield current
        pending.extend(current.args)


def get_free_letters(node: Node) -> frozenset[str]:
    """Returns the names of the free variables of an expression.

    The index of a sum or product sign is not free; e, i and pi are constants.
    """
    return node.letters


def get_unknown_functions(node: Node) -> frozenset[str]:
    """Returns the names of the unknown functions in an expression, such as `f` in `f(2)`."""
    return node.unknown_functions


def is_constant(node: Node) -> bool:
    """Checks whether an expression has no variables and no unknown functions. The numbers e, i and pi are allowed."""
    return not node.letters and not node.unknown_functions


def substitute_letters(node: Node, replacements: dict[str, Node]) -> Node:
    """Replaces the free variables of an expression tree by other expression trees."""
    if node.head == "symbol":
        return replacements.get(str(node.value), node)
    if node.head == "series":
        variable, first, last, body = node.args
        inner_replacements = {name: value for name, value in replacements.items() if name != variable.value}
        return Node(
            "series",
            (
                variable,
                substitute_letters(first, replacements),
                substitute_letters(last, replacements),
                substitute_letters(body, inner_replacements),
            ),
            node.value,
        )
    return (
        Node(node.head, tuple(substitute_letters(arg, replacements) for arg in node.args), node.value)
        if node.args
        else node
    )


def _collect_names(
    head: str, args: tuple[Node, ...], name: str, letters: frozenset[str], unknown_functions: frozenset[str]
) -> tuple[frozenset[str], frozenset[str]]:
    """Returns the free variables and unknown functions of a node, from those of its arguments."""
    if head == "symbol":
        return frozenset((name,)), unknown_functions
    if head == "apply":
        return letters, unknown_functions | {name}
    variable, first, last, body = args
    return first.letters | last.letters | (body.letters - variable.letters), unknown_functions
