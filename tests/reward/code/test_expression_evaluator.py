"""What is evaluated here is what Python says, within bounds."""

import ast
from typing import Any

import pytest

from qwen_align.reward.code.expression_evaluator import Evaluator, StepBudget, UnsupportedError, is_supported
from qwen_align.reward.code.value_serialization import NotPlainError
from tests.clock import cpu_limit

ALIKE = """
1 + 2 * 3 - 4 / 5 // 6 % 7 ** 2
-1 + ~2 + +3
not [] and (1, 2)[0]
[] or {} or 0
1 < 2 <= 2 != 3
1 < 2 > 3
1 if 0 else 2
[1, 2, *[3]][-1]
"abcdef"[1:5:2]
{"a": 1, "b": [2]}["b"]
{1, 2} | {3} == {3, 2, 1}
sorted([3, 1, 2], reverse=True)
sorted(["bb", "a"], key=len)
max([1, 5, 2]) - min(4, 2) + sum([1, 2], 3)
round(3.14159, 2) == 3.14
abs(-2.5) < 1e-6
set([1, 2, 2]) == {1, 2}
tuple(range(3)) == (0, 1, 2)
list(zip([1, 2], "ab"))
list(enumerate("ab", 1))
all(x > 0 for x in [1, 2]) and any([x > 1 for x in [1, 2]])
[x * y for x in range(3) if x for y in (1, 2)]
{x % 2 for x in range(5)}
sum([i**2 for i in range(5) if i % 2 != 0])
isinstance(3, int) and isinstance("a", (int, str))
type(3) == int and type([]) is list
"a,b".split(",") + ["x".upper()]
", ".join(["a", "b"]) in "a, b, c"
"abc".startswith("ab") and "x" not in "abc"
math.isclose(0.1 + 0.2, 0.3) and math.floor(2.5) == 2
math.isclose(1.0, 1.1, rel_tol=0.2)
int("12", base=3) + len("abc") + ord("a")
True == 1 and True is not 1
frozenset([1]) == {1}
dict([(1, 2), (1, 3)]) == {1: 3} == dict({1: 3})
[(a, b) for a, b in [(1, 2), (3, 4)]]
float("inf") > 10**100
repr([1, "a"]) + str(None)
""".strip().splitlines()


def value(source: str, **names: Any) -> Any:
    tree = ast.parse(source, mode="eval").body
    assert is_supported(tree, names.keys()), source
    return Evaluator(names, set(), lambda node: pytest.fail("a call"), StepBudget(5_000_000)).evaluate(tree)


@pytest.mark.parametrize("source", ALIKE)
def test_it_is_as_python_has_it(source: str) -> None:
    import math

    assert value(source) == eval(source, {"math": math})  # the reference; the source is this file's


@pytest.mark.parametrize(
    "source",
    [
        "1 / 0",
        "[][0]",
        "{}['a']",
        "len(3)",
        "'a' + 1",
        "int('x')",
        "'a'.real",
        "[1, 2] < 3",
        "{[]}",
        "next(iter([]))",
    ],
)
def test_it_raises_where_python_does(source: str) -> None:
    tree = ast.parse(source, mode="eval").body
    with pytest.raises(
        (ArithmeticError, AttributeError, LookupError, StopIteration, TypeError, ValueError, UnsupportedError)
    ):
        Evaluator({}, set(), lambda node: None, StepBudget(5_000_000)).evaluate(tree)


@pytest.mark.parametrize(
    "source",
    [
        "__import__('os')",
        "open('x')",
        "eval('1')",
        "().__class__",
        "(1).__class__.__mro__",
        "[].append(1)",
        "'{0.__class__}'.format(1)",
        "f'{1}'",
        "lambda: 1",
        "(x := 1)",
        "getattr(1, 'real')",
        "math.factorial(10)",
        "math.__loader__",
        "print(1)",
        "1 << 10",
        "unknown",
        "map(str, [1])",
        "{**{}}",
        "{x: 1 for x in [1]}",
        "await x",
    ],
)
def test_nothing_else_is_evaluated(source: str) -> None:
    tree = ast.parse(source, mode="eval").body
    assert not is_supported(tree, {"x"})
    with pytest.raises((UnsupportedError, AttributeError)):
        Evaluator({"x": 1}, set(), lambda node: None, StepBudget(5_000_000)).evaluate(tree)


@pytest.mark.parametrize(
    "source",
    [
        "10 ** 10 ** 7",
        "big ** big",
        "[0] * 10 ** 9",
        "10 ** 9 * 'x'",
        "list(range(10 ** 12))",
        "sum(range(10 ** 12))",
        "[x for x in range(10 ** 12)]",
        "1.5 in range(10 ** 15)",
        "round(5, -10 ** 9)",
        "'%999999999d' % 1",
        "sum([[1], [2]], [])",
        "text.join([text] * 1000)",
        "set([x * (2 ** 61 - 1) for x in range(100000)])",
        "2 ** half",
    ],
)
def test_no_operation_takes_long(source: str) -> None:
    from fractions import Fraction

    with cpu_limit(1.0, source), pytest.raises(NotPlainError):
        value(source, big=10**9, text="x" * 100_000, half=Fraction(10**9))
