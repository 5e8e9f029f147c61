"""evaluate: how often a model is right, and whether it thinks as asked, for each data set and each switch."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from qwen_align.align.context import Context
from qwen_align.align.errors import DataError
from qwen_align.align.evaluation import statistics
from qwen_align.align.generation.requests import drawn_as, put
from qwen_align.align.generation.resumable import Draw, draw, open_engine
from qwen_align.align.models import loading, reward_scorer
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rows import Completion, Problem, only, read_rows, to_line
from qwen_align.align.settings.evaluate import Evaluate
from qwen_align.align.settings.rollout import Switch
from qwen_align.align.store.files import write_json
from qwen_align.reward.format import Format, follows_mode
from qwen_align.reward.math_answer import MathAnswer
from qwen_align.reward.settings import Reward, check_rewards, pick_reward
from qwen_align.reward.verdict import Verdict

QUESTIONS = "questions.json"  # the mean of each question, for each set and switch in turn: what paired tests compare


def run(spec: Evaluate, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    source = inputs[spec.from_model]
    renderer = loading.renderer_of(source)
    engine = open_engine(source, renderer, context)
    how = Draw(spec.sampling, spec.completions_per_prompt, context.seed)
    check_rewards(spec.rewards)
    device, rows_at_once = loading.device_of(context.runtime), context.runtime.micro_batch
    picker = (
        reward_scorer.of(inputs[spec.best_of_n_scorer], device=device, max_rows=rows_at_once)
        if spec.best_of_n_scorer
        else None
    )
    results, questions_of = [], []
    unfinished = out / ".rows.jsonl"
    with unfinished.open("w", encoding="utf-8") if context.is_main else nullcontext() as file:
        for place, ref in enumerate(spec.from_data):
            questions = list(only(Problem, read_rows(inputs[ref] / "rows.jsonl")))
            if not questions:
                raise DataError(f"from_data: '{ref}' holds no problem; see its builder and sieve")
            check_rewards([pick_reward(kind, spec.rewards) for kind in {row.reward: None for row in questions}])
            for number, switch in enumerate(spec.thinking_switches):
                asked = [put(problem, renderer, switch) for problem in questions]
                # By place, not by name: a stage's folder is the same whatever its inputs are called.
                drawn = draw(engine, renderer, asked, how, context, out / "parts" / f"{place}-{number}")
                rows = judged(list(drawn), spec.rewards)
                if file:
                    file.writelines(to_line(row) + "\n" for row in rows)
                    by_question = scored(rows, switch, renderer)
                    result = figures(statistics.summarise(by_question, spec.completions_per_prompt), rows)
                    questions_of.append(statistics.question_means(by_question))
                    if picker:
                        result |= best(rows, picker)
                    results.append({"set": ref, "switch": switch.method, "mode": switch.mode, **result})
    if context.is_main:
        unfinished.replace(out / "completions.jsonl")
        write_json(out / QUESTIONS, {"means": questions_of})
    return {"results": results}


def judged(rows: Sequence[Completion], rewards: Sequence[Reward]) -> list[Completion]:
    """Each completion with the verdict of its question's own reward, and of the format."""
    verdicts: list[dict[str, Verdict]] = [{} for _ in rows]
    for kind in {row.reward: None for row in rows}:
        reward = pick_reward(kind, rewards)
        places = [place for place, row in enumerate(rows) if row.reward == kind]
        for place, verdict in zip(places, reward.judge_many([rows[place] for place in places]), strict=True):
            verdicts[place][kind] = verdict
    layout = Format()
    return [
        row.model_copy(update={"verdicts": {**said, layout.kind: layout.judge(row)}})
        for row, said in zip(rows, verdicts, strict=True)
    ]


def scored(rows: list[Completion], switch: Switch, renderer: Renderer) -> dict[str, list[statistics.SampleScore]]:
    """The samples of each question of one data set under one switch."""
    answers = MathAnswer()
    # A model that knows no thinking cannot obey; without a switch, a hybrid one is expected to think.
    knows_none = renderer.thinking in ("none", "never") or switch.method == "plain"
    wanted = None if knows_none else drawn_as(switch.mode, renderer)
    questions: dict[str, list[statistics.SampleScore]] = {}
    for row in rows:
        verdict = row.verdicts[row.reward]
        if verdict.value is None:
            raise DataError(f"question '{row.prompt_id}': {verdict.reason}; its gold is {row.gold!r}")
        questions.setdefault(row.prompt_id, []).append(
            statistics.SampleScore(
                value=verdict.value,
                stopped=row.finish_reason == "stop",
                obeyed=None if wanted is None else follows_mode(row.text, wanted),
                n_tokens=row.n_tokens,
                answer=answers.answer(row) if row.reward == answers.kind else None,
            )
        )
    return questions


def best(rows: list[Completion], picker: reward_scorer.Scorer) -> dict[str, float]:
    """How often the completion that the scorer likes best is right, and the standard error over questions."""
    questions: dict[str, list[statistics.SampleScore]] = {}
    scores: dict[str, list[float]] = {}
    for row, found in zip(rows, picker(rows), strict=True):
        value = row.verdicts[row.reward].value or 0.0
        questions.setdefault(row.prompt_id, []).append(
            statistics.SampleScore(value, stopped=True, obeyed=None, n_tokens=row.n_tokens, answer=None)
        )
        scores.setdefault(row.prompt_id, []).append(found)
    estimate = statistics.best_of(questions, scores)
    return {"best_of_k": estimate.mean, "best_of_k_stderr": estimate.se or 0.0}


def figures(summary: statistics.Summary, rows: list[Completion]) -> dict[str, Any]:
    """The report's names for an evaluation's figures; errors are 0 for a single question."""
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
