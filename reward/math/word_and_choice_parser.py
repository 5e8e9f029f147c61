"""Answers in words: options, names, spelled numbers."""

import re

from qwen_align.reward.math.answer_values import Choice, Scalar, Value, Words
from qwen_align.reward.math.bracket_aware_split import list_items, ratio_parts
from qwen_align.reward.math.number_parser import spelled_number
from qwen_align.reward.math.units import measured

_CHOICE = re.compile(
    r"(?:(?:option|choice|选项|选)\s*)?(?:\(([A-Z])\)|([A-Z])[.):]?|\(([A-Z])\)[.:]?\s*(\S.*)|([A-Z])(?:[.)]\s*|[:]\s+)(\S.*))",
    re.IGNORECASE,
)
_NO_OPTION = re.compile(
    r"\A(?:[=+*/^_<>!|-]|\\(?:ne|lnot|neg|cup|cap|times|cdot|in|le|ge)(?![A-Za-z]))"
    r"|(?<![A-Za-z])(?:not|or|and|nor|wrong|incorrect|false|but|isn't)(?![A-Za-z])|\([A-Z]\)|(?<![A-Za-z])[A-Z][.):]",
    re.IGNORECASE,
)
_ALPHABETIC = re.compile(r"[A-Za-z一-鿿\u3040-\u30ff\uac00-\ud7af' .]+")
_LETTER_RUN = re.compile(r"[A-Za-z]{2,}")
_LABELLED = re.compile(r"\\text\{ ?\(?([A-Z])[).:]+ ?\} ?(\S.*)")
_CHINESE_MEASURED = re.compile(r"([零〇一二两三四五六七八九十百千万亿点]+)([^零〇一二两三四五六七八九十百千万亿点].*)")
STOP_WORDS = frozenset(
    "or and not no if is of to in on at so as by be an we it he up do are the for any all but one two has can may "
    "yes nor its was".split()
)


def choice_or_words(text: str) -> Value | None:
    """The option, words or spelled number that a text in layout form is, None if it is something else."""
    labelled = _LABELLED.fullmatch(text)
    if labelled and not _NO_OPTION.search(labelled[2]):
        return Choice(labelled[1], labelled[2])
    if len(text) > 1 and text[0] in "([" and text[1] == text[1].lower():
        return None
    if found := _CHOICE.fullmatch(text):
        letter = found[1] or found[2] or found[3] or found[5]
        rest = (found[4] or found[6] or "").strip()
        if letter.isupper() and not _NO_OPTION.search(rest):
            return Choice(letter, rest)
    if _ALPHABETIC.fullmatch(text) and len(list_items(text)) == 1 and len(ratio_parts(text)) == 1:
        return _words(text)
    return None


def _words(text: str) -> Value | None:
    if text.isascii() and all(len(letter) == 1 for letter in text.split()):
        return None  # `x y z` is a product
    folded = fold(text)
    if folded.startswith("百分之") and (percent := spelled_number(folded[3:])) is not None:
        return Scalar(str(percent), percent, measured("1%").unit)
    number = spelled_number(folded)
    if number is not None:
        return Scalar(text, number)
    if not text.isascii() and (found := _CHINESE_MEASURED.fullmatch(text)):
        number, unit = spelled_number(found[1]), measured("1" + found[2]).unit
        if number is not None and unit is not None:
            return Scalar(str(number), number, unit)
    return Words(folded, text) if " " in text or _LETTER_RUN.fullmatch(text) or not text.isascii() else None


def fold(text: str) -> str:
    """A text in lower case without its article; short capitals such as `AB` name points and keep their case."""
    if (text.isupper() and len(text) <= 3) or len(text) <= 2:
        return text.lower() if text.lower() in STOP_WORDS else text
    words = text.lower().split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)
