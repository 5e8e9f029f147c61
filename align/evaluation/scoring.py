"""Judges the completions of an evaluation and converts their verdicts to samples for the statistics."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from qwen_align.align.errors import StageError
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


def require_verdicts(verdicts: Sequence[Verdict], where: str, *, max_missing_share: float = 1.0) -> None:
    """Raises StageError if more than a share of the completions has no verdict, or if none has one."""
    missing = Counter(verdict.reason for verdict in verdicts if verdict.value is None)
    n_missing = missing.total()
    if n_missing and (n_missing == len(verdicts) or n_missing > max_missing_share * len(verdicts)):
        (reason, n), *_ = missing.most_common()
        found = (
            f"none of {len(verdicts):,} completions has a verdict"
            if n_missing == len(verdicts)
            else f"{n_missing:,} of {len(verdicts):,} completions have no verdict, and max_no_verdict_share is "
            f"{max_missing_share:g}"
        )
        raise StageError(
            f"{where}: {found}; the most frequent reason: {reason} ({n}). Mend the reward, or the golds it cannot use"
        )


def describe_missing_verdicts(verdicts: Sequence[Verdict], where: str) -> str | None:
    """Returns how many completions have no verdict and why, as a sentence. Returns None where all have one."""
    missing = Counter(verdict.reason for verdict in verdicts if verdict.value is None)
    if not missing:
        return None
    reasons = ", ".join(f"{reason} ({n})" for reason, n in missing.most_common(3))
    return (
        f"{where}: {missing.total():,} of {len(verdicts):,} completions have no verdict and count neither as right nor "
        f"as wrong: {reasons}"
    )


def group_by_question(
    rows: Sequence[Completion], expected_mode: Mode | None
) -> dict[str, list[statistics.SampleScore]]:
    """Groups judged completions by question and returns the sample scores of each question.

    `expected_mode` is the thinking mode that was asked for, or None if none was.
    """
    math_answer = MathAnswer()
    questions: dict[str, list[statistics.SampleScore]] = {}
    for row in rows:
        questions.setdefault(row.prompt_id, []).append(
            statistics.SampleScore(
                value=row.verdicts[row.reward].value,
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
    """Returns the accuracy of each question's highest-scored completion, and its standard error over questions.

    Completions without a verdict are left out, as in every accuracy.
    """
    rows = [row for row in rows if row.verdicts[row.reward].value is not None]
    scores: dict[str, list[float]] = {}
    for row, score in zip(rows, scorer(rows), strict=True):
        scores.setdefault(row.prompt_id, []).append(score)
    best = statistics.estimate_best_of(group_by_question(rows, None), scores)
    return {"best_of_k": best.mean, "best_of_k_stderr": best.se or 0.0}


def build_result_fields(summary: statistics.Summary, rows: Sequence[Completion]) -> dict[str, Any]:
    """Converts an evaluation's summary to a dict of results under the report's names.

    Standard errors are 0 for a single question.
    """
    return {
        "accuracy": summary.accuracy.mean,
        "stderr": summary.accuracy.se or 0.0,
        "mean_reward": summary.mean_reward.mean,
        "mean_reward_stderr": summary.mean_reward.se or 0.0,
        "no_verdict": summary.n_no_verdict,
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
