"""Compares answers that assign values to names, such as `x = 1, y = 2`, `(x, y) = (1, 2)` or `f(x) = 2x`."""

import re

from qwen_align.reward.math.answer_parser import parse_normalized
from qwen_align.reward.math.answer_values import (
    AnswerComparer,
    AnswerValue,
    BracketedTuple,
    DeferredPairs,
    Ratio,
    RelationChain,
    Scalar,
    UnorderedItems,
    get_items,
)
from qwen_align.reward.math.expression_equality import decide_equality
from qwen_align.reward.math.expression_tree import make_symbol, substitute_letters
from qwen_align.reward.math.letter_readings import parse_alike
from qwen_align.reward.math.variable_names import normalize_variable_name, strip_subscript

_MAX_COMPARISONS = 900  # comparisons of named values

_FUNCTION_OF_LETTER = re.compile(r"([A-Za-z]'*)\(([A-Za-z])\)")

NamedValues = list[tuple[str, AnswerValue]]


def collect_named_values(value: AnswerValue, is_same_answer: AnswerComparer, *, is_gold: bool) -> NamedValues | None:
    """Returns the (name, value) pairs of an answer, where an unnamed value has the name "".

    Returns None if the answer has a relation that assigns no value.
    """
    entries: NamedValues = []
    for item in get_items(value):
        if not isinstance(item, RelationChain):
            entries.append((entries[-1][0] if entries else "", item))
            continue
        name_and_value = _split_name_and_value(item, is_gold, is_same_answer)
        if name_and_value is None:
            return None
        entries += [(name_and_value[0], inner) for inner in (get_items(name_and_value[1]) or (name_and_value[1],))]
    return entries


def _split_name_and_value(
    chain: RelationChain, is_gold: bool, is_same_answer: AnswerComparer
) -> tuple[str, AnswerValue] | None:
    """Splits an equation such as `x = 5` into its name and value.

    Returns None if it does not assign a value to a name.
    """
    sides, relations = chain
    if set(relations) != {"="} and relations != (r"\in",):
        return None
    values = [parse_normalized(side) for side in sides[1:]]
    name = normalize_variable_name(sides[0], is_gold=is_gold or isinstance(values[-1], Ratio))
    if name is None and len(sides) == 2 and relations == ("=",):  # `5 = x`
        left_value = parse_normalized(sides[0])
        if isinstance(left_value, Scalar) and left_value.number is not None:
            name, values = normalize_variable_name(sides[1], is_gold=is_gold), [left_value]
    last_value = values[-1]
    if (
        name is None
        or last_value is None
        or any(
            earlier_value is None or not is_same_answer(last_value, earlier_value, None)
            for earlier_value in values[:-1]
        )
    ):
        return None
    return name, last_value


def split_by_coordinate(entries: NamedValues) -> NamedValues:
    """Splits the named point `(x, y) = (1, 2)` into `x = 1, y = 2`. Any other entries are returned unchanged."""
    if len(entries) != 1:
        return entries
    name, value = entries[0]
    names = name.strip("()").split(",")
    if name.startswith("(") and isinstance(value, BracketedTuple) and len(names) == len(value.items):
        return list(zip(names, value.items, strict=True))
    return entries


