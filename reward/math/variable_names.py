"""Recognizes names on the left side of an equation, such as `x` in `x = 5`, `f(x)`, `(x, y)` or `AB`."""

import re
from functools import cache

_SYMBOL = (
    r"(?:\\text\{[^{}]*\}|\\(?:alpha|beta|gamma|delta|epsilon|varepsilon|zeta|eta|theta|vartheta|iota|kappa|lambda|mu|nu"
    r"|xi|rho|sigma|tau|phi|varphi|chi|psi|omega|ell|Gamma|Delta|Theta|Lambda|Xi|Pi|Sigma|Phi|Psi|Omega)|[A-Za-z])"
    r"(?:_(?:[A-Za-z0-9]|\{[^{}]*\}))?'*"
)
_POINT_NAMES = (
    r"(?:[A-Z]{2,4}|\\(?:angle|triangle|overline|widehat|vec|overrightarrow|bar|hat)"
    r" ?(?:\{[A-Za-z]+\}|[A-Za-z]+))"
)
_APPLIED_FUNCTION = rf"(?:{_SYMBOL}\((?:{_SYMBOL}|-?[0-9]+)(?:,(?:{_SYMBOL}|-?[0-9]+))*\)|[fghFGPQ]\([^()=]*\))"
_NAME = rf"(?:{_APPLIED_FUNCTION}|{_POINT_NAMES}|\|{_POINT_NAMES}\||[fgh]\^\{{-1\}}\({_SYMBOL}\)|{_SYMBOL})"
_WORD_NAME = re.compile(r"[A-Za-z][A-Za-z ]{2,40}|[一-鿿]{1,10}")
_NOT_A_NAME = re.compile(  # words of a condition, a denial or a bound
    r"\b(?:when|if|for|where|suppose|assume|let|given|maybe|perhaps|possibly|probably|could|might|unless|except|until|not|no|never|least|most|less|more|greater|about|approximately|around"
    r"|nearly|almost|roughly|wrong|incorrect)\b",
    re.IGNORECASE,
)
_NAME_OR_NAMES = re.compile(rf"{_NAME}|\({_NAME}(?:,{_NAME})+\)")
_DERIVATIVE = re.compile(r"\\frac\{d[a-zA-Z]\}\{d[a-zA-Z]\}|d[a-z]/d[a-z]")
_INDEX = re.compile(r"_(?:[A-Za-z0-9]|\{[^{}]*\})")


def normalize_variable_name(side: str, *, is_gold: bool) -> str | None:
    """Returns the left side of an equation as a normalized name.

    Returns None if it is not a name; more forms count as names in a gold.
    """
    bare = side.replace(" ", "").replace("{}", "")
    if bare.startswith("{") and bare.endswith("}"):
        bare = bare[1:-1]
    if (
        _NAME_OR_NAMES.fullmatch(bare)
        or _DERIVATIVE.fullmatch(bare)
        or (is_gold and _compile_gold_name_pattern().fullmatch(bare))
    ):
        return re.sub(r"_\{([^{}]*)\}", r"_\1", bare)
    words = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", side).strip()
    if _NOT_A_NAME.search(words):
        return None
    return words.lower() if _WORD_NAME.fullmatch(words) and len(words.replace(" ", "")) > 3 else None


@cache  # 0.04 s, which `check` would spend at every start; few golds need it
def _compile_gold_name_pattern() -> re.Pattern[str]:
    """Compiles the pattern of names allowed only in a gold: applied functions, ratios and absolute values."""
    return re.compile(
        rf"\\(?:sin|cos|tan|cot|sec|csc|log|ln) ?(?:{_NAME}|\({_NAME}\))|"
        rf"{_NAME}(?::{_NAME})+|\\frac\{{{_NAME}\}}\{{{_NAME}\}}|{_NAME}/{_NAME}|\|{_NAME}\|"
    )


def strip_subscript(name: str) -> str:
    """Returns a variable name without its subscript, so `x_1` and `x_2` become x."""
    return _INDEX.sub("", name.rstrip("'0123456789"))
