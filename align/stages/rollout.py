"""Runs a rollout stage: samples completions of a model and judges them with the rewards."""

from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen_align.align.context import Context
from qwen_align.align.errors import DataError
from qwen_align.align.generation.requests import measure_prompts, render_problem
from qwen_align.align.generation.resumable import SamplingRequest, judge_completions, open_engine, sample_completions
from qwen_align.align.models import loading, reward_scorer
from qwen_align.align.models.length_limit import require_room_for_completions
from qwen_align.align.rows import Problem, read_rows, require_row_type, to_json_line
from qwen_align.align.settings.rollout import Rollout
from qwen_align.reward.settings import check_rewards


def run(settings: Rollout, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Samples and judges completions for every prompt and returns the summary of the main process."""
    source = inputs[settings.from_model]
    renderer = loading.load_renderer(source)
    rows = require_row_type(Problem, read_rows(inputs[settings.from_data] / "rows.jsonl"))
    requests = [render_problem(problem, renderer, settings.thinking_switch) for problem in rows]
    if not requests and settings.on_empty == "fail":
        raise DataError(f"from_data: '{settings.from_data}' holds no problem; see its builder and sieve")
    require_room_for_completions(
        loading.find_length_limit(source), measure_prompts(requests), settings.sampling.max_tokens
    )
    check_rewards(settings.rewards)
    reward_scorer.bind_scorers(settings.rewards, inputs, context.runtime)
    draw_settings = SamplingRequest(
        settings.sampling, settings.completions_per_prompt, context.seed, keep_tokens=settings.keep_tokens
    )
    reasons: Counter[str] = Counter()
    n_rows, n_judged, reward_sum, n_stopped, n_tokens = 0, 0, 0.0, 0, 0
    with open_engine(settings, source, renderer, context, requests) as engine:
        completions = sample_completions(engine, renderer, requests, draw_settings, context, out / "parts")
        if not context.is_main:
            deque(completions, maxlen=0)
            return {}
        with context.work_on("score"), (out / ".rows.jsonl").open("w", encoding="utf-8") as file:
            for row, verdict in judge_completions(completions, settings.rewards):
                verdicts = verdict.parts or {}
                file.write(to_json_line(row.model_copy(update={"verdicts": verdicts})) + "\n")
                reasons.update(f"{name}: {part.reason}" for name, part in verdicts.items())
                n_rows, n_tokens = n_rows + 1, n_tokens + row.n_tokens
                n_judged, reward_sum = n_judged + (verdict.value is not None), reward_sum + (verdict.value or 0.0)
                n_stopped += row.finish_reason == "stop"
    if n_rows and not n_judged:
        most = ", ".join(f"{reason} ({count:,} times)" for reason, count in reasons.most_common(3))
        raise DataError(f"rewards: none of {n_rows:,} completions has a verdict: {most}")
    (out / ".rows.jsonl").replace(out / "rows.jsonl")
    return {
        "rows": n_rows,
        "prompts": len(requests),
        "mean_reward": reward_sum / max(n_judged, 1),
        "no_verdict": n_rows - n_judged,
        "stopped_share": n_stopped / max(n_rows, 1),
        "mean_tokens": n_tokens / max(n_rows, 1),
        "reasons": dict(reasons),
    }
