"""Combines the verdicts of several rewards on the same completions so that shaping never outweighs a right answer.

With W the sum of the outcomes' weights, O the weighted sum of their values and S that of the shaping rewards:

- a right completion (every outcome says 1, every gate is passed) gets W + S,
- any other gets KEPT_SHARE * O + S, and O counts 0 where a gate is not passed.

An outcome counts from 0 to 1 and shaping up to its bound, whatever a
reward returns. S is scaled down, if need be, so that it stays within SHAPING_SHARE * W either way. So whatever the
weights, a right completion gets at least 0.75 W and a wrong one at most 0.65 W: no shaping makes a wrong answer beat a
right one, and among wrong answers the one nearer to right still gets more of its outcome. Without shaping and gates the
sum is O, of the values as they are.
"""

import math
import time
from collections.abc import Sequence

from qwen_align.align.rows import Completion
from qwen_align.reward.base import BaseReward
from qwen_align.reward.verdict import Verdict

SHAPING_SHARE = 0.25  # of W; below half of what right and wrong differ by, with room for partial credit
KEPT_SHARE = 0.4  # of a partial outcome's credit; KEPT_SHARE + SHAPING_SHARE < 1 - SHAPING_SHARE


def judge_all(
    rewards: Sequence[BaseReward], completions: Sequence[Completion], *, deadline_s: float | None = None
) -> list[Verdict]:
    """Judges completions by several rewards and returns one combined verdict for each completion.

    Of outcomes that judge golds of different forms a completion gets the one that its row names (`select_rewards`). The
    combined value is None if one reward has no value.

    After `deadline_s` seconds of wall time what is not judged yet has no verdict. For asyncio:
    `await asyncio.to_thread(judge_all, rewards, completions)`.
    """
    deadline = None if deadline_s is None else time.monotonic() + deadline_s
    indices_by_name: dict[str, list[int]] = {}
    for index, completion in enumerate(completions):
        indices_by_name.setdefault(completion.reward, []).append(index)
    if len(indices_by_name) == 1:
        return _judge_alike(select_rewards(rewards, completions[0].reward), completions, deadline)
    verdicts: dict[int, Verdict] = {}
    for name, indices in indices_by_name.items():
        judged = _judge_alike(select_rewards(rewards, name), [completions[index] for index in indices], deadline)
        verdicts.update(zip(indices, judged, strict=True))
    return [verdicts[index] for index in range(len(completions))]


def select_rewards(rewards: Sequence[BaseReward], row_reward: str) -> list[BaseReward]:
    """Returns the rewards that judge a row whose own reward is named `row_reward`.

    Where that one is among them, the others that judge a gold are left out: a gold of code is none of mathematics. A
    row that names none of them is judged by all.
    """
    if not any(reward.judges_gold and reward.kind == row_reward for reward in rewards):
        return list(rewards)
    return [reward for reward in rewards if not reward.judges_gold or reward.kind == row_reward]


def _judge_alike(
    rewards: Sequence[BaseReward], completions: Sequence[Completion], deadline: float | None
) -> list[Verdict]:
    """Judges completions by the same rewards and returns one combined verdict for each."""
    parts: list[dict[str, Verdict]] = [{} for _ in completions]
    outcome_labels = {reward.label for reward in rewards if reward.is_outcome}
    for reward in sorted(rewards, key=lambda reward: reward.needs_outcome):
        rows = completions
        if reward.needs_outcome:
            outcome_verdicts = [{label: part[label] for label in part if label in outcome_labels} for part in parts]
            rows = [
                completion.model_copy(update={"verdicts": verdicts})
                for completion, verdicts in zip(completions, outcome_verdicts, strict=True)
            ]
        for part, verdict in zip(parts, reward.judge_many(rows, deadline=deadline), strict=True):
            part[reward.label] = verdict
    scale = compute_shaping_scale(rewards)
    labels = [reward.label for reward in rewards]
    return [_combine_parts(rewards, {label: part[label] for label in labels}, scale) for part in parts]


def is_task_solved(rewards: Sequence[BaseReward], verdict: Verdict) -> bool | None:
    """Returns whether all rewards that can tell say that the task was solved.

    Returns None if none can tell or one has no verdict.
    """
    parts = verdict.parts or {}
    answers = [reward.is_solved(parts[reward.label]) for reward in rewards if reward.label in parts]
    if verdict.value is None or all(answer is None for answer in answers):
        return None
    return all(answer is not False for answer in answers)


def compute_shaping_scale(rewards: Sequence[BaseReward]) -> float:
    """Computes the factor that scales the weights of the shaping rewards down, 1.0 if they are small enough."""
    outcomes = sum(reward.weight for reward in rewards if reward.is_outcome)
    reach = sum(abs(reward.weight) * reward.bound for reward in rewards if not reward.is_outcome)
    if not outcomes or reach <= SHAPING_SHARE * outcomes:
        return 1.0
    return SHAPING_SHARE * outcomes / reach


def _combine_parts(rewards: Sequence[BaseReward], parts: dict[str, Verdict], scale: float) -> Verdict:
    """Combines the verdicts of all rewards on one completion into one verdict."""
    for part in parts.values():
        if part.value is None:
            return Verdict(value=None, reason=part.reason, parts=parts)
    values = {label: part.value for label, part in parts.items() if part.value is not None}
    outcomes = [reward for reward in rewards if reward.is_outcome]
    shaping_rewards = [reward for reward in rewards if not reward.is_outcome]
    if outcomes and (shaping_rewards or any(reward.gate for reward in rewards)):
        passed = all(values[reward.label] >= 1.0 for reward in rewards if reward.gate)
        paid = _compute_outcome_value(outcomes, values, passed=passed)
    else:
        paid = math.fsum(reward.weight * values[reward.label] for reward in outcomes)
    shaping_value = math.fsum(
        reward.weight * max(-reward.bound, min(reward.bound, values[reward.label])) for reward in shaping_rewards
    )
    reason = "; ".join(part.reason for part in parts.values())
    value = paid + scale * shaping_value
    if not math.isfinite(value):
        return Verdict(value=None, reason="rewards beyond any number", parts=parts)
    return Verdict(value=value, reason=reason, parts=parts)


def _compute_outcome_value(outcomes: Sequence[BaseReward], values: dict[str, float], *, passed: bool) -> float:
    """Computes what a completion earns from its outcome rewards when there are also shaping rewards or gates.

    Each value is clipped to 0 to 1.
    """
    if not passed:
        return 0.0
    is_right = all(values[reward.label] >= 1.0 for reward in outcomes)
    paid = math.fsum(reward.weight * max(0.0, min(1.0, values[reward.label])) for reward in outcomes)
    return paid if is_right else KEPT_SHARE * paid
