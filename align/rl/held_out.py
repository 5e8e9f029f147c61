"""Measures accuracy on the held-out set during training and summarises rollouts before the first step."""

import math
import random
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from qwen_align.align.evaluation import statistics
from qwen_align.align.evaluation.scoring import require_verdicts
from qwen_align.align.generation.requests import RenderedProblem
from qwen_align.align.rl.collect import Group, RolloutSetup, compute_solved_share, sample_groups
from qwen_align.align.rl.judge import Judge
from qwen_align.align.rl.prompt_stream import PromptDraw
from qwen_align.align.rows import Completion
from qwen_align.reward.verdict import Verdict

# In the place of a step, so that neither draws the numbers of a training step.
PREFLIGHT, EVALUATION = -1, -2
PREFLIGHT_ROLLOUTS = 16


class HeldOutFigures(NamedTuple):
    """The figures of the held-out set, which are those of an `evaluate` stage on it."""

    accuracy: float
    stderr: float
    mean_reward: float
    no_verdict: int


def measure_held_out(
    setup: RolloutSetup, questions: Sequence[RenderedProblem], judge: Judge, *, max_no_verdict_share: float
) -> HeldOutFigures:
    """Measures the policy on a set of questions.

    The random numbers are the same every time, so that changes are the policy's. Raises StageError where more than
    `max_no_verdict_share` of the completions have no verdict.
    """
    draws = [PromptDraw(position, question) for position, question in enumerate(questions)]
    groups = sample_groups(setup, draws, judge, EVALUATION)
    verdicts = [each.verdict for group in groups for each in group.judged]
    require_verdicts(verdicts, "held_out", max_missing_share=max_no_verdict_share)
    scores = {str(group.draw.position): [_to_score(*each) for each in group.judged] for group in groups}
    summary = statistics.summarise_samples(scores, setup.n_samples)
    accuracy = summary.accuracy
    return HeldOutFigures(accuracy.mean, accuracy.se or 0.0, summary.mean_reward.mean, summary.n_no_verdict)


def _to_score(completion: Completion, verdict: Verdict) -> statistics.SampleScore:
    """Converts a judged completion to a sample of the statistics."""
    stopped, n_tokens = completion.finish_reason == "stop", completion.n_tokens
    return statistics.SampleScore(verdict.value, stopped, obeyed=None, n_tokens=n_tokens, answer=None)


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
    require_verdicts([each.verdict for each in judged], "rollouts before the first step")
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
