r"""The layout form of an answer: what differs only in typesetting becomes the same string.

Spaces stay (single), because `2 1/3` is no `21/3`; everything else that only changes the looks goes: Unicode forms,
`\left`, `\displaystyle`, font commands, `\,`, dollar signs, thin spaces between groups of thousands.
"""

import re
import unicodedata
from functools import lru_cache

MAX_CHARS = 10_000  # longer answers are compared as they are written; the longest real gold has some hundred
ROW_BREAK = "\ue000"  # stands for LaTeX's double backslash, whose second half is no command

_RENAMED = {
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
_DROPPED = frozenset(
    "left right big Big bigg Bigg bigl bigr Bigl Bigr biggl biggr Biggl Biggr middle displaystyle textstyle "
    "scriptstyle limits nolimits mathbf mathit boldsymbol bm mathnormal ensuremath bf it rm sf tt Large large huge "
    "Huge small normalsize rmfamily hfill hspace mathopen mathclose mathord mathstrut strut null relax".split()
)
_TEXTS = frozenset("text textrm textnormal textbf textit textsf texttt textup emph mathrm mathsf mbox hbox".split())
_NAMED_FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp gcd lcm max min det deg".split()
)
_SIGNS = {
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
_GREEK = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron pi rho sigma tau upsilon phi chi psi omega"  # noqa: E501
_SIGNS |= {
    unicodedata.lookup(f"GREEK SMALL LETTER {name.upper().replace('LAMBDA', 'LAMDA')}"): rf"\{name} "
    for name in _GREEK.split()
}
_SIGNS |= {
    unicodedata.lookup(f"GREEK CAPITAL LETTER {name.upper().replace('LAMBDA', 'LAMDA')}"): rf"\{name.title()} "
    for name in "gamma delta theta lambda xi pi sigma phi psi omega".split()
}
_RUNS = re.compile(r"[^\x00-\x7f]+")
_ROOT = re.compile(r"([√∛∜])\s*(?:([0-9]+(?:\.[0-9]+)?|[A-Za-z])|\(([^()]*)\)|\{([^{}]*)\})")
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}
_DOLLAR = re.compile(r"(?<!\\)\$")
_THOUSANDS_SPACE = re.compile(r"(?<=[0-9])(?:\\[,;: ]|~|\{\s\})(?=[0-9]{3}(?![0-9]))")
_THIN_COMMA = re.compile(r"(?<=[0-9])(?:,\s*\\!\s*|\{,\}\s*)(?=[0-9]{3})")
_COMMAND = re.compile(r"\\([A-Za-z]+)\s*")
_OPERATOR = re.compile(r"\\operatorname\s*\*?\s*\{\s*([A-Za-z]+)\s*\}")
_NEGATED = re.compile(r"\\not\s*(=|\\in\b)")
_COLOUR = re.compile(r"\\(?:(?:text)?color|[hv]space\*?|textcolor)\s*\{[^{}]*\}")
_PHANTOM = re.compile(r"\\[hv]?phantom\s*\{[^{}]*\}")  # takes room and shows nothing
_ARROW = (
    r"\\(?:vec|overrightarrow|mathbf|boldsymbol|bm|hat|widehat)\s*"
    r"(?:\{\s*(?:\\[a-z]+|[A-Za-z]+)\s*\}|\s[A-Za-z]|\\[a-z]+)"
)  # a vector
_CROSS = re.compile(
    rf"({_ARROW}(?:_\w|_\{{[^{{}}]*\}})?\s*)\\times(?=\s*(?:\(|\\left\b|{_ARROW}))|(\)\s*)\\times(?=\s*{_ARROW})"
)
_TRANSPOSED = re.compile(
    r"\^\s*(?:\{\s*)?(?:\\top|\\intercal|\\(?:mathsf|mathrm|text|mathtt|rm|intercal)\s*(?:\{\s*T\s*\}|\s?T))(?![A-Za-z])(?:\s*\})?"
)
_DIFFERENTIAL = re.compile(r"\\(?:mathrm|text|textrm|mathsf|rm)(?:\s*\{\s*d\s*\}|\s+d)(?=\s*(?:[A-Za-z}^]|\\[a-z]))")
_ROW_SKIP = re.compile(rf"{ROW_BREAK}\s*\[-?[0-9.]+(?:pt|em|ex|cm|mm|in)\]")
_OVER = re.compile(r"\{([^{}]*)\\(over|choose)(?![A-Za-z])([^{}]*)\}")
_PYTHON_NAMES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan"}
_PYTHON = re.compile(r"(?<![A-Za-z\\{])(asin|acos|atan)(?=\s*[({\\])")
_HALF_DAY = re.compile(r"(?<![A-Za-z])([ap])\.\s?m\.")
_ROOT_OF_DIGITS = re.compile(r"\\sqrt ?([0-9]{2,})")  # LaTeX would draw the root over the first digit only
_FACTORIAL_BEFORE_DIGIT = re.compile(r"(?<!\\)!(?:\\[,;:! ]|\s)*(?=[0-9])")
_SPACE = re.compile(r"(?:\\[,;:>! ]|~|\s)+")
_CIRCLE = re.compile(r"\s*\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\}|°|\{\s*°\s*\}|o(?=[CF]\b))")


