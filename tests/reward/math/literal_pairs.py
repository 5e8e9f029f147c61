r"""Generates pairs of answers that have to be compared as they are written, by a seed.

Function values, labels (dates, scores, ranges, angles), set-builders, lists with repeats, words that carry the answer,
and names (segments, matrices, distributions, combinations). Whether two are equal follows from how they were made: an
equal one is another spelling of the same thing, an unequal one is what a careless reading takes for the same.
"""

import math
import random
from collections.abc import Callable
from typing import NamedTuple

from tests.reward.math.pair_registry import Pair

Maker = Callable[[random.Random, bool], tuple[str, str]]
KINDS: dict[str, Maker] = {}
FUNCTIONS = [*"fghyuvEDTVSNPQ", r"\Phi", r"\varphi", r"\psi", "y_1", r"\hat{f}", "x'"]
ARGUMENTS = ["x", "n", "t", "r", "X"]


def register(make: Maker) -> Maker:
    """Adds a maker of (answer, gold) under its name; its second argument says whether they are to be equal."""
    KINDS[make.__name__.removeprefix("make_")] = make
    return make


def generate_literal_pairs(kind: str, n: int, *, is_equal: bool, seed: int = 0) -> list[Pair]:
    """Generates pairs of a kind, the same for the same seed."""
    rng = random.Random(f"{kind} {is_equal} {seed}")
    return [Pair(kind, *KINDS[kind](rng, is_equal)) for _ in range(n)]


class Term(NamedTuple):
    """A number times a function's value to a power, times another factor."""

    number: int
    function: str
    argument: str
    power: int
    factor: str


def write_term(rng: random.Random, term: Term, *, is_gold: bool) -> str:
    """Writes a term, with its factors in any order and any kind of brackets."""
    left, right = ("(", ")") if is_gold else rng.choice([("(", ")"), (r"\left(", r"\right)"), ("( ", " )")])
    value = f"{term.function}{left}{term.argument}{right}" + (f"^{term.power}" if term.power > 1 else "")
    number = {1: "", -1: "-"}.get(term.number, str(term.number))
    if not is_gold and term.factor and not term.factor.startswith(("\\", "e")) and rng.random() < 0.5:
        return f"{number}{term.factor}{value}"
    return f"{number}{value}{term.factor}"


@register
def make_function_value(rng: random.Random, is_equal: bool) -> tuple[str, str]:
    """Makes values of unknown functions; what a product would make of them is unequal."""
    f, x = rng.choice(FUNCTIONS), rng.choice(ARGUMENTS)
    n, m = rng.sample(range(2, 10), 2)
    sums = [(f"{x}+{n}", f"{n}+{x}"), (f"{n}{x}-{m}", f"-{m}+{n}{x}"), (f"{x}^2+{x}", f"{x}+{x}^{{2}}")]
    argument, same_argument = rng.choice([*sums, ("0", "0"), (str(n), str(n)), (f"{n}{x}", f"{n}{x}"), (x, x)])
    factor = rng.choice(["", "", "e^{2t}", r"\cos s", "s"])
    term = Term(rng.choice([1, 1, -1, n]), f, argument, rng.choice([1, 1, 2]), factor)
    rest = rng.choice(["", "", f"+{m}", "-b"])
    gold = write_term(rng, term, is_gold=True) + rest
    if is_equal:
        answer = write_term(rng, term._replace(argument=same_argument), is_gold=False)
        return (
            f"{rest.removeprefix('+')}+{answer}" if rest and term.number > 0 and rng.random() < 0.5 else answer + rest
        ), gold
    pairs = [
        (f"{n}{f}({x})", f"{f}({n}{x})"),
        (f"{f}({x})^2", f"{f}({x}^2)"),
        (f"{f}({x})+{f}(s)", f"{f}({x}+s)"),
        (f"{f}({x})-{f}(s)", f"{f}({x}-s)"),
        (f"{f}(0)e^{{-{n}t}}", f"{f}(0)e^{{{n}t}}"),
        (rf"{f}(0)\sin t", rf"{f}(0)\cos t"),
        (f"{f}({n})", f"{n}{f}"),
        (f"{f}({n + 1})", f"{f}({n})"),
        (f"{m}{f}({n})", f"{n}{f}({m})"),
        (f"-{f}({x})", f"{f}(-{x})"),
        (rf"\frac{{{f}({x})}}{{{n}}}", rf"{f}\left(\frac{{{x}}}{{{n}}}\right)"),
        (f"{f}[{x}]^2", f"{f}[{x}^2]"),
        (f"{f}({n}{x}+{n * m})", f"{n}{f}({x}+{m})"),
        (rf"\frac{{{m}}}{{{f}}}", rf"{f}^{{-1}}({m})"),
        (f"{f}({x}+{n})-{f}({x})", f"{f}({n})"),
        (f"{f}({x}+1)-{f}({x}-1)", f"{f}({x}+3)-{f}({x}+1)"),
        (f"{f}({x})s", f"{f}(s){x}"),
    ]
    answer, gold = rng.choice(pairs)
    if "'" in f or f.startswith(r"\hat"):  # these are functions only before a bracket
        answer, gold = (answer, gold) if answer.count("(") == gold.count("(") or "(" in answer else (gold, answer)
    return (gold, answer) if rng.random() < 0.5 else (answer, gold)


