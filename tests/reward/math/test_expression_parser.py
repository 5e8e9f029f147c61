"""Which texts are parsed to which tree, and which are refused; no text makes the parser raise or hang."""

import random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from qwen_align.reward.math.expression_parser import parse_expression
from qwen_align.reward.math.expression_tree import (
    Node,
    get_free_letters,
    get_unknown_functions,
    is_constant,
    make_number,
)
from tests.clock import cpu_limit

READ = [
    (r"\frac12", "(quotient (number 1) (number 2))"),
    (r"\frac1{72}", "(quotient (number 1) (number 72))"),
    (r"\frac\pi2", "(quotient (constant pi) (number 2))"),
    (r"\tfrac{x}{2}", "(quotient (symbol x) (number 2))"),
    (r"{3 \over 2}", "(quotient (number 3) (number 2))"),
    ("1{,}000", "(number 1000)"),
    (r"12,\!345", "(number 12345)"),
    (r"12,348\pi", "(product (number 12348) (constant pi))"),
    ("1.5e3", "(decimal 1.5e3)"),
    (r"1.5e-3\cdot x", "(product (decimal 1.5e-3) (symbol x))"),
    ("2e-3x", "(sum (product (number 2) (constant e)) (negative (product (number 3) (symbol x))))"),
    (r"0.1\overline{6}", "(decimal 0.1(6))"),
    ("-x^2", "(negative (power (symbol x) (number 2)))"),
    ("2^-1", "(power (number 2) (negative (number 1)))"),
    ("a-b-c", "(sum (symbol a) (negative (symbol b)) (negative (symbol c)))"),
    ("x^10", "(power (symbol x) (number 10))"),
    ("2^3^2", "(power (number 2) (power (number 3) (number 2)))"),
    ("x**2", "(power (symbol x) (number 2))"),
    (r"2\frac{1}{3}", "(sum (number 2) (number 1/3))"),
    (r"2\frac{4}{3}", "(product (number 2) (quotient (number 4) (number 3)))"),
    (r"2\frac{\pi}{3}", "(product (number 2) (quotient (constant pi) (number 3)))"),
    (r"\log_28", "(call log (number 8) (number 2))"),
    (r"\log_{10}x", "(call log (symbol x) (number 10))"),
    (r"\sin^2x", "(power (call sin (symbol x)) (number 2))"),
    (r"\sin^{-1}x", "(call arcsin (symbol x))"),
    (r"\sin 2x\cos x", "(product (call sin (product (number 2) (symbol x))) (call cos (symbol x)))"),
    (r"\sin(x)y", "(product (call sin (symbol x)) (symbol y))"),
    (r"\sin 30^\circ", "(call sin (call degrees (number 30)))"),
    ("|x|y|z|", "(product (call abs (symbol x)) (symbol y) (call abs (symbol z)))"),
    ("||x|-1|", "(call abs (sum (call abs (symbol x)) (negative (number 1))))"),
    (r"\left|-3\right|", "(call abs (negative (number 3)))"),
    ("f(x,2)", "(apply f (symbol x) (number 2))"),
    ("f'(0)", "(apply f' (number 0))"),
    ("ab_1", "(product (symbol a) (symbol b_1))"),
    (r"\overline{AB}", r"(symbol \overlineA B)"),
    (r"\mathrm{e}", "(constant e)"),
    (r"\operatorname{lcm}(4,6)", "(call lcm (number 4) (number 6))"),
    (r"\max\{1,2\}", "(call max (number 1) (number 2))"),
    ("2theta", r"(product (number 2) (symbol \theta))"),
    (".5e3", "(decimal .5e3)"),
    ("5!", "(call factorial (number 5))"),
    (r"\sum_{i=1}^3i+1", "(sum (series sum (symbol i) (number 1) (number 3) (symbol i)) (number 1))"),
    ("√2", "(root (number 2) (number 2))"),
    ("2×3−1", "(sum (product (number 2) (number 3)) (negative (number 1)))"),
]

