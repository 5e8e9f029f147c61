"""Runs an evaluate stage: measures how often a model is right and thinks as asked.

Each data set and thinking switch has its own result.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from qwen_align.align.context import Context
from qwen_align.align.errors import DataError
from qwen_align.align.evaluation import scoring, statistics
from qwen_align.align.generation.requests import render_problem, resolve_mode
from qwen_align.align.generation.resumable import SamplingRequest, load_engine, sample_completions
from qwen_align.align.models import loading, reward_scorer
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rows import Mode, Problem, read_rows, require_row_type, to_json_line
from qwen_align.align.settings.evaluate import Evaluate
from qwen_align.align.settings.rollout import Switch
from qwen_align.align.store.files import write_json
from qwen_align.reward.settings import check_rewards, pick_reward

QUESTIONS = "questions.json"  # the mean of each question, for each set and switch in turn: what paired tests compare


def run(settings: Evaluate, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Samples, judges and scores completions of every question and returns the results.

    Results are by data set and thinking switch.
    """
    source = inputs[settings.from_model]
    renderer = loading.load_renderer(source)
    engine = load_engine(source, renderer, context)
    draw_settings = SamplingRequest(settings.sampling, settings.completions_per_prompt, context.seed)
    check_rewards(settings.rewards)
    device, rows_at_once = loading.choose_device(context.runtime), context.runtime.micro_batch
    scorer = (
        reward_scorer.load_scorer(inputs[settings.best_of_n_scorer], device=device, max_rows=rows_at_once)
        if settings.best_of_n_scorer
        else None
    )
    results, compute_question_means = [], []
    unfinished = out / ".rows.jsonl"
    with unfinished.open("w", encoding="utf-8") if context.is_main else nullcontext() as file:
        for set_number, ref in enumerate(settings.from_data):
            questions = list(require_row_type(Problem, read_rows(inputs[ref] / "rows.jsonl")))
            if not questions:
                raise DataError(f"from_data: '{ref}' holds no problem; see its builder and sieve")
            check_rewards([pick_reward(kind, settings.rewards) for kind in {row.reward: None for row in questions}])
            for switch_number, switch in enumerate(settings.thinking_switches):
                requests = [render_problem(problem, renderer, switch) for problem in questions]
                # By number, not by name: a stage's folder is the same whatever its inputs are called.
                completions = sample_completions(
                    engine, renderer, requests, draw_settings, context, out / "parts" / f"{set_number}-{switch_number}"
                )
                rows = scoring.judge_completions(list(completions), settings.rewards)
                if file:
                    file.writelines(to_json_line(row) + "\n" for row in rows)
                    by_question = scoring.group_by_question(rows, _find_expected_mode(switch, renderer))
                    result = scoring.build_result_fields(
                        statistics.summarise_samples(by_question, settings.completions_per_prompt), rows
                    )
                    compute_question_means.append(statistics.compute_question_means(by_question))
                    if scorer:
                        result |= scoring.measure_best_of_k(rows, scorer)
                    results.append({"set": ref, "switch": switch.method, "mode": switch.mode, **result})
    if context.is_main:
        unfinished.replace(out / "completions.jsonl")
        write_json(out / QUESTIONS, {"means": compute_question_means})
    return {"results": results}


def _find_expected_mode(switch: Switch, renderer: Renderer) -> Mode | None:
    """Returns the thinking mode that completions under a thinking switch have to obey.

    Returns None where none can be asked for.

    A model that knows no thinking cannot obey; without a switch, a hybrid one is expected to think.
    """
    if renderer.thinking_support in ("none", "never") or switch.method == "plain":
        return None
    return resolve_mode(switch.mode, renderer)