@register
def make_letter_product(rng: random.Random, is_equal: bool) -> tuple[str, str]:
    """Makes products of a letter and a bracket, which stay products."""
    k, x, y = rng.sample(["a", "b", "c", "k", "m", "p", "q", "x", "z"], 3)
    greek = rng.choice([r"\lambda", r"\mu", r"\alpha", r"\theta"])
    n, m = rng.randint(2, 9), rng.randint(2, 9)
    pairs = [
        (f"{x}({x}+{n})", f"{x}^2+{n}{x}"),
        (f"{greek}(1-{x})", f"{greek}-{greek} {x}"),
        (f"{k}({x}+{y})", f"{k}{x}+{k}{y}"),
        (f"{k}({x}+{n})({x}-{n})", f"{k}({x}-{n})({x}+{n})"),
        (f"{k}({x}-{y})", f"-{k}({y}-{x})"),
        (f"{n}{x}({x}-{m})", f"{n}{x}^2-{n * m}{x}"),
        (rf"\frac{{{x}({x}+1)}}{{2}}", rf"\frac{{{x}^2+{x}}}{{2}}"),
        (f"{k}^2({x}+{n})", f"{k}^2{x}+{n}{k}^2"),
        (f"{x}{y}({x}-{y})", f"{x}^2{y}-{x}{y}^2"),
        (f"{k}({x}-{n})^2+{m}", f"{k}{x}^2-{2 * n}{k}{x}+{n * n}{k}+{m}"),
    ]
    answer, gold = rng.choice(pairs)
    if not is_equal:
        answer = rng.choice([f"{answer}+1", f"-{answer}" if answer[0] != "-" and "+" not in answer else f"{answer}-2"])
        answer = answer if "(" in answer else f"{answer}+3"
    return (gold, answer) if rng.random() < 0.5 else (answer, gold)