REFUSED = [
    "",
    "()",
    "{}",
    "1+",
    "*2",
    "2^",
    "x_",
    "1,2",
    "(1,2)",
    "(1,200)",
    "[0,1)",
    "(1",
    "1)",
    r"\left(1\right.",
    "x=2",
    "x<2",
    r"x\le2",
    "1;2",
    "2:3",
    "5%",
    r"5\%",
    r"\$5",
    r"\pm3",
    "x2",
    "2 3",
    "1.2.3",
    "1..2",
    "101_2",
    "5!!",
    "2^3!",
    r"\text{cm}",
    r"5\text{ cm}",
    r"\text{1 or }2",
    r"\int_0^1x\,dx",
    r"\lim_{x\to0}x",
    r"\frac{d}{dx}x",
    r"1,2,\ldots,n",
    r"\begin{pmatrix}1\\2\end{pmatrix}",
    r"\unknown{2}",
    r"\sqrt{}",
    r"\frac{1}{}",
    r"\log_2",
    r"\sin",
    "|x",
    "||",
    "f()",
    "$x$",
    "x;__import__('os')",
    "__import__('os').mkdir('a')",
    "exec('1')",
    "lambda x: x",
    "5个",
    "\x00",
    "1" * 1_001,
    "(" * 2_000 + "1",
    r"\frac{1}{" * 300 + "1" + "}" * 300,
    "-".join("(" * 200) + ")" * 200,
    "x" * 9_000,
]


@pytest.mark.parametrize(("text", "tree"), READ, ids=[text for text, _ in READ])
def test_text_is_read_as(text: str, tree: str) -> None:
    assert repr(parse_expression(text)).replace("'", "") == tree.replace("'", "")


@pytest.mark.parametrize("text", REFUSED, ids=[text[:30] for text in REFUSED])
def test_text_is_refused(text: str) -> None:
    assert parse_expression(text) is None


def test_redundant_brackets_do_not_count() -> None:
    for opening, closing in (("(", ")"), ("{", "}"), (r"\left(", r"\right)")):
        assert parse_expression(opening * 600 + "x" + closing * 600) == parse_expression(f"{opening}x{closing}")
    assert parse_expression("(" * 2_000 + "1" + ")" * 2_000) == make_number(1)


def test_letters_and_functions_of_an_expression() -> None:
    tree = parse_expression(r"\sum_{k=1}^{n}kx+f(2y)+e^{i\pi}")
    assert tree is not None
    assert get_free_letters(tree) == {"n", "x", "y"}
    assert get_unknown_functions(tree) == {"f"}
    assert not is_constant(tree)
    constant = parse_expression(r"\sum_{k=1}^{3}k\pi")
    assert constant is not None
    assert is_constant(constant)


def test_equal_trees_are_equal_and_hash_alike() -> None:
    left, right = parse_expression("x^2 + 1"), parse_expression("x^{2}+1")
    assert left == right
    assert hash(left) == hash(right)
    assert left != parse_expression("x^2+2")
    assert left != "x^2+1"


PIECES = [
    *r"\frac \sqrt \left( \right) \left| \right| \sin \log \ln \sum \prod \binom \pi \infty \cdot \over".split(),
    *r"\max \gcd \lfloor \rfloor \overline \mathrm \text \circ".split(),
    *"^ _ { } ( ) [ ] | + - * / ! , . ; = ' 0 1 12 3.5 e i x f".split(),
    *["_{k=1}", "^{3}", " ", "√", "½", "²", "\\", "$", "%", "1{,}000", r"\overline{3}", "0.", "e5", "mod"],
]


@given(st.lists(st.sampled_from(PIECES), max_size=40).map("".join))
@example(r"\frac")
@example(r"\sqrt[")
@example(r"\sum_{k=")
def test_soup_of_commands_never_raises(text: str) -> None:
    tree = parse_expression(text)
    assert tree is None or isinstance(tree, Node)


@given(st.text(max_size=60) | st.binary(max_size=60).map(lambda raw: raw.decode("latin-1")))
def test_any_text_never_raises(text: str) -> None:
    tree = parse_expression(text)
    assert tree is None or isinstance(tree, Node)


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join))
def test_never_a_part_of_the_text(text: str) -> None:
    """A text with something behind it that cannot be parsed is refused as a whole."""
    assert parse_expression(text + "=") is None
    assert parse_expression(text + " , 7") is None


def test_reading_takes_time_in_proportion_to_length() -> None:
    rng = random.Random(3)
    soups = ["".join(rng.choice(PIECES) for _ in range(2_000)) for _ in range(5)]
    for text in [
        *soups,
        "((" * 1_000,
        "|" * 4_000,
        "-" * 7_000 + "1",
        "1 " * 2_000,
        "x^" * 2_000,
        "f(" * 2_000,
        "{" * 8_000,
    ]:
        with cpu_limit(0.1, text):  # about 0.01 where the limit was set
            parse_expression(text)
