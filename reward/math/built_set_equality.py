r"""Compares sets that are written with their condition, such as `\{2k : k \in \mathbb{Z}\}`."""

import re

from qwen_align.reward.math.answer_parser import parse_normalized
from qwen_align.reward.math.answer_values import AnswerComparer, AnswerValue, Scalar, SetBuilder, UnorderedItems
from qwen_align.reward.math.bracket_aware_split import split_list, split_relations
from qwen_align.reward.math.equation_equality import has_same_zero_set


def is_same_built_set(gold: AnswerValue, answer: AnswerValue, is_same_answer: AnswerComparer) -> bool:
    """Checks whether two sets are equal, at least one of which is in set-builder notation.

    Elements and conditions must be equal after renaming the bound variable; a set of numbers equals that of an
    equation's solutions if the equation is the product of its linear factors.
    """
    if isinstance(gold, SetBuilder) and isinstance(answer, SetBuilder):
        return _is_same_notation(gold, answer, is_same_answer)
    built, other = (gold, answer) if isinstance(gold, SetBuilder) else (answer, gold)
    return isinstance(built, SetBuilder) and isinstance(other, UnorderedItems) and _solves_to(built, other)


def _is_same_notation(gold: SetBuilder, answer: SetBuilder, is_same_answer: AnswerComparer) -> bool:
    """Checks whether two sets in set-builder notation have equal elements and equal conditions."""
    (gold_element, gold_conditions), (answer_element, answer_conditions) = map(_split_conditions, (gold, answer))
    gold_letter, answer_letter = (_find_bound_letter(built) for built in (gold, answer))
    if gold_letter != answer_letter and gold_letter and answer_letter:
        if re.search(_build_letter_pattern(gold_letter), f"{answer.element} {answer.condition}"):
            return False
        answer_element = re.sub(_build_letter_pattern(answer_letter), gold_letter.replace("\\", r"\\"), answer_element)
        answer_conditions = [
            re.sub(_build_letter_pattern(answer_letter), gold_letter.replace("\\", r"\\"), item)
            for item in answer_conditions
        ]
    unmatched = list(answer_conditions)
    for condition in gold_conditions:
        same = next((item for item in unmatched if _is_same_text(condition, item, is_same_answer)), None)
        if same is None:
            return False
        unmatched.remove(same)
    return not unmatched and _is_same_text(gold_element, answer_element, is_same_answer)


def _split_conditions(built: SetBuilder) -> tuple[str, list[str]]:
    r"""Returns the form of a set's elements and its conditions, with a domain `x \in A` among these."""
    sides, relations = split_relations(built.element)
    conditions = split_list(built.condition)
    return (sides[0], [built.element, *conditions]) if relations == [r"\in"] else (built.element, conditions)


def _find_bound_letter(built: SetBuilder) -> str:
    r"""Returns the variable of `x \in A` in a set's conditions, or the elements' only letter, or ""."""
    element, conditions = _split_conditions(built)
    for condition in conditions:
        sides, relations = split_relations(condition)
        if relations == [r"\in"] and re.fullmatch(r"[A-Za-z]", sides[0]):
            return sides[0]
    letters = set(re.findall(r"(?<![A-Za-z\\])[A-Za-z](?![A-Za-z])", element))
    return letters.pop() if len(letters) == 1 else ""


def _build_letter_pattern(letter: str) -> str:
    """Returns the pattern of a letter that is no part of a word or command."""
    return rf"(?<![A-Za-z\\]){re.escape(letter)}(?![A-Za-z])"


def _is_same_text(gold: str, answer: str, is_same_answer: AnswerComparer) -> bool:
    """Checks whether two texts are the same or parse to equal values."""
    if gold.replace(" ", "") == answer.replace(" ", ""):
        return True
    gold_value, answer_value = parse_normalized(gold), parse_normalized(answer)
    return gold_value is not None and answer_value is not None and is_same_answer(gold_value, answer_value, None)


def _solves_to(built: SetBuilder, numbers: UnorderedItems) -> bool:
    """Checks whether a set's condition is an equation whose solutions are exactly these numbers."""
    sides, relations = split_relations(built.condition)
    texts = [item.text for item in numbers.items if isinstance(item, Scalar) and item.unit is None]
    if (
        relations != ["="]
        or not re.fullmatch(r"[A-Za-z]", built.element)
        or len(texts) != len(numbers.items)
        or not texts
    ):
        return False
    factors = "".join(f"({built.element}-({text}))" for text in texts)
    return has_same_zero_set((sides[0], sides[1]), (factors, "0"))
