"""Returns the results of a run as Python values: stages with their metrics, evaluations with their completions."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from qwen_align.align.api.recipe import format_stage_count
from qwen_align.align.errors import RecipeError
from qwen_align.align.pipeline.plan import Plan, PlannedStage
from qwen_align.align.reporting.results import RunResults
from qwen_align.align.reporting.terminal import render_results_table
from qwen_align.align.rows import Completion, read_rows
from qwen_align.align.settings.base import format_suggestion
from qwen_align.align.store.files import read_json
from qwen_align.align.store.stage_folder import StageFolder


@dataclass(frozen=True)
class StageResult:
    """The result of a finished stage. `summary` has its counts and metrics, `seconds` its run time without imports."""

    name: str
    kind: str
    key: str
    folder: Path
    seconds: float
    summary: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Evaluation:
    """The accuracy of one model on one data set under one thinking switch.

    accuracy: mean over questions of the share of right completions, those with a reward of 1.
    stderr: standard error of the accuracy over questions; 0 for a single question.
    mean_reward, mean_reward_stderr: mean of the reward itself; the accuracy where rewards are 0 or 1.
    no_verdict: completions without a verdict, neither right nor wrong and left out of the figures before and after.
    question_means: share of right completions of each question, by the question's id; None without a verdict.
    pass_at_k, maj_at_k: for k = `completions_per_prompt`.
    obeyed_share: share that thought, or did not, as asked; None where that was not asked. stopped_share: share that
    ended before `max_tokens`. mean_tokens: tokens per completion.
    dropped: rows that were left out of the questions, counted by reason.
    """

    stage: str
    model: str
    data: str
    thinking_switch: str
    mode: str | None
    seed: int
    accuracy: float
    stderr: float
    mean_reward: float
    mean_reward_stderr: float
    no_verdict: int
    n_questions: int
    completions_per_prompt: int
    pass_at_k: float
    maj_at_k: float
    obeyed_share: float | None
    stopped_share: float
    mean_tokens: float
    axes: dict[str, str] = field(repr=False)
    dropped: dict[str, int] = field(repr=False)
    question_means: dict[str, float | None] = field(repr=False)
    file: Path = field(repr=False)
    first_line: int = field(repr=False)

    @property
    def completions(self) -> list[dict[str, Any]]:
        """Returns every completion as a dict with its question id, gold answer, value (reward), reason and token count.

        `pandas.DataFrame(evaluation.completions)` is a table of them. Read from the stage's folder each time.
        """
        n_rows = self.n_questions * self.completions_per_prompt
        rows = islice(read_rows(self.file), self.first_line, self.first_line + n_rows)
        return [_to_dict(row) for row in rows if isinstance(row, Completion)]

    def to_row(self) -> dict[str, Any]:
        """Returns the evaluation's metrics as one table row, without questions and file paths."""
        row = asdict(self)
        for name in ("axes", "dropped", "question_means", "file", "first_line"):
            row.pop(name)
        return row | self.axes


def _to_dict(completion: Completion) -> dict[str, Any]:
    """Converts a judged completion to a dict for a table."""
    verdict = completion.verdicts[completion.reward]
    return {
        "question": completion.prompt_id,
        "sample": completion.sample,
        "text": completion.text,
        "gold": completion.gold,
        "value": verdict.value,
        "reason": verdict.reason,
        "n_tokens": completion.n_tokens,
        "finish_reason": completion.finish_reason,
        "prompt": [message.model_dump(exclude_none=True) for message in completion.prompt],
    }


@dataclass(frozen=True)
class Results:
    """The results of a run: its finished stages by name and its evaluations in running order.

    Printed, it is a table of accuracies.
    """

    name: str
    run_folder: Path
    stages: dict[str, StageResult]
    evaluations: list[Evaluation]
    table: str = field(repr=False)

    def __getitem__(self, name: str) -> StageResult:
        """Returns the result of the stage with the given name. Raises RecipeError when the run has no such stage."""
        if name not in self.stages:
            raise RecipeError(f"run '{self.name}': no stage is called '{name}'{format_suggestion(name, self.stages)}")
        return self.stages[name]

    def to_rows(self) -> list[dict[str, Any]]:
        """Returns one dict per evaluation, for `pandas.DataFrame(results.to_rows())`."""
        return [evaluation.to_row() for evaluation in self.evaluations]

    def __repr__(self) -> str:
        return (
            f"Results '{self.name}': {format_stage_count(len(self.stages))} in {self.run_folder}\n{self.table}".rstrip()
        )


def read_stage(name: str, folder: Path) -> StageResult:
    """Reads the result of a finished stage from its manifest. Raises StageError when the manifest cannot be read."""
    manifest = StageFolder(folder).read_manifest()
    return StageResult(name, manifest["kind"], manifest["key"], folder, manifest["seconds"], manifest["summary"])


def collect_results(planned: Plan, written: RunResults) -> Results:
    """Collects the results of all finished stages of a plan. `written` is the report of the same plan."""
    done = {stage.name: read_stage(stage.name, stage.folder.path) for stage in planned.stages if stage.is_stored}
    rows = iter(written.evaluations)
    evaluations = [
        evaluation
        for stage in planned.stages
        if stage.name in done and stage.product == "evaluation"
        for evaluation in _list_evaluations(stage, list(islice(rows, _count_results(done[stage.name]))), done)
    ]
    table = render_results_table(written) if evaluations else ""
    return Results(planned.recipe.name, planned.run_folder, done, evaluations, table)


def _count_results(stage: StageResult) -> int:
    return len(stage.summary["results"])


def _list_evaluations(
    stage: PlannedStage, rows: list[dict[str, Any]], done: Mapping[str, StageResult]
) -> list[Evaluation]:
    """Returns the evaluations of one evaluation stage, built from its rows in the report."""
    settings: Any = stage.settings
    means = read_json(stage.folder.path / "questions.json")["means"]
    evaluations, first_line = [], 0
    for index, (row, question_means) in enumerate(zip(rows, means, strict=True)):
        data = stage.targets[settings.from_data[index // len(settings.thinking_switches)]]
        evaluations.append(
            Evaluation(
                stage=stage.name,
                model=row["stage"],
                data=row["set"],
                thinking_switch=row["switch"],
                mode=row["mode"],
                seed=row["seed"],
                accuracy=row["accuracy"],
                stderr=row["stderr"],
                mean_reward=row["mean_reward"],
                mean_reward_stderr=row["mean_reward_stderr"],
                no_verdict=row["no_verdict"],
                n_questions=row["n_questions"],
                completions_per_prompt=row["k"],
                pass_at_k=row["pass_at_k"],
                maj_at_k=row["maj_at_k"],
                obeyed_share=row["obeyed_share"],
                stopped_share=row["stopped_share"],
                mean_tokens=row["mean_tokens"],
                axes=row["axes"],
                dropped=done[data].summary.get("dropped", {}),
                question_means=question_means,
                file=stage.folder.path / "completions.jsonl",
                first_line=first_line,
            )
        )
        first_line += row["n_questions"] * row["k"]
    return evaluations
