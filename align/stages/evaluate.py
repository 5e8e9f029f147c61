"""Runs an evaluate stage: measures how often a model is right and thinks as asked.

Each data set and thinking switch has its own result.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from qwen_align.align.context import Context
from qwen_align.align.errors import DataError
from qwen_align.align.evaluation import scoring, statistics
from qwen_align.align.generation.requests import RenderedProblem, measure_prompts, render_problem, resolve_mode
from qwen_align.align.generation.resumable import SamplingRequest, open_engine, sample_completions
from qwen_align.align.models import loading, reward_scorer
from qwen_align.align.models.length_limit import require_room_for_completions
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rows import Mode, Problem, read_rows, require_row_type, to_json_line
from qwen_align.align.settings.evaluate import Evaluate
from qwen_align.align.settings.rollout import Switch
from qwen_align.align.store.files import write_json
from qwen_align.reward.settings import check_rewards, pick_reward, refuse_unused_rewards

QUESTIONS = "questions.json"  # how often each question was answered right, for each set and switch in turn


class _Asked(NamedTuple):
    """The prompts of a data set under a thinking switch, and the number of their folder of parts."""

    set: str
    switch: Switch
    number: str
    prompts: list[RenderedProblem]

    @property
    def name(self) -> str:
        """Returns the data set and the switch as text."""
        return f"{self.set}, {self.switch.method}" + (f" {self.switch.mode}" if self.switch.mode else "")


def run(settings: Evaluate, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Samples, judges and scores completions of every question and returns the results.

    Results are by data set and thinking switch.
    """
    source = inputs[settings.from_model]
    renderer = loading.load_renderer(source)
    check_rewards(settings.rewards)
    all_asked = _render_questions(settings, inputs, renderer, loading.find_length_limit(source))
    draw_settings = SamplingRequest(settings.sampling, settings.completions_per_prompt, context.seed)
    scorer = None
    if settings.best_of_n_scorer:
        scorer = reward_scorer.load_scorer(inputs[settings.best_of_n_scorer], context.runtime)
    results, question_means = [], []
    unfinished = out / ".rows.jsonl"
    prompts = [prompt for asked in all_asked for prompt in asked.prompts]
    with (
        open_engine(settings, source, renderer, context, prompts) as engine,
        unfinished.open("w", encoding="utf-8") if context.is_main else nullcontext() as file,
    ):
        for asked in all_asked:
            completions = sample_completions(
                engine, renderer, asked.prompts, draw_settings, context, out / "parts" / asked.number
            )
            with context.work_on("score"):  # drawing has its own phase
                rows = scoring.judge_completions(list(completions), settings.rewards)
            if file:
                file.writelines(to_json_line(row) + "\n" for row in rows)
                verdicts = [row.verdicts[row.reward] for row in rows]
                scoring.require_verdicts(verdicts, asked.name, max_missing_share=settings.max_no_verdict_share)
                if note := scoring.describe_missing_verdicts(verdicts, asked.name):
                    context.log_note(0, "no verdict", note)
                by_question = scoring.group_by_question(rows, _find_expected_mode(asked.switch, renderer))
                result = scoring.build_result_fields(
                    statistics.summarise_samples(by_question, settings.completions_per_prompt), rows
                )
                question_means.append(statistics.compute_question_means(by_question))
                if scorer:
                    with context.work_on("score"):
                        result |= scoring.measure_best_of_k(rows, scorer)
                results.append({"set": asked.set, "switch": asked.switch.method, "mode": asked.switch.mode, **result})
    if context.is_main:
        unfinished.replace(out / "completions.jsonl")
        write_json(out / QUESTIONS, {"means": question_means})
    return {"results": results}


def _render_questions(
    settings: Evaluate, inputs: Mapping[str, Path], renderer: Renderer, length_limit: int | None
) -> list[_Asked]:
    """Renders every data set under every thinking switch, in the order of their results.

    Raises DataError for an empty data set, and RecipeError for a prompt that is too long or that no reward judges.
    """
    all_asked = []
    for set_number, ref in enumerate(settings.from_data):
        questions = list(require_row_type(Problem, read_rows(inputs[ref] / "rows.jsonl")))
        if not questions:
            raise DataError(f"from_data: '{ref}' holds no problem; see its builder and sieve")
        check_rewards([pick_reward(kind, settings.rewards) for kind in {row.reward: None for row in questions}])
        for switch_number, switch in enumerate(settings.thinking_switches):
            prompts = [render_problem(problem, renderer, switch) for problem in questions]
            require_room_for_completions(length_limit, measure_prompts(prompts), settings.sampling.max_tokens)
            # By number, not by name: a stage's folder is the same whatever its inputs are called.
            all_asked.append(_Asked(ref, switch, f"{set_number}-{switch_number}", prompts))
    refuse_unused_rewards(settings.rewards, {prompt.problem.reward for asked in all_asked for prompt in asked.prompts})
    return all_asked


def _find_expected_mode(switch: Switch, renderer: Renderer) -> Mode | None:
    """Returns the thinking mode that completions under a thinking switch have to obey.

    Returns None where none can be asked for.

    A model that knows no thinking cannot obey; without a switch, a hybrid one is expected to think.
    """
    if renderer.thinking_support in ("none", "never") or switch.method == "plain":
        return None
    return resolve_mode(switch.mode, renderer)
