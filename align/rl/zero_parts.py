"""Has DeepSpeed's optimiser update policy and critic as ours does: clipped apart, and the critic alone in its warm-up.

DeepSpeed knows one norm of all gradients, and steps every parameter, those without a gradient with one of zero. A
critic's gradients are larger by orders of magnitude and would scale the policy's; and Adam's bias correction would
count the steps of a warm-up, in which the policy has no gradients. The methods that are wrapped here are those of
ZeRO 1 to 3 of DeepSpeed 0.19; a test holds them.
"""

from collections.abc import Callable
from math import inf
from typing import Any

import torch
from torch import Tensor

from qwen_align.align.errors import StageError

NORM_METHODS = ("get_grad_norm_direct", "complete_grad_norm_calculation_for_cpu_offload")
TRACE_METHODS = ("is_complete_trace", "is_record_trace")
STEP_METHODS = ("_optimizer_step", "step")


class ZeroParts:
    """A ZeRO optimiser whose parameter groups are the policy's or the critic's, each clipped to `max_norm` (0: never).

    `is_frozen` says whether the policy is left as it is, with its moments, in the present step. `norms` are those of
    the last step: of the policy (False) and the critic (True), before they were clipped.
    """

    def __init__(self, zero: Any, max_norm: float, is_frozen: Callable[[], bool]) -> None:
        missing = [name for name in STEP_METHODS if not hasattr(zero, name)]
        if missing or not any(hasattr(zero, name) for name in NORM_METHODS):
            raise StageError(
                f"DeepSpeed's {type(zero).__name__} has no {', '.join(missing) or ' or '.join(NORM_METHODS)}: this "
                "version clips otherwise than 0.19, and PPO needs policy and critic apart; take strategy ddp or fsdp2"
            )
        self.norms = {False: 0.0, True: 0.0}
        self._zero, self._max_norm, self._is_frozen = zero, max_norm, is_frozen
        self._group_norms: list[Tensor] = []
        self._step_group = zero._optimizer_step
        zero.clip_grad = 0.0
        for name in NORM_METHODS:
            if hasattr(zero, name):
                setattr(zero, name, self._record_norms(getattr(zero, name)))
        zero.step = self._begin_step(zero.step)
        zero._optimizer_step = self._step_part

    def _begin_step(self, step: Callable[..., Any]) -> Callable[..., Any]:
        def begin_and_step(*args: Any, **kwargs: Any) -> Any:
            self._group_norms.clear()
            self.norms = dict.fromkeys(self.norms, inf)  # what remains where DeepSpeed leaves a step out
            return step(*args, **kwargs)

        return begin_and_step

    def _record_norms(self, measure: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function that measures a group's norm over all processes and keeps it. Groups come in order."""

        def measure_and_keep(*args: Any, **kwargs: Any) -> Any:
            norm = measure(*args, **kwargs)
            self._group_norms.append(torch.as_tensor(norm).detach().float())
            return norm

        return measure_and_keep

    def _step_part(self, group: int) -> None:
        """Clips the gradients of a group to the norm of its part, and steps it where the part is trained."""
        if len(self._group_norms) != self._n_groups:
            raise StageError(f"DeepSpeed measured {len(self._group_norms)} norms of {self._n_groups} groups")
        is_value = self._is_value(group)
        if group == 0:
            self._set_norms()
        if self._is_frozen() and not is_value:
            return
        norm = self.norms[is_value]
        if self._max_norm and not norm <= self._max_norm:  # as torch clips; a NaN stays one
            gradients = self._groups[group].grad
            assert gradients is not None
            gradients.mul_(self._max_norm / (norm + 1e-6))
        self._step_group(group)

    def _set_norms(self) -> None:
        """Sets the norms of policy and critic from those of their groups."""
        for part in (False, True):
            squares = [norm.square().cpu() for n, norm in enumerate(self._group_norms) if self._is_value(n) is part]
            is_left_out = not part and self._is_frozen()
            self.norms[part] = float(torch.stack(squares).sum().sqrt()) if squares and not is_left_out else 0.0

    @property
    def _groups(self) -> list[Tensor]:
        """Returns this process's part of each group's weights, with which the optimiser steps."""
        zero = self._zero
        groups = getattr(zero, "single_partition_of_fp32_groups", None)
        return list(zero.fp32_partitioned_groups_flat if groups is None else groups)

    @property
    def _n_groups(self) -> int:
        return len(self._groups)

    def _is_value(self, group: int) -> bool:
        """Returns whether a group is the critic's. ZeRO 3 cuts the optimiser's groups into smaller ones."""
        number = getattr(self._zero, "sub_group_to_group_id", {}).get(group, group)
        return bool(self._param_groups[number]["is_value"])

    @property
    def _param_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = self._zero.optimizer.param_groups
        return groups


def let_passes_differ(zero: Any) -> None:
    """Has a ZeRO 3 optimiser fetch weights when a module needs them, and not as the pass before lets it foresee.

    Passes of online RL are of the policy, the critic or both, with adapters or without: DeepSpeed would find weights on
    their way that a pass does not use, and stop with an AssertionError or a tracing error.
    """
    coordinator = zero.parameter_offload.get_param_coordinator()
    missing = [name for name in TRACE_METHODS if not hasattr(coordinator, name)]
    if missing:
        raise StageError(f"DeepSpeed's {type(coordinator).__name__} has no {', '.join(missing)}; take strategy fsdp2")
    for name in TRACE_METHODS:
        setattr(coordinator, name, lambda: False)
