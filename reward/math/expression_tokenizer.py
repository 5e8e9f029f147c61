r"""Tokens of a LaTeX or plain expression; layout commands are gone and redundant brackets are stripped."""

import re

MAX_CHARS = 8_000  # two thousand redundant brackets around a value, a sum of several hundred terms
MAX_TOKENS = 2_000
MAX_DIGITS = 1_000

_GREEK = [
    rf"\{name} "
    for name in (
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho "
        "sigma tau upsilon phi chi psi omega"
    ).split()
]
_SIGNS = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "×": "*",
        "·": "*",
        "⋅": "*",
        "∙": "*",
        "÷": "/",
        "⁄": "/",
        "π": r"\pi ",
        "∞": r"\infty ",
        "°": r"^\circ ",
        **dict(zip("αβγδεζηθικλμνξρστυφχψω", _GREEK, strict=True)),
    }
)
_PLAIN_WORDS = (
    "arcsin arccos arctan arccot arcsec arccsc arsinh arcosh artanh sinh cosh tanh coth sech csch "
    "sin cos tan cot sec csc cotan ln lg log exp sqrt abs gcd lcm max min floor ceil"
).split()
_PRINTED_WORDS = "asin acos atan acot asec acsc asinh acosh atanh Abs ceiling".split()  # by computer algebra
FUNCTION_WORDS = (*_PLAIN_WORDS, *_PRINTED_WORDS)
_GREEK_WORDS = "alpha gamma delta epsilon theta lambda sigma omega".split()  # the shorter ones may be products
_BEFORE_BRACKET = r"a(?:sin|cos|tan)h?(?=\s*\()|Abs(?=\s*\()"  # `asin x` is a product with a
_WORDS = "|".join([_BEFORE_BRACKET, *sorted([*_PLAIN_WORDS, *_GREEK_WORDS, "pi", "mod"], key=len, reverse=True)])
_GROUPS = r"[0-9]{1,3}(?:(?:\{,\}|,\\!|\\,|\\!,)[0-9]{3})+(?![0-9])"
_COMMA_GROUPS = r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|,)"
_TOKEN = re.compile(
    rf"""
      (?P<space>(?:\s|~|\\[,;:!>\ ]|\\(?:quad|qquad|displaystyle|textstyle|limits|nolimits|mathstrut|strut
          |[bB]igg?[lr]?(?![a-z])|middle)(?![A-Za-z]))+)
    | (?P<repeating>[0-9]*\.[0-9]*\\(?:overline|bar|dot)\s*(?:\{{[0-9]+\}}|[0-9]))
    | (?P<number>(?:(?:{_GROUPS}|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+(?![A-Za-z0-9.]))?)
    | (?P<named>\\(?:text|textrm|textnormal|textit|textbf|mathrm|mathbf|mathit|mathsf|mbox|operatorname\*?)
          \s*\{{\s*(?P<name>[A-Za-z]+|[0-9]+)\s*\}})
    | (?P<sized>\\(?:left|right)\s*(?P<bracket>\\(?:[A-Za-z]+|[{{}}|])|[()\[\]|.]))
    | (?P<word>{_WORDS})
    | (?P<other>\\[A-Za-z]+\*?|\\[{{}}|]|\*\*|[A-Za-z()\[\]{{}}|+\-*/^_!,'√=])
    """,
    re.VERBOSE,
)
_EULER = re.compile("[0-9]+e[+-][0-9]")  # `2e-3` as a part of more is a multiple of Euler's number and a term
_THOUSANDS = re.compile(_COMMA_GROUPS)
_SEPARATORS = re.compile(r"\{,\}|,\\!|\\,|\\!,|,")
_RENAMED = {
    r"\dfrac": r"\frac",
    r"\tfrac": r"\frac",
    r"\cfrac": r"\frac",
    r"\dbinom": r"\binom",
    r"\tbinom": r"\binom",
    r"\lbrack": "[",
    r"\rbrack": "]",
    r"\lparen": "(",
    r"\rparen": ")",
    r"\lbrace": r"\{",
    r"\rbrace": r"\}",
    r"\vert": "|",
    r"\mid": "|",
    r"\lvert": "|<",
    r"\rvert": ">|",
    r"\|": None,
    r"\cdot": "*",
    r"\times": "*",
    r"\ast": "*",
    r"\div": "/",
    "**": "^",
    r"\bmod": "mod",
    r"\mod": "mod",
    r"\degree": "degree",
    r"\prime": "'",
    r"\operatorname": None,
    **{f"\\{word}": word for word in FUNCTION_WORDS},
    **{word: f"\\{word}" for word in _GREEK_WORDS},
    r"\pi": "pi",
    r"\varphi": r"\phi",
    r"\varepsilon": r"\epsilon",
    r"\vartheta": r"\theta",
    r"\varrho": r"\rho",
    r"\tg": "tan",
    r"\ctg": "cot",
    r"\arctg": "arctan",
}
_CLOSING = {"(": ")", "[": "]", "{": "}", r"\{": r"\}"}


