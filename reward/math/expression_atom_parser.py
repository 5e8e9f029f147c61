"""Parses the atoms of an expression: numbers, variables, functions and LaTeX commands with their arguments."""

from collections.abc import Callable
from fractions import Fraction

from qwen_align.reward.math.expression_tokenizer import NotAnExpressionError
from qwen_align.reward.math.expression_tree import Node, is_constant, make_call, make_number, make_product, make_symbol
from qwen_align.reward.math.expression_vocabulary import (
    CLOSING_BRACKETS,
    CONSTANTS,
    FACTOR_STARTS,
    FUNCTION_ALIASES,
    FUNCTION_NAMES,
    MULTI_ARGUMENT_FUNCTIONS,
    OPAQUE_COMMANDS,
    TRIGONOMETRIC_FUNCTIONS,
)
from qwen_align.reward.math.letter_parser import (
    parse_application_or_symbol,
    parse_argument_list,
    parse_letter,
    take_opaque_text,
)
from qwen_align.reward.math.token_cursor import TokenCursor

# The base of a logarithm without one is ten, but `decide_equality` tries e too. "10." marks it: no text parses to that.
DEFAULT_BASE = Node("decimal", (), "10.")


def parse_atom_from_token(cursor: TokenCursor, token: str) -> Node:
    """Parses the factor that starts with an already consumed token.

    Raises NotAnExpressionError if no factor starts so.
    """
    if token[:1].isdigit() or token[:1] == ".":
        return parse_numeral(cursor, token)
    if token in CLOSING_BRACKETS or token == "|":
        return cursor.parse_group(token)
    if token in FUNCTION_NAMES:
        return parse_function(cursor, token)
    if token in _COMMAND_PARSERS:
        return _COMMAND_PARSERS[token](cursor)
    if token in {r"\angle", r"\triangle"}:
        return make_symbol(token + parse_vertex_names(cursor))
    if token in OPAQUE_COMMANDS:
        return parse_application_or_symbol(cursor, make_symbol(token + take_opaque_text(cursor)))
    if cursor.is_letter(token) or token in CONSTANTS:
        return parse_letter(cursor, token)
    raise NotAnExpressionError(f"{token!r} was not expected")


def parse_numeral(cursor: TokenCursor, token: str) -> Node:
    """Parses a number, or a mixed number such as `2 1/3` that starts with it."""
    node = make_literal(token)
    if cursor.peek_token() == "_":
        raise NotAnExpressionError("a number in another base")
    if not token.isdigit():
        return node
    proper_fraction = take_proper_fraction(cursor)
    return node if proper_fraction is None else Node("sum", (node, proper_fraction))


def take_proper_fraction(cursor: TokenCursor) -> Node | None:
    r"""Consumes a proper fraction such as `\frac{1}{3}` or `1/3`, if one follows, and returns its node."""
    start_position, start_cut, start_tokens = cursor.position, cursor.cut_position, cursor.tokens
    if cursor.peek_token() == r"\frac":
        cursor.tokens = list(start_tokens)
        cursor.take_token()
        digits = [take_digits_argument(cursor), take_digits_argument(cursor)]
    elif cursor.peek_token().isdigit() and cursor.peek_token(1) == "/" and cursor.peek_token(2).isdigit():
        digits = [cursor.peek_token(), cursor.peek_token(2)]
        cursor.position += 3
    else:
        return None
    if all(digits) and int(digits[0]) < int(digits[1]):
        return make_number(Fraction(int(digits[0]), int(digits[1])))
    cursor.position, cursor.cut_position, cursor.tokens = start_position, start_cut, start_tokens
    return None


def take_digits_argument(cursor: TokenCursor) -> str:
    """Consumes the next command argument if it is a plain integer and returns its digits.

    Returns "" for any other argument.
    """
    if cursor.peek_token() == "{":
        if not cursor.peek_token(1).isdigit() or cursor.peek_token(2) != "}":
            return ""
        cursor.position += 3
        return cursor.tokens[cursor.position - 2]
    token = cursor.peek_token()
    if not token.isdigit():
        return ""
    if len(token) > 1:
        cursor.tokens[cursor.position] = token[1:]
        cursor.cut_position = cursor.position
        return token[0]
    cursor.take_token()
    return token


def make_literal(token: str) -> Node:
    """Makes the expression tree node of a number token."""
    if token.isdigit():
        return make_number(int(token))
    return Node("decimal", (), token)


def parse_vertex_names(cursor: TokenCursor) -> str:
    """Parses the vertex letters of an angle or triangle to a name.

    An angle with its vertices in reverse order has the same name.
    """
    text = take_opaque_text(cursor).replace(" ", "")
    while len(text) < 3 and text.isupper() and len(cursor.peek_token()) == 1 and cursor.peek_token().isupper():
        text += cursor.take_token()
    return min(text, text[::-1]) if text.isupper() else text


