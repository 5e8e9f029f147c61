"""Detects guessed answers: thinking that is too short, admits guessing, or never reaches the answer."""

import re
from fractions import Fraction

from qwen_align.data_builders.spelled_numbers import find_spelled_numbers
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
# Words that admit a guess. They count at the end of the thinking only; earlier a guess may be a way to begin.
_ADMITTED = re.compile(
    r"\b(?:I(?:'ll| will| have to| must|'ll have to| am going to|'m going to| would) (?:just )?(?:take a )?guess\b"
    r"|(?:random|wild|lucky|pure|blind) guess|just guess(?:ing)?\b|guess (?:at )?the answer"
    r"|pick(?:ing)? (?:one )?at random)"
    r"|猜一个|随便猜|瞎猜|只能猜|蒙一个|随便选",
    re.IGNORECASE,
)
_N_FINAL_CHARACTERS = 300  # characters; a few sentences


def find_guess_reason(thinking: str, answer: str, min_words: int, *, numbers: bool = True) -> str | None:
    """Returns the reason why an answer looks guessed, given the thinking before it.

    Returns None if it does not. With `numbers`, an answer that is one number has to be met in the thinking, as `1/2`,
    `0.5` or `\\frac{1}{2}` alike, sign apart; digits of years and names count too, so this finds answers from nowhere
    and no others. Ordinals, fractions in English words and words of other languages are not read.
    """
    n_words = len(split_words(thinking))
    if n_words < min_words:
        return f"{n_words} words of thinking"
    admitted = _ADMITTED.search(thinking[-_N_FINAL_CHARACTERS:])
    if admitted:
        return f"says '{admitted[0]}'"
    if numbers:
        answer_number = _parse_single_number(MathAnswer().answer(answer))
        if answer_number is not None and answer_number not in extract_numbers(thinking):
            return f"{answer_number} is never met in the thinking"
    return None


def extract_numbers(text: str) -> set[Fraction]:
    """Returns the absolute values of all numbers in a text.

    Whole, decimal, fractions, powers of ten, words, and the parts of them.
    """
    numbers = set(find_spelled_numbers(text))
    for match in _POWER.finditer(text):
        power = int(match["places"] or match["power"] or match["bare"])
        numbers.add(Fraction(match["times"] or 1) * Fraction(10) ** power)
    for match in _NUMBER.finditer(text):
        numerator, denominator = match["above"] or match["left"], match["below"] or match["right"]
        if numerator is not None:
            numbers |= {Fraction(int(numerator)), Fraction(int(denominator))}
            if int(denominator):
                numbers.add(Fraction(int(numerator), int(denominator)))
        else:
            decimals = match["places"] or match["only_places"] or ""
            integer_digits = re.sub("[^0-9]", "", match["whole"] or "0")
            numbers.add(Fraction(int(integer_digits)) + Fraction(int(decimals or 0), 10 ** len(decimals)))
    return numbers


def _parse_single_number(answer: str | None) -> Fraction | None:
    """Parses an answer that consists of a single number, and returns its absolute value.

    Returns None for any other answer.
    """
    ratio = _RATIO.fullmatch(answer) if answer is not None else None
    if ratio is None or (ratio[3] is not None and not int(ratio[3])):
        return None
    return Fraction(int(ratio[2]), int(ratio[3] or 1))
