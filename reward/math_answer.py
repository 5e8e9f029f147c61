"""The math reward, which judges whether a completion's final answer equals the gold answer.

What only the guarded sympy accepts has the reason "fallback".
"""

import math
import re
import time
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any, ClassVar, Literal

from pydantic import Field

from qwen_align.align.rows import Completion
from qwen_align.reward.base import UNJUDGED, BaseReward, Probe, judge_in_threads
from qwen_align.reward.boxed_answers import find_all_boxes
from qwen_align.reward.math import numeric_comparison, sympy_fallback
from qwen_align.reward.math.answer_equality import is_same_answer
from qwen_align.reward.math.answer_parser import MAX_ITEMS, parse_answer
from qwen_align.reward.math.answer_values import (
    AnswerValue,
    BracketedTuple,
    Matrix,
    Scalar,
    SetUnion,
    UnorderedItems,
    Words,
)
from qwen_align.reward.math.audit_probes import PROBES
from qwen_align.reward.math.boxed_number_fast_path import parse_plain_box, parse_plain_gold
from qwen_align.reward.math.canonical_text import format_canonically
from qwen_align.reward.math.final_answer import (
    MINERVA_PREFIX,
    extract_boxed_answers,
    extract_declared_answer,
    extract_minerva_answer,
    find_retraction,
    has_doubt,
)
from qwen_align.reward.math.latex_normalization import MAX_CHARS
from qwen_align.reward.math.list_connectives import rename_counter
from qwen_align.reward.math.number_parser import MAX_DIGITS
from qwen_align.reward.math.scalar_equality import is_defined
from qwen_align.reward.math.unit_table import Unit
from qwen_align.reward.math.units import ANY_WORD, get_unit_letters
from qwen_align.reward.thinking import cut_at_turn_end, strip_thinking
from qwen_align.reward.verdict import Verdict
from qwen_align.reward.worker_pool import GoneError, UnservedError

_NAME_BEFORE_BOX = re.compile(r"([A-Za-z](?:_(?:[A-Za-z0-9]|\{[A-Za-z0-9]+\}))?) ?= ?\$?\Z")
_MAX_NAME_CHARS = 16  # characters before a box in which its name is looked for
_CORRECT = Verdict(value=1.0, reason="correct")
_WRONG = Verdict(value=0.0, reason="wrong")
_UNUSABLE = Verdict(value=None, reason="unusable gold")

BoxContents = tuple[str, ...]
FallbackPairs = tuple[tuple[str, str], ...]


