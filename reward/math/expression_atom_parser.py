r"""Numbers, letters, functions and LaTeX commands: what an expression's factors start with, each read to its end."""

from collections.abc import Callable
from fractions import Fraction

from qwen_align.reward.math.expression_tokenizer import NotAnExpressionError
from qwen_align.reward.math.expression_tree import Node, call, is_number, number, product_of, symbol
from qwen_align.reward.math.expression_vocabulary import (
    APPLIED,
    CONSTANTS,
    FUNCTIONS,
    OPAQUE,
    OPENING,
    RENAMED,
    SEVERAL,
    STARTS,
    TRIGONOMETRIC,
)
from qwen_align.reward.math.token_cursor import Cursor

# The base of a logarithm without one is ten, but `same` tries e too; no text is read as "10.", which marks it.
DEFAULT_BASE = Node("decimal", (), "10.")


def read_atom(reader: Cursor, token: str) -> Node:
    """The node that starts with `token`, which is taken; raises NotAnExpressionError if none does."""
    if token[:1].isdigit() or token[:1] == ".":
        return numeral(reader, token)
    if token in OPENING or token == "|":
        return reader.group(token)
    if token in FUNCTIONS:
        return function(reader, token)
    if token in _READERS:
        return _READERS[token](reader)
    if token in {r"\angle", r"\triangle"}:
        return symbol(token + vertices(reader))
    if token in OPAQUE:
        return symbol(token + opaque_text(reader))
    if reader.is_letter(token) or token in CONSTANTS:
        return letter(reader, token)
    raise NotAnExpressionError(f"{token!r} was not expected")


def numeral(reader: Cursor, token: str) -> Node:
    """A number, or the mixed number that starts with it."""
    node = literal(token)
    if reader.peek() == "_":
        raise NotAnExpressionError("a number in another base")
    if not token.isdigit():
        return node
    part = fraction_ahead(reader)
    return node if part is None else Node("sum", (node, part))


def fraction_ahead(reader: Cursor) -> Node | None:
    r"""The proper fraction `\frac{1}{3}` or `1/3` that follows, taken."""
    start, cut, tokens = reader.place, reader.cut, reader.tokens
    if reader.peek() == r"\frac":
        reader.tokens = list(tokens)
        reader.take()
        digits = [digits_argument(reader), digits_argument(reader)]
    elif reader.peek().isdigit() and reader.peek(1) == "/" and reader.peek(2).isdigit():
        digits = [reader.peek(), reader.peek(2)]
        reader.place += 3
    else:
        return None
    if all(digits) and int(digits[0]) < int(digits[1]):
        return number(Fraction(int(digits[0]), int(digits[1])))
    reader.place, reader.cut, reader.tokens = start, cut, tokens
    return None


def digits_argument(reader: Cursor) -> str:
    """The next argument of a command if it is a plain whole number, else ""."""
    if reader.peek() == "{":
        if not reader.peek(1).isdigit() or reader.peek(2) != "}":
            return ""
        reader.place += 3
        return reader.tokens[reader.place - 2]
    token = reader.peek()
    if not token.isdigit():
        return ""
    if len(token) > 1:
        reader.tokens[reader.place] = token[1:]
        reader.cut = reader.place
        return token[0]
    reader.take()
    return token


def literal(token: str) -> Node:
    if token.isdigit():
        return number(int(token))
    return Node("decimal", (), token)


def letter(reader: Cursor, token: str) -> Node:
    name = token
    if reader.peek() == "_":
        reader.take()
        name += "_" + (opaque_text(reader))
    while reader.peek() == "'" or (reader.peek() == "^" and reader.peek(1) == "'"):
        reader.place += 1 if reader.peek() == "'" else 2
        name += "'"
    if name[0] in APPLIED and reader.peek() == "(":
        return Node("apply", tuple(several(reader)), name)
    if name in CONSTANTS and name not in reader.bound:
        return Node("constant", (), CONSTANTS[name])
    return symbol(name)


def opaque_text(reader: Cursor) -> str:
    """The next argument as text, for names that are not looked into."""
    token = reader.take()
    if token != "{":
        if not (token.isalnum() or token[:1] == "\\"):
            raise NotAnExpressionError("an argument is missing")
        return token
    parts: list[str] = []
    depth = 1
    while depth:
        token = reader.take()
        if not token:
            raise NotAnExpressionError("an argument is missing")
        depth += (token == "{") - (token == "}")
        parts.append(token)
    return " ".join(parts[:-1])


def vertices(reader: Cursor) -> str:
    """The points of an angle or triangle, in their order; an angle read backwards is the same."""
    text = opaque_text(reader).replace(" ", "")
    while len(text) < 3 and text.isupper() and len(reader.peek()) == 1 and reader.peek().isupper():
        text += reader.take()
    return min(text, text[::-1]) if text.isupper() else text


