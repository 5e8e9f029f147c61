"""Strips the wrapping around an answer: math delimiters, text commands, an opening phrase and a full stop."""

import re

from qwen_align.reward.math.bracket_aware_split import extract_bracket_content

_MAX_WRAPPERS = 12  # nested wrappers that are stripped; answers have one or two
_ENCLOSING_PAIRS = (
    (r"\(", r"\)"),
    (r"\[", r"\]"),
    ("**", "**"),
    ("*", "*"),
    ("__", "__"),
    ("`", "`"),
    ("【", "】"),
    ('"', '"'),
)
_ENCLOSING_COMMANDS = (r"\boxed", r"\fbox", r"\text", r"\underline")
_ENVIRONMENT = re.compile(r"\\begin\{(cases|align|aligned|equation|gather|gathered|split|displaymath|math)(\*?)\}")
_OPENING_PHRASE = re.compile(
    r"(?:\\therefore|so|thus|hence|therefore|因此|所以|故)?[ ,，]*(?:(?:the|my) )?(?:final |correct |最终|正确)?"
    r"(?:answer|solution|result|答案|结果|解)\s*(?:(?:is|are|为|是)\s*[:=：]?|[:：])\s*"
    r"|\\therefore\s*|exactly (?=[0-9])|答\s*[:：]\s*",
    re.IGNORECASE,
)


def strip_wrappers(text: str) -> str:
    """Strips the delimiters, commands and phrases that enclose a whole answer in normalized LaTeX."""
    text = _strip_double_parentheses(text.strip())
    for _ in range(_MAX_WRAPPERS):
        stripped = _strip_full_stop(_strip_enclosing_pair(text))
        if match := _OPENING_PHRASE.match(stripped):
            stripped = stripped[match.end() :].strip()
        if stripped == text:
            break
        text = stripped
    return text


def _strip_double_parentheses(text: str) -> str:
    """Strips all but one pair of the nested parentheses around a text, so `((((1))))` becomes `(1)`."""
    n_left = len(text) - len(text.lstrip("("))
    n_right = len(text) - len(text.rstrip(")"))
    if min(n_left, n_right) < 2:
        return text
    open_positions: list[int] = []
    n_pairs = 0
    for position, character in enumerate(text):
        if character == "(":
            open_positions.append(position)
        elif character == ")":
            if not open_positions:
                return text
            if position >= len(text) - min(n_left, n_right):
                n_pairs = n_pairs + 1 if open_positions[-1] == len(text) - 1 - position else 0
            open_positions.pop()
    return text[n_pairs - 1 : len(text) - n_pairs + 1] if n_pairs > 1 and not open_positions else text


def _convert_system_to_list(text: str) -> str:
    """Converts the rows of a LaTeX system of equations to a list with commas.

    A function defined by cases is returned unchanged.
    """
    return text if "&" in text.replace("&=", "=") else text.replace("&", "").strip("\ue000 ").replace("\ue000", ",")


def _strip_full_stop(text: str) -> str:
    """Strips one trailing full stop, comma, semicolon or unpaired dollar sign from a text."""
    if text.endswith((".", ",", ";", "\ue000")) and not text.endswith(".."):
        return text[:-1].rstrip()
    if text.endswith("$") and text.count("$") == 1:
        return text[:-1].rstrip()
    return text


def _strip_enclosing_pair(text: str) -> str:
    """Strips one pair of delimiters, one command or one environment that encloses a whole text."""
    for opening, closing in _ENCLOSING_PAIRS:
        if text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening) + len(closing):
            inner = text[len(opening) : -len(closing)]
            if opening not in inner and not inner.endswith("\\"):
                return inner.strip()
    if text.startswith("\\"):
        for command in _ENCLOSING_COMMANDS:
            if text.startswith(command):
                content_and_closing = extract_bracket_content(text[len(command) :].lstrip(), "{", ("}",))
                if content_and_closing is not None:
                    return content_and_closing[0]
        if environment := _ENVIRONMENT.match(text):
            end = rf"\end{{{environment[1]}{environment[2]}}}"
            if text.endswith(end):
                inside_text = text[environment.end() : -len(end)].strip()
                return (
                    _convert_system_to_list(inside_text)
                    if environment[1] == "cases"
                    else inside_text.replace("&", "").strip()
                )
    if text.startswith("{"):
        content_and_closing = extract_bracket_content(text, "{", ("}",))
        if content_and_closing is not None and "," not in content_and_closing[0]:
            return content_and_closing[0]
    return text
