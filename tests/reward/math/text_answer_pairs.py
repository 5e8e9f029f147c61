"""Generates pairs of answers with units, to bases, as ratios, times, words, choices and in Chinese, and of golds."""

from fractions import Fraction
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from tests.reward.math.number_spellings import FULL_WIDTH, Number, make_near_miss, pick_one, rationals, spell_fraction
from tests.reward.math.pair_registry import register_kind


@register_kind
def make_percent(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes a percentage."""
    value = Fraction(draw(st.integers(1, 2000)), pick_one(draw, [1, 1, 2, 4, 10]))
    answer = value
    if not is_equal:
        answer = pick_one(draw, [value * 10, value + 1, value * 100, -value, value / 10])
    text = str(answer) if answer.denominator == 1 else str(float(answer))
    gold_text = str(value) if value.denominator == 1 else str(float(value))
    signs = [rf"{text}\%", f"{text}%", rf"{text} \%", f"{text} percent", rf"{text}\text{{ percent}}"]
    return pick_one(draw, [*signs, text]), pick_one(draw, [rf"{gold_text}\%", f"{gold_text}%"])


UNITS = {"length": ["km", "m", "cm", "mm"], "mass": ["kg", "g"], "time": ["hours", "minutes", "seconds"]}
NAMES = {"km": "kilometers", "m": "meters", "cm": "centimeters", "mm": "millimeters", "kg": "kilograms", "g": "grams"}


@register_kind
def make_unit(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes a measure with its unit; an unequal one is off or has another unit."""
    value = Number(draw(rationals.map(abs).filter(bool)))
    units = UNITS[pick_one(draw, list(UNITS))]
    name = pick_one(draw, units)
    answer, answer_unit = value, name
    if not is_equal:
        if draw(st.booleans()):
            answer = make_near_miss(draw, value)
        else:
            answer_unit = pick_one(draw, [u for u in units if u != name])
    long_name = NAMES.get(answer_unit, answer_unit)
    unit_text = pick_one(
        draw, [rf"\text{{ {answer_unit}}}", rf"\,\mathrm{{{answer_unit}}}", rf"\text{{ {long_name}}}", f" {long_name}"]
    )
    gold = spell_fraction(draw, value.plain)
    gold += "" if answer_unit == name and draw(st.booleans()) else rf"\text{{ {name}}}"
    return spell_fraction(draw, answer.plain) + unit_text, gold


@register_kind
def make_money(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes an amount of dollars."""
    cents = draw(st.integers(1, 10**8))
    answer = cents if is_equal else pick_one(draw, [cents + 1, cents * 10, cents * 100, -cents, cents + 100])
    text = f"{answer / 100:,.2f}"
    plain = f"{cents / 100:.2f}"
    return pick_one(draw, [rf"\${text}", f"${text}", rf"{text}\text{{ dollars}}", text]), pick_one(
        draw, [rf"\${plain}", plain]
    )


@register_kind
def make_to_base(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes a numeral to a base from 2 to 9."""
    base = draw(st.integers(2, 9))
    digits = "".join(map(str, draw(st.lists(st.integers(0, base - 1), min_size=2, max_size=6)))).lstrip("0")
    assume(len(digits) > 1)
    if is_equal:
        ways = [f"{digits}_{base}", f"{digits}_{{{base}}}", rf"{digits}_{{ {base} }}", f"({digits})_{base}"]
        return pick_one(draw, ways), f"{digits}_{{{base}}}"
    turned = digits[1] + digits[0] + digits[2:]
    ways = [f"{digits}_{base + 1}", digits, f"{digits}0_{base}"] + [f"{turned}_{base}"] * (turned != digits)
    return pick_one(draw, ways), f"{digits}_{{{base}}}"


@register_kind
def make_ratio(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes a ratio of whole numbers."""
    a, b, k = draw(st.integers(1, 60)), draw(st.integers(1, 60)), draw(st.integers(2, 5))
    if is_equal:
        ways = [f"{a} : {b}", f"{a}:{b}", f"{a}：{b}", rf"\text{{{a}:{b}}}"]
        if b < 10 or k * a > 24:  # else both may be times of day
            ways.append(f"{k * a}:{k * b}")
        return pick_one(draw, ways), f"{a}:{b}"
    c, d = pick_one(draw, [(b, a), (a + 1, b), (a, b + 1), (a, 10 * b)])
    assume(a * d != b * c)
    return f"{c}:{d}", f"{a}:{b}"


@register_kind
def make_clock(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes a time of the day."""
    hour, minute = draw(st.integers(1, 12)), draw(st.integers(0, 59))
    text = f"{hour}:{minute:02d}"
    if is_equal:
        return pick_one(draw, [text, rf"\text{{{text}}}", text.replace(":", "："), f" {text} "]), text
    shifted = (hour % 12 + 1, minute), (hour, (minute + 1) % 60), (hour, (minute + 30) % 60)
    return pick_one(draw, [f"{h}:{m:02d}" for h, m in shifted]), text


WORDS = "listen orange Monday triangle parabola seven increasing Alice Brazil silver north ellipse square green".split()


@register_kind
def make_word(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes a word; unequal ones are anagrams, hedges and denials."""
    gold = pick_one(draw, WORDS)
    if is_equal:
        ways = [
            gold,
            gold.lower(),
            gold.upper(),
            rf"\text{{{gold}}}",
            rf"\textbf{{{gold}}}",
            rf"\mathrm{{{gold}}}",
            f"{gold}.",
        ]
        return pick_one(draw, ways), pick_one(draw, [gold, rf"\text{{{gold}}}"])
    anagram = "".join(draw(st.permutations(gold.lower())))
    answer = pick_one(
        draw, [anagram, anagram, pick_one(draw, WORDS), f"not {gold}", f"{gold} or {pick_one(draw, WORDS)}", gold[:-1]]
    )
    assume(answer.lower() != gold.lower() and answer != f"{gold} or {gold}")
    return pick_one(draw, [answer, rf"\text{{{answer}}}"]), pick_one(draw, [gold, rf"\text{{{gold}}}"])


@register_kind
def make_choice(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes the letter of an option."""
    gold, other_letter = draw(st.permutations(list("ABCDE")))[:2]
    right = pick_one(draw, [gold, f"({gold})", rf"\text{{({gold})}}"])
    if is_equal:
        return pick_one(
            draw, [gold, f"({gold})", rf"\textbf{{({gold})}}", rf"\text{{{gold}}}", rf"\mathrm{{{gold}}}", f"{gold}."]
        ), right
    wrong = [
        other_letter,
        f"({other_letter})",
        f"{gold} or {other_letter}",
        f"{gold},{other_letter}",
        rf"\text{{not {gold}}}",
        f"{other_letter}{gold}",
        f"{gold}{other_letter}",
    ]
    return pick_one(draw, wrong), right


DIGITS = "零一二三四五六七八九"


def spell_chinese(number: int) -> str:
    """Writes a number from 1 to 9,999 in Chinese numerals."""
    text, has_gap = "", False
    for size, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = number // size % 10
        if not digit:
            has_gap = bool(text)
            continue
        text += ("零" if has_gap else "") + ("" if not text and size == 10 and digit == 1 else DIGITS[digit]) + name
        has_gap = False
    return text


@register_kind
def make_chinese_form(draw: Any, is_equal: bool) -> tuple[str, str]:
    """Makes a number as Chinese answers have it: full-width digits, counting words, numerals."""
    value = draw(st.integers(1, 9999))
    answer = (
        value
        if is_equal
        else pick_one(
            draw, [value + 1, value * 10 if value < 1000 else value - 1, max(1, value - 1) if value > 1 else 2]
        )
    )
    full = str(answer).translate(FULL_WIDTH)
    ways = [
        full,
        f"{answer}个",
        f"{answer}元",
        f"{full}。",
        f"{answer}人",
        f"答案是{answer}",
        f"ｘ＝{full}",
        f"{answer}千米",
    ]
    if answer < 10000:
        ways += [spell_chinese(answer)] * 2
    return pick_one(draw, ways), str(value)
