"""Finds the final answer in a completion: its last boxes, else a declared answer, else its last formula.

A declared answer follows words such as "The answer is".
"""

import re

from qwen_align.reward.boxed_answers import JOINT, find_last_boxes
from qwen_align.reward.math.units import split_off_unit

_MAX_TAIL_CHARS = 1_500  # characters at the end of a text in which an answer without a box is looked for
_MAX_BARE_CHARS = 300  # characters of a text that is nothing but its answer
_MAX_SCANNED_CHARS = 20_000  # characters at the end of a text that are scanned at all
_CLOSING_PHRASE = re.compile(r"(?:</answer>|I hope (?:it|this) is correct\.?|∎)\Z", re.IGNORECASE)
MINERVA_PREFIX = "Final Answer: The final answer is "  # how its answers begin, arXiv:2206.14858
_MINERVA_ANSWER = re.compile(rf"{MINERVA_PREFIX}\$?([^\n$]{{1,400}}?)\$?\.? I hope it is correct\.?\s*(?:<\||\Z)")
_DECLARATION = re.compile(
    r"(?:answer|solution|option|choice|答案)\**\s*(?:(?:is|are|为|是|选)\s*[:：]?|[:：])\**"
    r"|[故应]选\s*[:：]?|^####|<answer>|final answer\**\s*$"
    r"|^\s*answer\s(?=\s*(?:\$|\\[(\[]))",
    re.IGNORECASE | re.MULTILINE,
)
_FORMULA = re.compile(r"\$\$([^$]{1,800})\$\$|\$([^$]{1,800})\$|\\\((.{1,800}?)\\\)|\\\[(.{1,800}?)\\\]", re.DOTALL)
_VERB = re.compile(r"(?<![A-Za-z])(?:is|are|equals)(?![A-Za-z])(?:\s*[:：])?|是|为")
_ADVERB = re.compile(r"(?:thus|therefore|then|simply|exactly|indeed)(?![A-Za-z])[ ,]*")
_SENTENCE_END = re.compile(r"[.。!！](?=\s|$)|\n\s*\n")
_SENTENCE_OR_LINE_END = re.compile(r"[.。!！](?=\s|$)|\n")
_DENIAL_OR_HEDGE = re.compile(
    r"(?<![A-Za-z])(?:not|no|never|less|more|greater|smaller|larger|least|most|about|approximately|around|roughly|between|"
    r"than|below|above|either|neither|among|maybe|perhaps|possibly|probably|could|might|unlikely|wrong)(?![A-Za-z])"
    r"|n't|不|非|大于|小于|约",
    re.IGNORECASE,
)
_DOUBT = re.compile(
    r"(?<![A-Za-z])(?:wait|hold on|oops|correction|actually|sorry|scratch that|on second thought|no(?=,)"
    r"|let me (?:correct|redo|recheck)|(?:made|is) an? (?:mistake|error)"
    r"|that(?:'s| is| was) (?:wrong|incorrect|not right))(?![A-Za-z])|等等|不对|更正|错了|抱歉",
    re.IGNORECASE,
)
_VALUE = (
    r"\**(?:(-?[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?)(?![0-9A-Za-z])|\$([^$\n]{1,200})\$|\\\((.{1,200}?)\\\)"
    r"|\(?([A-H])\)?(?![0-9A-Za-z]))"
)
_ERROR = re.compile(r"(?<![A-Za-z])(?:wrong|incorrect|mistake|error|forgot|misread)(?![A-Za-z])", re.IGNORECASE)
_CONCLUSION = re.compile(rf"(?<![A-Za-z])(?:so|thus|hence|therefore),? {_VALUE}\s*(?=[.!]?\s*\Z)", re.IGNORECASE)
_BARE_VALUE = re.compile(rf"[\s,.:;!…-]{{0,9}}{_VALUE}\s*(?=[.!。]|$)")
_CORRECTION = re.compile(
    r"(?:(?<![A-Za-z])(?:it|that|this|answer|result|value)\**(?: (?:is|was|should be|must be|becomes|equals)"
    r"(?: (?:actually|really|instead|in fact|therefore|equal to))?|'s)|I meant|答案(?:是|为)"
    r"|应该?(?:是|为)|应为|[是为]) ?" + _VALUE,
    re.IGNORECASE,
)
_SHORT_ANSWER = re.compile(
    r"\(?([A-H])\)?|([+-]?\$?[0-9][0-9,]*(?:\.[0-9]+)?(?:/[0-9]+)?(?: ?%| [a-z]{1,15}(?: [a-z]{1,15})?)?)"
    r"|\$([^$]{1,200})\$|\\\((.{1,200}?)\\\)"
)
_PARAGRAPH_BREAK = re.compile(r"\n\s*\n")
_TEXT_AFTER_FORMULA = re.compile(r"[^.。\n]{0,40}")


def extract_boxed_answers(text: str) -> list[str] | str | None:
    """Returns the contents of the last boxes of a text, or the reason why they contain no answer.

    None if the text has no box at all. Boxes joined by commas, "and", "or" are returned together.
    """
    if "\\boxed" not in text and "\\fbox" not in text:
        return None
    boxes = find_last_boxes(text)
    return boxes if isinstance(boxes, str) else [box.content for box in boxes]