def several(reader: Cursor) -> list[Node]:
    """The arguments in brackets, one or more with commas between them."""
    opening = reader.take()
    closing = {"(": ")", "[": "]", "{": "}", r"\{": r"\}"}.get(opening)
    if closing is None:
        raise NotAnExpressionError("an argument is missing")
    bars, reader.bars = reader.bars, 0
    found = [reader.sum()]
    while reader.peek() == ",":
        reader.take()
        found.append(reader.sum())
    reader.bars = bars
    reader.expect(closing)
    return found


def function(reader: Cursor, name: str) -> Node:
    r"""A known function's value: `\sin^2 x`, `\log_2 8`, `\ln 2x`, `\gcd(4, 6)`."""
    base: Node | None = None
    exponent: Node | None = None
    while reader.peek() in {"_", "^"}:
        if reader.take() == "_":
            base = logarithm_base(reader)
        else:
            exponent = reader.script()
    if name in SEVERAL:
        if base is not None or exponent is not None:
            raise NotAnExpressionError(f"{name} takes no exponent")
        return call(name, *several(reader))
    argument = function_argument(reader, name)
    name = RENAMED.get(name, name)
    if base is not None and name != "log":
        raise NotAnExpressionError(f"{name} takes no base")
    if exponent == Node("negative", (number(1),)) and name in TRIGONOMETRIC:
        return call("arc" + name, argument)
    node = _function_node(name, argument, base)
    return node if exponent is None else Node("power", (node, exponent))


def logarithm_base(reader: Cursor) -> Node:
    r"""A logarithm's base: the first digit where the rest is the argument, as in `\log_28`."""
    token = reader.peek()
    follows = reader.peek(1)
    if token.isdigit() and len(token) > 1 and not (follows in STARTS or reader.is_letter(follows) or follows == "|"):
        return reader.argument()
    return reader.script()


def function_argument(reader: Cursor, name: str) -> Node:
    if reader.peek() in {"(", "[", "{"}:
        return reader.group(reader.take())
    is_negative = reader.peek() == "-"
    if is_negative:
        reader.take()
    factors = [reader.power()]
    while reader.starts_factor() and reader.peek() not in FUNCTIONS and reader.peek() not in {"(", "[", "|<", r"\sum"}:
        factors.append(reader.power())
    node = product_of(factors)
    if name in TRIGONOMETRIC and reader.peek() == "/" and reader.peek(1).isdigit() and is_number(node):
        reader.take()
        node = Node("quotient", (node, reader.power()))
    return Node("negative", (node,)) if is_negative else node


def fraction(reader: Cursor) -> Node:
    start = reader.place
    above = reader.argument()
    between = reader.place
    below = reader.argument()
    texts = [
        [token for token in reader.tokens[a:b] if token not in "{}"]
        for a, b in ((start, between), (between, reader.place))
    ]
    if texts[0][:1] == ["d"] and texts[1][:1] == ["d"] and len(texts[1]) > 1:
        raise NotAnExpressionError("a derivative")
    return Node("quotient", (above, below))


def root(reader: Cursor) -> Node:
    index = number(2)
    if reader.peek() == "[":
        reader.take()
        index = reader.sum()
        reader.expect("]")
    radicand = reader.group(reader.take()) if reader.peek() == "(" else reader.argument()
    return Node("root", (radicand, index))


def plain_root(reader: Cursor) -> Node:
    return Node("root", (reader.atom(), number(2)))


def binomial(reader: Cursor) -> Node:
    return call("binomial", reader.argument(), reader.argument())


def series(reader: Cursor, kind: str) -> Node:
    r"""`\sum_{k=1}^{n} body`; the body is a product."""
    reader.expect("_")
    reader.expect("{")
    name = reader.take()
    if not reader.is_letter(name):
        raise NotAnExpressionError("a letter was expected under the sign")
    reader.expect("=")
    first = reader.sum()
    reader.expect("}")
    reader.expect("^")
    last = reader.script()
    reader.bound.append(name)
    body = reader.product()
    reader.bound.pop()
    return Node("series", (symbol(name), first, last, body), kind)


def _function_node(name: str, argument: Node, base: Node | None) -> Node:
    if name == "exp":
        return Node("power", (Node("constant", (), "e"), argument))
    if name in {"log", "lg"}:
        return call("log", argument, DEFAULT_BASE if base is None and name == "log" else base or number(10))
    return call(name, argument)


_READERS: dict[str, Callable[[Cursor], Node]] = {
    r"\frac": fraction,
    "sqrt": root,
    "√": plain_root,
    r"\binom": binomial,
    r"\sum": lambda reader: series(reader, "sum"),
    r"\prod": lambda reader: series(reader, "product"),
}
