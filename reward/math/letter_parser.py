"""Parses letters in an expression: variables with subscripts, names such as `AB`, function values, `C_5^2`."""

import math
from fractions import Fraction

from qwen_align.reward.math.expression_tokenizer import NotAnExpressionError
from qwen_align.reward.math.expression_tree import Node, make_call, make_number, make_symbol
from qwen_align.reward.math.expression_vocabulary import CONSTANTS
from qwen_align.reward.math.token_cursor import TokenCursor

_MAX_SELECTED_FROM = 1_000  # things of which so many are selected; larger counts stay symbols


def parse_letter(cursor: TokenCursor, token: str) -> Node:
    """Parses a variable with its subscript and primes, a name such as `AB`, or the value `f(x)` of a function."""
    if (count := take_number_of_selections(cursor, token)) is not None:
        return count
    name = token
    if cursor.peek_token() == "_":
        cursor.take_token()
        name += "_" + (take_opaque_text(cursor))
    elif is_capital(token) and cursor.reading.has_names:
        while is_capital(cursor.peek_token()) and cursor.peek_token(1) not in {"_", "(", "["}:
            name += cursor.take_token()
    while cursor.peek_token() == "'" or (cursor.peek_token() == "^" and cursor.peek_token(1) == "'"):
        cursor.position += 1 if cursor.peek_token() == "'" else 2
        name += "'"
    if name in CONSTANTS and name not in cursor.bound_letters:
        return Node("constant", (), CONSTANTS[name])
    if is_capital(name[0]) and is_capital(name[1:2]):
        # the power of a segment's length, or of the last letter
        return make_symbol(name + "^" if cursor.peek_token() == "^" else name)
    return parse_application_or_symbol(cursor, make_symbol(name))


def is_capital(token: str) -> bool:
    """Checks whether a token is a single Latin capital letter."""
    return len(token) == 1 and "A" <= token <= "Z"


def parse_application_or_symbol(cursor: TokenCursor, symbol: Node) -> Node:
    """Returns a function's value if an already parsed letter stands before its arguments, else the letter."""
    application = parse_application(cursor, symbol) if cursor.peek_token() in {"(", "["} else None
    return symbol if application is None else application


def parse_application(cursor: TokenCursor, symbol: Node, exponent: Node | None = None) -> Node | None:
    r"""Parses the arguments of an unknown function such as `f(2)`, `E[X]` or, with an exponent, `f^{-1}(x)`.

    Returns None, before the bracket, where the letter is a factor: if it is one of the reading's, if a sum or product
    sign binds it, or if it stands in the bracket itself, as in `x(x+1)`.
    """
    name = str(symbol.value) + ("" if exponent is None else "^")
    if name in cursor.reading.factors or symbol.value in cursor.bound_letters:
        return None
    start_position, start_cut, start_tokens = cursor.position, cursor.cut_position, list(cursor.tokens)
    arguments = parse_argument_list(cursor)
    if any(symbol.value in argument.letters for argument in arguments):
        cursor.position, cursor.cut_position, cursor.tokens = start_position, start_cut, start_tokens
        return None
    return Node("apply", tuple(arguments) if exponent is None else (exponent, *arguments), name)


def take_number_of_selections(cursor: TokenCursor, token: str) -> Node | None:
    """Consumes the rest of `C_5^2`, `C_n^k` or `A_5^2`, the numbers of selections as Chinese textbooks write them.

    Returns None, before the subscript, for anything else, such as the square of the constant `C_1`.
    """
    if token not in {"C", "A", "P"} or cursor.peek_token() not in {"_", "^"}:
        return None
    start_position, start_cut, start_tokens = cursor.position, cursor.cut_position, list(cursor.tokens)
    scripts: dict[str, Node] = {}
    try:
        while (sign := cursor.peek_token()) in {"_", "^"} and sign not in scripts:
            cursor.take_token()
            scripts[sign] = cursor.parse_exponent() if sign == "^" else cursor.parse_argument()
    except NotAnExpressionError:
        scripts = {}
    node = _make_selection_node(token, scripts["_"], scripts["^"]) if len(scripts) == 2 else None
    if node is None:
        cursor.position, cursor.cut_position, cursor.tokens = start_position, start_cut, start_tokens
    return node


def _make_selection_node(letter: str, total: Node, selected: Node) -> Node | None:
    """Makes the node of a number of selections. Returns None if it is rather the power of a letter with an index."""
    n_total, n_selected = (int(Fraction(part.value)) if part.head == "number" else None for part in (total, selected))
    if n_total is not None and n_selected is not None:
        if not (2 if letter == "C" else 3) <= n_total <= _MAX_SELECTED_FROM or not 0 <= n_selected <= n_total:
            return None
        return make_number(math.comb(n_total, n_selected) if letter == "C" else math.perm(n_total, n_selected))
    if letter != "C" or (n_total is not None and n_total < 3) or selected.head == "negative":
        return None
    return make_call("binomial", total, selected)


def take_opaque_text(cursor: TokenCursor) -> str:
    """Consumes the next command argument as plain text, for names that are not parsed further."""
    token = cursor.take_token()
    if token != "{":
        if not (token.isalnum() or token[:1] == "\\"):
            raise NotAnExpressionError("an argument is missing")
        return token
    parts: list[str] = []
    depth = 1
    while depth:
        token = cursor.take_token()
        if not token:
            raise NotAnExpressionError("an argument is missing")
        depth += (token == "{") - (token == "}")
        parts.append(token)
    return " ".join(parts[:-1])


def parse_argument_list(cursor: TokenCursor) -> list[Node]:
    """Parses the comma-separated arguments in the brackets of a function call."""
    opening = cursor.take_token()
    closing = {"(": ")", "[": "]", "{": "}", r"\{": r"\}"}.get(opening)
    if closing is None:
        raise NotAnExpressionError("an argument is missing")
    outer_bars, cursor.open_bars = cursor.open_bars, 0
    arguments = [cursor.parse_sum()]
    while cursor.peek_token() == ",":
        cursor.take_token()
        arguments.append(cursor.parse_sum())
    cursor.open_bars = outer_bars
    cursor.expect_token(closing)
    return arguments
