"""Labels solution steps by rollouts, and filters them by a judge: data for process reward models."""

from collections import Counter
from collections.abc import Iterator
from math import fsum
from typing import Literal

from pydantic import Field

from qwen_align.align.references import DataRef
from qwen_align.align.rows import Completion, Row, RowError, Steps
from qwen_align.align.settings.base import Strict
from qwen_align.data_builders.rollout_completions import get_verdict_value, read_completions
from qwen_align.data_builders.sieve import Drops, Sources
from qwen_align.data_builders.solution_steps import STEP_BREAK, Solution, read_solutions
from qwen_align.data_builders.step_prefixes_and_critiques import make_prefix_id
from qwen_align.reward.math_answer import MathAnswer
from qwen_align.reward.settings import RewardName

_BOXED = MathAnswer(box="required")


class MonteCarloSteps(Strict):
    """A builder that labels each solution step by rollouts that continue after it, as in Math-Shepherd.

    Labels are hard or soft (arXiv:2312.08935). soft: the share of continuations that reach the gold. hard: whether that
    share is above `threshold`; at 0, as in both papers, one of them is enough. The last step is labelled by the
    solution's own answer. With `cut_after_wrong`, as in Qwen2.5-Math-PRM (arXiv:2501.07301), nothing is kept after the
    first step whose share is not above the threshold.
    """

    kind: Literal["monte_carlo_steps"] = "monte_carlo_steps"
    from_data: DataRef = Field(description="data stage with the solutions, the one that step_prefixes reads")
    from_rollout: DataRef = Field(description="rollout stage with completions of the problems of step_prefixes")
    labels: Literal["hard", "soft"] = Field(
        default="hard",
        description="hard: true or false by threshold; soft: the share of continuations that reach the gold",
    )
    threshold: float = Field(
        default=0.0, ge=0, lt=1, description="share of correct continuations that a right step must exceed"
    )
    cut_after_wrong: bool = Field(
        description="drop the steps after the first wrong one: true for Qwen2.5-Math-PRM, false for Math-Shepherd"
    )
    reward: RewardName = Field(default="math_answer", description="reward that judges continuations and solutions")
    correct_from: float = Field(default=1.0, description="lowest reward of a correct completion")
    min_samples: int = Field(
        default=8,  # Qwen2.5-Math-PRM: 8 completions a step
        ge=1,
        description="judged continuations that every step needs",
    )
    step_break: str = Field(default=STEP_BREAK, min_length=1, description="text between two steps")

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Yields one row of labelled steps for each solution, in the order of the solutions.

        Those without a judged answer or with too few continuations are dropped.
        """
        correct_of_prefix: dict[str, list[bool]] = {}
        for row in read_completions(sources[self.from_rollout], self.from_rollout):
            value = get_verdict_value(row, self.reward)
            if value is None:
                drops.add("no verdict", row.id, row.verdicts[self.reward].reason)
            else:
                correct_of_prefix.setdefault(row.prompt_id, []).append(value >= self.correct_from)
        for solution in read_solutions(sources, self.from_data, self.reward, self.correct_from):
            labelled = self._label_solution(solution, correct_of_prefix)
            if isinstance(labelled, Steps):
                yield labelled
            else:
                drops.add(*labelled)

    def _label_solution(
        self, solution: Solution, correct_of_prefix: dict[str, list[bool]]
    ) -> Steps | tuple[str, str, str]:
        """Labels the steps of a solution, or returns why they cannot be labelled (reason, id, detail)."""
        steps = solution.split_steps(self.step_break)
        if not steps:
            return "no step", solution.id, ""
        if solution.is_right is None:
            return "solution not judged", solution.id, ""
        shares: list[float] = []
        for index in range(len(steps) - 1):
            continuations = correct_of_prefix.get(make_prefix_id(solution.id, index), [])
            if len(continuations) < self.min_samples:
                return (
                    "too few continuations",
                    solution.id,
                    f"step {index} has {len(continuations)} of {self.min_samples}",
                )
            shares.append(fsum(continuations) / len(continuations))
        shares.append(float(solution.is_right))
        first_wrong = next((index for index, share in enumerate(shares) if share <= self.threshold), None)
        n_kept = len(steps) if first_wrong is None or not self.cut_after_wrong else first_wrong + 1
        return Steps(
            id=solution.id,
            messages=solution.messages,
            steps=steps[:n_kept],
            labels=[share if self.labels == "soft" else share > self.threshold for share in shares[:n_kept]],
            gold=solution.gold,
            source=solution.source,
            meta={**solution.meta, "n_steps": len(steps), "first_wrong": -1 if first_wrong is None else first_wrong},
        )


class StepConsensus(Strict):
    """A builder that keeps the rows of labelled steps whose first wrong step a judge confirms.

    This is Qwen2.5-Math-PRM's consensus filter. The judge is another stage: Steps rows of the same ids, whose first
    label at or below `threshold` counts, or completions of the problems of `step_critiques`, whose last box holds the
    number (-1: none) and of which most have to say the same.
    """

    kind: Literal["step_consensus"] = "step_consensus"
    from_data: DataRef = Field(description="data stage with the steps rows")
    judge: DataRef = Field(
        description="stage with the judge's steps rows, or with completions of the problems of step_critiques"
    )
    threshold: float = Field(default=0.0, ge=0, lt=1, description="labels above it are right")

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Yields the step rows that the judge agrees with, in order.

        The others are dropped with what either side says.
        """
        judgements = self._read_judgements(sources, drops)
        for row in sources[self.from_data]():
            if not isinstance(row, Steps):
                raise RowError(f"stage '{self.from_data}': row '{row.id}' is a {row.row} row; steps rows are wanted")
            own_index, judged_indices = find_first_wrong_step(row, self.threshold), judgements.get(row.id, [])
            if not judged_indices:
                drops.add("not judged", row.id)
                continue
            (majority_index, n_majority), *_ = Counter(judged_indices).most_common()
            if 2 * n_majority <= len(judged_indices):
                drops.add(
                    "judge undecided", row.id, f"of {len(judged_indices)} judgements {n_majority} say {majority_index}"
                )
            elif majority_index != own_index:
                drops.add(
                    "judge disagrees", row.id, f"step {own_index} here, {majority_index} by the judge; -1 is none"
                )
            else:
                yield row

    def _read_judgements(self, sources: Sources, drops: Drops) -> dict[str, list[int]]:
        """Reads the judge's verdicts: the indices of the first wrong step, by the solution's id."""
        judgements: dict[str, list[int]] = {}
        for row in sources[self.judge]():
            if isinstance(row, Steps):
                judgements.setdefault(row.id, []).append(find_first_wrong_step(row, self.threshold))
            elif isinstance(row, Completion) and isinstance(row.meta.get("solution"), str):
                step_number = _BOXED.answer(row.text) if row.finish_reason == "stop" else None
                if step_number is None or not step_number.removeprefix("-").isdecimal():
                    drops.add("judgement without a step's number", row.id, f"{step_number}"[:80])
                else:
                    judgements.setdefault(row.meta["solution"], []).append(int(step_number))
            else:
                raise RowError(
                    f"stage '{self.judge}': row '{row.id}' is a {row.row} row; a judge gives steps rows, or "
                    "completions of step_critiques' problems"
                )
        return judgements


def find_first_wrong_step(row: Steps, threshold: float = 0.0) -> int:
    """Returns the index of the first step whose label is not above the threshold. Returns -1 if there is none."""
    return next((index for index, label in enumerate(row.labels) if float(label) <= threshold), -1)