def has_same_named_values(
    golds: NamedValues, answers: NamedValues, deferred: DeferredPairs | None, is_same_answer: AnswerComparer
) -> bool:
    """Checks whether a gold and an answer assign the same values to the same names.

    Where one side names nothing, the order or a common letter (`x_1`, `x_2`) tells which is which.
    """
    gold_names, answer_names = {name for name, _ in golds}, {name for name, _ in answers}
    gold_values, answer_values = tuple(value for _, value in golds), tuple(value for _, value in answers)
    if "" not in gold_names and "" not in answer_names:
        if len(golds) == len(answers) == 1:
            if gold_names != answer_names and _are_reordered_coordinates(*gold_names, *answer_names):
                return has_same_named_values(
                    split_by_coordinate(golds), split_by_coordinate(answers), deferred, is_same_answer
                )
            if (letters := _get_argument_letters(*gold_names, *answer_names)) is not None:
                return _is_same_function(gold_values[0], answer_values[0], *letters)
            return _is_same_name(*gold_names, *answer_names) and is_same_answer(
                gold_values[0], answer_values[0], deferred
            )
        return _has_same_pairs(golds, answers, is_same_answer)
    if (
        len({strip_subscript(name) for name in gold_names})
        == len({strip_subscript(name) for name in answer_names})
        == 1
    ):
        return is_same_answer(UnorderedItems(gold_values), UnorderedItems(answer_values), deferred)
    if len(golds) == len(answers):
        return is_same_answer(BracketedTuple("(", gold_values, ")"), BracketedTuple("(", answer_values, ")"), deferred)
    # `x = 1, y = 2` states the point (1, 2)
    point, other_values, names = (
        (gold_values[0], answer_values, [name for name, _ in answers])
        if len(golds) == 1
        else (answer_values[0], gold_values, [name for name, _ in golds])
    )
    if set(names) in ({"x", "y"}, {"x", "y", "z"}) and len(names) == len(set(names)):
        other_values, names = tuple(other_values[names.index(name)] for name in sorted(names)), sorted(names)
    if isinstance(point, BracketedTuple) and min(len(golds), len(answers)) == 1 and names == sorted(set(names)):
        row = BracketedTuple("(", tuple(other_values), ")")
        return is_same_answer(point, row, deferred) if len(golds) == 1 else is_same_answer(row, point, deferred)
    return False


def _is_same_name(first: str, second: str) -> bool:
    """Checks whether two names on the left of equations mean the same variable or function value.

    The value of a function may be called `y` or `f(x)`.
    """
    return first == second or {first, second} in ({"y", "f(x)"}, {"y", "y(x)"}, {"y", "g(x)"})


def _are_reordered_coordinates(first: str, second: str) -> bool:
    """Checks whether two names list the same coordinates in different order, as `(x,y)` and `(y,x)` do."""
    return first[:1] == second[:1] == "(" and sorted(first.strip("()").split(",")) == sorted(
        second.strip("()").split(",")
    )


def _get_argument_letters(first: str, second: str) -> tuple[str, str] | None:
    """Returns the argument variables x and t of two function names `f(x)` and `f(t)`.

    Returns None for any other names.
    """
    first_match, second_match = _FUNCTION_OF_LETTER.fullmatch(first), _FUNCTION_OF_LETTER.fullmatch(second)
    if (
        first_match is None
        or second_match is None
        or first_match[1] != second_match[1]
        or first_match[2] == second_match[2]
    ):
        return None
    return first_match[2], second_match[2]


def _is_same_function(gold: AnswerValue, answer: AnswerValue, gold_letter: str, answer_letter: str) -> bool:
    """Checks whether two expressions are equal after renaming the variable of one to the variable of the other."""
    if not isinstance(gold, Scalar) or not isinstance(answer, Scalar):
        return False
    gold_node, answer_node = parse_alike(gold.text, answer.text)
    if (
        gold_node is None
        or answer_node is None
        or (gold_letter in gold_node.letters) + (answer_letter in answer_node.letters) < 2
    ):
        return False  # `f(2)` and `P(A)` are values of their own
    if gold_letter in answer_node.letters or answer_letter in gold_node.letters:
        return False
    return (
        decide_equality(gold_node, substitute_letters(answer_node, {answer_letter: make_symbol(gold_letter)})) is True
    )


def _has_same_pairs(golds: NamedValues, answers: NamedValues, is_same_answer: AnswerComparer) -> bool:
    """Checks whether two lists hold the same (name, value) pairs in any order, each as often."""
    if len(golds) != len(answers) or len(golds) * len(answers) > _MAX_COMPARISONS:
        return False
    unmatched = list(answers)
    for name, value in golds:
        same = next(
            (i for i, (other, answer) in enumerate(unmatched) if name == other and is_same_answer(value, answer, None)),
            None,
        )
        if same is None:
            return False
        del unmatched[same]
    return True
