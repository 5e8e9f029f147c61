"""Policy and critic under DeepSpeed: clipped apart, and the policy left alone in a warm-up; on a stand-in of ZeRO.

The matrix of strategies trains with DeepSpeed itself (tests/strategies/).
"""

from math import inf
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from qwen_align.align.errors import StageError
from qwen_align.align.rl.zero_parts import ZeroParts, let_passes_differ


class Zero:
    """What ZeRO's optimisers do in a step, for one process: a norm of each group, and then a step of each.

    Groups may be parts of the optimiser's, as in ZeRO 3.
    """

    def __init__(self, groups: list[tuple[bool, list[float]]], group_of: dict[int, int] | None = None) -> None:
        weights = [torch.ones(len(gradient), requires_grad=True) for _, gradient in groups]
        self.single_partition_of_fp32_groups = weights
        self.gradients = [torch.tensor(gradient) for _, gradient in groups]
        if group_of is not None:
            self.sub_group_to_group_id = group_of
        numbers = range(len(groups)) if group_of is None else range(max(group_of.values()) + 1)
        is_value = {(group_of or {}).get(n, n): value for n, (value, _) in enumerate(groups)}
        empty = [{"params": [torch.zeros(1, requires_grad=True)], "is_value": is_value[n]} for n in numbers]
        self.optimizer = torch.optim.SGD(empty, lr=1.0)  # type: ignore[arg-type]
        self.clip_grad = 1.0

    def get_grad_norm_direct(self, gradient: Tensor) -> Tensor:
        return gradient.norm()

    def step(self) -> None:
        norms = [self.get_grad_norm_direct(gradient) for gradient in self.gradients]
        if not torch.stack(norms).isfinite().all():
            return
        for group, gradient in enumerate(self.gradients):
            self.single_partition_of_fp32_groups[group].grad = gradient.clone()
            self._optimizer_step(group)

    def _optimizer_step(self, group: int) -> None:
        weight = self.single_partition_of_fp32_groups[group]
        weight.data -= weight.grad

    @property
    def moves(self) -> list[list[float]]:
        return [(1 - weight.detach()).tolist() for weight in self.single_partition_of_fp32_groups]


def test_each_part_is_clipped_by_the_norm_of_its_own_groups() -> None:
    zero = Zero([(False, [3.0]), (False, [4.0]), (True, [30.0, 40.0]), (True, [0.0])])
    parts = ZeroParts(zero, 1.0, lambda: False)
    zero.step()
    assert zero.clip_grad == 0.0
    assert parts.norms == {False: 5.0, True: 50.0}
    flat = [move for moves in zero.moves for move in moves]
    assert flat == pytest.approx([0.6, 0.8, 0.6, 0.8, 0.0], rel=1e-5)


def test_small_gradients_and_those_without_a_bound_are_left_as_they_are() -> None:
    for max_norm, gradient in ((10.0, [3.0, 4.0]), (0.0, [30.0, 40.0])):
        zero = Zero([(False, gradient), (True, [0.5])])
        ZeroParts(zero, max_norm, lambda: False)
        zero.step()
        assert zero.moves == [gradient, [0.5]]


def test_a_warm_up_steps_the_critic_alone() -> None:
    zero = Zero([(False, [3.0]), (True, [3.0, 4.0])])
    frozen = True
    parts = ZeroParts(zero, 1.0, lambda: frozen)
    zero.step()
    assert zero.moves[0] == [0.0]
    assert zero.moves[1] == pytest.approx([0.6, 0.8], rel=1e-5)
    assert parts.norms == {False: 0.0, True: 5.0}
    frozen = False
    zero.step()
    assert zero.moves[0] == pytest.approx([1.0], rel=1e-5)
    assert parts.norms == {False: 3.0, True: 5.0}


def test_parts_of_a_group_count_as_that_group() -> None:
    zero = Zero([(False, [3.0]), (False, [4.0]), (True, [2.0])], {0: 0, 1: 0, 2: 1})
    parts = ZeroParts(zero, 1.0, lambda: False)
    zero.step()
    assert parts.norms == {False: 5.0, True: 2.0}


def test_the_norms_of_a_step_that_was_left_out_are_no_numbers_of_the_step_before() -> None:
    zero = Zero([(False, [3.0]), (True, [4.0])])
    parts = ZeroParts(zero, 1.0, lambda: False)
    zero.step()
    zero.gradients[0] = torch.tensor([inf])
    zero.step()
    assert parts.norms == {False: inf, True: inf}


class Coordinator:
    """What of ZeRO 3 fetches weights, and foresees them where it says that it has a trace."""

    def is_complete_trace(self) -> bool:
        return True

    def is_record_trace(self) -> bool:
        return True


def test_nothing_is_foreseen_of_passes_that_differ() -> None:
    coordinator = Coordinator()
    zero: Any = SimpleNamespace(parameter_offload=SimpleNamespace(get_param_coordinator=lambda: coordinator))
    let_passes_differ(zero)
    assert not coordinator.is_complete_trace()
    assert not coordinator.is_record_trace()
    other: Any = SimpleNamespace(parameter_offload=SimpleNamespace(get_param_coordinator=object))
    with pytest.raises(StageError, match="object has no is_complete_trace, is_record_trace"):
        let_passes_differ(other)


def test_an_optimiser_that_clips_otherwise_is_refused() -> None:
    unknown: Any = object()
    with pytest.raises(StageError, match="DeepSpeed's object has no _optimizer_step, step"):
        ZeroParts(unknown, 1.0, lambda: False)
