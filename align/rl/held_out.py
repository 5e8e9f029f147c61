"""Measures accuracy on the held-out set during training and summarises rollouts before the first step."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from qwen_align.align.errors import DataError
from qwen_align.align.evaluation import statistics
from qwen_align.align.generation.requests import RenderedProblem
from qwen_align.align.rl.collect import Group, RolloutSetup, compute_solved_share, sample_groups
from qwen_align.align.rl.judge import Judge, require_verdicts
from qwen_align.align.rl.prompt_stream import PromptDraw

# In the place of a step, so that neither draws the numbers of a training step.
PREFLIGHT, EVALUATION = -1, -2
PREFLIGHT_ROLLOUTS = 16


class Accuracy(NamedTuple):
    """The accuracy on a question set, its standard error and the number of questions.

    The accuracy is the mean over questions of the share of right answers.
    """

    mean: float
    stderr: float
    n_questions: int


def measure_accuracy(setup: RolloutSetup, questions: Sequence[RenderedProblem], judge: Judge) -> Accuracy:
    """Measures the policy's accuracy on a set of questions.

    The random numbers are the same every time, so that changes are the policy's. Raises DataError for a question
    without a verdict.
    """
    draws = [PromptDraw(position, question) for position, question in enumerate(questions)]
    shares = []
    for group in sample_groups(setup, draws, judge, EVALUATION):
        share = compute_solved_share(group.judged, setup)
        if share is None:
            completion, verdict = group.judged[0]
            raise DataError(
                f"held_out: question '{completion.prompt_id}': {verdict.reason}; its gold is {completion.gold!r:.60}"
            )
        shares.append(share)
    estimate = statistics.estimate_mean(shares)
    return Accuracy(estimate.mean, estimate.se or 0.0, len(shares))


def describe_first_rollouts(setup: RolloutSetup, problems: Sequence[RenderedProblem], judge: Judge) -> str:
    """Samples a few rollouts of the untrained policy and returns a sentence about their rewards and lengths.

    Raises StageError when none of them has a verdict.
    """
    n_samples = min(setup.n_samples, 4)
    n_prompts = min(len(problems), PREFLIGHT_ROLLOUTS // n_samples)
    chosen = random.Random(f"{setup.seed}: preflight").sample(range(len(problems)), n_prompts)
    draws = [PromptDraw(position, problems[position]) for position in chosen]
    groups = sample_groups(setup._replace(n_samples=n_samples), draws, judge, PREFLIGHT)
    judged = [each for group in groups for each in group.judged]
    require_verdicts(judged, "rollouts before the first step")
    values = [each.verdict.value for each in judged if each.verdict.value is not None]
    lengths = sorted(each.completion.n_tokens for each in judged)
    n_cut = sum(each.completion.finish_reason == "length" for each in judged)
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    share = compute_solved_share(judged, setup)
    parts = [
        f"{len(judged)} rollouts before the first step" + ("" if share is None else f": {share:.0%} right"),
        f"reward {mean:.3g} with a spread of {spread:.3g}",
        f"{sum(group.has_signal for group in groups)} of {len(groups)} groups with a signal{_describe_equal(groups)}",
        f"{lengths[0]}-{lengths[-1]} tokens, {lengths[len(lengths) // 2]} in the middle",
        f"{n_cut / len(judged):.0%} cut at {setup.sampling.max_tokens}",
    ]
    if len(values) < len(judged):
        parts.append(f"{len(judged) - len(values)} without a verdict")
    return "; ".join(parts)


def _describe_equal(groups: Sequence[Group]) -> str:
    """Returns of how many groups all rewards are equal, by their value, as ` (all 0 in 3, all 1 in 1)`."""
    values = Counter(group.equal_value for group in groups if group.equal_value is not None)
    parts = [f"all {value:.3g} in {count}" for value, count in sorted(values.items())]
    return f" ({', '.join(parts)})" if parts else ""
