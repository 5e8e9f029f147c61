"""A step in numbers, for metrics.jsonl and the watchdogs, and in completions, for people to read."""

from collections.abc import Iterator
from typing import Any

import torch

from qwen_align.align.rl.collect import Group, Played
from qwen_align.align.rl.rollouts import Rollouts


def of_play(played: Played) -> dict[str, float]:
    """Of all groups that were tried, those without signal included, or the reward would be that of a selection."""
    judged = [one for group in played.tried for one in group.judged]
    values = [one.verdict.value for one in judged if one.verdict.value is not None]
    tokens = [one.row.n_tokens for one in judged]
    found = {
        "reward": _mean(values),
        "reward_std": _mean([_deviation(group) for group in played.tried]),
        "completions/mean_tokens": _mean(tokens),
        "completions/max_tokens": float(max(tokens)),
        "completions/clipped_share": _mean([one.row.finish_reason == "length" for one in judged]),
        "completions/no_verdict_share": 1 - len(values) / len(judged),
        "groups/tried": float(len(played.tried)),
        "groups/used": float(len(played.groups)),
        "groups/no_signal_share": _mean([not group.has_signal for group in played.tried]),
        "time/sampling": played.seconds_sampling,
        "time/waiting_for_verdicts": played.seconds_waiting,
    }
    labels = dict.fromkeys(label for one in judged for label in one.verdict.parts or {})
    for label in labels:
        said = [one.verdict.parts[label].value for one in judged if one.verdict.parts and label in one.verdict.parts]
        found[f"reward/{label}"] = _mean([value for value in said if value is not None])
    return found


def of_masks(rollouts: Rollouts) -> dict[str, float]:
    """The share of the completions' tokens that loss masks leave out; nothing where they leave out none."""
    masked_share = 1 - float(rollouts.loss_mask.float().mean())
    return {"completions/masked_share": masked_share} if masked_share else {}


def samples_to_read(played: Played, rollouts: Rollouts, n: int) -> Iterator[dict[str, Any]]:
    """`n` completions of those trained, from the highest advantage to the lowest, with everything said of them."""
    rows = [(group, one) for group in played.groups for one in group.judged]
    parts = zip(rollouts.of_rows(rollouts.advantages), rollouts.of_rows(rollouts.loss_mask), strict=True)
    means = [float(part[in_loss].mean()) if in_loss.any() else 0.0 for part, in_loss in parts]
    ordered = sorted(range(len(rows)), key=lambda row: (-means[row], row))
    chosen = [ordered[round(place)] for place in torch.linspace(0, len(ordered) - 1, min(n, len(ordered))).tolist()]
    for row in chosen:
        group, one = rows[row]
        shown = one.row.model_copy(update={"verdicts": one.verdict.parts or {}}).model_dump(exclude_none=True)
        yield {
            **shown,
            "value": one.verdict.value,
            "reason": one.verdict.reason,
            "advantage": means[row],
            "place": group.drawn.place,
        }


def _deviation(group: Group) -> float:
    values = [value for value in group.values if value is not None]
    return float(torch.tensor(values).std()) if len(values) > 1 else 0.0


def _mean(values: list[Any]) -> float:
    return sum(values) / len(values) if values else 0.0