def extract_minerva_answer(text: str) -> str | None:
    """Returns the answer of a text that ends in Minerva's form "Final Answer: The final answer is ...".

    Returns None for any other text.
    """
    tail = text[-_MAX_TAIL_CHARS:]
    position = tail.rfind(MINERVA_PREFIX)
    match = _MINERVA_ANSWER.match(tail, position) if position >= 0 else None
    return None if match is None else match[1].strip()


def extract_declared_answer(text: str) -> str | None:
    """Returns the answer stated at the end of a text without a box.

    Returns None if no answer is stated. It is what follows the last "answer is", else the last formula of the last
    lines, else the text itself where that is short and of one line.
    """
    text = _CLOSING_PHRASE.sub("", text[-_MAX_SCANNED_CHARS:].strip()).strip()
    tail = text[-_MAX_TAIL_CHARS:]
    declaration_ends = [match.end() for match in _DECLARATION.finditer(tail)]
    if declaration_ends:
        return _extract_stated_answer(tail[declaration_ends[-1] :])
    formula = _extract_last_formulas(tail)
    if formula is not None:
        return formula
    is_bare = len(text) <= _MAX_BARE_CHARS and "\n" not in text and _DENIAL_OR_HEDGE.search(text) is None
    is_expression = text.isascii() and not any(map(str.isspace, text))
    return (text or None) if is_bare or is_expression else None


def has_doubt(text: str) -> bool:
    """Checks whether a text doubts what was said before it."""
    return _DOUBT.search(text) is not None


def find_retraction(text: str) -> str | None:
    """Returns the answer that takes back the one before, in the text after it: "Wait, it is 43."

    Returns None if the text takes nothing back.
    """
    text = text[:_MAX_TAIL_CHARS]
    doubt = _DOUBT.search(text)
    if doubt is None:
        return None
    corrections = [match for match in (_BARE_VALUE.match(text, doubt.end()),) if match is not None]
    corrections += _CORRECTION.finditer(text, doubt.end())
    if not corrections and _ERROR.search(text):
        corrections += _CONCLUSION.finditer(text, doubt.end())
    return None if not corrections else next(part for part in corrections[-1].groups() if part is not None)


def _extract_stated_answer(text: str) -> str | None:
    """Returns the answer from the words after "answer is": their formula, or the words after their last verb.

    A first sentence that is a short answer counts alone, unless what follows takes it back.
    """
    text = text.strip()
    first_sentence = _SENTENCE_OR_LINE_END.split(text, maxsplit=1)[0]
    if short_answer := _SHORT_ANSWER.fullmatch(first_sentence.strip(" *")):
        retraction = find_retraction(text[len(first_sentence) :])
        return next(part for part in short_answer.groups() if part is not None) if retraction is None else retraction
    paragraph = text if text.startswith(("\\[", "$$")) else _PARAGRAPH_BREAK.split(text, maxsplit=1)[0]
    verb_ends = [match.end() for match in _VERB.finditer(_FORMULA.sub(lambda match: "x" * len(match[0]), paragraph))]
    rest = (paragraph[verb_ends[-1] :] if verb_ends else paragraph).strip()
    if adverb := _ADVERB.match(rest):
        rest = rest[adverb.end() :]
    formulas = list(_FORMULA.finditer(rest))
    if formulas:
        return (
            None
            if _DENIAL_OR_HEDGE.search(_FORMULA.sub("", _take_first_sentence(rest)))
            else _join_last_formulas(rest, formulas)
        )
    sentence_end = _SENTENCE_END.search(rest)
    answer = rest if sentence_end is None else rest[: sentence_end.start()]
    return answer.strip(" *\n") or None


def _extract_last_formulas(text: str) -> str | None:
    """Returns the formulas at the end of the last two lines of a text.

    Returns None if there are none, or if a word beside them denies or hedges.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    tail = text if text.endswith(("\\]", "$$")) else "\n".join(lines[-2:])
    formulas = list(_FORMULA.finditer(tail))
    if not formulas:
        return None
    text_before = _SENTENCE_END.split(tail[: formulas[-1].start()])[-1]
    text_after = _take_first_sentence(tail[formulas[-1].end() :])
    return (
        None
        if _DENIAL_OR_HEDGE.search(_FORMULA.sub("", text_before + text_after))
        else _join_last_formulas(tail, formulas)
    )


def _take_first_sentence(text: str) -> str:
    """Returns the start of a text, up to its first full stop or line break.

    A question mark ends no sentence: a question and its reply belong together.
    """
    return _SENTENCE_OR_LINE_END.split(text, maxsplit=1)[0]


def _join_last_formulas(text: str, formulas: list[re.Match[str]]) -> str:
    """Returns the last formula of a text with its unit and with the formulas joined to it by commas, "and" or "or"."""
    first_index = len(formulas) - 1
    while first_index > 0 and JOINT.fullmatch(text, formulas[first_index - 1].end(), formulas[first_index].start()):
        first_index -= 1
    answer = ", ".join(
        next(part for part in formula.groups() if part is not None) for formula in formulas[first_index:]
    )
    text_after = _TEXT_AFTER_FORMULA.match(text, formulas[-1].end())
    unit = "" if text_after is None else text_after[0].strip()
    return f"{answer} {unit}" if unit and split_off_unit(f"1 {unit}").text == "1" else answer