@register
def make_label(rng: random.Random, is_equal: bool) -> tuple[str, str]:
    """Makes dates, scores, ranges, angles and telephone numbers; unequal ones have the same sum or quotient."""
    a, b, k = rng.randint(1, 90), rng.randint(1, 90), rng.randint(1, 9)
    year, month, day = rng.randint(1900, 2030), rng.randint(1, 11), rng.randint(2, 28)
    ways = {
        "score": (f"{a}-{b}", f"{a + k}-{b + k}", [f"{a} - {b}", f"{a}–{b}", rf"\text{{{a}-{b}}}", f"{a}−{b}"]),
        "range": (f"{a} to {a + b}", f"{2 * a} to {2 * (a + b)}", [f"{a}  to {a + b}", rf"{a}\text{{ to }}{a + b}"]),
        "people": (
            f"{a} to {a + b} people",
            f"{k + 1}{a} to {k + 1}{a + b} people",
            [f"{a} to {a + b} people", rf"{a} to {a + b}\text{{ people}}"],
        ),
        "triple": (f"{a}-{b}-{k}", f"{a + 1}-{b}-{k + 1}", [f"{a} - {b} - {k}", f"{a}–{b}–{k}"]),
        "iso": (
            f"{year}-{month:02d}-{day:02d}",
            f"{year}-{month + 1:02d}-{day - 1:02d}",
            [f"{year}-{month}-{day}", f"{year}–{month:02d}–{day:02d}", rf"\text{{{year}-{month:02d}-{day:02d}}}"],
        ),
        "slashes": (
            f"{month}/{day}/{year}",
            f"{2 * month}/{2 * day}/{year}",
            [f"{month:02d}/{day:02d}/{year}", rf"\text{{{month}/{day}/{year}}}"],
        ),
        "phone": (f"{555 + k}-{1234 + a}", f"{556 + k}-{1235 + a}", [f"{555 + k}–{1234 + a}"]),
        "angles": (
            rf"{a}^\circ-{b}^\circ-{k}^\circ",
            rf"{a + 1}^\circ-{b}^\circ-{k + 1}^\circ",
            [f"{a}°-{b}°-{k}°", rf"{a}^{{\circ}} - {b}^{{\circ}} - {k}^{{\circ}}"],
        ),
        "hours": (f"{k}:00-{k + 2}:30", f"{k}:01-{k + 3}:30", [f"{k}:00 - {k + 2}:30", f"{k}:00–{k + 2}:30"]),
    }
    gold, wrong, spellings = ways[rng.choice(list(ways))]
    return (rng.choice([gold, *spellings]) if is_equal else wrong), gold


@register
def make_set_builder(rng: random.Random, is_equal: bool) -> tuple[str, str]:
    """Makes sets with a condition; unequal ones have other elements or another domain."""
    low = rng.randint(-9, 9)
    high = low + rng.randint(2, 8)
    x, y = rng.sample(["x", "t", "n", "k", "a"], 2)
    bar = rng.choice([r"\mid", ":", "|"])
    listed = ",".join(map(str, range(low + 1, high)))
    interval, wide = f"({low},{high})", rf"({low},\infty)"
    real = rng.choice([x, rf"{x}\in\mathbb{{R}}", rf"{x} \in \mathbb R"])
    if is_equal:
        pairs = [
            (rf"\{{{real}{bar} {low}<{x}<{high}\}}", interval),
            (rf"\{{{real} {bar} {x}>{low}\}}", wide),
            (rf"\left\{{{real} {bar} {x} \ge {low}\right\}}", rf"[{low},\infty)"),
            (rf"\{{{x}\in\mathbb{{Z}}{bar} {low}<{x}<{high}\}}", rf"\{{{listed}\}}"),
            (rf"\{{{x} {bar} {low}<{x}<{high}, {x} \in \mathbb{{Z}}\}}", listed),
            (rf"\{{{x}\in\mathbb{{N}}{bar} 1\le {x}\le {abs(low) + 1}\}}", ",".join(map(str, range(1, abs(low) + 2)))),
            (rf"\{{2{x}+{high}{bar} {x}\in\mathbb{{Z}}\}}", rf"\{{{high}+2{y}: {y} \in \mathbb{{Z}}\}}"),
            (rf"\{{1/{x}{bar} {x}>{high}\}}", rf"\{{\frac{{1}}{{{x}}} : {x} > {high}\}}"),
            (rf"\{{{x}{bar} ({x}-{abs(low)})({x}-{abs(low) + 2})=0\}}", rf"\{{{abs(low)},{abs(low) + 2}\}}"),
        ]
        return rng.choice(pairs)
    pairs = [
        (rf"\{{1/{x}{bar} {x}>{low}\}}", wide),
        (rf"\{{{x}^2{bar} {low}<{x}<{high}\}}", interval),
        (rf"\{{{x}\in\mathbb{{N}}{bar} {low}<{x}<{high}\}}", interval),
        (rf"\{{{x}\in\mathbb{{Z}}{bar} {low}<{x}<{high}\}}", interval),
        (rf"\{{{x}\in\mathbb{{Q}}{bar} {x}>{low}\}}", wide),
        (rf"\{{{x}^2{bar} {x}\in\{{{high},{high + 1}\}}\}}", rf"\{{{high},{high + 1}\}}"),
        (rf"\{{-{x}{bar} {x}>{low}\}}", wide),
        (rf"\{{{x}+1{bar} {x}>{low}\}}", wide),
        (rf"\{{{x}\in\mathbb{{Z}}{bar} {low}\le {x}<{high}\}}", rf"\{{{listed}\}}"),
        (rf"\{{3{x}+{high}{bar} {x}\in\mathbb{{Z}}\}}", rf"\{{{high}+2{y}: {y} \in \mathbb{{Z}}\}}"),
        (rf"\{{{x}{bar} {y}>{low}\}}", wide),
        (rf"\{{{x}{bar} {x}^2={(high + 20) ** 2}\}}", rf"\{{{high + 20}\}}"),
    ]
    return rng.choice(pairs)


