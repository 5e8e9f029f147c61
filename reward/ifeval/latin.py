"""Which language a text in Latin letters is in, by langdetect."""

import threading
from functools import cache
from typing import Any

from qwen_align.align.errors import RecipeError

# Those of langdetect 1.0.9 that are written in Latin letters.
LATIN = tuple("af ca cs cy da de en es et fi fr hr hu id it lt lv nl no pl pt ro sk sl so sq sv sw tl tr vi".split())
_LOCK = threading.Lock()
_SEED = 0  # langdetect draws n-grams; with a seed the same text always gets the same answer
_WINDOW = 3_000  # characters of the beginning, the middle and the end; langdetect itself reads the first 10,000 only
# What is asked for is half likely before anything is read, or a few words would be in a random language: "hello" alone
# is Finnish to langdetect. A sentence outweighs it.
_PRIOR = 0.5


def likeliest(text: str, code: str) -> bool:
    """Whether the language asked for is the likeliest of all in Latin letters; capitals are read as small letters.

    Raises RecipeError without langdetect.
    """
    factory, undecided = _langdetect()
    detector = factory.create()
    detector.set_prior_map({other: _PRIOR if other == code else _PRIOR / (len(LATIN) - 1) for other in LATIN})
    detector.append(_windows(text).lower())
    try:
        return bool(detector.detect() == code)
    except undecided:  # there is no n-gram it knows
        return True


def need_langdetect() -> None:
    """Raises RecipeError if langdetect is not installed."""
    _langdetect()


def _windows(text: str) -> str:
    if len(text) <= 3 * _WINDOW:
        return text
    middle = (len(text) - _WINDOW) // 2
    return " ".join((text[:_WINDOW], text[middle : middle + _WINDOW], text[-_WINDOW:]))


def _langdetect() -> tuple[Any, type[Exception]]:
    """A factory of detectors, and what they raise; made once, by one thread."""
    with _LOCK:
        return _load()


@cache
def _load() -> tuple[Any, type[Exception]]:
    try:
        from langdetect.detector_factory import PROFILES_DIRECTORY, DetectorFactory  # type: ignore[import-untyped]
        from langdetect.lang_detect_exception import LangDetectException  # type: ignore[import-untyped]
    except ImportError:
        raise RecipeError(
            "reward 'instructions': telling languages in Latin letters apart needs langdetect:"
            " pip install 'qwen-align[ifeval]'"
        ) from None
    factory = DetectorFactory()  # our own: the seed of langdetect's is the whole process's
    factory.set_seed(_SEED)
    factory.load_profile(PROFILES_DIRECTORY)
    return factory, LangDetectException