def parse_function(cursor: TokenCursor, name: str) -> Node:
    r"""Parses the call of a known function, such as `\sin^2 x`, `\log_2 8`, `\ln 2x` or `\gcd(4, 6)`."""
    base: Node | None = None
    exponent: Node | None = None
    while cursor.peek_token() in {"_", "^"}:
        if cursor.take_token() == "_":
            base = parse_logarithm_base(cursor)
        else:
            exponent = cursor.parse_exponent()
    if name in MULTI_ARGUMENT_FUNCTIONS:
        if base is not None or exponent is not None:
            raise NotAnExpressionError(f"{name} takes no exponent")
        return make_call(name, *parse_argument_list(cursor))
    argument = parse_function_argument(cursor, name)
    name = FUNCTION_ALIASES.get(name, name)
    if base is not None and name != "log":
        raise NotAnExpressionError(f"{name} takes no base")
    if exponent == Node("negative", (make_number(1),)) and name in TRIGONOMETRIC_FUNCTIONS:
        return make_call("arc" + name, argument)
    node = _make_function_node(name, argument, base)
    return node if exponent is None else Node("power", (node, exponent))


def parse_logarithm_base(cursor: TokenCursor) -> Node:
    r"""Parses the subscript base of a logarithm.

    Only the first digit is the base where the rest is the argument, as in `\log_28`.
    """
    token = cursor.peek_token()
    next_token = cursor.peek_token(1)
    if (
        token.isdigit()
        and len(token) > 1
        and not (next_token in FACTOR_STARTS or cursor.is_letter(next_token) or next_token == "|")
    ):
        return cursor.parse_argument()
    return cursor.parse_exponent()


def parse_function_argument(cursor: TokenCursor, name: str) -> Node:
    """Parses the argument of a function: a bracketed group, or the product that follows without brackets."""
    if cursor.peek_token() in {"(", "[", "{"}:
        return cursor.parse_group(cursor.take_token())
    is_negative = cursor.peek_token() == "-"
    if is_negative:
        cursor.take_token()
    factors = [cursor.parse_power()]
    while (
        cursor.is_factor_ahead()
        and cursor.peek_token() not in FUNCTION_NAMES
        and cursor.peek_token() not in {"(", "[", "|<", r"\sum"}
    ):
        factors.append(cursor.parse_power())
    node = make_product(factors)
    if (
        name in TRIGONOMETRIC_FUNCTIONS
        and cursor.peek_token() == "/"
        and cursor.peek_token(1).isdigit()
        and is_constant(node)
    ):
        cursor.take_token()
        node = Node("quotient", (node, cursor.parse_power()))
    return Node("negative", (node,)) if is_negative else node


def parse_fraction(cursor: TokenCursor) -> Node:
    r"""Parses `\frac` with its two arguments. Raises NotAnExpressionError for a derivative."""
    start_position = cursor.position
    numerator = cursor.parse_argument()
    middle_position = cursor.position
    denominator = cursor.parse_argument()
    texts = [
        [token for token in cursor.tokens[a:b] if token not in "{}"]
        for a, b in ((start_position, middle_position), (middle_position, cursor.position))
    ]
    if texts[0][:1] == ["d"] and texts[1][:1] == ["d"] and len(texts[1]) > 1:
        raise NotAnExpressionError("a derivative")
    return Node("quotient", (numerator, denominator))


def parse_root(cursor: TokenCursor) -> Node:
    r"""Parses `\sqrt` with its optional index and its radicand."""
    index = make_number(2)
    if cursor.peek_token() == "[":
        cursor.take_token()
        index = cursor.parse_sum()
        cursor.expect_token("]")
    radicand = cursor.parse_group(cursor.take_token()) if cursor.peek_token() == "(" else cursor.parse_argument()
    if radicand.head == "symbol" and len(str(radicand.value)) == 2 and str(radicand.value).isupper():
        radicand = make_symbol("".join(sorted(str(radicand.value))))  # a length or a product of numbers
    return Node("root", (radicand, index))


def parse_radical_sign(cursor: TokenCursor) -> Node:
    """Parses the radicand after a bare Unicode sign `√`."""
    return Node("root", (cursor.parse_atom(), make_number(2)))


def parse_binomial(cursor: TokenCursor) -> Node:
    r"""Parses `\binom` with its two arguments to a binomial coefficient."""
    return make_call("binomial", cursor.parse_argument(), cursor.parse_argument())


def parse_series(cursor: TokenCursor, kind: str) -> Node:
    r"""Parses a `\sum_{k=1}^{n} body` or a `\prod`. The body is a product."""
    cursor.expect_token("_")
    cursor.expect_token("{")
    name = cursor.take_token()
    if not cursor.is_letter(name):
        raise NotAnExpressionError("a letter was expected under the sign")
    cursor.expect_token("=")
    first = cursor.parse_sum()
    cursor.expect_token("}")
    cursor.expect_token("^")
    last = cursor.parse_exponent()
    cursor.bound_letters.append(name)
    body = cursor.parse_product()
    cursor.bound_letters.pop()
    return Node("series", (make_symbol(name), first, last, body), kind)


def _make_function_node(name: str, argument: Node, base: Node | None) -> Node:
    """Makes the expression tree node of a known function's call, with the base if it is a logarithm."""
    if name == "exp":
        return Node("power", (Node("constant", (), "e"), argument))
    if name in {"log", "lg"}:
        return make_call("log", argument, DEFAULT_BASE if base is None and name == "log" else base or make_number(10))
    return make_call(name, argument)


_COMMAND_PARSERS: dict[str, Callable[[TokenCursor], Node]] = {
    r"\frac": parse_fraction,
    "sqrt": parse_root,
    "√": parse_radical_sign,
    r"\binom": parse_binomial,
    r"\sum": lambda cursor: parse_series(cursor, "sum"),
    r"\prod": lambda cursor: parse_series(cursor, "product"),
}
