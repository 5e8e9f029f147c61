"""Is an answer guessed: thinking too short for it, that says so, or that never comes to it."""

import re
from fractions import Fraction

from qwen_align.data_builders.spelled_numbers import spelled_numbers
from qwen_align.reward.math_answer import MathAnswer
from qwen_align.reward.repetition import split_words

_NUMBER = re.compile(
    r"\\[dt]?frac\s*\{?\s*(?P<above>[0-9]{1,30})\s*\}?\s*\{?\s*(?P<below>[0-9]{1,30})\s*\}?"
    r"|(?P<left>[0-9]{1,30})\s?/\s?(?P<right>[0-9]{1,30})"
    r"|(?P<whole>[0-9]{1,3}(?:(?:,|\{,\})[0-9]{3})+|[0-9]{1,30})(?:\.(?P<places>[0-9]{1,30}))?"
    r"|\.(?P<only_places>[0-9]{1,30})"
)
_POWER = re.compile(
    r"(?<![0-9.])(?P<times>[0-9]{1,30}(?:\.[0-9]{1,30})?)"
    r"(?:[eE](?P<places>[-+]?[0-9]{1,2})(?![0-9])"
    r"|\s?(?:\\times|\\cdot|×|·|\*)\s?10\s?(?:\^|\*\*)\s?\{?\s?(?P<power>[-+]?[0-9]{1,2})(?![0-9]))"
    r"|(?<![0-9.])10\s?(?:\^|\*\*)\s?\{?\s?(?P<bare>[-+]?[0-9]{1,2})(?![0-9])"
)
_RATIO = re.compile(r"(-?)([0-9]{1,30})(?:/([0-9]{1,30}))?")
# Words of one who does not know, at the end of the thinking, where an answer is settled; before it they are a start.
_ADMITTED = re.compile(
    r"\b(?:I(?:'ll| will| have to| must|'ll have to| am going to|'m going to| would) (?:just )?(?:take a )?guess\b"
    r"|(?:random|wild|lucky|pure|blind) guess|just guess(?:ing)?\b|guess (?:at )?the answer"
    r"|pick(?:ing)? (?:one )?at random)"
    r"|猜一个|随便猜|瞎猜|只能猜|蒙一个|随便选",
    re.IGNORECASE,
)
_END = 300  # characters; a few sentences


def guess_in(thinking: str, answer: str, min_words: int, *, numbers: bool = True) -> str | None:
    """Why the answer counts as guessed, None if it does not.

    With `numbers`, an answer that is one number has to be met in the thinking, as `1/2`, `0.5` or `\\frac{1}{2}`
    alike, sign apart; digits of years and names count too, so this finds answers from nowhere and no others. Ordinals,
    fractions in English words and words of other languages are not read.
    """
    n_words = len(split_words(thinking))
    if n_words < min_words:
        return f"{n_words} words of thinking"
    admitted = _ADMITTED.search(thinking[-_END:])
    if admitted:
        return f"says '{admitted[0]}'"
    if numbers:
        wanted = _value(MathAnswer().answer(answer))
        if wanted is not None and wanted not in numbers_in(thinking):
            return f"{wanted} is never met in the thinking"
    return None


def numbers_in(text: str) -> set[Fraction]:
    """The sizes of all numbers in a text: whole, decimal, fractions, powers of ten, words, and the parts of them."""
    found = set(spelled_numbers(text))
    for match in _POWER.finditer(text):
        power = int(match["places"] or match["power"] or match["bare"])
        found.add(Fraction(match["times"] or 1) * Fraction(10) ** power)
    for match in _NUMBER.finditer(text):
        above, below = match["above"] or match["left"], match["below"] or match["right"]
        if above is not None:
            found |= {Fraction(int(above)), Fraction(int(below))}
            if int(below):
                found.add(Fraction(int(above), int(below)))
        else:
            places = match["places"] or match["only_places"] or ""
            whole = re.sub("[^0-9]", "", match["whole"] or "0")
            found.add(Fraction(int(whole)) + Fraction(int(places or 0), 10 ** len(places)))
    return found


def _value(spelled: str | None) -> Fraction | None:
    """The size of an answer that is one number."""
    found = _RATIO.fullmatch(spelled) if spelled is not None else None
    if found is None or (found[3] is not None and not int(found[3])):
        return None
    return Fraction(int(found[2]), int(found[3] or 1))
