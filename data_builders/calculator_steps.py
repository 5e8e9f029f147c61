"""Builds exactly known step labels from GSM8K's calculator annotations and from errors planted in them."""

import re
from collections.abc import Iterator
from random import Random
from typing import Literal, NamedTuple

from pydantic import Field

from qwen_align.align.references import DataRef
from qwen_align.align.rows import Row, Steps
from qwen_align.align.settings.base import Strict
from qwen_align.data_builders.gsm8k_calculator_marks import (
    Mark,
    UnreadableMarkError,
    evaluate_expression,
    parse_calculator_marks,
    remove_calculator_marks,
)
from qwen_align.data_builders.seeded_draws import make_random, shuffle_by_name
from qwen_align.data_builders.sieve import Drops, Sources
from qwen_align.data_builders.solution_steps import Solution, read_solutions

_PLAIN_NUMBER = re.compile(r"-?[0-9]{1,15}(?:\.[0-9]{1,6})?")


class Step(NamedTuple):
    """A step of a solution with its calculator annotations, such as `<<3*4=12>>`."""

    text: str
    marks: list[Mark]


class CalculatorSteps(Strict):
    """A builder of step labels that say whether the arithmetic in each step of a solution is right.

    They do not say whether it was the right step. Steps are lines; one without a mark is joined with the next that has
    one, those at the end with the last. Nearly all marks of people and of models with a calculator are right, so wrong
    steps come from `planted_share`: so many rows, drawn by the seed, get a wrong result in one step, and end there,
    since what follows would rest on the right one. After a step that is wrong by itself nothing is kept either, as in
    Qwen2.5-Math-PRM.
    """

    kind: Literal["calculator_steps"] = "calculator_steps"
    from_data: DataRef = Field(description="data stage with the solutions: traces, chats, labelled rows or completions")
    planted_share: float = Field(
        default=0.0, ge=0, le=1, description="share of the solutions that get a wrong result in one step"
    )
    step_break: str = Field(default="\n", min_length=1, description="text between two steps")
    answer_mark: str | None = Field(
        default="####",
        min_length=1,
        description="start of the line that holds the final answer, which is left out; null: no such line",
    )
    may_round: bool = Field(default=True, description="a decimal may be the exact value rounded or cut to its decimals")
    keep_marks: bool = Field(default=False, description="leave the marks in the steps, where a model could read them")

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Yields one row of labelled steps for each solution, in the order of the solutions.

        Solutions without marks, or with one that cannot be read, are dropped.
        """
        divided_solutions: list[tuple[Solution, list[Step]]] = []
        for solution in read_solutions(sources, self.from_data):
            try:
                steps = self.split_by_calculator_marks(solution)
            except UnreadableMarkError as error:
                drops.add("unreadable mark", solution.id, f"{error}"[:200])
                continue
            if steps:
                divided_solutions.append((solution, steps))
            else:
                drops.add("no mark", solution.id)
        correct_indices = [
            index for index, (_, steps) in enumerate(divided_solutions) if _find_first_wrong_step(steps) is None
        ]
        drawn = shuffle_by_name(
            correct_indices, (divided_solutions[index][0].id for index in correct_indices), "planted", seed
        )
        planted = set(drawn[: round(self.planted_share * len(divided_solutions))])
        for index, (solution, steps) in enumerate(divided_solutions):
            changed = plant_wrong_result(steps, make_random("plant", seed, solution.id)) if index in planted else None
            if index in planted and changed is None:
                drops.add("no place for an error", solution.id)
            else:
                yield self._make_row(solution, changed or steps, is_planted=changed is not None)

    def split_by_calculator_marks(self, solution: Solution) -> list[Step]:
        """Splits a solution into steps that each hold at least one calculator annotation.

        The list is empty for a solution without annotations.
        """
        parts: list[str] = []
        lines_without_mark: list[str] = []
        for part in solution.split_steps(self.step_break):
            if self.answer_mark is not None and part.startswith(self.answer_mark):
                continue
            lines_without_mark.append(part)
            if parse_calculator_marks(part, may_round=self.may_round):
                parts.append(self.step_break.join(lines_without_mark))
                lines_without_mark = []
        if parts and lines_without_mark:
            parts[-1] = self.step_break.join([parts[-1], *lines_without_mark])
        return [Step(part, parse_calculator_marks(part, may_round=self.may_round)) for part in parts]

    def _make_row(self, solution: Solution, steps: list[Step], *, is_planted: bool) -> Steps:
        """Makes the row of labelled steps of a solution, cut after its first wrong step."""
        first_wrong = _find_first_wrong_step(steps)
        kept_steps = steps if first_wrong is None else steps[: first_wrong + 1]
        facts = {"n_steps": len(steps)} if first_wrong is None else {"n_steps": len(steps), "first_wrong": first_wrong}
        return Steps(
            id=solution.id,
            messages=solution.messages,
            steps=[step.text if self.keep_marks else remove_calculator_marks(step.text) for step in kept_steps],
            labels=[index != first_wrong for index in range(len(kept_steps))],
            gold=solution.gold,
            source=solution.source,
            meta={**solution.meta, **facts, "planted": is_planted},
        )


def plant_wrong_result(steps: list[Step], random: Random) -> list[Step] | None:
    """Changes the calculated result in a randomly drawn step, and returns the steps up to that one.

    The result stands after the mark once more, and is changed there too. Returns None if no result can be changed.
    """
    for index in random.sample(range(len(steps)), len(steps)):
        text, (mark, *_) = steps[index]
        result = mark.sides[-1]
        if not _PLAIN_NUMBER.fullmatch(result) or not text.startswith(result, mark.end):
            continue
        wrong_result = _draw_wrong_number(result, random)
        changed_sides = "=".join([*mark.sides[:-1], wrong_result])
        changed_text = f"{text[: mark.start]}<<{changed_sides}>>{wrong_result}{text[mark.end + len(result) :]}"
        changed_marks = parse_calculator_marks(changed_text, may_round=True)
        if not changed_marks[0].is_right:  # 0.67 for 0.66 of 2/3 would be no error
            return [*steps[:index], Step(changed_text, changed_marks)]
    return None


def _draw_wrong_number(result: str, random: Random) -> str:
    """Draws a number that differs from the given result in exactly one digit.

    The sign stays, and no leading zero arises.
    """
    digits = [position for position, character in enumerate(result) if character.isdigit()]
    while True:
        position = random.choice(digits)
        wrong = f"{result[:position]}{random.randrange(10)}{result[position + 1 :]}"
        is_led_by_zero = (
            wrong.lstrip("-").startswith("0") and not wrong.lstrip("-").startswith("0.") and len(digits) > 1
        )
        if not is_led_by_zero and evaluate_expression(wrong) != evaluate_expression(result):
            return wrong


def _find_first_wrong_step(steps: list[Step]) -> int | None:
    """Returns the index of the first step with a wrong calculator annotation. Returns None if all are right."""
    return next((index for index, step in enumerate(steps) if not all(mark.is_right for mark in step.marks)), None)