@lru_cache(maxsize=2_048)
def layout(text: str) -> str:
    """`text` in its layout form."""
    text = plain_characters(text).replace("\\\\", ROW_BREAK)
    if "a" in text or "A" in text or ".m" in text:
        text = _HALF_DAY.sub(r"\1m", _PYTHON.sub(lambda found: rf"\{_PYTHON_NAMES[found[1]]} ", text))
    if "$" in text and len(_DOLLAR.findall(text)) % 2 == 0:  # an odd one is money
        text = _DOLLAR.sub(" ", text)
    if "\\" in text or "{" in text or "~" in text:
        if r"\times" in text:
            text = _CROSS.sub(r"\1\2\\crossed ", text)  # no product: it changes its sign with the order
        text = _TRANSPOSED.sub("^{T}", _PHANTOM.sub("", text)) if "^" in text or "phantom" in text else text
        text = _DIFFERENTIAL.sub("d ", text) if r"\int" in text or r"\frac" in text else text
        text = _THIN_COMMA.sub("", _COLOUR.sub(" ", _ROW_SKIP.sub(ROW_BREAK, text)))
        text = _THOUSANDS_SPACE.sub("", text)
        text = _OPERATOR.sub(_operator, text)
        text = _COMMAND.sub(_command, text)
        if r"\over" in text or r"\choose" in text:
            text = _OVER.sub(_above, text)
        text = _CIRCLE.sub("°", _NEGATED.sub(_negated, text))
    text = _ROOT_OF_DIGITS.sub(r"\\sqrt{\1}", text) if r"\sqrt" in text else text
    text = _FACTORIAL_BEFORE_DIGIT.sub(r"!\\cdot ", text) if "!" in text else text
    text = text.replace("...", r"\ldots ") if "..." in text else text
    return _SPACE.sub(" ", text).strip()


def plain_characters(text: str) -> str:
    """NFKC in LaTeX's names, but `2½` as `2\\frac{1}{2}` and `5²` as `5^{2}`, which NFKC would make 21/2 and 52."""
    if text.isascii():
        return text
    text = _ROOT.sub(lambda found: f"{_ROOTS[found[1]]}{{{found[2] or found[3] or found[4] or ''}}}", text)
    return _RUNS.sub(lambda run: _plain_run(run[0]), text)


def _plain_run(run: str) -> str:
    parts: list[str] = []
    script = ""  # the open `^{` or `_{`
    for character in run:
        kind = unicodedata.decomposition(character).partition(" ")[0]
        wanted = {"<super>": "^{", "<sub>": "_{"}.get(kind, "")
        if wanted != script:
            parts.append(("}" if script else "") + wanted)
            script = wanted
        if character in _SIGNS:
            parts.append(_SIGNS[character])
            continue
        plain = unicodedata.normalize("NFKC", character)
        if kind == "<fraction>":
            above, _, below = plain.partition("⁄")
            parts.append(rf"\frac{{{above}}}{{{below}}}")
        else:
            parts.append("".join(_SIGNS.get(sign, sign) for sign in plain))
    return "".join(parts) + ("}" if script else "")


def _above(found: re.Match[str]) -> str:
    return rf"\{'frac' if found[2] == 'over' else 'binom'}{{{found[1].strip()}}}{{{found[3].strip()}}}"


def _operator(found: re.Match[str]) -> str:
    name = _PYTHON_NAMES.get(found[1], found[1])
    return rf"\{name} " if name in _NAMED_FUNCTIONS else rf"\text{{{name}}}"


def _negated(found: re.Match[str]) -> str:
    return r"\ne " if found[1] == "=" else r"\notin "


def _command(found: re.Match[str]) -> str:
    name = found[1]
    if name in _DROPPED:
        return "" if name in ("left", "right") else " "
    if name in _TEXTS:
        return r"\text"
    return _RENAMED[name] + " " if name in _RENAMED else found[0]