@register
def make_list_with_repeats(rng: random.Random, is_equal: bool) -> tuple[str, str]:
    """Makes lists in which items are repeated; unequal ones repeat others, or as often as not."""
    pool = rng.sample([*map(str, range(1, 30)), r"\frac{1}{2}", r"\sqrt{3}", "-4", "2.5"], 3)
    items = pool + rng.choices(pool, k=rng.randint(1, 3))
    gold = ", ".join(items)
    if is_equal:
        shuffled = rng.sample(items, len(items))
        joined = rng.choice([", ", ",", "; "]).join(shuffled)
        last = rng.choice([r"\text{ and }", " and "])
        return rng.choice([joined, f"${joined}$", ", ".join(shuffled[:-1]) + last + shuffled[-1]]), gold
    other = list(items)
    way = rng.randrange(3)
    if way == 0:
        other = list(dict.fromkeys(items))
    elif way == 1:
        other.append(rng.choice(pool))
    else:
        repeated = next(item for item in pool if items.count(item) > 1)
        other.remove(repeated)
        other.append(rng.choice([item for item in pool if item != repeated]))
    return ",".join(rng.sample(other, len(other))), gold


COLOURS = "red blue green yellow black white purple brown pink".split()
THINGS = "ball marble car shirt hat pencil balloon block bead apple".split()


@register
def make_words(rng: random.Random, is_equal: bool) -> tuple[str, str]:
    """Makes counts of things with the word that tells which, and answers in words."""
    n, thing = rng.randint(2, 99), rng.choice(THINGS)
    colour, other = rng.sample(COLOURS, 2)
    other_thing = rng.choice([word for word in THINGS if word != thing])
    gold = rng.choice([f"{n} {colour} {thing}s", rf"{n}\text{{ {colour} {thing}s}}"])
    more, less = rng.sample(["more", "fewer"], 2)
    both = rf"{n}\text{{ {thing}s}}, {n + 1}\text{{ {other_thing}s}}"
    if is_equal:
        sentence = f"{colour} {thing}"
        return rng.choice(
            [
                (f"{n} {colour} {thing}s", gold),
                (rf"{n} \text{{ {colour} {thing}s}}", gold),
                (f"{n} {thing}s", gold),
                (str(n), gold),
                (sentence.upper(), sentence),
                (rf"\text{{{sentence}}}", f"the {sentence}"),
                (f"{n} {more} {thing}s", f"{n} {more} {thing}s"),
                (f"{n} {thing}s and {n + 1} {other_thing}s", both),
                (rf"{n}\text{{ {thing}s and }}{n + 1}\text{{ {other_thing}s}}", both),
            ]
        )
    return rng.choice(
        [
            (f"{n} {other} {thing}s", gold),
            (rf"{n}\text{{ {other} {thing}s}}", gold),
            (f"{n} {colour} {other_thing}s", gold),
            (f"{n + 1} {colour} {thing}s", gold),
            (f"{n} {more} {thing}s", f"{n} {less} {thing}s"),
            (f"{other} {thing}", f"{colour} {thing}"),
            (rf"\text{{{colour} {other_thing}}}", f"{colour} {thing}"),
            (f"{n + 1} {thing}s and {n} {other_thing}s", f"{n} {thing}s and {n + 1} {other_thing}s"),
            (f"{n} {colour} and {n + 1} {other}", f"{n} {other} and {n + 1} {colour}"),
        ]
    )


