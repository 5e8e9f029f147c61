"""Computes a step's metrics for metrics.jsonl and the watchdogs, and chooses completions for samples.jsonl."""

from collections.abc import Iterator
from typing import Any

import torch

from qwen_align.align.rl.collect import Group, RolloutBatch
from qwen_align.align.rl.rollouts import Rollouts
from qwen_align.align.training.distributed import get_world_size


def compute_batch_metrics(batch: RolloutBatch) -> dict[str, float]:
    """Returns the metrics of a rollout batch: rewards, lengths, group counts and seconds.

    They are of all groups that were tried, or the reward would be that of a selection.
    """
    judged = [each for group in batch.tried for each in group.judged]
    values = [each.verdict.value for each in judged if each.verdict.value is not None]
    lengths = [each.completion.n_tokens for each in judged]
    metrics = {
        "reward": _compute_mean(values),
        "reward_std": _compute_mean([_compute_deviation(group) for group in batch.tried]),
        "completions/mean_tokens": _compute_mean(lengths),
        "completions/max_tokens": float(max(lengths)),
        "completions/clipped_share": _compute_mean([each.completion.finish_reason == "length" for each in judged]),
        "completions/no_verdict_share": 1 - len(values) / len(judged),
        "groups/tried": float(len(batch.tried)),
        "groups/used": float(len(batch.groups)),
        "groups/no_signal_share": _compute_mean([not group.has_signal for group in batch.tried]),
        "groups/all_zero_share": _compute_mean([group.equal_value == 0.0 for group in batch.tried]),
        "groups/all_one_share": _compute_mean([group.equal_value == 1.0 for group in batch.tried]),
        "time/sampling": batch.seconds_sampling,
        "time/waiting_for_verdicts": batch.seconds_waiting,
    }
    if batch.seconds_sampling:  # 0 of one that a checkpoint held
        metrics["speed/drawn_tokens_per_second"] = sum(lengths) / batch.seconds_sampling / get_world_size()
    all_parts = [each.verdict.parts for each in judged if each.verdict.parts]
    for label in dict.fromkeys(label for parts in all_parts for label in parts):
        part_values = [parts[label].value for parts in all_parts if label in parts]
        metrics[f"reward/{label}"] = _compute_mean([value for value in part_values if value is not None])
    return metrics


def compute_mask_metrics(rollouts: Rollouts) -> dict[str, float]:
    """Returns the share of the completions' tokens that loss masks exclude from the loss.

    The dict is empty where they exclude none.
    """
    masked_share = 1 - float(rollouts.loss_mask.float().mean())
    return {"completions/masked_share": masked_share} if masked_share else {}


def choose_samples(batch: RolloutBatch, rollouts: Rollouts, n: int) -> Iterator[dict[str, Any]]:
    """Yields `n` trained completions for samples.jsonl, spread from the highest to the lowest advantage."""
    rows = [(group, judged) for group in batch.groups for judged in group.judged]
    advantages = rollouts.split_by_completion(rollouts.advantages)
    masks = rollouts.split_by_completion(rollouts.loss_mask)
    means = [
        float(part[in_loss].mean()) if in_loss.any() else 0.0 for part, in_loss in zip(advantages, masks, strict=True)
    ]
    ordered = sorted(range(len(rows)), key=lambda row: (-means[row], row))
    indices = torch.linspace(0, len(ordered) - 1, min(n, len(ordered))).tolist()
    for row in (ordered[round(index)] for index in indices):
        group, judged = rows[row]
        verdict = judged.verdict
        shown = judged.completion.model_copy(update={"verdicts": verdict.parts or {}}).model_dump(exclude_none=True)
        yield {
            **shown,
            "value": verdict.value,
            "reason": verdict.reason,
            "advantage": means[row],
            "place": group.draw.position,
        }


def _compute_deviation(group: Group) -> float:
    """Returns the standard deviation of a group's rewards.

    It is 0 with fewer than two.
    """
    values = [value for value in group.values if value is not None]
    return float(torch.tensor(values).std()) if len(values) > 1 else 0.0


def _compute_mean(values: list[Any]) -> float:
    """Returns the mean of a list of values.

    It is 0 without values.
    """
    return sum(values) / len(values) if values else 0.0
