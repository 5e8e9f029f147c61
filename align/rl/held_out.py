"""Accuracy on questions that are not trained, while training goes on; and a few rollouts before it begins."""

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

from qwen_align.align.errors import DataError
from qwen_align.align.evaluation import statistics
from qwen_align.align.generation.requests import Asked
from qwen_align.align.rl.collect import Player, draw, solved_share
from qwen_align.align.rl.judge import Judge, check_judged
from qwen_align.align.rl.prompt_stream import Drawn

# In the place of a step, so that neither draws the numbers of a training step.
PREFLIGHT, EVALUATION = -1, -2
PREFLIGHT_ROLLOUTS = 16


class Accuracy(NamedTuple):
    """Mean over questions of the share of right answers, its standard error, and how many questions."""

    mean: float
    stderr: float
    n_questions: int


def accuracy(player: Player, asked: Sequence[Asked], judge: Judge) -> Accuracy:
    """The accuracy now; every time with the same random numbers, so that changes are the policy's."""
    groups = draw(player, [Drawn(place, one) for place, one in enumerate(asked)], judge, EVALUATION)
    shares = []
    for group in groups:
        share = solved_share(group.judged, player)
        if share is None:
            row, verdict = group.judged[0]
            raise DataError(f"held_out: question '{row.prompt_id}': {verdict.reason}; its gold is {row.gold!r:.60}")
        shares.append(share)
    found = statistics.estimate_mean(shares)
    return Accuracy(found.mean, found.se or 0.0, len(shares))


def preflight(player: Player, asked: Sequence[Asked], judge: Judge) -> str:
    """What a few rollouts of the untrained policy say, for people to read before they wait.

    Raises StageError when none of them has a verdict.
    """
    samples = min(player.samples, 4)
    n_prompts = min(len(asked), PREFLIGHT_ROLLOUTS // samples)
    chosen = random.Random(f"{player.seed}: preflight").sample(range(len(asked)), n_prompts)
    groups = draw(player._replace(samples=samples), [Drawn(place, asked[place]) for place in chosen], judge, PREFLIGHT)
    judged = [one for group in groups for one in group.judged]
    check_judged(judged, "rollouts before the first step")
    values = [one.verdict.value for one in judged if one.verdict.value is not None]
    tokens = sorted(one.row.n_tokens for one in judged)
    cut = sum(one.row.finish_reason == "length" for one in judged)
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    share = solved_share(judged, player)
    said = [
        f"{len(judged)} rollouts before the first step" + ("" if share is None else f": {share:.0%} right"),
        f"reward {mean:.3g} with a spread of {spread:.3g}",
        f"{sum(group.has_signal for group in groups)} of {len(groups)} groups with a signal",
        f"{tokens[0]}-{tokens[-1]} tokens, {tokens[len(tokens) // 2]} in the middle",
        f"{cut / len(judged):.0%} cut at {player.sampling.max_tokens}",
    ]
    if len(values) < len(judged):
        said.append(f"{len(judged) - len(values)} without a verdict")
    return "; ".join(said)
