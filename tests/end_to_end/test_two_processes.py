"""A stage in two processes makes what it makes in one."""

from pathlib import Path

import pytest
import torch

from tests.end_to_end.ladder import metrics, stage, weights

pytestmark = pytest.mark.slow(seconds=10)


def test_two_processes_of_sft_equal_one(trained_by_two: Path, trained: Path) -> None:
    """Adam divides a gradient by its own size, so where that is about 0 rounding moves a weight here and there."""
    for left, right in zip(metrics(trained, "few_sft"), metrics(trained_by_two, "few_sft"), strict=True):
        for figure in ("loss", "grad_norm", "entropy"):
            assert left[figure] == pytest.approx(right[figure], rel=1e-5), (left["step"], figure)
    one, two = (weights(home, "few_sft") for home in (trained, trained_by_two))
    differences = torch.cat([(one[name] - two[name]).abs().flatten() for name in one])
    assert differences.max() < 2e-4  # a fifth of what the first step moves every weight by
    assert (differences > 1e-5).float().mean() < 1e-4


def test_two_processes_of_dpo_see_the_losses_of_one(trained_by_two: Path, trained: Path) -> None:
    one, two = ([line["loss"] for line in metrics(home, "dpo")] for home in (trained, trained_by_two))
    assert two == pytest.approx(one, abs=1e-4)


def test_two_processes_draw_what_one_draws(trained_by_two: Path, trained: Path) -> None:
    for name, file in (("rollout", "rows.jsonl"), ("evaluate", "completions.jsonl")):
        one, two = (stage(home, name) / file for home in (trained, trained_by_two))
        assert one.read_text() == two.read_text()
    one, two = (metrics(home, "grpo")[0] for home in (trained, trained_by_two))
    for name in ("completions/mean_tokens", "completions/max_tokens", "reward"):
        assert one[name] == two[name], name


def test_two_processes_of_online_rl_see_the_losses_of_one(trained_by_two: Path, trained: Path) -> None:
    for name, n_updates in {"updates_grpo": 12, "ppo": 6}.items():
        one, two = (metrics(home, name) for home in (trained, trained_by_two))
        assert len(one) == len(two) == n_updates
        for left, right in zip(one, two, strict=True):
            for figure in ("loss", "entropy", "reward", "value/loss", "kl", "ptx/loss"):
                if figure in left:
                    assert left[figure] == pytest.approx(right[figure], abs=1e-5), (left["step"], figure)
