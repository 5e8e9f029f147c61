"""Tables of what varies in RL and preference learning: settings and tables agree, and a toy of each can be added."""

from pathlib import Path
from typing import Any, get_args

import pytest
import trl
from trl import DPOConfig

from qwen_align.align.rl.assign_advantages import ADVANTAGE_ESTIMATORS
from qwen_align.align.rl.losses import KL_ESTIMATORS, POLICY_LOSSES
from qwen_align.align.settings.dpo import Dpo
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.online_rl import Kl
from qwen_align.align.training.preference_losses import PREFERENCE_LOSSES
from tests.evidence.planting import Copy

# Name of the table -> (the table, its file, the settings class and field that offer it, their file).
TABLES: dict[str, tuple[dict[str, Any], str, Any, str, str]] = {
    "ADVANTAGE_ESTIMATORS": (
        ADVANTAGE_ESTIMATORS,
        "align/rl/assign_advantages.py",
        Grpo,
        "advantage",
        "align/settings/grpo.py",
    ),
    "POLICY_LOSSES": (POLICY_LOSSES, "align/rl/losses.py", Grpo, "loss", "align/settings/grpo.py"),
    "KL_ESTIMATORS": (KL_ESTIMATORS, "align/rl/losses.py", Kl, "estimator", "align/settings/online_rl.py"),
}


@pytest.mark.parametrize("name", TABLES)
def test_settings_offer_what_the_table_holds(name: str) -> None:
    table, table_file, settings, field, settings_file = TABLES[name]
    offered = get_args(settings.model_fields[field].annotation)
    assert set(offered) == set(table), (
        f"not in the Literal of {settings.__name__}.{field} in {settings_file}: {sorted(set(table) - set(offered))}; "
        f"not in {name} of {table_file}: {sorted(set(offered) - set(table))}"
    )


TOY_ESTIMATOR = '''
def estimate_best_of_group(rollouts: Rollouts, settings: Grpo, kl_coefficient: float) -> Tensor:
    """Returns each token's advantage: its completion's reward against the best of its group; flat."""
    rewards_P_G = compute_group_rewards(rollouts, settings, kl_coefficient)
    return spread_over_tokens(rollouts, rewards_P_G - rewards_P_G.amax(dim=1, keepdim=True))


'''
TOY_LOSS = '''
def compute_unclipped_surrogate(tokens: PolicyTokens) -> Tensor:
    """Returns the loss of each token with its ratio unbounded; (B, T)."""
    return -tokens.ratios * tokens.advantages * tokens.mask


'''
TOY_KL = '''
def estimate_absolute(log_ratios: Tensor) -> Tensor:
    """Returns the absolute log ratio."""
    return log_ratios.abs()


'''
# Each in three edits: the function, its line in the table, its name in the Literal; and the text before which it goes.
EDITS = [
    ("align/rl/assign_advantages.py", "AdvantageEstimator = ", TOY_ESTIMATOR),
    ("align/rl/assign_advantages.py", '    "rloo": estimate', '    "best": estimate_best_of_group,\n'),
    ("align/settings/grpo.py", '"rloo", "reinforce++"]', '"best", '),
    ("align/rl/losses.py", "@dataclass(frozen=True)\nclass PolicyLoss", TOY_LOSS),
    ("align/rl/losses.py", '    "dapo": PolicyLoss', '    "unclipped": PolicyLoss(compute_unclipped_surrogate),\n'),
    ("align/settings/grpo.py", '"gspo", "cispo"]', '"unclipped", '),
    ("align/rl/losses.py", "KL_ESTIMATORS: dict", TOY_KL),
    ("align/rl/losses.py", '"k3": estimate_k3}', '"absolute": estimate_absolute, '),
    ("align/settings/online_rl.py", '"k2", "k3"]', '"absolute", '),
]
STEP = """
import json, sys
from pathlib import Path
from qwen_align.align.context import Context
from qwen_align.align.rows import to_json_line
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.stages import grpo
from qwen_align.data_builders import Arithmetic

model, folder = map(Path, sys.argv[1:])
for name in ("data", "out"):
    (folder / name).mkdir()
problems = Arithmetic(rows="problem", n=4, steps=[2]).generate(0)
(folder / "data" / "rows.jsonl").write_text("".join(to_json_line(row) + "\\n" for row in problems))
settings = Grpo.model_validate({
    "kind": "grpo", "name": "grpo", "from_model": "base", "from_data": ["data"], "rewards": [{"kind": "random"}],
    "steps": 1, "prompts_per_step": 2, "completions_per_prompt": 4, "learning_rate": 1e-3,
    "sampling": {"temperature": 1.0, "max_tokens": 8}, "keep_samples": 8,
    "advantage": "best", "loss": "unclipped", "kl": {"coefficient": 0.1, "estimator": "absolute"},
})
runtime = Runtime(device="cpu", micro_batch=4, generation_batch=16)
grpo.run(settings, {"base": model, "data": folder / "data"}, folder / "out", Context(folder / "out", 0, runtime))
samples = [json.loads(line) for line in (folder / "out" / "samples.jsonl").read_text().splitlines()]
best = {}
for sample in samples:
    best[sample["prompt_id"]] = max(sample["value"], best.get(sample["prompt_id"], 0.0))
assert len(samples) == 8
assert all(abs(sample["advantage"] - (sample["value"] - best[sample["prompt_id"]])) < 1e-6 for sample in samples)
"""


@pytest.mark.slow
def test_a_toy_of_each_table_takes_a_function_a_line_and_a_member_and_trains(tiny_model: Path, tmp_path: Path) -> None:
    copy = Copy(tmp_path / "copy")
    for file, before, text in EDITS:
        path = copy.root / file
        source = path.read_text(encoding="utf-8")
        assert source.count(before) == 1, (file, before)
        path.write_text(source.replace(before, text.lstrip("\n") + before), encoding="utf-8")
    (tmp_path / "run").mkdir()
    ended = copy.python("-c", STEP, str(tiny_model), str(tmp_path / "run"), limit_s=300)
    assert ended.code == 0, ended.said


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