@register
def make_names(rng: random.Random, is_equal: bool) -> tuple[str, str]:
    """Makes segments, matrices, points, distributions and numbers of combinations."""
    a, b, c, d = rng.sample("ABCDEFGHKM", 4)
    n, p = rng.randint(3, 20), rng.choice(["0.5", "0.3", r"\frac{1}{4}"])
    k = rng.randint(1, n - 1)
    x, y, z, w = (rng.randint(-9, 9) for _ in range(4))
    law, other_law = rng.sample("NBUPE", 2)
    if is_equal:
        ways = math.comb(n, k)
        return rng.choice(
            [
                (f"{b}{a}", f"{a}{b}"),
                (f"{c}{d}+{a}{b}", f"{a}{b}+{c}{d}"),
                (rf"\frac{{{a}{b}}}{{{c}{d}}}", f"{a}{b}/{c}{d}"),
                (rf"{c}{d}\cdot {a}{b}", rf"{a}{b}\cdot {c}{d}"),
                (f"{a}{b}^2+{c}{d}^2", f"{c}{d}^{{2}}+{a}{b}^{{2}}"),
                (f"{a}{b}-{b}{a}", f"-{b}{a}+{a}{b}"),
                (f"({a}+{b})^2", f"{a}^2+{a}{b}+{b}{a}+{b}^2"),
                (f"2{a}{b}+{b}{a}", f"{a}{b}+{a}{b}+{b}{a}"),
                (f"{a}({x}, {y}), {b}({z}, {w})", f"{b}({z},{w}), {a}({x},{y})"),
                (f"{law}({n}, {p})", f"{law}({n},{p})"),
                (f"C_{{{n}}}^{{{k}}}", str(ways)),
                (f"C_{{{n}}}^{{{k}}}", rf"\binom{{{n}}}{{{n - k}}}"),
                ("C_1e^x+C_2e^{-x}", "C_2e^{-x}+C_1e^{x}"),
                (f"{a}x+{b}y", f"{b}y+{a}x"),
            ]
        )
    return rng.choice(
        [
            (f"{b}{a}-{a}{b}", f"{a}{b}-{b}{a}"),
            ("0", f"{a}{b}-{b}{a}"),
            (f"{a}*{b}-{b}*{a}", "0"),
            (f"{a}^2+2{a}{b}+{b}^2", f"{a}^2+{a}{b}+{b}{a}+{b}^2"),
            (f"{a}^2-{b}^2", f"({a}+{b})({a}-{b})"),
            (f"{b}{a}^2", f"{a}^2{b}"),
            (rf"\frac{{{a}{b}}}{{{b}{c}}}", rf"\frac{{{a}{d}}}{{{d}{c}}}"),
            (rf"{a}{d}\cdot {b}{c}", rf"{a}{b}\cdot {c}{d}"),
            (rf"{a}{c}\cdot {b}{d}={a}{b}\cdot {c}{d}", rf"{a}{d}\cdot {b}{c}={a}{b}\cdot {c}{d}"),
            (f"{a}{c}+{b}{c}", f"{a}{b}+{b}{c}"),
            (f"{a}({x}, {y}), {b}({x + 1}, {y})", f"{a}({x + 1}, {y}), {b}({x}, {y})"),
            (f"{other_law}({n}, {p})", f"{law}({n},{p})"),
            (f"({n}, {p})", f"{rng.choice('NUB')}({n},{p})"),
            (f"P({n},{k})" if k > 1 else f"C({n + 1},{k})", f"C({n},{k})"),
            (f"C_{{{n}}}^1C_{{{n}}}^1", f"C_{{{n}}}^2"),
            (f"C_{{{n}}}^{{{k}}}", str(n**k + 1 if k == 1 else n**k)),
            ("C_m^1C_m^1", "C_m^2"),
        ]
    )
