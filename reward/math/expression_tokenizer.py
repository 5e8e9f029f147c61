"""Splits a LaTeX or plain expression into tokens, without layout commands and redundant brackets."""

import re

MAX_CHARS = 8_000  # two thousand redundant brackets around a value, a sum of several hundred terms
MAX_TOKENS = 2_000
MAX_DIGITS = 1_000

_GREEK_COMMANDS = [
    rf"\{name} "
    for name in (
        "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho "
        "sigma tau upsilon phi chi psi omega"
    ).split()
]
_UNICODE_SIGNS = str.maketrans(
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
        **dict(zip("αβγδεζηθικλμνξρστυφχψω", _GREEK_COMMANDS, strict=True)),
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
_WORD_PATTERN = "|".join([_BEFORE_BRACKET, *sorted([*_PLAIN_WORDS, *_GREEK_WORDS, "pi", "mod"], key=len, reverse=True)])
_LATEX_THOUSANDS = r"[0-9]{1,3}(?:(?:\{,\}|,\\!|\\,|\\!,)[0-9]{3})+(?![0-9])"
_COMMA_THOUSANDS = r"[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|,)"
_TOKEN = re.compile(
    rf"""
      (?P<space>(?:\s|~|\\[,;:!>\ ]|\\(?:quad|qquad|displaystyle|textstyle|limits|nolimits|mathstrut|strut
          |[bB]igg?[lr]?(?![a-z])|middle)(?![A-Za-z]))+)
    | (?P<repeating>[0-9]*\.[0-9]*\\(?:overline|bar|dot)\s*(?:\{{[0-9]+\}}|[0-9]))
    | (?P<number>(?:(?:{_LATEX_THOUSANDS}|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+(?![A-Za-z0-9.]))?)
    | (?P<named>\\(?:text|textrm|textnormal|textit|textbf|mathrm|mathbf|mathit|mathsf|mbox|operatorname\*?)
          \s*\{{\s*(?P<name>[A-Za-z]+|[0-9]+)\s*\}})
    | (?P<sized>\\(?:left|right)\s*(?P<bracket>\\(?:[A-Za-z]+|[{{}}|])|[()\[\]|.]))
    | (?P<word>{_WORD_PATTERN})
    | (?P<other>\\[A-Za-z]+\*?|\\[{{}}|]|\*\*|[A-Za-z()\[\]{{}}|+\-*/^_!,'√=])
    """,
    re.VERBOSE,
)
# `2e-3` as a part of more is a multiple of Euler's number and a term.
_EULER_NUMBER_TERM = re.compile("[0-9]+e[+-][0-9]")
_COMMA_THOUSANDS_RUN = re.compile(_COMMA_THOUSANDS)
_THOUSANDS_SEPARATORS = re.compile(r"\{,\}|,\\!|\\,|\\!,|,")
_TOKEN_ALIASES = {
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
_CLOSING_BRACKETS = {"(": ")", "[": "]", "{": "}", r"\{": r"\}"}


class NotAnExpressionError(ValueError):
    """An error raised for a text that is not a single scalar expression."""


def tokenize_expression(text: str) -> list[str]:
    """Splits an expression into tokens.

    Raises NotAnExpressionError if its brackets do not match. Of brackets that enclose the same text only one pair is
    kept.
    """
    if len(text) > MAX_CHARS:
        raise NotAnExpressionError("too long")
    text = text.translate(_UNICODE_SIGNS) if not text.isascii() else text
    tokens: list[str] = []
    position, bracket_depth = 0, 0
    while position < len(text):
        if bracket_depth == 0 and text[position].isdigit() and (match := _COMMA_THOUSANDS_RUN.match(text, position)):
            tokens.append(_THOUSANDS_SEPARATORS.sub("", match[0]))
            position = match.end()
            continue
        match = _TOKEN.match(text, position)
        if match is None:
            raise NotAnExpressionError(f"{text[position]!r} is no part of an expression")
        position = match.end()
        token = _normalize_token(match)
        if _EULER_NUMBER_TERM.fullmatch(token) and token != text.strip():
            token = match[0][: match[0].lower().index("e")]
            position = match.start() + len(token)
        if token:
            tokens.append(token)
            bracket_depth += (token in {"(", "[", r"\{"}) - (token in {")", "]", r"\}"})
    tokens = _drop_redundant_brackets(tokens)
    if len(tokens) > MAX_TOKENS:
        raise NotAnExpressionError("too long")
    return tokens


def _normalize_token(match: re.Match[str]) -> str:
    """Converts a regex match of `_TOKEN` to its token. The token of a space is ""."""
    kind, text = match.lastgroup, match[0]
    if kind == "space":
        return ""
    if kind == "number":
        if len(text) > MAX_DIGITS:
            raise NotAnExpressionError("too many digits")
        return _THOUSANDS_SEPARATORS.sub("", text)
    if kind == "repeating":
        return _rewrite_repeating_decimal(text)
    if match["name"]:
        return _convert_upright_word(match["name"])
    if match["bracket"]:
        return _convert_sized_bracket(text, match["bracket"])
    alias = _TOKEN_ALIASES.get(text, text)
    if alias is None:
        raise NotAnExpressionError(f"{text} is not known")
    return alias


def _rewrite_repeating_decimal(text: str) -> str:
    r"""Rewrites a repeating decimal such as `0.1\overline{6}` as `0.1(6)`."""
    leading_digits, _, period = text.partition("\\")
    return f"{leading_digits}({period.lstrip('abcdeinotrlv').strip(' {}')})"


def _convert_upright_word(name: str) -> str:
    """Converts a word in upright type to the token of a variable, number or known function.

    Raises NotAnExpressionError for any other word.
    """
    if len(name) == 1 or name.isdigit() or name in FUNCTION_WORDS or name in {"mod", "pi"}:
        return name
    raise NotAnExpressionError(f"{name!r} is a word")


def _convert_sized_bracket(text: str, bracket: str) -> str:
    r"""Converts a bracket after `\left` or `\right` to its token."""
    if bracket == ".":
        raise NotAnExpressionError("a bracket is missing")
    token = _TOKEN_ALIASES.get(bracket, bracket)
    if token is None:
        raise NotAnExpressionError(f"{bracket} is not known")
    return ("|<" if text.startswith(r"\left") else ">|") if token == "|" else token


def _drop_redundant_brackets(tokens: list[str]) -> list[str]:
    """Drops the inner of two bracket pairs that enclose the same tokens, so `((1))` becomes `(1)`."""
    closing_index = [-1] * len(tokens)
    open_indices: list[int] = []
    for index, token in enumerate(tokens):
        if token in _CLOSING_BRACKETS:
            open_indices.append(index)
        elif token in {")", "]", "}", r"\}"}:
            if not open_indices or _CLOSING_BRACKETS[tokens[open_indices[-1]]] != token:
                raise NotAnExpressionError("brackets do not match")
            closing_index[open_indices.pop()] = index
    if open_indices:
        raise NotAnExpressionError("a bracket is not closed")
    dropped_indices: set[int] = set()
    for index in range(1, len(tokens)):
        if closing_index[index] > 0 and closing_index[index] == closing_index[index - 1] - 1:
            dropped_indices |= {index, closing_index[index]}
    return [token for index, token in enumerate(tokens) if index not in dropped_indices] if dropped_indices else tokens
