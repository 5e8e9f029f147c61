r"""Normalizes LaTeX and Unicode, so that texts that differ only in typesetting become the same string.

Spaces stay (single), because `2 1/3` is no `21/3`; everything else that only changes the looks goes: Unicode forms,
`\left`, `\displaystyle`, font commands, `\,`, dollar signs, thin spaces between groups of thousands.
"""

import re
import unicodedata
from functools import lru_cache

MAX_CHARS = 10_000  # longer answers are compared as text; the longest real gold has some hundred
ROW_BREAK = "\ue000"  # stands for LaTeX's double backslash, whose second half is no command

_COMMAND_ALIASES = {
    **dict.fromkeys(("dfrac", "tfrac", "cfrac", "nicefrac", "sfrac"), r"\frac"),
    **dict.fromkeys(("dbinom", "tbinom"), r"\binom"),
    **dict.fromkeys(("quad", "qquad", "enspace", "enskip", "thinspace", "space", "nobreakspace"), " "),
    **dict.fromkeys(("leq", "leqslant", "leqq"), r"\le"),
    **dict.fromkeys(("geq", "geqslant", "geqq"), r"\ge"),
    **dict.fromkeys(("lt",), "<"),
    **dict.fromkeys(("gt",), ">"),
    **dict.fromkeys(("neq",), r"\ne"),
    **dict.fromkeys(("wedge",), r"\land"),
    **dict.fromkeys(("vee",), r"\lor"),
    **dict.fromkeys(("varnothing", "empty"), r"\emptyset"),
    **dict.fromkeys(("dots", "cdots", "dotsc", "dotsb", "hdots"), r"\ldots"),
    **dict.fromkeys(("lbrace",), r"\{"),
    **dict.fromkeys(("rbrace",), r"\}"),
    **dict.fromkeys(("lbrack",), "["),
    **dict.fromkeys(("rbrack",), "]"),
    **dict.fromkeys(("lvert", "rvert", "vert"), "|"),
    **dict.fromkeys(("lparen",), "("),
    **dict.fromkeys(("rparen",), ")"),
    **dict.fromkeys(("backslash",), r"\setminus"),
    **dict.fromkeys(("colon",), ":"),
    **dict.fromkeys(("degree",), "°"),
    **dict.fromkeys(("percent",), "%"),
    **dict.fromkeys(("euro", "texteuro"), "€"),
    **dict.fromkeys(("pounds", "textsterling"), "£"),
    **dict.fromkeys(("yen", "textyen"), "¥"),
    **dict.fromkeys(("textdollar", "dollar"), r"\$"),
    **dict.fromkeys(("ast",), "*"),
}
_DROPPED_COMMANDS = frozenset(
    "left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr middle displaystyle textstyle "
    "scriptstyle limits nolimits mathbf mathit boldsymbol bm mathnormal ensuremath bf it rm sf tt Large large huge "
    "Huge small normalsize rmfamily hfill hspace mathopen mathclose mathord mathstrut strut null relax".split()
)
_TEXT_COMMANDS = frozenset(
    "text textrm textnormal textbf textit textsf texttt textup emph mathrm mathsf mbox hbox".split()
)
_NAMED_FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp gcd lcm max min det deg".split()
)
_UNICODE_SIGNS = {
    **dict.fromkeys("−–‐‑‒—―", "-"),
    **dict.fromkeys("⁄∕÷", "/"),
    **dict.fromkeys("·⋅∙•・", r"\cdot "),
    **dict.fromkeys("∶꞉", ":"),
    **dict.fromkeys("≤⩽≦", r"\le "),
    **dict.fromkeys("≥⩾≧", r"\ge "),
    **dict.fromkeys("∖", r"\setminus "),
    **dict.fromkeys("“”„‟″", '"'),
    **dict.fromkeys("‘’‛′", "'"),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad", ""),
    "×": r"\times ",
    "∗": "*",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "≡": r"\equiv ",
    "∧": r"\land ",
    "∨": r"\lor ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "∞": r"\infty ",
    "±": r"\pm ",
    "∓": r"\mp ",
    "∠": r"\angle ",
    "△": r"\triangle ",
    "⊥": r"\perp ",
    "∥": r"\parallel ",
    "→": r"\to ",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "∑": r"\sum ",
    "∏": r"\prod ",
    "∫": r"\int ",
    "∂": r"\partial ",
    "…": r"\ldots ",
    "⋯": r"\ldots ",
    "。": ".",
    "、": ",",
    "℃": "°C",
    "℉": "°F",
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "ℕ": r"\mathbb{N}",
    "ℚ": r"\mathbb{Q}",
    "ℂ": r"\mathbb{C}",
}
_GREEK_NAMES = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi chi psi omega"  # noqa: E501
_UNICODE_SIGNS |= {
    unicodedata.lookup(f"GREEK SMALL LETTER {name.upper().replace('LAMBDA', 'LAMDA')}"): rf"\{name} "
    for name in _GREEK_NAMES.split()
}
_UNICODE_SIGNS |= {
    unicodedata.lookup(f"GREEK CAPITAL LETTER {name.upper().replace('LAMBDA', 'LAMDA')}"): rf"\{name.title()} "
    for name in "gamma delta theta lambda xi pi sigma phi psi omega".split()
}
_NON_ASCII_RUN = re.compile(r"[^\x00-\x7f]+")
_UNICODE_ROOT = re.compile(r"([√∛∜])\s*(?:([0-9]+(?:\.[0-9]+)?|[A-Za-z])|\(([^()]*)\)|\{([^{}]*)\})")
_ROOT_COMMANDS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}
_DOLLAR = re.compile(r"(?<!\\)\$")
_THOUSANDS_SPACE = re.compile(r"(?<=[0-9])(?:\\[,;: ]|~|\{\s\})(?=[0-9]{3}(?![0-9]))")
_DECIMAL_COMMA = re.compile(r"(?<![0-9.,}])([0-9]+)\{,\}([0-9]{1,2}|[0-9]{4,})(?![0-9,{])")  # as LaTeX spaces it
_THOUSANDS_COMMA = re.compile(r"(?<=[0-9])(?:,\s*\\!\s*|\{,\}\s*)(?=[0-9]{3})")
_COMMAND = re.compile(r"\\([A-Za-z]+)\s*")
_OPERATOR_NAME = re.compile(r"\\operatorname\s*\*?\s*\{\s*([A-Za-z]+)\s*\}")
_NEGATED_RELATION = re.compile(r"\\not\s*(=|\\in\b)")
_COLOUR = re.compile(r"\\(?:(?:text)?color|[hv]space\*?|textcolor)\s*\{[^{}]*\}")
_PHANTOM = re.compile(r"\\[hv]?phantom\s*\{[^{}]*\}")  # takes room and shows nothing
_VECTOR = (
    r"\\(?:vec|overrightarrow|mathbf|boldsymbol|bm|hat|widehat)\s*"
    r"(?:\{\s*(?:\\[a-z]+|[A-Za-z]+)\s*\}|\s[A-Za-z]|\\[a-z]+)"
)
_CROSS_PRODUCT = re.compile(
    rf"({_VECTOR}(?:_\w|_\{{[^{{}}]*\}})?\s*)\\times(?=\s*(?:\(|\\left\b|{_VECTOR}))|(\)\s*)\\times(?=\s*{_VECTOR})"
)
_TRANSPOSED = re.compile(
    r"\^\s*(?:\{\s*)?(?:\\top|\\intercal|\\(?:mathsf|mathrm|text|mathtt|rm|intercal)\s*(?:\{\s*T\s*\}|\s?T))(?![A-Za-z])(?:\s*\})?"
)
_DIFFERENTIAL = re.compile(r"\\(?:mathrm|text|textrm|mathsf|rm)(?:\s*\{\s*d\s*\}|\s+d)(?=\s*(?:[A-Za-z}^]|\\[a-z]))")
_ROW_SKIP = re.compile(rf"{ROW_BREAK}\s*\[-?[0-9.]+(?:pt|em|ex|cm|mm|in)\]")
_OVER_OR_CHOOSE = re.compile(r"\{([^{}]*)\\(over|choose)(?![A-Za-z])([^{}]*)\}")
_PYTHON_NAMES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan"}
_PYTHON_FUNCTION = re.compile(r"(?<![A-Za-z\\{])(asin|acos|atan)(?=\s*[({\\])")
_HALF_DAY = re.compile(r"(?<![A-Za-z])([ap])\.\s?m\.")
_ROOT_OF_DIGITS = re.compile(r"\\sqrt ?([0-9]{2,})")  # LaTeX would draw the root over the first digit only
_FACTORIAL_BEFORE_DIGIT = re.compile(r"(?<!\\)!(?:\\[,;:! ]|\s)*(?=[0-9])")
_SPACE = re.compile(r"(?:\\[,;:>! ]|~|\s)+")
_DERIVATIVE_ORDER = re.compile(r"(?<![A-Za-z\\])([A-Za-z])\s*\^\s*\{\s*\(\s*([A-Za-z0-9]+)\s*\)\s*\}")
_DEGREE_LETTER = re.compile(r"°\s*(?:\\text\s*\{\s*([CF])\s*\}|([CF])(?![A-Za-z]))")
_DEGREE_CIRCLE = re.compile(r"\s*\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\}|°|\{\s*°\s*\}|o(?=[CF]\b))")


