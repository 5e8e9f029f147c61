"""What an answer to a reasoning_gym task must hold besides a full score from the task's own scorer.

Read and tried on reasoning_gym 0.1.25: items of every task were put the golds of others, hedges ("X or Y"),
repetitions, the question itself and junk. The scorers named here paid in full for some of that, or evaluate the
answer as Python. All of this runs where the scorers run, in worker processes.
"""

import ast
import json
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

Entry = dict[str, Any]
Guard = Callable[[str, Entry], bool]

REFUSED = {
    "composite": "it only mixes others: name them as tasks with weights",
    "propositional_logic": "its scorer pays any premise copied from the question (14 of 20 tried)",
}
"""Tasks that are not used, and why."""

_FORMULA_NAMES = frozenset(
    "C E I pi sqrt exp log sin cos tan cot sec csc asin acos atan sinh cosh tanh asinh acosh atanh".split()
)
_FORMULA = re.compile(r"(?:[A-Za-z]+|[0-9]+(?:\.[0-9]+)?|[-+*/() \n])*")
_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]+)?")
_PROBABILITY = re.compile(r"[0-9]{1,30}(?:/[0-9]{1,30}|\.[0-9]{1,30}(?:e-[0-9]{1,2})?)?")
_WORD = re.compile(r"\w+")
_NOT_FINITE = re.compile(r"\b(?:nan|inf|infinity)\b", re.IGNORECASE)
_LONGEST_SUM = 500  # characters of an arithmetic answer
_COIN_TOLERANCE = Fraction(1, 10_000)  # reasoning_gym's own `tol`


def admits(dataset: str, answer: str, entry: Entry) -> bool:
    """Whether the answer may be put to the scorer and be paid."""
    if _NOT_FINITE.search(answer) and not _NOT_FINITE.search(str(entry.get("answer"))):
        return False  # a distance to nan is nan, which `min(1.0, nan)` makes a full score
    guard = GUARDS.get(dataset)
    try:
        return guard is None or guard(answer, entry)
    except (ValueError, SyntaxError, TypeError, KeyError, ArithmeticError, RecursionError, MemoryError):
        return False  # not of the form the guard reads


def revived(dataset: str, entry: Entry) -> Entry:
    """The entry with the tuples that JSON made lists of, where a scorer compares with them."""
    if dataset in ("arc_agi", "rearc"):
        board = tuple(tuple(row) for row in entry["metadata"]["output"])
        return entry | {"metadata": entry["metadata"] | {"output": board}}
    return entry


def _same_text(answer: str, entry: Entry) -> bool:
    return "".join(answer.split()).casefold() == "".join(entry["answer"].split()).casefold()


def _same_json(answer: str, entry: Entry) -> bool:
    return bool(answer.strip() == entry["answer"].strip() or json.loads(answer) == json.loads(entry["answer"]))


def _no_longer(answer: str, entry: Entry) -> bool:
    """No more words than the gold, so that no second answer hides behind the first."""
    return len(_WORD.findall(answer)) <= len(_WORD.findall(entry["answer"]))


def _one_number(answer: str, entry: Entry) -> bool:
    """The scorer takes the first number and drops its sign."""
    numbers = _NUMBER.findall(answer)
    return len(numbers) == 1 and float(numbers[0]) == float(entry["answer"])


def _close(answer: str, entry: Entry) -> bool:
    """The scorer pays an answer in full for beginning as the gold does, or the gold as it: "0" for "0.375"."""
    said, right = (text.replace(",", "").strip() for text in (answer, entry["answer"]))
    return bool(_PROBABILITY.fullmatch(said)) and abs(Fraction(said) - Fraction(right)) <= _COIN_TOLERANCE


def _same_numbers(answer: str, entry: Entry) -> bool:
    """The scorer lets every number be off by one."""
    said, right = (json.loads(text.replace("'", '"')) for text in (answer, entry["answer"]))
    return [float(number) for number in said] == [float(number) for number in right]


def _makes_24(answer: str, entry: Entry) -> bool:
    """The scorer takes any four numbers, and 24.9 for 24."""
    return _uses(answer, entry["metadata"]["numbers"], Fraction(24))


def _makes_target(answer: str, entry: Entry) -> bool:
    """The scorer takes what is off by a hundred-thousandth."""
    return _uses(answer, entry["metadata"]["numbers"], Fraction(entry["metadata"]["target"]))


def _uses(answer: str, numbers: list[int], target: Fraction) -> bool:
    if len(answer) > _LONGEST_SUM:
        return False
    used: list[int] = []
    return _value(ast.parse(answer.strip(), mode="eval").body, used) == target and sorted(used) == sorted(numbers)


def _value(node: ast.expr, used: list[int]) -> Fraction:
    """The exact value of sums, differences, products and quotients of whole numbers, which are added to `used`."""
    match node:
        case ast.Constant(value=int(number)) if not isinstance(number, bool):
            used.append(number)
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, used)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() as sign, right=right):
            one, other = _value(left, used), _value(right, used)
            if isinstance(sign, ast.Add):
                return one + other
            if isinstance(sign, ast.Sub):
                return one - other
            return one * other if isinstance(sign, ast.Mult) else one / other
    raise ValueError("no sum of whole numbers")


def _formula(answer: str, entry: Entry) -> bool:
    """The scorer hands the text to sympy's `parse_expr`, which is `eval`: only numbers, operators, known functions.

    So neither code nor `Integral(...)`, whose derivative is the question, nor "X or Y" gets there.
    """
    letters = {name for name in re.findall(r"[A-Za-z]+", str(entry["answer"])) if len(name) == 1}
    known = _FORMULA_NAMES | letters | {str(entry["metadata"].get("variable", ""))}
    names = set(re.findall(r"[A-Za-z]+", answer))
    return bool(_FORMULA.fullmatch(answer)) and names <= known


def _literal(answer: str, entry: Entry) -> bool:
    """The scorer hands the text to `eval` unless it is the gold: only a literal gets there."""
    if answer.strip() == str(entry["answer"]).strip() or answer in entry["metadata"].get("valid_answers", []):
        return True
    ast.literal_eval(answer.strip())
    return True


GUARDS: dict[str, Guard] = {
    "advanced_geometry": _no_longer,
    "binary_matrix": _literal,
    "codeio": _same_json,
    "coin_flip": _close,
    "countdown": _makes_target,
    "figlet_font": _same_text,
    "fraction_simplification": _no_longer,
    "game_of_life": _same_json,
    "game_of_life_halting": _same_text,  # the scorer compares `bool(text)`s: it pays every answer
    "gsm_symbolic": _one_number,
    "intermediate_integration": _formula,
    "knights_knaves": _no_longer,
    "letter_jumble": _no_longer,
    "n_queens": _literal,
    "number_sorting": _same_numbers,
    "polynomial_equations": _no_longer,
    "polynomial_multiplication": _formula,
    "puzzle24": _makes_24,
    "simple_integration": _formula,
    "spell_backward": _same_text,  # the scorer gives 1.0 or more to what goes on after the gold
    "spiral_matrix": _literal,
    "string_insertion": _literal,
    "time_intervals": _no_longer,
    "word_sorting": _no_longer,
}
"""What an answer must hold besides, by task."""
