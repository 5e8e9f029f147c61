"""Guards on answers to reasoning_gym tasks, whose own scorers accept some wrong answers or evaluate them as code.

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

REFUSED_TASKS = {
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
_SOKOBAN_MOVES = re.compile(r"[LDUR\s,]+")
_MAX_ARITHMETIC_CHARACTERS = 500  # characters of an arithmetic answer
_COIN_TOLERANCE = Fraction(1, 10_000)  # reasoning_gym's own `tol`


def passes_task_guard(dataset: str, answer: str, entry: Entry) -> bool:
    """Returns whether an answer passes the extra check of its reasoning_gym task and may be given to the scorer."""
    if _NOT_FINITE.search(answer) and not _NOT_FINITE.search(str(entry.get("answer"))):
        return False  # a distance to nan is nan, which `min(1.0, nan)` makes a full score
    guard = GUARDS.get(dataset)
    try:
        return guard is None or guard(answer, entry)
    except (ValueError, SyntaxError, TypeError, KeyError, ArithmeticError, RecursionError, MemoryError):
        return False  # not of the form the guard reads


def restore_tuples(dataset: str, entry: Entry) -> Entry:
    """Converts lists in a reasoning_gym entry back to tuples, where JSON had changed them and the scorer needs them."""
    if dataset in ("arc_agi", "rearc"):
        board = tuple(tuple(row) for row in entry["metadata"]["output"])
        return entry | {"metadata": entry["metadata"] | {"output": board}}
    return entry


def _is_same_text(answer: str, entry: Entry) -> bool:
    """Returns whether an answer equals the gold text, ignoring case and white space."""
    return "".join(answer.split()).casefold() == "".join(entry["answer"].split()).casefold()


def _is_same_json(answer: str, entry: Entry) -> bool:
    """Returns whether an answer equals the gold as text or as a JSON value."""
    return bool(answer.strip() == entry["answer"].strip() or json.loads(answer) == json.loads(entry["answer"]))


def _is_not_longer_than_gold(answer: str, entry: Entry) -> bool:
    """Returns whether an answer has at most as many words as the gold, so that it cannot contain a second answer."""
    return len(_WORD.findall(answer)) <= len(_WORD.findall(entry["answer"]))


def _is_one_equal_number(answer: str, entry: Entry) -> bool:
    """Returns whether an answer is a single number equal to the gold's.

    The scorer takes the first number and drops its sign.
    """
    numbers = _NUMBER.findall(answer)
    return len(numbers) == 1 and float(numbers[0]) == float(entry["answer"])


def _is_close_probability(answer: str, entry: Entry) -> bool:
    """Returns whether an answer is a probability close to the gold's.

    The scorer pays an answer in full for beginning as the gold does, or the gold as it: "0" for "0.375".
    """
    answer_text, gold_text = (text.replace(",", "").strip() for text in (answer, entry["answer"]))
    return (
        bool(_PROBABILITY.fullmatch(answer_text))
        and abs(Fraction(answer_text) - Fraction(gold_text)) <= _COIN_TOLERANCE
    )


def _has_same_numbers(answer: str, entry: Entry) -> bool:
    """Returns whether an answer lists exactly the gold's numbers. The scorer lets every number be off by one."""
    answer_numbers, gold_numbers = (json.loads(text.replace("'", '"')) for text in (answer, entry["answer"]))
    return [float(number) for number in answer_numbers] == [float(number) for number in gold_numbers]


def _evaluates_to_24(answer: str, entry: Entry) -> bool:
    """Returns whether an answer is an expression of the four given numbers with the value 24.

    The scorer accepts any four numbers, and 24.9.
    """
    return _is_expression_of_numbers(answer, entry["metadata"]["numbers"], Fraction(24))


def _evaluates_to_target(answer: str, entry: Entry) -> bool:
    """Returns whether an answer is an expression of the given numbers with exactly the target value.

    The scorer tolerates 0.00001.
    """
    return _is_expression_of_numbers(answer, entry["metadata"]["numbers"], Fraction(entry["metadata"]["target"]))


