"""Parses answers in words: multiple-choice options, names and number words."""

import re

from qwen_align.reward.math.answer_values import AnswerValue, Choice, Scalar, Words
from qwen_align.reward.math.bracket_aware_split import split_list, split_ratio
from qwen_align.reward.math.number_parser import parse_chinese_number, parse_plain_number, parse_spelled_number
from qwen_align.reward.math.units import split_off_unit

_CHOICE = re.compile(
    r"(?:(?:option|choice|选项|选)\s*)?(?:\(([A-Z])\)|([A-Z])[.):]?|\(([A-Z])\)[.:]?\s*(\S.*)|([A-Z])(?:[.)]\s*|[:]\s+)(\S.*))",
    re.IGNORECASE,
)
_NOT_AN_OPTION = re.compile(
    r"\A(?:[=+*/^_<>!|-]|\\(?:ne|lnot|neg|cup|cap|times|cdot|in|le|ge)(?![A-Za-z]))"
    r"|(?<![A-Za-z])(?:not|nor|wrong|incorrect|false|but|isn't)(?![A-Za-z])|\([A-Z]\)|(?<![A-Za-z])[A-Z][.):]"
    r"|\A(?:\\text ?\{ ?)?(?:or|and)(?![A-Za-z])|(?<![A-Za-z])(?:or|and)(?:\\text ?\{|[ \\}(])*(?-i:[A-H])(?![A-Za-z])",
    re.IGNORECASE,
)
_ALPHABETIC = re.compile(r"[A-Za-z一-鿿\u3040-\u30ff\uac00-\ud7af' .]+")
_CHINESE_WITH_DIGITS = re.compile(
    "[负第][0-9一二两三四五六七八九十百千万零〇]+(?:又.{1,40}|[个名位项次组天年题行层排步])?"
)
_SPELLED_SIGN = re.compile(r"(?:minus|negative) ((?:[0-9]|\\frac).*)", re.IGNORECASE)
# what an option says of others: `C. Both A and B`
_ON_OPTIONS = re.compile(r"(?:\\text ?\{ ?)?(?:both|neither|either|all of|none of)(?![A-Za-z])", re.IGNORECASE)
_LETTER_RUN = re.compile(r"[A-Za-z]{2,}")
_LABELLED_OPTION = re.compile(r"\\text\{ ?\(?([A-Z])[).:]+ ?\} ?(\S.*)")
_CHINESE_MEASURED = re.compile(r"([零〇一二两三四五六七八九十百千万亿点]+)([^零〇一二两三四五六七八九十百千万亿点].*)")
_MAX_SYMBOL_CHARS = 6  # letters of a genotype or formula, whose case counts
STOP_WORDS = frozenset(
    "or and not no if is of to in on at so as by be an we it he up do are the for any all but one two has can may "
    "yes nor its was".split()
)


def parse_choice_or_words(text: str) -> AnswerValue | None:
    """Parses normalized LaTeX to a multiple-choice option, words or the value of a number word.

    Returns None for any other text.
    """
    labelled = _LABELLED_OPTION.fullmatch(text)
    if labelled and _is_option_text(labelled[1], labelled[2]):
        return Choice(labelled[1], labelled[2])
    if len(text) > 1 and text[0] in "([" and text[1] == text[1].lower():
        return None
    if match := _CHOICE.fullmatch(text):
        letter = match[1] or match[2] or match[3] or match[5]
        rest = (match[4] or match[6] or "").strip()
        if letter.isupper() and _is_option_text(letter, rest):
            return Choice(letter, rest)
    if (signed := _SPELLED_SIGN.fullmatch(text)) and (number := parse_plain_number(signed[1])) is not None:
        return Scalar(f"-{signed[1]}", -number)
    number = parse_spelled_number(text.lower()) if len(text) > 1 and not text.startswith("百分之") else None
    if number is not None:
        return Scalar(text, number)
    if text[:1] in ("负", "第") and _CHINESE_WITH_DIGITS.fullmatch(text):
        number = parse_chinese_number(text)
        return None if number is None else Scalar(str(number), number)
    if _ALPHABETIC.fullmatch(text) and len(split_list(text)) == 1 and len(split_ratio(text)[0]) == 1:
        return _parse_words(text)
    return None


def refers_to_options(text: str) -> bool:
    """Checks whether the text of an option speaks of other options, as `Both A and B` does."""
    return _ON_OPTIONS.match(text) is not None


def _is_option_text(letter: str, rest: str) -> bool:
    """Checks whether what follows an option's letter is its text, and no formula, denial or further option."""
    if refers_to_options(rest):
        return not re.search(rf"(?<![A-Za-z]){letter}(?![A-Za-z])|(?<![A-Za-z])[A-Z][.):]", rest)
    return _NOT_AN_OPTION.search(rest) is None


def _parse_words(text: str) -> AnswerValue | None:
    """Parses an alphabetic text to words or the value of a number word.

    Returns None if the text reads as a product of variables.
    """
    if text.isascii() and all(len(letter) == 1 for letter in text.split()):
        return None  # `x y z` is a product
    folded = normalize_words(text)
    if folded.startswith("百分之") and (percent := parse_spelled_number(folded[3:])) is not None:
        return Scalar(str(percent), percent, split_off_unit("1%").unit)
    number = parse_spelled_number(folded)
    if number is not None:
        return Scalar(text, number)
    if not text.isascii() and (match := _CHINESE_MEASURED.fullmatch(text)):
        number, unit = parse_spelled_number(match[1]), split_off_unit("1" + match[2]).unit
        if number is not None and unit is not None:
            return Scalar(str(number), number, unit)
    return Words(folded, text) if " " in text or _LETTER_RUN.fullmatch(text) or not text.isascii() else None


def normalize_words(text: str) -> str:
    """Returns an answer in words in lower case and without a leading article.

    Short capitals such as `AB` name points and keep their case.
    """
    if (text.isupper() and len(text) <= 3) or len(text) <= 2:
        return text.lower() if text.lower() in STOP_WORDS else text
    if len(text) <= _MAX_SYMBOL_CHARS and text.isalpha() and not text[1:].islower() and not text.isupper():
        return text  # `AaBb`, `NaCl`
    words = text.lower().split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)
