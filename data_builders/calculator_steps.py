"""Step labels that are exactly known: by GSM8K's calculator marks, and by errors planted in them."""

import re
from collections.abc import Iterator
from random import Random
from typing import Literal, NamedTuple

from pydantic import Field

from qwen_align.align.references import DataRef
from qwen_align.align.rows import Row, Steps
from qwen_align.align.settings.base import Strict
from qwen_align.data_builders.gsm8k_calculator_marks import Mark, UnreadableMarkError, marks, value, without_marks
from qwen_align.data_builders.seeded_draws import drawn_order, random_for
from qwen_align.data_builders.sieve import Drops, Sources
from qwen_align.data_builders.solution_steps import Solution, solutions

_PLAIN = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{1,6})?")


class Step(NamedTuple):
    """A step with its marks."""

    text: str
    marks: list[Mark]


class CalculatorSteps(Strict):
    """Steps rows whose labels say whether what a step calculates is right, not whether it was the thing to calculate.

    Steps are lines; one without a mark is joined with the next that has one, those at the end with the last. Nearly
    all marks of people and of models with a calculator are right, so wrong steps come from `planted_share`: so many
    rows, drawn by the seed, get a wrong result in one step, and end there, since what follows would rest on the right
    one. After a step that is wrong by itself nothing is kept either, as in Qwen2.5-Math-PRM.
    """

    kind: Literal["calculator_steps"] = "calculator_steps"
    from_data: DataRef
    planted_share: float = Field(default=0.0, ge=0, le=1)
    step_break: str = Field(default="\n", min_length=1)
    answer_mark: str | None = Field(
        default="####", min_length=1, description="a line that opens with it is the final answer, which is left out"
    )
    may_round: bool = Field(default=True, description="a decimal may be the exact value rounded or cut to its places")
    keep_marks: bool = Field(default=False, description="leave the marks in the steps, where a model could read them")

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Rows in the order of the solutions; those without marks, or with one nobody can read, are dropped."""
        found: list[tuple[Solution, list[Step]]] = []
        for solution in solutions(sources, self.from_data):
            try:
                steps = self.steps(solution)
            except UnreadableMarkError as error:
                drops.add("unreadable mark", solution.id, f"{error}"[:200])
                continue
            if steps:
                found.append((solution, steps))
            else:
                drops.add("no mark", solution.id)
        sound = [n for n, (_, steps) in enumerate(found) if _first_wrong(steps) is None]
        drawn = drawn_order(sound, (found[n][0].id for n in sound), "planted", seed)
        planted = set(drawn[: round(self.planted_share * len(found))])
        for place, (solution, steps) in enumerate(found):
            changed = plant(steps, random_for("plant", seed, solution.id)) if place in planted else None
            if place in planted and changed is None:
                drops.add("no place for an error", solution.id)
            else:
                yield self._row(solution, changed or steps, is_planted=changed is not None)

    def steps(self, solution: Solution) -> list[Step]:
        """The solution's steps, each with a mark at least; none if it has no mark."""
        parts: list[str] = []
        waiting: list[str] = []
        for part in solution.steps(self.step_break):
            if self.answer_mark is not None and part.startswith(self.answer_mark):
                continue
            waiting.append(part)
            if marks(part, may_round=self.may_round):
                parts.append(self.step_break.join(waiting))
                waiting = []
        if parts and waiting:
            parts[-1] = self.step_break.join([parts[-1], *waiting])
        return [Step(part, marks(part, may_round=self.may_round)) for part in parts]

    def _row(self, solution: Solution, steps: list[Step], *, is_planted: bool) -> Steps:
        wrong = _first_wrong(steps)
        kept = steps if wrong is None else steps[: wrong + 1]
        noted = {"n_steps": len(steps)} if wrong is None else {"n_steps": len(steps), "first_wrong": wrong}
        return Steps(
            id=solution.id,
            messages=solution.messages,
            steps=[step.text if self.keep_marks else without_marks(step.text) for step in kept],
            labels=[place != wrong for place in range(len(kept))],
            gold=solution.gold,
            source=solution.source,
            meta={**solution.meta, **noted, "planted": is_planted},
        )


def plant(steps: list[Step], random: Random) -> list[Step] | None:
    """The steps up to one whose first mark is given a wrong result, drawn; None where none can be changed.

    The result stands after the mark once more, and is changed there too.
    """
    for place in random.sample(range(len(steps)), len(steps)):
        text, (mark, *_) = steps[place]
        result = mark.sides[-1]
        if not _PLAIN.fullmatch(result) or not text.startswith(result, mark.end):
            continue
        wrong = _wrong(result, random)
        sides = "=".join([*mark.sides[:-1], wrong])
        changed = f"{text[: mark.start]}<<{sides}>>{wrong}{text[mark.end + len(result) :]}"
        found = marks(changed, may_round=True)
        if not found[0].is_right:  # 0.67 for 0.66 of 2/3 would be no error
            return [*steps[:place], Step(changed, found)]
    return None


def _wrong(result: str, random: Random) -> str:
    """Another number as long as a slip of the hand makes it: one digit changed, never the sign or the first to 0."""
    digits = [place for place, sign in enumerate(result) if sign.isdigit()]
    while True:
        place = random.choice(digits)
        wrong = f"{result[:place]}{random.randrange(10)}{result[place + 1 :]}"
        is_led_by_zero = (
            wrong.lstrip("-").startswith("0") and not wrong.lstrip("-").startswith("0.") and len(digits) > 1
        )
        if not is_led_by_zero and value(wrong) != value(result):
            return wrong


def _first_wrong(steps: list[Step]) -> int | None:
    return next((place for place, step in enumerate(steps) if not all(mark.is_right for mark in step.marks)), None)
