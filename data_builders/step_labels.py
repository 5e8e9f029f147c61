"""Step labels by rollouts, and their agreement with a judge: data for process reward models."""

from collections import Counter
from collections.abc import Iterator
from math import fsum
from typing import Literal

from pydantic import Field

from qwen_align.align.references import DataRef
from qwen_align.align.rows import Completion, Row, RowError, Steps
from qwen_align.align.settings.base import Strict
from qwen_align.data_builders.rollout_completions import completions, verdict_value
from qwen_align.data_builders.sieve import Drops, Sources
from qwen_align.data_builders.solution_steps import STEP_BREAK, Solution, solutions
from qwen_align.data_builders.step_prefixes_and_critiques import prefix_id
from qwen_align.reward.math_answer import MathAnswer
from qwen_align.reward.settings import RewardName

_BOXED = MathAnswer(box="required")


class MonteCarloSteps(Strict):
    """A step is as good as the continuations after it: Math-Shepherd's labels (arXiv:2312.08935), hard or soft.

    soft: the share of continuations that reach the gold. hard: whether that share is above `threshold`; at 0, as in
    both papers, one of them is enough. The last step is labelled by the solution's own answer. With
    `cut_after_wrong`, as in Qwen2.5-Math-PRM (arXiv:2501.07301), nothing is kept after the first step whose share
    is not above the threshold.
    """

    kind: Literal["monte_carlo_steps"] = "monte_carlo_steps"
    from_data: DataRef = Field(description="the solutions, as `step_prefixes` read them")
    from_rollout: DataRef = Field(description="completions of the problems of `step_prefixes`")
    labels: Literal["hard", "soft"] = "hard"
    threshold: float = Field(default=0.0, ge=0, lt=1)
    cut_after_wrong: bool = Field(description="true for Qwen2.5-Math-PRM, false for Math-Shepherd")
    reward: RewardName = "math_answer"
    correct_from: float = Field(default=1.0, description="reward of a correct completion")
    min_samples: int = Field(
        default=8,  # Qwen2.5-Math-PRM: 8 completions a step
        ge=1,
        description="judged continuations that every step needs",
    )
    step_break: str = Field(default=STEP_BREAK, min_length=1)

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Rows in the order of the solutions; those without a judged answer or too few continuations are dropped."""
        values: dict[str, list[bool]] = {}
        for row in completions(sources[self.from_rollout], self.from_rollout):
            judged = verdict_value(row, self.reward)
            if judged is None:
                drops.add("no verdict", row.id, row.verdicts[self.reward].reason)
            else:
                values.setdefault(row.prompt_id, []).append(judged >= self.correct_from)
        for solution in solutions(sources, self.from_data, self.reward, self.correct_from):
            found = self._row(solution, values)
            if isinstance(found, Steps):
                yield found
            else:
                drops.add(*found)

    def _row(self, solution: Solution, values: dict[str, list[bool]]) -> Steps | tuple[str, str, str]:
        steps = solution.steps(self.step_break)
        if not steps:
            return "no step", solution.id, ""
        if solution.is_right is None:
            return "solution not judged", solution.id, ""
        shares: list[float] = []
        for place in range(len(steps) - 1):
            tries = values.get(prefix_id(solution.id, place), [])
            if len(tries) < self.min_samples:
                return "too few continuations", solution.id, f"step {place} has {len(tries)} of {self.min_samples}"
            shares.append(fsum(tries) / len(tries))
        shares.append(float(solution.is_right))
        wrong = next((place for place, share in enumerate(shares) if share <= self.threshold), None)
        kept = len(steps) if wrong is None or not self.cut_after_wrong else wrong + 1
        return Steps(
            id=solution.id,
            messages=solution.messages,
            steps=steps[:kept],
            labels=[share if self.labels == "soft" else share > self.threshold for share in shares[:kept]],
            gold=solution.gold,
            source=solution.source,
            meta={**solution.meta, "n_steps": len(steps), "first_wrong": -1 if wrong is None else wrong},
        )


class StepConsensus(Strict):
    """The step rows on whose first wrong step a judge agrees: Qwen2.5-Math-PRM's consensus filter.

    The judge is another stage: Steps rows of the same ids, whose first label at or below `threshold` counts, or
    completions of the problems of `step_critiques`, whose last box holds the number (-1: none) and of which most
    have to say the same.
    """

    kind: Literal["step_consensus"] = "step_consensus"
    from_data: DataRef
    judge: DataRef
    threshold: float = Field(default=0.0, ge=0, lt=1, description="labels above it are right")

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """The rows agreed upon, in order; the others are dropped with what either side says."""
        said = self._judged(sources, drops)
        for row in sources[self.from_data]():
            if not isinstance(row, Steps):
                raise RowError(f"stage '{self.from_data}': row '{row.id}' is a {row.row} row; steps rows are wanted")
            mine, theirs = first_wrong(row, self.threshold), said.get(row.id, [])
            if not theirs:
                drops.add("not judged", row.id)
                continue
            (most, n_most), *_ = Counter(theirs).most_common()
            if 2 * n_most <= len(theirs):
                drops.add("judge undecided", row.id, f"of {len(theirs)} judgements {n_most} say {most}")
            elif most != mine:
                drops.add("judge disagrees", row.id, f"step {mine} here, {most} by the judge; -1 is none")
            else:
                yield row

    def _judged(self, sources: Sources, drops: Drops) -> dict[str, list[int]]:
        said: dict[str, list[int]] = {}
        for row in sources[self.judge]():
            if isinstance(row, Steps):
                said.setdefault(row.id, []).append(first_wrong(row, self.threshold))
            elif isinstance(row, Completion) and isinstance(row.meta.get("solution"), str):
                place = _BOXED.answer(row.text) if row.finish_reason == "stop" else None
                if place is None or not place.removeprefix("-").isdecimal():
                    drops.add("judgement without a step's number", row.id, f"{place}"[:80])
                else:
                    said.setdefault(row.meta["solution"], []).append(int(place))
            else:
                raise RowError(
                    f"stage '{self.judge}': row '{row.id}' is a {row.row} row; a judge gives steps rows, or "
                    "completions of step_critiques' problems"
                )
        return said


def first_wrong(row: Steps, threshold: float = 0.0) -> int:
    """The place of the first step whose label is not above the threshold, counted from 0; -1 if there is none."""
    return next((place for place, label in enumerate(row.labels) if float(label) <= threshold), -1)