class MathAnswer(BaseReward):
    r"""Pays 1.0 if the completion's final answer equals the gold, else 0.0.

    An unusable gold gives no verdict. The answer is the last `\boxed{}` after the thinking, and those joined to it by
    commas, "and", "or" are one list. The gold's type decides: numbers are compared exactly, lists without order, points
    in order, equations by their zero set, a unit only where both have one, `50%` as 50 and never as 0.5. What this
    cannot decide (integrals, limits) goes to sympy in a process with a limit of a second; if it says equal, the reason
    is "fallback". The first such verdict starts that process, which takes up to 5 seconds: `warm_up` does it
    beforehand.
    """

    judges_gold: ClassVar[bool] = True
    kind: Literal["math_answer"] = "math_answer"
    box: Literal["preferred", "required"] = Field(
        default="preferred",
        description=r"whether the answer must stand in a \boxed{}; with 'preferred', a completion that has no box may "
        'declare its answer at its end ("The answer is 5."), and one in Minerva\'s form ("Final Answer: The final '
        'answer is $5$. I hope it is correct.") does so beside a box too',
    )

    def judge(self, completion: str | Completion, gold: Any = None) -> Verdict:
        """Returns the verdict on one completion. Without `gold`, the completion's own gold is used."""
        if isinstance(completion, str):
            text = completion
        elif isinstance(completion, Completion):
            text = completion.text
            gold = completion.gold if gold is None else gold
        else:
            raise TypeError(f"a completion is a text or a Completion, not {type(completion).__name__}")
        verdict = self._judge_exactly(text, gold)
        return verdict if isinstance(verdict, Verdict) else _judge_by_fallback(verdict, None)

    def judge_group(self, group: Sequence[Completion]) -> list[Verdict]:
        """Returns the verdicts on all completions of one prompt."""
        return self.judge_many(group)

    def judge_many(self, completions: Sequence[Completion], *, deadline: float | None = None) -> list[Verdict]:
        """Returns the verdicts on several completions, in their order.

        Exact comparisons come first, so that no slow completion delays the others.
        """
        verdicts: list[Verdict] = []
        deferred: dict[int, FallbackPairs] = {}
        for index, completion in enumerate(completions):
            is_late = deadline is not None and time.monotonic() > deadline
            verdict = UNJUDGED if is_late else self._judge_exactly(completion.text, completion.gold)
            if not isinstance(verdict, Verdict):
                deferred[index] = verdict
                verdict = UNJUDGED
            verdicts.append(verdict)
        pairs_by_completion = {id(completions[index]): pairs for index, pairs in deferred.items()}
        fallback_verdicts = judge_in_threads(
            lambda completion: _judge_by_fallback(pairs_by_completion[id(completion)], deadline),
            [completions[index] for index in deferred],
            deadline,
        )
        for index, verdict in zip(deferred, fallback_verdicts, strict=True):
            verdicts[index] = verdict
        return verdicts

    def judge_gold(self, gold: Any) -> Verdict:
        """Returns the verdict on a gold that is judged as its own answer. Any value but 1.0 makes the gold unusable."""
        gold_text = _to_gold_text(gold)
        return _UNUSABLE if gold_text is None else self.judge(rf"\boxed{{{gold_text}}}", gold_text)

    def answer(self, completion: str | Completion) -> str | None:
        """Returns the final answer of a completion as a canonical string without unit, for majority voting.

        Returns None if there is no answer.
        """
        text = completion if isinstance(completion, str) else completion.text
        contents = self._extract_contents(cut_at_turn_end(text))
        value = None if isinstance(contents, str) else _parse_contents(contents, frozenset())
        return None if value is None else format_canonically(value)

    def warm_up(self) -> None:
        """Starts the worker processes of the sympy fallback and imports mpmath, so that no verdict waits for them."""
        numeric_comparison.warm_up_mpmath()
        sympy_fallback.start_workers()

    def probes(self) -> list[Probe]:
        """Returns the probe completions for an audit of this reward.

        All look like answers; only the first few are correct.
        """
        return [Probe(*probe) for probe in PROBES]

    def _judge_exactly(self, text: str, gold: Any) -> Verdict | FallbackPairs:
        """Returns the verdict by exact comparison, or the (gold, answer) pairs that the sympy fallback must compare."""
        gold_number = parse_plain_gold(gold) if type(gold) is str else None
        if gold_number is not None and (self.box == "required" or MINERVA_PREFIX not in text):
            answer_number = parse_plain_box(text)
            if answer_number is not None:
                return _CORRECT if answer_number == gold_number else _WRONG
        gold_text = _to_gold_text(gold)
        if gold_text is None or _parse_gold(gold_text) is None:
            return _UNUSABLE
        text = cut_at_turn_end(text)
        contents = self._extract_contents(text)
        if isinstance(contents, str):
            return Verdict(value=0.0, reason=contents)
        verdict = _judge_contents(contents, gold_text)
        if verdict == _WRONG:
            parts = _find_answers_in_parts(text, gold_text)
            return verdict if parts in (None, contents) else _judge_contents(parts, gold_text)
        if isinstance(verdict, Verdict) and verdict != _CORRECT:
            return verdict
        retraction = find_retraction(text[text.rfind("boxed{") + 1 :]) if "boxed{" in text else None
        is_kept = retraction is None or _judge_contents((retraction,), gold_text) == _CORRECT
        return verdict if is_kept else Verdict(value=0.0, reason="answer taken back")

    def _extract_contents(self, text: str) -> BoxContents | str:
        """Returns the contents of the boxes that hold an answer in the text of a turn, or why there are none."""
        response = strip_thinking(text)
        if response is None:
            return "unfinished thinking"
        boxes = extract_boxed_answers(response)
        if self.box == "preferred":
            declared = extract_declared_answer(response) if boxes is None else extract_minerva_answer(response)
            if declared is not None and "\\boxed" not in declared:
                return (declared,)
        if boxes is None:
            return "no answer" if self.box == "preferred" else "no boxed answer"
        if isinstance(boxes, list) and len(boxes) > MAX_ITEMS:
            return "too large"
        return boxes if isinstance(boxes, str) else tuple(boxes)


def _judge_by_fallback(pairs: FallbackPairs, deadline: float | None) -> Verdict:
    """Returns the sympy fallback's verdict on pairs of expressions. All pairs must be equal for a reward."""
    try:
        reason = sympy_fallback.judge_pairs(pairs, deadline=deadline)
    except UnservedError:
        return UNJUDGED
    except GoneError as error:  # no fault of the completion's
        return Verdict(value=None, reason=str(error))
    return Verdict(value=1.0 if reason == "fallback" else 0.0, reason=reason)


@lru_cache(maxsize=8_192)  # the 8 to 64 completions of a prompt repeat their answers
def _judge_contents(contents: BoxContents, gold: str) -> Verdict | FallbackPairs:
    """Returns the verdict on the contents of a completion's boxes.

    Returns the (gold, answer) pairs left to the sympy fallback instead where exact comparison does not decide.
    """
    gold_value = _parse_gold(gold)
    if gold_value is None:
        return _UNUSABLE
    if len(contents) == 1 and any(mark in contents[0] for mark in ("\\in", "\\{", "integer", "整数")):
        contents = (rename_counter(contents[0], gold),)
    answer_value = _parse_contents(contents, get_unit_letters(_find_unit(gold_value)))
    if answer_value is None:
        return _WRONG if any(map(str.isalnum, "".join(contents))) else Verdict(value=0.0, reason="empty box")
    deferred: list[tuple[str, str]] = []
    if (
        is_same_answer(gold_value, answer_value, deferred)
        or _is_same_in_other_unit(gold, gold_value, answer_value)
        or _is_restated(contents, gold_value, answer_value)
    ):
        return tuple(deferred) if deferred else _CORRECT
    if max(map(len, contents)) > MAX_CHARS:
        return Verdict(value=0.0, reason="too large")
    has_several_answers = (
        isinstance(answer_value, UnorderedItems)
        and len(answer_value.items) > 1
        and not isinstance(gold_value, UnorderedItems)
    )
    return Verdict(value=0.0, reason="several answers") if has_several_answers else _WRONG


