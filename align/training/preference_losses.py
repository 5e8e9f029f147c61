"""The losses of `dpo.loss`: one table, whose entries are loss types of TRL or functions of our own.

A loss of our own is a function like `compute(logps, beta, label_smoothing)`, a line in `PREFERENCE_LOSSES` and a member
of the Literal in `align/settings/dpo.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class PairLogps(NamedTuple):
    """Log-probabilities of both sides of each pair, summed over a side's tokens; all (pairs,), natural logarithms.

    Those of the reference are None for a loss without one.
    """

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor | None
    reference_rejected: Tensor | None
    n_chosen_tokens: Tensor
    n_rejected_tokens: Tensor


class PreferenceLoss(NamedTuple):
    """A preference loss: either TRL's loss type of that name, or `compute`, which returns one loss per pair, (pairs,).

    Without `needs_reference` no reference model is loaded.
    """

    trl_type: str | None = None
    compute: Callable[[PairLogps, float, float], Tensor] | None = None
    needs_reference: bool = True


PREFERENCE_LOSSES = {
    "sigmoid": PreferenceLoss(trl_type="sigmoid"),
    "hinge": PreferenceLoss(trl_type="hinge"),
    "ipo": PreferenceLoss(trl_type="ipo"),
    "robust": PreferenceLoss(trl_type="robust"),
    "sigmoid_norm": PreferenceLoss(trl_type="sigmoid_norm"),
}
