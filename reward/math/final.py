r"""The answer a text ends on: its last boxes, else what it declares ("The answer is 5."), else its last formula."""

import re

from qwen_align.reward.boxed_answers import JOINT, find_last_boxes
from qwen_align.reward.math.units import measured

_LONGEST_END = 1_500  # characters at the end of a text in which an answer without a box is looked for
_LONGEST_BARE = 300  # characters of a text that is nothing but its answer
_MAX_READ = 20_000  # characters at the end of a text that are looked at at all
_AFTER_THE_TURN = re.compile(r"<\|(?:im_start|im_end|endoftext|eot_id)\|>|</s>")
_COURTESY = re.compile(r"(?:</answer>|I hope (?:it|this) is correct\.?|∎)\Z", re.IGNORECASE)
MINERVA = "Final Answer: The final answer is "  # how its answers begin, arXiv:2206.14858
_MINERVA = re.compile(rf"{MINERVA}\$?([^\n$]{{1,400}}?)\$?\.? I hope it is correct\.?\s*(?:<\||\Z)")
_DECLARED = re.compile(
    r"(?:answer|solution|option|choice|答案)\**\s*(?:(?:is|are|为|是|选)\s*[:：]?|[:：])\**"
    r"|[故应]选\s*[:：]?|^####|<answer>|final answer\**\s*$"
    r"|^\s*answer\s(?=\s*(?:\$|\\[(\[]))",
    re.IGNORECASE | re.MULTILINE,
)
_FORMULA = re.compile(r"\$\$([^$]{1,800})\$\$|\$([^$]{1,800})\$|\\\((.{1,800}?)\\\)|\\\[(.{1,800}?)\\\]", re.DOTALL)
_VERB = re.compile(r"(?<![A-Za-z])(?:is|are|equals)(?![A-Za-z])(?:\s*[:：])?|是|为")
_ADVERB = re.compile(r"(?:thus|therefore|then|simply|exactly|indeed)(?![A-Za-z])[ ,]*")
_SENTENCE_END = re.compile(r"[.。!！](?=\s|$)|\n\s*\n")
_ENDS = re.compile(r"[.。!！](?=\s|$)|\n")
_DENIED = re.compile(
    r"(?<![A-Za-z])(?:not|no|never|less|more|greater|smaller|larger|least|most|about|approximately|around|roughly|between|"
    r"than|below|above|either|neither|among|maybe|perhaps|possibly|probably|could|might|unlikely|wrong)(?![A-Za-z])"
    r"|n't|不|非|大于|小于|约",
    re.IGNORECASE,
)
_PARAGRAPH = re.compile(r"\n\s*\n")
_UNIT_AFTER = re.compile(r"[^.。\n]{0,40}")


def boxed_answers(text: str) -> list[str] | str | None:
    """What the last boxes hold, else the reason why there is none; None where the text holds no box at all."""
    if "\\boxed" not in text and "\\fbox" not in text:
        return None
    boxes = find_last_boxes(text)
    return boxes if isinstance(boxes, str) else [box.content for box in boxes]


def minerva_answer(text: str) -> str | None:
    """What a text in Minerva's form ends on."""
    end = text[-_LONGEST_END:]
    place = end.rfind(MINERVA)
    found = _MINERVA.match(end, place) if place >= 0 else None
    return None if found is None else found[1].strip()


def declared_answer(text: str) -> str | None:
    """The one answer a text without a box ends on, None if it ends on none.

    It is what follows the last "answer is", else the last formula of the last lines, else the text itself where that
    is short and of one line.
    """
    text = _AFTER_THE_TURN.split(text, maxsplit=1)[0]
    text = _COURTESY.sub("", text[-_MAX_READ:].strip()).strip()
    end = text[-_LONGEST_END:]
    declared = [found.end() for found in _DECLARED.finditer(end)]
    if declared:
        return _stated(end[declared[-1] :])
    formula = _last_formulas(end)
    if formula is not None:
        return formula
    is_bare = len(text) <= _LONGEST_BARE and "\n" not in text and _DENIED.search(text) is None
    is_expression = text.isascii() and not any(map(str.isspace, text))
    return (text or None) if is_bare or is_expression else None


def _stated(text: str) -> str | None:
    """The answer in a statement that follows "answer is": its formula, or the words after its last verb."""
    text = text.strip()
    paragraph = text if text.startswith(("\\[", "$$")) else _PARAGRAPH.split(text, maxsplit=1)[0]
    verbs = [found.end() for found in _VERB.finditer(_FORMULA.sub(lambda found: "x" * len(found[0]), paragraph))]
    rest = (paragraph[verbs[-1] :] if verbs else paragraph).strip()
    if adverb := _ADVERB.match(rest):
        rest = rest[adverb.end() :]
    formulas = list(_FORMULA.finditer(rest))
    if formulas:
        return None if _DENIED.search(_FORMULA.sub("", _sentence(rest))) else _joined_formulas(rest, formulas)
    sentence = _SENTENCE_END.search(rest)
    said = rest if sentence is None else rest[: sentence.start()]
    return said.strip(" *\n") or None


def _last_formulas(text: str) -> str | None:
    lines = [line for line in text.splitlines() if line.strip()]
    tail = text if text.endswith(("\\]", "$$")) else "\n".join(lines[-2:])
    formulas = list(_FORMULA.finditer(tail))
    if not formulas:
        return None
    before = _SENTENCE_END.split(tail[: formulas[-1].start()])[-1]
    after = _sentence(tail[formulas[-1].end() :])
    return None if _DENIED.search(_FORMULA.sub("", before + after)) else _joined_formulas(tail, formulas)


def _sentence(text: str) -> str:
    """The text up to its first full stop or line break; a question and its reply are one sentence."""
    return _ENDS.split(text, maxsplit=1)[0]


def _joined_formulas(text: str, formulas: list[re.Match[str]]) -> str:
    """The last formula with those joined to it and the unit right after it."""
    first = len(formulas) - 1
    while first > 0 and JOINT.fullmatch(text, formulas[first - 1].end(), formulas[first].start()):
        first -= 1
    said = ", ".join(next(part for part in formula.groups() if part is not None) for formula in formulas[first:])
    after = _UNIT_AFTER.match(text, formulas[-1].end())
    unit = "" if after is None else after[0].strip()
    return f"{said} {unit}" if unit and measured(f"1 {unit}").text == "1" else said