def _is_restated(contents: BoxContents, gold_value: AnswerValue, answer_value: AnswerValue) -> bool:
    """Checks whether several boxes all hold the gold: the same answer twice is one answer."""
    return (
        len(contents) > 1
        and isinstance(answer_value, UnorderedItems)
        and all(is_same_answer(gold_value, item, None) for item in answer_value.items)
    )


def _is_same_in_other_unit(gold: str, gold_value: AnswerValue, answer_value: AnswerValue) -> bool:
    """Checks whether an answer equals the gold after unit conversion, if the gold's last letter is read as a unit.

    An example is `1000 m` for `1 km`.
    """
    unit = _find_unit(answer_value)
    if unit is None or not isinstance(gold_value, Scalar) or gold_value.unit is not None:
        return False
    regrouped_gold = parse_answer(gold, get_unit_letters(unit) | {ANY_WORD})
    return (
        isinstance(regrouped_gold, Scalar)
        and regrouped_gold.number is not None
        and regrouped_gold.unit is not None
        and is_same_answer(regrouped_gold, answer_value, None)
    )


def _parse_contents(contents: BoxContents, unit_letters: frozenset[str]) -> AnswerValue | None:
    """Parses the contents of one box to a value, or of several boxes to a list.

    Returns None if the only box holds no answer.
    """
    values = [parse_answer(content, unit_letters) for content in contents]
    if len(values) == 1:
        return values[0]
    return UnorderedItems(tuple(Words("?") if value is None else value for value in values))


def _find_answers_in_parts(text: str, gold: str) -> BoxContents | None:
    r"""Returns the boxes of a completion that answers in parts, such as `$x = \boxed{1}$ and $y = \boxed{2}$`.

    There must be one for each item of a gold with several, and no others. Returns None otherwise.
    """
    gold_value = _parse_gold(gold)
    if not isinstance(gold_value, BracketedTuple | UnorderedItems) or len(gold_value.items) < 2:
        return None
    response = strip_thinking(text)
    boxes = find_all_boxes(response) if response is not None else []
    if response is None or len(boxes) != len(gold_value.items) or has_doubt(response[boxes[0].end :]):
        return None
    names = [_NAME_BEFORE_BOX.search(response[max(0, box.start - _MAX_NAME_CHARS) : box.start]) for box in boxes]
    if all(name is not None for name in names):
        return tuple(f"{name[1]}={box.content}" for name, box in zip(names, boxes, strict=True) if name is not None)
    contents = tuple(box.content for box in boxes)
    return contents if isinstance(gold_value, UnorderedItems) else (f"({','.join(contents)})",)


def _to_gold_text(gold: Any) -> str | None:
    """Returns the gold of a data set (a string, an integer or a finite float) as text.

    Returns None for any other type or a number that is too long.
    """
    if isinstance(gold, str):
        final_part: str = gold.rpartition("####")[2]  # GSM8K's mark of the answer after its solution
        if "\\boxed" not in final_part:
            return final_part
        boxes = extract_boxed_answers(final_part)
        return ", ".join(boxes) if isinstance(boxes, list) and len(boxes) <= MAX_ITEMS else None
    if isinstance(gold, bool):
        return None
    if isinstance(gold, int):
        return str(gold) if abs(gold) < 10**MAX_DIGITS else None
    if isinstance(gold, float) and math.isfinite(gold):
        return format(Decimal(repr(gold)), "f")
    return None


@lru_cache(maxsize=8_192)
def _parse_gold(text: str) -> AnswerValue | None:
    """Parses the text of a gold to a typed value. Returns None if the value is not defined."""
    value = parse_answer(text, frozenset({ANY_WORD}))
    return value if value is not None and _is_usable_gold(value) else None


def _is_usable_gold(value: AnswerValue) -> bool:
    """Checks whether the value of a gold is defined in all its parts."""
    if isinstance(value, Scalar):
        return is_defined(value)
    if isinstance(value, Words):
        return value.text != "?"
    if isinstance(value, BracketedTuple | UnorderedItems):
        return all(map(_is_usable_gold, value.items))
    if isinstance(value, SetUnion):
        return all(map(_is_usable_gold, (*value.parts, *value.removed)))
    if isinstance(value, Matrix):
        return all(_is_usable_gold(cell) for row in value.rows for cell in row)
    return True


def _find_unit(value: AnswerValue) -> Unit | None:
    """Returns the unit of a parsed value, or of its first item that has one."""
    if isinstance(value, Scalar):
        return value.unit
    items = value.items if isinstance(value, BracketedTuple | UnorderedItems) else ()
    return next((unit for unit in map(_find_unit, items) if unit is not None), None)
