"""Compares expressions with capital letters where the order of factors may count, as it does for matrices.

`AB` is not `BA` if A and B are matrices, and the text does not say what they are. So two expressions that are equal for
numbers have to be equal for matrices too, unless capitals stand where only numbers do: under a root or a fraction bar,
in an exponent or a function, or beside pi.
"""

from collections.abc import Callable

from qwen_align.reward.math.expression_tree import Node, iterate_nodes, make_number, make_product

_MAX_TERMS = 200  # of an expanded expression; larger ones are not compared
_MAX_POWER = 8
_ZERO = make_number(0)
_ONE = make_number(1)
Terms = dict[tuple[str, ...], Node]


class _TooLongError(ValueError):
    """An error raised for an expression with too many terms to expand."""


def is_equal_in_order(left: Node, right: Node, is_equal: Callable[[Node, Node], bool | None]) -> bool:
    """Checks whether two expressions that are equal for numbers are equal whatever their capitals stand for.

    `is_equal` compares the coefficients, which hold no such letter.
    """
    capitals = _find_matrix_letters(left) | _find_matrix_letters(right)
    if len(capitals) < 2 or not capitals.isdisjoint(_find_number_letters(left) | _find_number_letters(right)):
        return True
    if any(part.head == "constant" and part.value == "pi" for part in iterate_nodes(left)):
        return True
    try:
        left_terms, right_terms = _multiply_out(left, capitals), _multiply_out(right, capitals)
    except _TooLongError:
        return False
    return all(
        is_equal(left_terms.get(word, _ZERO), right_terms.get(word, _ZERO))
        for word in dict.fromkeys((*left_terms, *right_terms))
    )


def _find_matrix_letters(node: Node) -> frozenset[str]:
    """Returns the capitals of an expression that may stand for matrices, and no names such as `AB`."""
    return frozenset(
        letter for letter in node.letters if letter[0].isascii() and letter[0].isupper() and not letter[1:2].isupper()
    )


def _find_number_letters(node: Node) -> frozenset[str]:
    """Returns the letters that stand where only numbers do."""
    letters: set[str] = set()
    for part in iterate_nodes(node):
        if part.head == "quotient":
            letters |= part.args[1].letters
        elif part.head == "power":
            is_word = _get_small_power(part) is not None or part.args[0].head == "symbol"
            letters |= part.args[1].letters if is_word else part.letters
        elif part.head not in {"sum", "product", "negative", "symbol"}:
            letters |= part.letters
    return frozenset(letters)


def _get_small_power(node: Node) -> int | None:
    """Returns the exponent of a power that can be multiplied out. Returns None for any other."""
    exponent = node.args[1]
    if exponent.head != "number" or isinstance(exponent.value, str) or exponent.value.denominator != 1:
        return None
    return int(exponent.value) if 0 < exponent.value <= _MAX_POWER else None


def _multiply_out(node: Node, capitals: frozenset[str]) -> Terms:
    """Multiplies an expression out to its words of capital letters, each with its coefficient.

    Raises _TooLongError for too many words.
    """
    if capitals.isdisjoint(node.letters):
        return {(): node}
    if node.head == "symbol":
        return {(str(node.value),): _ONE}
    if node.head == "power" and _get_small_power(node) is None:
        return {(repr(node),): _ONE}
    if node.head == "negative":
        return {word: Node("negative", (term,)) for word, term in _multiply_out(node.args[0], capitals).items()}
    if node.head == "quotient":
        return {
            word: Node("quotient", (term, node.args[1])) for word, term in _multiply_out(node.args[0], capitals).items()
        }
    if node.head == "sum":
        terms: dict[tuple[str, ...], list[Node]] = {}
        for arg in node.args:
            for word, term in _multiply_out(arg, capitals).items():
                terms.setdefault(word, []).append(term)
        return {word: Node("sum", tuple(parts)) if len(parts) > 1 else parts[0] for word, parts in terms.items()}
    factors = [node.args[0]] * (_get_small_power(node) or 1) if node.head == "power" else list(node.args)
    product: Terms = {(): _ONE}
    for factor in factors:
        product = _multiply(product, _multiply_out(factor, capitals))
    return product


def _multiply(left: Terms, right: Terms) -> Terms:
    """Multiplies two expanded expressions, with the words in order."""
    terms: dict[tuple[str, ...], list[Node]] = {}
    if len(left) * len(right) > _MAX_TERMS:
        raise _TooLongError("too many terms")
    for left_word, left_term in left.items():
        for right_word, right_term in right.items():
            terms.setdefault(left_word + right_word, []).append(make_product([left_term, right_term]))
    return {word: Node("sum", tuple(parts)) if len(parts) > 1 else parts[0] for word, parts in terms.items()}
