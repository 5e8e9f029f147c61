r"""Is the answer the gold? Exactly decided, by the gold's type; what only a guarded sympy accepts is said to be so."""

import math
import time
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any, Literal

from qwen_align.align.rows import Completion
from qwen_align.reward.base import UNJUDGED, BaseReward, Probe, judge_in_threads
from qwen_align.reward.math import fallback, numeric
from qwen_align.reward.math.compare import agree
from qwen_align.reward.math.final import MINERVA, boxed_answers, declared_answer, minerva_answer
from qwen_align.reward.math.layout import MAX_CHARS
from qwen_align.reward.math.plain_box import plain_box, plain_gold
from qwen_align.reward.math.plain_number import MAX_DIGITS
from qwen_align.reward.math.probes import PROBES
from qwen_align.reward.math.read import MAX_ITEMS, read
from qwen_align.reward.math.scalars import is_defined
from qwen_align.reward.math.unit_words import Unit
from qwen_align.reward.math.units import ANY_WORD, letters_of
from qwen_align.reward.math.values import Group, Matrix, Row, Scalar, Union, Value, Words
from qwen_align.reward.math.written import written
from qwen_align.reward.thinking import strip_thinking
from qwen_align.reward.verdict import Verdict
from qwen_align.reward.worker_pool import GoneError, UnservedError

_CORRECT = Verdict(value=1.0, reason="correct")
_WRONG = Verdict(value=0.0, reason="wrong")
_UNUSABLE = Verdict(value=None, reason="unusable gold")

Contents = tuple[str, ...]
Pairs = tuple[tuple[str, str], ...]


class MathAnswer(BaseReward):
    r"""1.0 if the completion's final answer is the gold, else 0.0; no verdict if the gold is unusable.

    The answer is the last `\boxed{}` after the thinking, and those joined to it by commas, "and", "or" are one list.
    The gold's type decides: numbers are compared exactly, lists without order, points in order, equations by their
    zero set, a unit only where both have one, `50%` as 50 and never as 0.5. What this cannot decide (integrals,
    limits) goes to sympy in a process with a limit of a second; if it says equal, the reason is "fallback". The
    first such verdict starts that process, which takes up to 5 seconds: `warm` does it beforehand.
    """

    kind: Literal["math_answer"] = "math_answer"
    box: Literal["preferred", "required"] = "preferred"
    r"""With "preferred", a completion that holds no box may declare its answer at its end: "The answer is 5."; one in
    Minerva's form ("Final Answer: The final answer is $5$. I hope it is correct.") does so beside a box too."""

    def judge(self, completion: str | Completion, gold: Any = None) -> Verdict:
        """The verdict on one completion; without `gold`, against the completion's own."""
        if isinstance(completion, str):
            text = completion
        elif isinstance(completion, Completion):
            text = completion.text
            gold = completion.gold if gold is None else gold
        else:
            raise TypeError(f"a completion is a text or a Completion, not {type(completion).__name__}")
        verdict = self._exact(text, gold)
        return verdict if isinstance(verdict, Verdict) else _by_fallback(verdict, None)

    def judge_group(self, group: Sequence[Completion]) -> list[Verdict]:
        """The verdicts on all completions of one prompt in one mode."""
        return self.judge_many(group)

    def judge_many(self, completions: Sequence[Completion], *, deadline: float | None = None) -> list[Verdict]:
        """The verdicts on completions in their order: the exact ones first, so that no slow one delays them."""
        verdicts: list[Verdict] = []
        doubtful: dict[int, Pairs] = {}
        for place, one in enumerate(completions):
            late = deadline is not None and time.monotonic() > deadline
            verdict = UNJUDGED if late else self._exact(one.text, one.gold)
            if not isinstance(verdict, Verdict):
                doubtful[place] = verdict
                verdict = UNJUDGED
            verdicts.append(verdict)
        pairs_of = {id(completions[place]): pairs for place, pairs in doubtful.items()}
        asked = judge_in_threads(
            lambda one: _by_fallback(pairs_of[id(one)], deadline), [completions[place] for place in doubtful], deadline
        )
        for place, verdict in zip(doubtful, asked, strict=True):
            verdicts[place] = verdict
        return verdicts

    def judge_gold(self, gold: Any) -> Verdict:
        """The verdict on a completion that says exactly the gold: anything but 1.0 makes the gold unusable."""
        text = _gold_text(gold)
        return _UNUSABLE if text is None else self.judge(rf"\boxed{{{text}}}", text)

    def answer(self, completion: str | Completion) -> str | None:
        """The answer in one spelling, without unit, for counting votes; None if there is none."""
        found = self._contents(completion if isinstance(completion, str) else completion.text)
        value = None if isinstance(found, str) else _said(found, frozenset())
        return None if value is None else written(value)

    def warm_up(self) -> None:
        """Start the processes of the fallback and import what the numeric comparison needs: no verdict waits then."""
        numeric.warm()
        fallback.warm()

    def probes(self) -> list[Probe]:
        """Completions that look like answers; only the first few are."""
        return [Probe(*probe) for probe in PROBES]

    def _exact(self, text: str, gold: Any) -> Verdict | Pairs:
        """The verdict of the exact layer, or the pairs it leaves to the fallback."""
        wanted = plain_gold(gold) if type(gold) is str else None
        if wanted is not None and (self.box == "required" or MINERVA not in text):
            said = plain_box(text)
            if said is not None:
                return _CORRECT if said == wanted else _WRONG
        right = _gold_text(gold)
        if right is None or _gold_value(right) is None:
            return _UNUSABLE
        found = self._contents(text)
        return Verdict(value=0.0, reason=found) if isinstance(found, str) else _decided(found, right)

    def _contents(self, text: str) -> Contents | str:
        """The texts of the answer's boxes, or the reason why there is none."""
        spoken = strip_thinking(text)
        if spoken is None:
            return "unfinished thinking"
        boxes = boxed_answers(spoken)
        if self.box == "preferred":
            declared = declared_answer(spoken) if boxes is None else minerva_answer(spoken)
            if declared is not None and "\\boxed" not in declared:
                return (declared,)
        if boxes is None:
            return "no answer" if self.box == "preferred" else "no boxed answer"
        if isinstance(boxes, list) and len(boxes) > MAX_ITEMS:
            return "too large"
        return boxes if isinstance(boxes, str) else tuple(boxes)


