"""Compares ratios, ranges and times of the day."""

from qwen_align.reward.math.answer_values import AnswerValue, Ratio, Scalar
from qwen_align.reward.math.joined_numbers import parse_joined_numbers
from qwen_align.reward.math.scalar_equality import is_same_scalar
from qwen_align.reward.math.units import get_conversion_factor

_HOURS_PER_DAY = 24


def is_same_ratio(gold: Ratio, answer: Ratio) -> bool:
    """Checks whether two ratios are proportional. Two times of the day must be the same time."""
    if len(gold.parts) != len(answer.parts):
        return False
    if gold.unit is not None and answer.unit is not None and get_conversion_factor(gold.unit, answer.unit) != 1:
        return False
    # Every multiple of 12:0 would be the same, and `2 to 3 people` are not 4 to 6.
    has_zero = any(part.number == 0 for part in (*gold.parts, *answer.parts))
    is_range = gold.is_range or answer.is_range or gold.unit is not None or answer.unit is not None
    if has_zero or is_range or (_is_time_of_day(gold) and _is_time_of_day(answer)):
        return all(is_same_scalar(*parts, None) for parts in zip(gold.parts, answer.parts, strict=True))
    gold_first, answer_first = gold.parts[0], answer.parts[0]
    return all(
        is_same_scalar(_multiply_scalars(part, answer_first), _multiply_scalars(answer_part, gold_first), None)
        for part, answer_part in zip(gold.parts[1:], answer.parts[1:], strict=True)
    )


def is_same_range(gold: AnswerValue, answer: AnswerValue) -> bool:
    """Checks whether one of two values is a range with "to" and the other the same with a hyphen: `3 to 5`, `3-5`."""
    worded, hyphenated = (gold, answer) if isinstance(gold, Ratio) else (answer, gold)
    if not isinstance(worded, Ratio) or not isinstance(hyphenated, Scalar) or not worded.is_range:
        return False
    joined = parse_joined_numbers(hyphenated.text)
    if worded.unit is not None and hyphenated.unit is not None and worded.unit != hyphenated.unit:
        return False
    return joined is not None and joined.groups == tuple(part.text for part in worded.parts)


def _multiply_scalars(left: Scalar, right: Scalar) -> Scalar:
    """Multiplies two scalars without their units."""
    number = None if left.number is None or right.number is None else left.number * right.number
    return Scalar(rf"({left.text})\cdot({right.text})", number)


def _is_time_of_day(ratio: Ratio) -> bool:
    """Checks whether a ratio is written as a time of the day, such as `12:00` or `7:32`."""
    numbers = [part.number for part in ratio.parts]
    if any(number is None or number.denominator != 1 for number in numbers):
        return False
    is_hour = numbers[0] is not None and 0 <= numbers[0] <= _HOURS_PER_DAY
    return is_hour and all(len(part.text) == 2 and part.text < "60" for part in ratio.parts[1:])
