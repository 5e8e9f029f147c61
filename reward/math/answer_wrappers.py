"""Taking off what encloses an answer and says nothing: marks of math and text, an opening phrase, a full stop."""

import re

from qwen_align.reward.math.bracket_aware_split import inside

_MAX_WRAPPERS = 12  # nested wrappers that are taken off; answers have one or two
_PAIRS = ((r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("*", "*"), ("__", "__"), ("`", "`"), ('"', '"'))
_COMMANDS = (r"\boxed", r"\fbox", r"\text", r"\underline")
_ENVIRONMENT = re.compile(r"\\begin\{(cases|align|aligned|equation|gather|gathered|split|displaymath|math)(\*?)\}")
_PHRASE = re.compile(
    r"(?:\\therefore|so|thus|hence|therefore|因此|所以|故)?[ ,，]*(?:(?:the|my) )?(?:final |correct |最终|正确)?"
    r"(?:answer|solution|result|答案|结果|解)\s*(?:(?:is|are|为|是)\s*[:=：]?|[:：])\s*"
    r"|\\therefore\s*|exactly (?=[0-9])|答\s*[:：]\s*",
    re.IGNORECASE,
)


def unwrapped(text: str) -> str:
    """`text` (in layout form) without what encloses all of it."""
    text = _without_double_parentheses(text.strip())
    for _ in range(_MAX_WRAPPERS):
        bare = _without_full_stop(_without_pair(text))
        if found := _PHRASE.match(bare):
            bare = bare[found.end() :].strip()
        if bare == text:
            break
        text = bare
    return text


def _without_double_parentheses(text: str) -> str:
    """`((((1))))` as `(1)`, in one pass."""
    n_left = len(text) - len(text.lstrip("("))
    n_right = len(text) - len(text.rstrip(")"))
    if min(n_left, n_right) < 2:
        return text
    opened: list[int] = []
    n_pairs = 0
    for place, sign in enumerate(text):
        if sign == "(":
            opened.append(place)
        elif sign == ")":
            if not opened:
                return text
            if place >= len(text) - min(n_left, n_right):
                n_pairs = n_pairs + 1 if opened[-1] == len(text) - 1 - place else 0
            opened.pop()
    return text[n_pairs - 1 : len(text) - n_pairs + 1] if n_pairs > 1 and not opened else text


def _rows(text: str) -> str:
    """The rows of a system of equations as a list; a function by cases stays as it is."""
    return text if "&" in text.replace("&=", "=") else text.replace("&", "").strip("\ue000 ").replace("\ue000", ",")


def _without_full_stop(text: str) -> str:
    if text.endswith((".", ",", ";", "\ue000")) and not text.endswith(".."):
        return text[:-1].rstrip()
    if text.endswith("$") and text.count("$") == 1:
        return text[:-1].rstrip()
    return text


def _without_pair(text: str) -> str:
    for opening, closing in _PAIRS:
        if text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening) + len(closing):
            inner = text[len(opening) : -len(closing)]
            if opening not in inner and not inner.endswith("\\"):
                return inner.strip()
    if text.startswith("\\"):
        for command in _COMMANDS:
            if text.startswith(command):
                found = inside(text[len(command) :].lstrip(), "{", ("}",))
                if found is not None:
                    return found[0]
        if found_environment := _ENVIRONMENT.match(text):
            end = rf"\end{{{found_environment[1]}{found_environment[2]}}}"
            if text.endswith(end):
                inside_text = text[found_environment.end() : -len(end)].strip()
                return _rows(inside_text) if found_environment[1] == "cases" else inside_text.replace("&", "").strip()
    if text.startswith("{"):
        found = inside(text, "{", ("}",))
        if found is not None and "," not in found[0]:
            return found[0]
    return text