def _is_expression_of_numbers(answer: str, numbers: list[int], target: Fraction) -> bool:
    """Returns whether an answer is an arithmetic expression that uses exactly the given numbers and equals a target."""
    if len(answer) > _MAX_ARITHMETIC_CHARACTERS:
        return False
    used: list[int] = []
    return _evaluate_arithmetic(ast.parse(answer.strip(), mode="eval").body, used) == target and sorted(used) == sorted(
        numbers
    )


def _evaluate_arithmetic(node: ast.expr, used: list[int]) -> Fraction:
    """Computes the exact value of an arithmetic expression over whole numbers and appends each number to `used`."""
    match node:
        case ast.Constant(value=int(number)) if not isinstance(number, bool):
            used.append(number)
            return Fraction(number)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_evaluate_arithmetic(operand, used)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() as operation, right=right):
            left_value, right_value = _evaluate_arithmetic(left, used), _evaluate_arithmetic(right, used)
            if isinstance(operation, ast.Add):
                return left_value + right_value
            if isinstance(operation, ast.Sub):
                return left_value - right_value
            return left_value * right_value if isinstance(operation, ast.Mult) else left_value / right_value
    raise ValueError("no sum of whole numbers")


def _is_safe_formula(answer: str, entry: Entry) -> bool:
    """Returns whether an answer is a formula made of numbers, operators and known functions only.

    The scorer hands the text to sympy's `parse_expr`, which is `eval`. So neither code nor `Integral(...)`, whose
    derivative is the question, nor "X or Y" gets there.
    """
    letters = {name for name in re.findall(r"[A-Za-z]+", str(entry["answer"])) if len(name) == 1}
    known = _FORMULA_NAMES | letters | {str(entry["metadata"].get("variable", ""))}
    names = set(re.findall(r"[A-Za-z]+", answer))
    return bool(_FORMULA.fullmatch(answer)) and names <= known


def _is_only_moves(answer: str, entry: Entry) -> bool:
    """Returns whether an answer holds nothing but the moves of a sokoban puzzle.

    The scorer plays every letter it knows, so of "X or Y" both halves.
    """
    return _SOKOBAN_MOVES.fullmatch(answer) is not None


def _is_literal(answer: str, entry: Entry) -> bool:
    """Returns whether an answer is the gold or a Python literal. Raises ValueError or SyntaxError if it is neither.

    The scorer hands the text to `eval` unless it is the gold.
    """
    if answer.strip() == str(entry["answer"]).strip() or answer in entry["metadata"].get("valid_answers", []):
        return True
    ast.literal_eval(answer.strip())
    return True


GUARDS: dict[str, Guard] = {
    "advanced_geometry": _is_not_longer_than_gold,
    "binary_matrix": _is_literal,
    "codeio": _is_same_json,
    "coin_flip": _is_close_probability,
    "countdown": _evaluates_to_target,
    "figlet_font": _is_same_text,
    "fraction_simplification": _is_not_longer_than_gold,
    "game_of_life": _is_same_json,
    "game_of_life_halting": _is_same_text,  # the scorer compares `bool(text)`s: it pays every answer
    "gsm_symbolic": _is_one_equal_number,
    "intermediate_integration": _is_safe_formula,
    "knights_knaves": _is_not_longer_than_gold,
    "letter_jumble": _is_not_longer_than_gold,
    "n_queens": _is_literal,
    "number_sorting": _has_same_numbers,
    "polynomial_equations": _is_not_longer_than_gold,
    "polynomial_multiplication": _is_safe_formula,
    "puzzle24": _evaluates_to_24,
    "simple_integration": _is_safe_formula,
    "sokoban": _is_only_moves,
    "spell_backward": _is_same_text,  # the scorer gives 1.0 or more to what goes on after the gold
    "spiral_matrix": _is_literal,
    "string_insertion": _is_literal,
    "time_intervals": _is_not_longer_than_gold,
    "word_sorting": _is_not_longer_than_gold,
}
"""What an answer must hold besides, by task."""