@lru_cache(maxsize=2_048)
def normalize_latex(text: str) -> str:
    """Returns an answer as normalized LaTeX, where only typesetting is changed and not the meaning."""
    text = normalize_unicode(text).replace("\\\\", ROW_BREAK)
    if "a" in text or "A" in text or ".m" in text:
        text = _HALF_DAY.sub(r"\1m", _PYTHON_FUNCTION.sub(lambda match: rf"\{_PYTHON_NAMES[match[1]]} ", text))
    if "$" in text and len(_DOLLAR.findall(text)) % 2 == 0:  # an odd one is money
        text = _DOLLAR.sub(" ", text)
    if "\\" in text or "{" in text or "~" in text:
        if r"\times" in text:
            text = _CROSS_PRODUCT.sub(r"\1\2\\crossed ", text)  # no product: it changes its sign with the order
        text = _TRANSPOSED.sub("^{T}", _PHANTOM.sub("", text)) if "^" in text or "phantom" in text else text
        text = _DIFFERENTIAL.sub("d ", text) if r"\int" in text or r"\frac" in text else text
        text = _DECIMAL_COMMA.sub(r"\1.\2", text) if "{,}" in text else text
        text = _THOUSANDS_COMMA.sub("", _COLOUR.sub(" ", _ROW_SKIP.sub(ROW_BREAK, text)))
        text = _THOUSANDS_SPACE.sub("", text)
        text = _OPERATOR_NAME.sub(_rewrite_operator, text)
        text = _COMMAND.sub(_rewrite_command, text)
        if r"\over" in text or r"\choose" in text:
            text = _OVER_OR_CHOOSE.sub(_rewrite_over_and_choose, text)
        text = _DERIVATIVE_ORDER.sub(_rewrite_derivative_order, text) if "(" in text and "^" in text else text
        text = _DEGREE_CIRCLE.sub("°", _NEGATED_RELATION.sub(_rewrite_negation, text))
        text = _DEGREE_LETTER.sub(r"°\1\2", text) if "°" in text else text
    text = _ROOT_OF_DIGITS.sub(r"\\sqrt{\1}", text) if r"\sqrt" in text else text
    text = _FACTORIAL_BEFORE_DIGIT.sub(r"!\\cdot ", text) if "!" in text else text
    text = text.replace("...", r"\ldots ") if "..." in text else text
    return _SPACE.sub(" ", text).strip()


