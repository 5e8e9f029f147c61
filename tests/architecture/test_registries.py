"""The tables of what varies: the names that settings allow are the entries that the tables hold."""

from typing import get_args

import trl
from trl import DPOConfig

from qwen_align.align.settings.dpo import Dpo
from qwen_align.align.training.preference_losses import PREFERENCE_LOSSES


def test_preference_losses_of_the_settings_are_those_of_the_table() -> None:
    allowed = set(get_args(Dpo.model_fields["loss"].annotation))
    missing = {f"PREFERENCE_LOSSES has no '{name}'" for name in allowed - set(PREFERENCE_LOSSES)}
    missing |= {f"the Literal of Dpo.loss has no '{name}'" for name in set(PREFERENCE_LOSSES) - allowed}
    assert not missing


def test_a_preference_loss_is_either_trls_or_our_own() -> None:
    for name, loss in PREFERENCE_LOSSES.items():
        assert (loss.trl_type is None) != (loss.compute is None), name
        if loss.trl_type is not None:
            assert f"'{loss.trl_type}'" in str(DPOConfig.__doc__), (
                f"{name}: TRL {trl.__version__} has no such loss type"
            )
            assert loss.needs_reference, f"{name}: TRL computes every loss with a reference"