class NotAnExpressionError(ValueError):
    """The text is not one scalar expression."""


def tokens_of(text: str) -> list[str]:
    """The tokens of `text`, brackets balanced and none of them redundant; raises NotAnExpressionError."""
    if len(text) > MAX_CHARS:
        raise NotAnExpressionError("too long")
    text = text.translate(_SIGNS) if not text.isascii() else text
    tokens: list[str] = []
    place, brackets = 0, 0
    while place < len(text):
        if brackets == 0 and text[place].isdigit() and (found := _THOUSANDS.match(text, place)):
            tokens.append(_SEPARATORS.sub("", found[0]))
            place = found.end()
            continue
        found = _TOKEN.match(text, place)
        if found is None:
            raise NotAnExpressionError(f"{text[place]!r} is no part of an expression")
        place = found.end()
        token = _token(found)
        if _EULER.fullmatch(token) and token != text.strip():
            token = found[0][: found[0].lower().index("e")]
            place = found.start() + len(token)
        if token:
            tokens.append(token)
            brackets += (token in {"(", "[", r"\{"}) - (token in {")", "]", r"\}"})
    tokens = _without_redundant_brackets(tokens)
    if len(tokens) > MAX_TOKENS:
        raise NotAnExpressionError("too long")
    return tokens


def _token(found: re.Match[str]) -> str:
    kind, text = found.lastgroup, found[0]
    if kind == "space":
        return ""
    if kind == "number":
        if len(text) > MAX_DIGITS:
            raise NotAnExpressionError("too many digits")
        return _SEPARATORS.sub("", text)
    if kind == "repeating":
        return _repeating(text)
    if found["name"]:
        return _named(found["name"])
    if found["bracket"]:
        return _sized(text, found["bracket"])
    renamed = _RENAMED.get(text, text)
    if renamed is None:
        raise NotAnExpressionError(f"{text} is not known")
    return renamed


def _repeating(text: str) -> str:
    """`0.1\\overline{6}` as `0.1(6)`."""
    start, _, period = text.partition("\\")
    return f"{start}({period.lstrip('abcdeinotrlv').strip(' {}')})"


def _named(name: str) -> str:
    """What an upright word stands for: a letter, a number or a known function; no other word is an expression."""
    if len(name) == 1 or name.isdigit() or name in FUNCTION_WORDS or name in {"mod", "pi"}:
        return name
    raise NotAnExpressionError(f"{name!r} is a word")


def _sized(text: str, bracket: str) -> str:
    if bracket == ".":
        raise NotAnExpressionError("a bracket is missing")
    token = _RENAMED.get(bracket, bracket)
    if token is None:
        raise NotAnExpressionError(f"{bracket} is not known")
    return ("|<" if text.startswith(r"\left") else ">|") if token == "|" else token


def _without_redundant_brackets(tokens: list[str]) -> list[str]:
    """The tokens without the inner one of two brackets that enclose the same text: `((1))` becomes `(1)`."""
    closing = [-1] * len(tokens)
    waiting: list[int] = []
    for place, token in enumerate(tokens):
        if token in _CLOSING:
            waiting.append(place)
        elif token in {")", "]", "}", r"\}"}:
            if not waiting or _CLOSING[tokens[waiting[-1]]] != token:
                raise NotAnExpressionError("brackets do not match")
            closing[waiting.pop()] = place
    if waiting:
        raise NotAnExpressionError("a bracket is not closed")
    dropped: set[int] = set()
    for place in range(1, len(tokens)):
        if closing[place] > 0 and closing[place] == closing[place - 1] - 1:
            dropped |= {place, closing[place]}
    return [token for place, token in enumerate(tokens) if place not in dropped] if dropped else tokens