def _by_fallback(pairs: Pairs, deadline: float | None) -> Verdict:
    try:
        reason = fallback.ask(pairs, deadline=deadline)
    except UnservedError:
        return UNJUDGED
    except GoneError as error:  # no fault of the completion's
        return Verdict(value=None, reason=str(error))
    return Verdict(value=1.0 if reason == "fallback" else 0.0, reason=reason)


@lru_cache(maxsize=8_192)  # the 8 to 64 completions of a prompt repeat their answers
def _decided(contents: Contents, gold: str) -> Verdict | Pairs:
    right = _gold_value(gold)
    if right is None:
        return _UNUSABLE
    said = _said(contents, letters_of(_unit_in(right)))
    if said is None:
        return _WRONG if any(map(str.isalnum, "".join(contents))) else Verdict(value=0.0, reason="empty box")
    doubts: list[tuple[str, str]] = []
    if agree(right, said, doubts) or _agree_in_units(gold, right, said):
        return tuple(doubts) if doubts else _CORRECT
    if max(map(len, contents)) > MAX_CHARS:
        return Verdict(value=0.0, reason="too large")
    several = isinstance(said, Group) and len(said.items) > 1 and not isinstance(right, Group)
    return Verdict(value=0.0, reason="several answers") if several else _WRONG


def _agree_in_units(gold: str, right: Value, said: Value) -> bool:
    """Whether a gold's last letter is the unit that the answer has another of: `1000 m` for `1 km`."""
    unit = _unit_in(said)
    if unit is None or not isinstance(right, Scalar) or right.unit is not None:
        return False
    value = read(gold, letters_of(unit) | {ANY_WORD})
    return (
        isinstance(value, Scalar) and value.number is not None and value.unit is not None and agree(value, said, None)
    )


def _said(contents: Contents, letters: frozenset[str]) -> Value | None:
    """The value of the boxes together, None if it is the only one and says nothing."""
    values = [read(content, letters) for content in contents]
    if len(values) == 1:
        return values[0]
    return Group(tuple(Words("?") if value is None else value for value in values))


def _gold_text(gold: Any) -> str | None:
    """What a data set's gold (a string, an integer or a finite float) says, None if it is no such thing."""
    if isinstance(gold, str):
        said: str = gold.rpartition("####")[2]  # GSM8K's mark of the answer after its solution
        if "\\boxed" not in said:
            return said
        boxes = boxed_answers(said)
        return ", ".join(boxes) if isinstance(boxes, list) and len(boxes) <= MAX_ITEMS else None
    if isinstance(gold, bool):
        return None
    if isinstance(gold, int):
        return str(gold) if abs(gold) < 10**MAX_DIGITS else None
    if isinstance(gold, float) and math.isfinite(gold):
        return format(Decimal(repr(gold)), "f")
    return None


@lru_cache(maxsize=8_192)
def _gold_value(text: str) -> Value | None:
    """The value of a gold, None if it is not equal to itself."""
    value = read(text, frozenset({ANY_WORD}))
    return value if value is not None and _is_usable(value) else None


def _is_usable(value: Value) -> bool:
    if isinstance(value, Scalar):
        return is_defined(value)
    if isinstance(value, Words):
        return value.text != "?"
    if isinstance(value, Row | Group):
        return all(map(_is_usable, value.items))
    if isinstance(value, Union):
        return all(map(_is_usable, (*value.parts, *value.without)))
    if isinstance(value, Matrix):
        return all(_is_usable(cell) for row in value.rows for cell in row)
    return True


def _unit_in(value: Value) -> Unit | None:
    """The unit of a gold, of a list's first item with one."""
    if isinstance(value, Scalar):
        return value.unit
    items = value.items if isinstance(value, Row | Group) else ()
    return next((unit for unit in map(_unit_in, items) if unit is not None), None)
