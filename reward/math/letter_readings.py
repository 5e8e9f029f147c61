r"""Chooses how letters before brackets and runs of capitals are read, alike in all texts that are compared.

`k(a+b)` may be a product or a function's value, and the text alone does not say which. A letter is a factor where it
could hardly be a function: it stands in its own bracket (`x(x+1)`), or it also stands alone, as it does once a product
is multiplied out. Everything else is a function's value and equals only the value at equal arguments, so that
`y(0)e^{2t}` is not zero and `\Phi(2)` is not `2\Phi(1)`.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from qwen_align.reward.math.expression_parser import parse_expression
from qwen_align.reward.math.expression_tree import Node
from qwen_align.reward.math.token_cursor import DEFAULT_READING, Reading

# Letters that name functions in textbooks are no factors unless they also stand alone.
_FACTOR_LETTERS = frozenset(
    (*"abckmnpqxz", *(rf"\{name}" for name in "alpha beta gamma theta kappa lambda mu rho omega".split()))
)
_FUNCTION_LETTERS = frozenset("fgh")
_Context = tuple[Node | None, Node | None, Node | None]  # the power of a part, and the factors before and after it
_NO_CONTEXT: _Context = (None, None, None)
_SET_FUNCTIONS = frozenset("DPV")  # variance and probability: `D(X+Y)` is not `DX+DY`


def parse_alike(*texts: str) -> tuple[Node | None, ...]:
    """Parses texts that are compared to expression trees, with one reading of their letters.

    A text that is not one scalar expression gives None.
    """
    reading = DEFAULT_READING
    nodes = tuple(map(parse_expression, texts))
    if _mixes_names_and_letters(nodes):
        reading = Reading(has_names=False)
        nodes = tuple(parse_expression(text, reading) for text in texts)
    if not any(node is not None and node.unknown_functions for node in nodes):
        return nodes
    factors = _find_factors([node for node in nodes if node is not None])
    return tuple(parse_expression(text, reading._replace(factors=factors)) for text in texts) if factors else nodes


def _mixes_names_and_letters(nodes: Sequence[Node | None]) -> bool:
    """Checks whether a letter of a run of capitals, such as the A of `AB`, also stands alone: it is a product then."""
    letters = frozenset[str]().union(*(node.letters for node in nodes if node is not None))
    names = [letter.rstrip("'^") for letter in letters if letter[:2].isupper() and letter[:2].isascii()]
    return any(character in letters for name in names for character in name)


def _find_factors(nodes: list[Node]) -> frozenset[str]:
    """Returns the letters before brackets that are factors wherever they stand before one."""
    by_node = [list(_iterate_applications(node)) for node in nodes]
    standing_alone = frozenset[str]().union(*(node.letters for node in nodes))
    applications_by_name: dict[str, list[_Application]] = {}
    for application in (application for applications in by_node for application in applications):
        applications_by_name.setdefault(application.name, []).append(application)
    return frozenset(
        name
        for name, applications in applications_by_name.items()
        if all(
            _is_factor(
                application,
                standing_alone,
                is_only=all(sum(other.name == name for other in others) <= 1 for others in by_node),
            )
            for application in applications
        )
    )


class _Application(NamedTuple):
    """A letter before a bracket, with the power of the bracket and the factors before and after both.

    `name` is that of an `apply` node: with an exponent between letter and bracket it ends in "^".
    """

    name: str
    args: tuple[Node, ...]
    power: Node | None = None
    previous_factor: Node | None = None
    next_factor: Node | None = None


def _is_factor(application: _Application, standing_alone: frozenset[str], *, is_only: bool) -> bool:
    """Checks whether a letter before a bracket may be read as a factor of it.

    `standing_alone` holds the letters that stand elsewhere in the compared texts; `is_only` says that the letter stands
    before one bracket of a text.
    """
    letter = application.name.rstrip("^")
    base = letter.partition("_")[0]
    inner_exponent = application.args[0] if application.name.endswith("^") else None
    arguments = application.args if inner_exponent is None else application.args[1:]
    if len(arguments) != 1 or "'" in letter:
        return False
    argument = arguments[0]
    is_sum = (argument.head == "negative" and bool(argument.letters)) or _strip_power(argument).head == "sum"
    is_plain = base in _FACTOR_LETTERS or (len(base) == 1 and base.islower() and base not in _FUNCTION_LETTERS)
    if inner_exponent is not None:
        if inner_exponent.head == "negative":
            return is_plain and is_sum and letter in standing_alone
        return is_sum or (is_plain and bool(argument.letters))
    if base in _SET_FUNCTIONS and argument.letters and all(map(str.isupper, argument.letters)):
        return False
    if letter in standing_alone:
        return is_sum or (not argument.letters and application.power is not None and bool(application.power.letters))
    if not is_sum or not argument.letters:
        return False
    is_chained = application.next_factor is not None and _strip_power(application.next_factor).head == "sum"
    is_after_letter = application.previous_factor is not None and bool(application.previous_factor.letters)
    return (is_plain and is_chained) or (is_only and (base in _FACTOR_LETTERS or (is_plain and is_after_letter)))


def _strip_power(node: Node) -> Node:
    """Returns the base of a power, and any other expression itself."""
    return node.args[0] if node.head == "power" else node


def _iterate_applications(node: Node) -> Iterator[_Application]:
    """Yields the letters before brackets in an expression tree."""
    pending: list[tuple[Node, _Context]] = [(node, _NO_CONTEXT)]
    while pending:
        part, (power, before, after) = pending.pop()
        if not part.unknown_functions:
            continue
        if part.head == "apply":
            yield _Application(str(part.value), part.args, power, before, after)
        if part.head == "power":
            pending += [(part.args[0], (part.args[1], before, after)), (part.args[1], _NO_CONTEXT)]
        elif part.head == "product":
            args = (None, *part.args, None)
            pending += [(arg, (None, args[i], args[i + 2])) for i, arg in enumerate(part.args)]
        else:
            pending += [(arg, _NO_CONTEXT) for arg in part.args]
