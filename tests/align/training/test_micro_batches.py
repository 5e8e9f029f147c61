"""How an optimiser step's rows are cut into forward passes, and dealt among processes."""

from typing import Any

import datasets
import pytest

from qwen_align.align.settings.pass_limits import CPU_TOKENS, get_pass_limits
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.training.micro_batches import plan_micro_batches
from qwen_align.align.training.whole_steps import StepRows

LENGTHS = [5, 40, 12, 12, 7, 31]


def plan(device: str = "cuda", *, is_padded: bool = False, **runtime: Any) -> list[list[int]]:
    return plan_micro_batches(LENGTHS, get_pass_limits(Runtime.model_validate(runtime), device), is_padded=is_padded)


def test_packed_rows_fill_passes_by_their_tokens() -> None:
    assert plan(micro_batch=2) == [[1, 5, 4], [2, 3, 0]], "as many as two of the longest, 80"
    assert plan(micro_batch_tokens=45) == [[1, 0], [5, 2], [3, 4]]


def test_padded_rows_go_with_others_of_their_length() -> None:
    assert plan(is_padded=True, micro_batch=2) == [[1, 5], [2, 3, 4, 0]]
    assert plan(is_padded=True, micro_batch_tokens=45) == [[1], [5], [2, 3, 4], [0]]


@pytest.mark.parametrize("is_padded", [False, True])
def test_a_row_beyond_the_tokens_goes_alone(is_padded: bool) -> None:
    passes = plan(is_padded=is_padded, micro_batch_tokens=20)
    assert passes[:2] == [[1], [5]]
    assert sorted(row for part in passes for row in part) == list(range(6))


def test_on_a_cpu_a_pass_keeps_to_its_caches_unless_told_otherwise() -> None:
    lengths = [CPU_TOKENS // 2] * 3
    for device, settings, passes in (
        ("cpu", {}, [[0, 1], [2]]),
        ("cuda", {}, [[0, 1, 2]]),
        ("cpu", {"micro_batch_tokens": 10**9}, [[0, 1, 2]]),
    ):
        limits = get_pass_limits(Runtime.model_validate(settings), device)
        assert plan_micro_batches(lengths, limits, is_padded=False) == passes


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_the_rows_of_a_step_in_order(world: int) -> None:
    rows = datasets.Dataset.from_dict({"input_ids": [[number] for number in range(13)]})
    dealt = [StepRows(rows, 6, rank, world) for rank in range(world)]
    assert [len(part) for part in dealt] == [2] * world, "of the thirteenth there is no full step"
    for step in range(2):
        found = [row["input_ids"][0] for part in dealt for row in part[step]]
        assert found == list(range(6 * step, 6 * step + 6))