def normalize_unicode(text: str) -> str:
    r"""Replaces Unicode characters in a text by ASCII and LaTeX commands.

    As NFKC does, but `2½` becomes `2\frac{1}{2}` and `5²` becomes `5^{2}`, which NFKC would make 21/2 and 52.
    """
    if text.isascii():
        return text
    text = _UNICODE_ROOT.sub(
        lambda match: f"{_ROOT_COMMANDS[match[1]]}{{{match[2] or match[3] or match[4] or ''}}}", text
    )
    return _NON_ASCII_RUN.sub(lambda run: _normalize_unicode_run(run[0]), text)


def _normalize_unicode_run(run: str) -> str:
    """Replaces the characters of a run of non-ASCII text by ASCII and LaTeX commands."""
    parts: list[str] = []
    open_script = ""  # the open `^{` or `_{`
    for character in run:
        decomposition_kind = unicodedata.decomposition(character).partition(" ")[0]
        script_opening = {"<super>": "^{", "<sub>": "_{"}.get(decomposition_kind, "")
        if script_opening != open_script:
            parts.append(("}" if open_script else "") + script_opening)
            open_script = script_opening
        if character in _UNICODE_SIGNS:
            parts.append(_UNICODE_SIGNS[character])
            continue
        compatible = unicodedata.normalize("NFKC", character)
        if decomposition_kind == "<fraction>":
            numerator, _, denominator = compatible.partition("⁄")
            parts.append(rf"\frac{{{numerator}}}{{{denominator}}}")
        else:
            parts.append("".join(_UNICODE_SIGNS.get(symbol, symbol) for symbol in compatible))
    return "".join(parts) + ("}" if open_script else "")


def _rewrite_derivative_order(match: re.Match[str]) -> str:
    """Rewrites the derivative `f^{(2)}` with primes, and one of an unknown order as a name of its own."""
    order = match[2]
    return match[1] + ("'" * int(order) if order in {"1", "2", "3", "4"} else f"_{{({order})}}")


def _rewrite_over_and_choose(match: re.Match[str]) -> str:
    r"""Rewrites the infix commands `{a \over b}` as `\frac{a}{b}` and `{a \choose b}` as `\binom{a}{b}`."""
    return rf"\{'frac' if match[2] == 'over' else 'binom'}{{{match[1].strip()}}}{{{match[3].strip()}}}"


def _rewrite_operator(match: re.Match[str]) -> str:
    r"""Rewrites `\operatorname{name}` as `\name` if the name is a known function, else as `\text{name}`."""
    name = _PYTHON_NAMES.get(match[1], match[1])
    return rf"\{name} " if name in _NAMED_FUNCTIONS else rf"\text{{{name}}}"


def _rewrite_negation(match: re.Match[str]) -> str:
    r"""Rewrites `\not=` as `\ne` and `\not\in` as `\notin`."""
    return r"\ne " if match[1] == "=" else r"\notin "


def _rewrite_command(match: re.Match[str]) -> str:
    """Rewrites a LaTeX command to its usual name, or drops it if it changes only the appearance."""
    name = match[1]
    if name in _DROPPED_COMMANDS:
        return "" if name in ("left", "right") else " "
    if name in _TEXT_COMMANDS:
        return r"\text"
    return _COMMAND_ALIASES[name] + " " if name in _COMMAND_ALIASES else match[0]
