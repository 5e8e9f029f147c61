"""Tells languages in Latin letters apart by the letter statistics of langdetect.

langdetect draws letters at random until it is sure of a language, so that the official code's answers on short texts
change from run to run, and reads the first 10,000 characters only. Here all letter groups of a word are counted, once.
"""

import json
import re
import unicodedata
from collections import Counter
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from qwen_align.align.errors import RecipeError

# Those of langdetect 1.0.9 that are written in Latin letters.
LATIN = tuple("af ca cs cy da de en es et fi fr hr hu id it lt lv nl no pl pt ro sk sl so sq sv sw tl tr vi".split())
_MISSED = 0.5 / 10_000  # the share of a group that is not in a language's profile: langdetect's alpha / BASE_FREQ
# How much likelier another language has to be, as a logarithm; our choice. One to three words are often off by 5 to 13
# ("Merci" looks Romanian), a sentence of ten words is 15 to 80 apart, a Spanish from a Portuguese one 3 to 20.
_MARGIN = 15.0
_WINDOW = 3_000  # characters of the beginning, the middle and the end of a long text
_WORD = re.compile(r"[^\W\d_]{2,}")
_AS_IN_PROFILES = str.maketrans("șțȘȚ", "şţŞŢ")


class _LetterProfiles(NamedTuple):
    """A table of letter groups (rows) and languages (columns) with the logarithm of each group's share."""

    rows: dict[str, int]
    logs: Any  # numpy: this module is imported without it


def may_be_language(text: str, code: str) -> bool:
    """Returns whether no other language in Latin letters is clearly likelier for a text.

    Raises RecipeError without langdetect.
    """
    profiles = _load_profiles()
    known_groups = [
        (profiles.rows[group], n)
        for group, n in _count_letter_groups(_cut_text_to_windows(text)).items()
        if group in profiles.rows
    ]
    if not known_groups:
        return True
    rows, counts = zip(*known_groups, strict=True)
    likelihood = counts @ profiles.logs[list(rows)]
    return bool(likelihood.max() - likelihood[LATIN.index(code)] <= _MARGIN)


def require_langdetect() -> None:
    """Raises RecipeError if langdetect is not installed."""
    _load_profiles()


def _cut_text_to_windows(text: str) -> str:
    """Returns the beginning, the middle and the end of a long text."""
    if len(text) <= 3 * _WINDOW:
        return text
    middle = (len(text) - _WINDOW) // 2
    return " ".join((text[:_WINDOW], text[middle : middle + _WINDOW], text[-_WINDOW:]))


def _count_letter_groups(text: str) -> Counter[str]:
    """Counts groups of one to three letters in a text, including the spaces around words.

    Words in capitals are lower-cased.
    """
    counts: Counter[str] = Counter()
    for word, count in Counter(_WORD.findall(unicodedata.normalize("NFC", text).translate(_AS_IN_PROFILES))).items():
        spaced = f" {word.lower() if word.isupper() else word} "
        for size in (1, 2, 3):
            for start in range(len(spaced) - size + 1):
                counts[spaced[start : start + size]] += count
    return counts


@cache
def _load_profiles() -> _LetterProfiles:
    """Loads langdetect's letter statistics of all languages in Latin letters.

    Raises RecipeError if langdetect is not installed.
    """
    import numpy as np

    rows: dict[str, int] = {}
    shares = []
    try:
        folder = files("langdetect") / "profiles"
    except ModuleNotFoundError:
        raise RecipeError(
            "reward 'instructions': telling languages in Latin letters apart needs langdetect:"
            " pip install 'qwen-align[ifeval]'"
        ) from None
    for code in LATIN:
        profile = json.loads((folder / code).read_text(encoding="utf-8"))
        totals = profile["n_words"]
        shares.append({group: n / totals[len(group) - 1] for group, n in profile["freq"].items() if len(group) <= 3})
        for group in shares[-1]:
            rows.setdefault(group, len(rows))
    table = np.full((len(rows), len(LATIN)), _MISSED)
    for column, profile_shares in enumerate(shares):
        for group, share in profile_shares.items():
            table[rows[group], column] += share
    rows.pop(" ", None)
    return _LetterProfiles(rows, np.log(table))
