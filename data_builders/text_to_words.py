"""Splits texts into comparison units: lower-case words, numbers, single CJK characters and optionally signs."""

import re
import unicodedata

# Kana and Han: written without spaces, so that a character is what a word is elsewhere.
_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")
_WORD_OR_SIGN = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+|[^\w\s]|_")


def split_words(text: str) -> list[str]:
    """Splits a text into lower-case words, numbers and CJK characters, and drops signs. Widths are folded (NFKC)."""
    return _WORD.findall(_fold_case_and_width(text))


def split_words_and_signs(text: str) -> list[str]:
    """Splits a text into lower-case words, numbers, CJK characters and signs. So `3-2` and `3+2` differ."""
    return _WORD_OR_SIGN.findall(_fold_case_and_width(text))


def _fold_case_and_width(text: str) -> str:
    """Returns a text in lower case with full-width characters folded (NFKC)."""
    return text.lower() if text.isascii() else unicodedata.normalize("NFKC", text).lower()
