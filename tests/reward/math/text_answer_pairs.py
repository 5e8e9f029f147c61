"""Generated pairs of answers with units, to bases, as ratios, times, words, choices and in Chinese, and of golds."""

from fractions import Fraction
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from tests.reward.math.number_spellings import FULL_WIDTH, Number, beside, one_of_fraction, pick, rationals
from tests.reward.math.pair_registry import kind


@kind
def percent(draw: Any, is_equal: bool) -> tuple[str, str]:
    value = Fraction(draw(st.integers(1, 2000)), pick(draw, [1, 1, 2, 4, 10]))
    said = value
    if not is_equal:
        said = pick(draw, [value * 10, value + 1, value * 100, -value, value / 10])
    text = str(said) if said.denominator == 1 else str(float(said))
    whole = str(value) if value.denominator == 1 else str(float(value))
    signs = [rf"{text}\%", f"{text}%", rf"{text} \%", f"{text} percent", rf"{text}\text{{ percent}}"]
    return pick(draw, [*signs, text]), pick(draw, [rf"{whole}\%", f"{whole}%"])


UNITS = {"length": ["km", "m", "cm", "mm"], "mass": ["kg", "g"], "time": ["hours", "minutes", "seconds"]}
NAMES = {"km": "kilometers", "m": "meters", "cm": "centimeters", "mm": "millimeters", "kg": "kilograms", "g": "grams"}


@kind
def unit(draw: Any, is_equal: bool) -> tuple[str, str]:
    value = Number(draw(rationals.map(abs).filter(bool)))
    units = UNITS[pick(draw, list(UNITS))]
    name = pick(draw, units)
    said, other = value, name
    if not is_equal:
        if draw(st.booleans()):
            said = beside(draw, value)
        else:
            other = pick(draw, [u for u in units if u != name])
    long = NAMES.get(other, other)
    written = pick(draw, [rf"\text{{ {other}}}", rf"\,\mathrm{{{other}}}", rf"\text{{ {long}}}", f" {long}"])
    gold = one_of_fraction(draw, value.plain)
    gold += "" if other == name and draw(st.booleans()) else rf"\text{{ {name}}}"
    return one_of_fraction(draw, said.plain) + written, gold


@kind
def money(draw: Any, is_equal: bool) -> tuple[str, str]:
    cents = draw(st.integers(1, 10**8))
    said = cents if is_equal else pick(draw, [cents + 1, cents * 10, cents * 100, -cents, cents + 100])
    text = f"{said / 100:,.2f}"
    plain = f"{cents / 100:.2f}"
    return pick(draw, [rf"\${text}", f"${text}", rf"{text}\text{{ dollars}}", text]), pick(draw, [rf"\${plain}", plain])


@kind
def to_base(draw: Any, is_equal: bool) -> tuple[str, str]:
    base = draw(st.integers(2, 9))
    digits = "".join(map(str, draw(st.lists(st.integers(0, base - 1), min_size=2, max_size=6)))).lstrip("0")
    assume(len(digits) > 1)
    if is_equal:
        ways = [f"{digits}_{base}", f"{digits}_{{{base}}}", rf"{digits}_{{ {base} }}", f"({digits})_{base}"]
        return pick(draw, ways), f"{digits}_{{{base}}}"
    turned = digits[1] + digits[0] + digits[2:]
    ways = [f"{digits}_{base + 1}", digits, f"{digits}0_{base}"] + [f"{turned}_{base}"] * (turned != digits)
    return pick(draw, ways), f"{digits}_{{{base}}}"


@kind
def ratio(draw: Any, is_equal: bool) -> tuple[str, str]:
    a, b, k = draw(st.integers(1, 60)), draw(st.integers(1, 60)), draw(st.integers(2, 5))
    if is_equal:
        ways = [f"{a} : {b}", f"{a}:{b}", f"{a}：{b}", rf"\text{{{a}:{b}}}"]
        if b < 10 or k * a > 24:  # else both may be times of day
            ways.append(f"{k * a}:{k * b}")
        return pick(draw, ways), f"{a}:{b}"
    c, d = pick(draw, [(b, a), (a + 1, b), (a, b + 1), (a, 10 * b)])
    assume(a * d != b * c)
    return f"{c}:{d}", f"{a}:{b}"


@kind
def clock(draw: Any, is_equal: bool) -> tuple[str, str]:
    hour, minute = draw(st.integers(1, 12)), draw(st.integers(0, 59))
    text = f"{hour}:{minute:02d}"
    if is_equal:
        return pick(draw, [text, rf"\text{{{text}}}", text.replace(":", "："), f" {text} "]), text
    shifted = (hour % 12 + 1, minute), (hour, (minute + 1) % 60), (hour, (minute + 30) % 60)
    return pick(draw, [f"{h}:{m:02d}" for h, m in shifted]), text


WORDS = "listen orange Monday triangle parabola seven increasing Alice Brazil silver north ellipse square green".split()


@kind
def word(draw: Any, is_equal: bool) -> tuple[str, str]:
    gold = pick(draw, WORDS)
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
        return pick(draw, ways), pick(draw, [gold, rf"\text{{{gold}}}"])
    anagram = "".join(draw(st.permutations(gold.lower())))
    said = pick(draw, [anagram, anagram, pick(draw, WORDS), f"not {gold}", f"{gold} or {pick(draw, WORDS)}", gold[:-1]])
    assume(said.lower() != gold.lower() and said != f"{gold} or {gold}")
    return pick(draw, [said, rf"\text{{{said}}}"]), pick(draw, [gold, rf"\text{{{gold}}}"])


@kind
def choice(draw: Any, is_equal: bool) -> tuple[str, str]:
    gold, other = draw(st.permutations(list("ABCDE")))[:2]
    right = pick(draw, [gold, f"({gold})", rf"\text{{({gold})}}"])
    if is_equal:
        return pick(
            draw, [gold, f"({gold})", rf"\textbf{{({gold})}}", rf"\text{{{gold}}}", rf"\mathrm{{{gold}}}", f"{gold}."]
        ), right
    wrong = [
        other,
        f"({other})",
        f"{gold} or {other}",
        f"{gold},{other}",
        rf"\text{{not {gold}}}",
        f"{other}{gold}",
        f"{gold}{other}",
    ]
    return pick(draw, wrong), right


DIGITS = "零一二三四五六七八九"


def chinese(number: int) -> str:
    """The numeral of 1 to 9,999 as it is read."""
    text, has_gap = "", False
    for size, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = number // size % 10
        if not digit:
            has_gap = bool(text)
            continue
        text += ("零" if has_gap else "") + ("" if not text and size == 10 and digit == 1 else DIGITS[digit]) + name
        has_gap = False
    return text


@kind
def chinese_form(draw: Any, is_equal: bool) -> tuple[str, str]:
    value = draw(st.integers(1, 9999))
    said = (
        value
        if is_equal
        else pick(draw, [value + 1, value * 10 if value < 1000 else value - 1, max(1, value - 1) if value > 1 else 2])
    )
    full = str(said).translate(FULL_WIDTH)
    ways = [full, f"{said}个", f"{said}元", f"{full}。", f"{said}人", f"答案是{said}", f"ｘ＝{full}", f"{said}千米"]
    if said < 10000:
        ways += [chinese(said)] * 2
    return pick(draw, ways), str(value)
