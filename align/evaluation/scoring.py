"""Judges the completions of an evaluation and converts their verdicts to samples for the statistics."""

from collections.abc import Callable, Sequence
from typing import Any

from qwen_align.align.errors import DataError
from qwen_align.align.evaluation import statistics
from qwen_align.align.rows import Completion, Mode
from qwen_align.reward.format import Format, follows_mode
from qwen_align.reward.math_answer import MathAnswer
from qwen_align.reward.settings import Reward, pick_reward
from qwen_align.reward.verdict import Verdict


def judge_completions(rows: Sequence[Completion], rewards: Sequence[Reward]) -> list[Completion]:
    """Judges each completion by its question's reward and by the format reward, and returns them with verdicts."""
    verdicts: list[dict[str, Verdict]] = [{} for _ in rows]
    for kind in {row.reward: None for row in rows}:
        reward = pick_reward(kind, rewards)
        indices = [index for index, row in enumerate(rows) if row.reward == kind]
        for index, verdict in zip(indices, reward.judge_many([rows[index] for index in indices]), strict=True):
            verdicts[index][kind] = verdict
    format_reward = Format()
    return [
        row.model_copy(update={"verdicts": {**own, format_reward.kind: format_reward.judge(row)}})
        for row, own in zip(rows, verdicts, strict=True)
    ]


def group_by_question(
    rows: Sequence[Completion], expected_mode: Mode | None
) -> dict[str, list[statistics.SampleScore]]:
    """Groups judged completions by question and returns the sample scores of each question.

    `expected_mode` is the thinking mode that was asked for, or None if none was. Raises DataError for a completion
    whose verdict has no value.
    """
    math_answer = MathAnswer()
    questions: dict[str, list[statistics.SampleScore]] = {}
    for row in rows:
        verdict = row.verdicts[row.reward]
        if verdict.value is None:
            raise DataError(f"question '{row.prompt_id}': {verdict.reason}; its gold is {row.gold!r}")
        questions.setdefault(row.prompt_id, []).append(
            statistics.SampleScore(
                value=verdict.value,
                stopped=row.finish_reason == "stop",
                obeyed=None if expected_mode is None else follows_mode(row.text, expected_mode),
                n_tokens=row.n_tokens,
                answer=math_answer.answer(row) if row.reward == math_answer.kind else None,
            )
        )
    return questions


def measure_best_of_k(
    rows: Sequence[Completion], scorer: Callable[[Sequence[Completion]], Sequence[float]]
) -> dict[str, float]:
    """Returns the accuracy of each question's highest-scored completion, and its standard error over questions."""
    questions: dict[str, list[statistics.SampleScore]] = {}
    scores: dict[str, list[float]] = {}
    for row, score in zip(rows, scorer(rows), strict=True):
        value = row.verdicts[row.reward].value or 0.0
        questions.setdefault(row.prompt_id, []).append(
            statistics.SampleScore(value, stopped=True, obeyed=None, n_tokens=row.n_tokens, answer=None)
        )
        scores.setdefault(row.prompt_id, []).append(score)
    estimate_mean = statistics.estimate_best_of(questions, scores)
    return {"best_of_k": estimate_mean.mean, "best_of_k_stderr": estimate_mean.se or 0.0}


def build_result_fields(summary: statistics.Summary, rows: Sequence[Completion]) -> dict[str, Any]:
    """Converts an evaluation's summary to a dict of results under the report's names.

    Standard errors are 0 for a single question.
    """
    return {
        "accuracy": summary.value.mean,
        "stderr": summary.value.se or 0.0,
        "n_questions": summary.n_questions,
        "k": summary.k,
        "obeyed_share": summary.obeyed_share,
        "stopped_share": summary.stopped_share,
        "mean_tokens": summary.n_tokens,
        "pass_at_k": summary.pass_at_k.mean,
        "maj_at_k": summary.maj_at_k.mean,
        "answered_share": summary.answered_share,
        "format_share": sum(row.verdicts["format"].value == 1.0 for row in rows) / len(rows),
        "mean_tokens_right": summary.n_tokens_right,
        "mean_tokens_wrong": summary.n_tokens_wrong,
    }
