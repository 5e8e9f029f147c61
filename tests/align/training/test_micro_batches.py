"""How an optimiser step's rows are cut into forward passes, and dealt among processes."""

from typing import Any

import datasets
import pytest

from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.training.micro_batches import CPU_TOKENS, plan_micro_batches
from qwen_align.align.training.whole_steps import StepRows

LENGTHS = [5, 40, 12, 12, 7, 31]


def plan(*, is_on_cpu: bool = False, **runtime: Any) -> list[list[int]]:
    return plan_micro_batches(LENGTHS, Runtime.model_validate(runtime), is_on_cpu=is_on_cpu)


def test_rows_go_by_length_as_many_as_fit() -> None:
    assert plan(micro_batch=4) == [[1, 5, 2, 3], [4, 0]]
    assert plan(micro_batch=4, micro_batch_tokens=45) == [[1], [5, 2], [3, 4, 0]]
    assert plan(micro_batch=1) == [[1], [5], [2], [3], [4], [0]]


def test_a_row_beyond_the_tokens_goes_alone() -> None:
    assert plan(micro_batch=8, micro_batch_tokens=20) == [[1], [5], [2], [3, 4], [0]]


def test_on_a_cpu_a_pass_keeps_to_its_caches() -> None:
    lengths = [CPU_TOKENS // 2] * 3
    assert plan_micro_batches(lengths, Runtime(micro_batch=8), is_on_cpu=True) == [[0, 1], [2]]
    assert plan_micro_batches(lengths, Runtime(micro_batch=8), is_on_cpu=False) == [[0, 1, 2]]
    assert plan_micro_batches(lengths, Runtime(micro_batch=8, micro_batch_tokens=10**9), is_on_cpu=True) == [[0, 1], [2]]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_the_rows_of_a_step_in_order(world: int) -> None:
    rows = datasets.Dataset.from_dict({"input_ids": [[number] for number in range(13)]})
    dealt = [StepRows(rows, 6, rank, world) for rank in range(world)]
    assert [len(part) for part in dealt] == [2] * world, "of the thirteenth there is no full step"
    for step in range(2):
        found = [row["input_ids"][0] for part in dealt for row in part[step]]
        assert found == list(range(6 * step, 6 * step + 6))
