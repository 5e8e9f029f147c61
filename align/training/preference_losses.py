"""Lists the preference losses of `dpo.loss` in a table, as TRL loss types or functions of our own.

A loss of our own is a function like `compute(logps, beta, label_smoothing)`, a line in `PREFERENCE_LOSSES` and a member
of the Literal in `align/settings/dpo.py`.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class PairLogps(NamedTuple):
    """The log-probabilities of the chosen and the rejected side of each pair, in nats; all (pairs,).

    They are summed over a side's tokens. Those of the reference are None for a loss without one.
    """

    chosen: Tensor
    rejected: Tensor
    reference_chosen: Tensor | None
    reference_rejected: Tensor | None
    n_chosen_tokens: Tensor
    n_rejected_tokens: Tensor


class PreferenceLoss(NamedTuple):
    """A preference loss, given by the name of a TRL loss type or by a function `compute`.

    `compute` returns one loss per pair, (pairs,). Without `needs_reference` no reference model is loaded.
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
