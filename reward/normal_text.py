r"""Normal forms of a short mathematical text: what differs only in layout becomes the same string."""

import re
import unicodedata

_COMMANDS = {
    **dict.fromkeys((r"\left", r"\right", r"\displaystyle", r"\bigl", r"\bigr", r"\Bigl", r"\Bigr"), ""),
    **dict.fromkeys((r"\quad", r"\qquad"), " "),
    **dict.fromkeys((r"\dfrac", r"\tfrac", r"\cfrac"), r"\frac"),
    r"\leq": r"\le",
    r"\geq": r"\ge",
    r"\neq": r"\ne",
    r"\varnothing": r"\emptyset",
    r"\degree": "°",
}
_SIGNS = {
    "−": "-",
    "–": "-",
    "⁄": "/",
    "×": r"\times ",
    "·": r"\cdot ",
    "π": r"\pi ",
    "∞": r"\infty ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "∪": r"\cup ",
    "。": ".",
    "、": ",",
}
_TEXT = re.compile(
    r"\\(?:text|textrm|textnormal|textbf|textit|mathrm|mathbf|mathit|mathsf|mbox|operatorname)\s*\{([^{}]*)\}"
)
_BRACED = ("boxed", "text", "textbf", "mathrm", "mathbf", "mbox")
_OUTER = ((r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("{", "}"), *((f"\\{name}{{", "}") for name in _BRACED))
_MAX_WRAPPERS = 8  # nested wrappers that are taken off; answers have one or two
_COMMAND = re.compile(r"\\[A-Za-z]+")
_ROW_BREAK = "\ue000"  # stands for LaTeX's double backslash, whose second half is no command
_DOLLAR = re.compile(r"(?<!\\)\$")
_THOUSANDS_SPACE = re.compile(r"(?<=[0-9])\\,(?=[0-9]{3}(?![0-9]))")
_THIN_COMMA = re.compile(r",\\!\s*|\{,\}")
_SPACE = re.compile(r"(?:\\[,;:>! ]|~|\s)+")
_CIRCLE = re.compile(r"\^(?:\\circ\b|\{\s*\\circ\s*\})")
_RUNS = re.compile(r"[^\x00-\x7f]+")
_ROOT = re.compile(r"√\s*([0-9]+)")
_BARE_SCRIPT = re.compile(r"([_^])([A-Za-z0-9])")
_BARE_ROOT = re.compile(r"\\sqrt\s*([A-Za-z0-9])")
_BARE_FRACTION = re.compile(r"\\frac\s*(?:([0-9])|(\{[^{}]*\}))\s*(?:([0-9])|(\{[^{}]*\}))")
_OUTSIDE_DIGITS = re.compile(r"(?<![0-9]) | (?![0-9])")
_UNARY_PLUS = re.compile(r"(?:^|(?<=[(\[{,=]))\+")
_WORD = re.compile(r"[A-Za-z][a-z]{2,}|[Nn]o")
_CHOICE = re.compile(r"\(([A-Z])\)")


def normal_layout(text: str) -> str:
    """`text` in plain characters with single spaces, without wrappers, sizing commands and an ending full stop."""
    text = plain_characters(text).replace("\\\\", _ROW_BREAK)
    if len(_DOLLAR.findall(text)) % 2 == 0:  # an odd one is money
        text = _DOLLAR.sub(" ", text)
    text = _CIRCLE.sub("°", _THIN_COMMA.sub(",", _THOUSANDS_SPACE.sub(",", text)))
    text = _SPACE.sub(" ", _COMMAND.sub(lambda found: _COMMANDS.get(found[0], found[0]), text)).strip()
    for _ in range(_MAX_WRAPPERS):
        bare = _without_full_stop(_without_wrapper(text))
        if bare == text:
            break
        text = bare
    return text.replace(r"\%", "%")


def normal_text(text: str) -> str:
    r"""`normal_layout` text without text commands, LaTeX's optional braces written, spaces only between digits."""
    for _ in range(_MAX_WRAPPERS):
        bare = _TEXT.sub(r" \1 ", text)
        if bare == text:
            break
        text = bare
    text = _BARE_ROOT.sub(r"\\sqrt{\1}", _BARE_SCRIPT.sub(r"\1{\2}", text))
    text = _BARE_FRACTION.sub(_braced_fraction, text)
    text = _OUTSIDE_DIGITS.sub("", " ".join(text.split()))
    text = _UNARY_PLUS.sub("", text)
    choice = _CHOICE.fullmatch(text)
    return choice[1] if choice else text.replace(_ROW_BREAK, r"\\")


def fold_word(text: str) -> str:
    """A word in lower case, `Monday` as `monday`; `N`, `ABC` and formulas as they are."""
    return text.lower() if _WORD.fullmatch(text) else text


def has_list_comma(text: str) -> bool:
    """Whether a comma is followed by a space: `32, 349` is a list, `32,349` a number."""
    return ", " in text


def plain_characters(text: str) -> str:
    """NFKC, but `2½` as `2\\frac{1}{2}` and `5²` as `5^{2}`, which NFKC would make 21/2 and 52."""
    if text.isascii():
        return text
    text = _ROOT.sub(r"\\sqrt{\1}", text)
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
        plain = unicodedata.normalize("NFKC", character)
        if kind == "<fraction>":
            above, _, below = plain.partition("⁄")
            parts.append(rf"\frac{{{above}}}{{{below}}}")
        else:
            parts.append("".join(_SIGNS.get(sign, sign) for sign in plain))
    return "".join(parts) + ("}" if script else "")


def _without_full_stop(text: str) -> str:
    if text.endswith((".", ",", ";")) and not text.endswith(".."):
        return text[:-1].rstrip()
    return text


def _without_wrapper(text: str) -> str:
    """`text` without one pair of marks that encloses all of it."""
    for opening, closing in _OUTER:
        if text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening) + len(closing):
            inner = text[len(opening) : -len(closing)]
            if _is_one_piece(inner, opening):
                return inner.strip()
    return text


def _is_one_piece(inner: str, opening: str) -> bool:
    """Whether the marks around `inner` belong together: `{1},{2}` is two pieces."""
    if not opening.endswith("{"):
        return opening not in inner and not inner.endswith("\\")
    depth = 0
    for brace in re.findall(r"(?s)\\.|[{}]", inner):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            return False
    return depth == 0 and not inner.endswith("\\")


def _braced_fraction(found: re.Match[str]) -> str:
    above = found[2] or f"{{{found[1]}}}"
    below = found[4] or f"{{{found[3]}}}"
    return rf"\frac{above}{below}"
