"""Reads several options of a multiple-choice question, as a list or as a run of letters such as `ABD`."""

import re

from qwen_align.reward.math.answer_values import AnswerValue, Choice, Scalar, UnorderedItems, Words

_OPTION_RUN = re.compile("[A-H]{2,8}")


def collect_choice_letters(gold: AnswerValue, answer: AnswerValue) -> tuple[frozenset[str], frozenset[str]] | None:
    """Returns the options of a gold and an answer, if one is a list of options and the other too, or a run as `ABD`.

    Returns None for any other values.
    """
    letters = [_list_choice_letters(value) for value in (gold, answer)]
    if letters[0] is None or letters[1] is None or not any(isinstance(v, UnorderedItems) for v in (gold, answer)):
        return None
    return frozenset(letters[0]), frozenset(letters[1])


def _list_choice_letters(value: AnswerValue) -> str | None:
    """Returns the letters of several options as one text. Returns None for any other value."""
    if isinstance(value, UnorderedItems):
        choices = [item for item in value.items if isinstance(item, Choice) and not item.rest]
        letters = "".join(item.letter for item in choices)
        return letters if len(set(letters)) == len(value.items) > 1 else None
    text = value.text if isinstance(value, Scalar) else value.original_text if isinstance(value, Words) else ""
    return text if _OPTION_RUN.fullmatch(text) and len(set(text)) == len(text) else None
