"""Detects a text's language by its script, its letters and commonest words, and langdetect's statistics.

Languages alone in their script, and Russian, Ukrainian, Bulgarian, Macedonian, Arabic, Persian, Urdu, Hindi, Marathi
and Nepali, are told without a library. Those in Latin letters need `langdetect`, which the official code uses for all.
A text too short to tell is in any language of its script.
"""

import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

from qwen_align.reward.ifeval.count_words import split_into_words
from qwen_align.reward.ifeval.latin_languages import LATIN, may_be_language
from qwen_align.reward.language import KANA_SHARE

# A text is in another script if that has more than half as many letters: langdetect's own rule for leaving out Latin
# words (detector.py, cleaning_text). A Chinese character says about as much as three letters.
_FOREIGN_SHARE = 0.5
_WEIGHTS = {"CJK": 3, "HIRAGANA": 3, "KATAKANA": 3, "HANGUL": 3}

_OWN_SCRIPT = {
    "bn": "BENGALI",
    "el": "GREEK",
    "gu": "GUJARATI",
    "he": "HEBREW",
    "kn": "KANNADA",
    "ko": "HANGUL",
    "ml": "MALAYALAM",
    "pa": "GURMUKHI",
    "ta": "TAMIL",
    "te": "TELUGU",
    "th": "THAI",
}
_HAN = dict.fromkeys(("zh", "zh-cn", "zh-tw"), ("CJK",))
_KANA = ("HIRAGANA", "KATAKANA")


class _LanguageSigns:
    """The signs of a language among others of its script: letters it lacks, its typical words and endings."""

    def __init__(self, missing: str, words: str, endings: str = "") -> None:
        self.missing = frozenset(missing)
        self.words = frozenset(words.split())
        self.endings = tuple(endings.split())


_SHARED_SCRIPTS: dict[str, dict[str, _LanguageSigns]] = {
    "CYRILLIC": {
        "ru": _LanguageSigns("іїєґјљњќџѓѕђћў", "что это из к или так да же он она его её был для мы вы они я у"),
        "uk": _LanguageSigns("ыэёъјљњќџѓѕђћў", "що це та так і й з із від або є також як ми ви вони він вона у"),
        "bg": _LanguageSigns("ыэёіїєґјљњќџѓѕђћў", "да се са като който това че ще си към е от и ние съм"),
        "mk": _LanguageSigns("ыэёъіїєґйщьюяђћў", "се да од што ќе во со го ги тоа дека ова сум и е"),
    },
    "ARABIC": {
        "ar": _LanguageSigns("پچژگکیٹڈڑںےہھ", "في من على أن إلى التي الذي هذا هذه و عن مع كان لا ما هو هي"),
        "fa": _LanguageSigns("ةيكىٹڈڑںےہھ", "در به از که این را با است برای آن و می من تو هم یک"),
        "ur": _LanguageSigns("ةيكىهإأ", "کے کی میں ہے اور سے کا کو پر ہیں یہ نے وہ ایک بھی تھا"),
    },
    "DEVANAGARI": {
        "hi": _LanguageSigns("ळ", "है हैं का की के में और से ने पर यह था कि को एक हूँ हूं मैं आप हो वह"),
        "mr": _LanguageSigns("", "आहे आहेत आणि हे ते ही व होते साठी तो ती मी या हो", "च्या मध्ये ांना ण्याची"),
        "ne": _LanguageSigns("ळ", "छ छन् र मा लाई हो थियो पनि यो को म तपाईं हुन्छ", "हरू एको लाई को मा छन्"),
    },
}

SCRIPTS: dict[str, tuple[str, ...]] = {
    **{code: (script,) for code, script in _OWN_SCRIPT.items()},
    **{code: (script,) for script, family in _SHARED_SCRIPTS.items() for code in family},
    **_HAN,
    "ja": (*_KANA, "CJK"),
    **dict.fromkeys(LATIN, ("LATIN",)),
}
"""The scripts of the languages that can be asked for: all that langdetect knows, and zh for both ways of writing it."""

# Letters of the commonest words that are written in one way in mainland China and in another in Taiwan and Hong Kong.
_SIMPLIFIED = "们这个为来说国时会对学发后过么还没开关问间见现话长东车门马风飞鱼鸟语书电气头实点无与两从应当业产经济"
_TRADITIONAL = "們這個為來說國時會對學發後過麼還沒開關問間見現話長東車門馬風飛魚鳥語書電氣頭實點無與兩從應當業產經濟"


def is_in_language(text: str, code: str) -> bool:
    """Returns whether a text is written in the language of a code. Returns False for a text without letters."""
    letters = _count_script_letters(text)
    n_own = sum(letters[script] for script in SCRIPTS[code])
    if n_own == 0 or letters.total() - n_own > _FOREIGN_SHARE * n_own:
        return False
    if code in _HAN or code == "ja":
        kana = sum(letters[script] for script in _KANA)
        is_japanese = kana >= KANA_SHARE * (kana + letters["CJK"])
        return is_japanese if code == "ja" else not is_japanese and _uses_chinese_variant(text, code)
    if code in LATIN:
        return may_be_language(text, code)
    return _is_best_fitting_language(text, code, _SHARED_SCRIPTS.get(SCRIPTS[code][0], {}))


def _count_script_letters(text: str) -> Counter[str]:
    """Counts the letters of each script in a text, with weights."""
    counts: Counter[str] = Counter()
    for char, count in Counter(text).items():
        if script := _find_script(char):
            counts[script] += count * _WEIGHTS.get(script, 1)
    return counts


@lru_cache(maxsize=16_384)
def _find_script(char: str) -> str:
    """Returns the script of a letter or vowel sign by its Unicode name. Returns "" for any other character."""
    category = unicodedata.category(char)
    name = unicodedata.name(unicodedata.normalize("NFKC", char)[0], "").partition(" ")[0]
    is_sign = category[0] == "M" and (name in _SHARED_SCRIPTS or name in _OWN_SCRIPT.values())
    return name if category[0] == "L" or is_sign else ""


def _uses_chinese_variant(text: str, code: str) -> bool:
    """Returns whether a Chinese text uses the characters, simplified or traditional, of a language code.

    Undecided texts count as both.
    """
    counts = Counter(text)
    simple, full = (sum(counts[char] for char in chars) for chars in (_SIMPLIFIED, _TRADITIONAL))
    return {"zh": True, "zh-cn": simple >= full, "zh-tw": full >= simple}[code]


def _is_best_fitting_language(text: str, code: str, family: dict[str, _LanguageSigns]) -> bool:
    """Returns whether no other language of a family with the same script fits a text better.

    Returns True if the family is empty.
    """
    counts = Counter(word.lower() for word in split_into_words(text))
    fits = {other: _score_language_fit(counts.items(), signs) for other, signs in family.items()}
    return not fits or fits[code] == max(fits.values())


def _score_language_fit(counts: Iterable[tuple[str, int]], signs: _LanguageSigns) -> int:
    """Computes how well word counts fit a language: typical words minus words that cannot belong to it."""
    fit = 0
    for word, count in counts:
        if not signs.missing.isdisjoint(word):
            fit -= count
        elif word in signs.words or (signs.endings and word.endswith(signs.endings)):
            fit += count
    return fit
