"""Lists renamed settings.

The old name is refused with the new one, and is still used in the keys of stages.

A key holds the names that a field had when the first result was stored under it, so renaming a field leaves every
stored result where it is.
"""

from typing import Any

# Settings class -> {name of the field now: its name in keys, which recipes had before}.
RENAMED_FIELDS: dict[str, dict[str, str]] = {
    "ByPassRate": {"pass_rate_range": "band", "pass_rate_column": "column"},
    "Correction": {"max_weight": "most", "above_max": "beyond"},
    "Critic": {"loss_weight": "weight"},
    "DynamicSampling": {"max_prompts": "most_prompts"},
    "Entropy": {"coefficient_delta": "change", "max_coefficient": "most"},
    "Evaluate": {
        "completions_per_prompt": "samples",
        "thinking_switches": "switches",
        "best_of_n_scorer": "best_by",
    },
    "HeldOut": {"every_steps": "every", "completions_per_prompt": "samples"},
    "Kl": {
        "apply_to": "place",
        "importance_weighted": "weighted",
        "include_zero_advantage": "everywhere",
        "reference_sync_steps": "renew_every",
    },
    "OnlineRl": {
        "prompts_per_step": "prompts",
        "completions_per_prompt": "samples",
        "allow_truncated_sampling": "truncated_sampling",
        "prompt_sampler": "order",
        "importance_sampling_correction": "correction",
        "watchdogs": "watch",
    },
    "Ppo": {"whiten_advantages": "whiten"},
    "Pretrain": {"batch": "rows", "sequence_length": "block"},
    "RewardModel": {"center_rewards_coefficient": "centre"},
    "Rollout": {"completions_per_prompt": "samples", "thinking_switch": "switch"},
    "Runtime": {"generation_batch": "rollout_rows"},
    "Switch": {"method": "switch"},
    "Watch": {
        "patience_steps": "steps",
        "truncated_share": "clipped_share",
        "min_entropy_share": "entropy_share",
        "update_kl": "kl",
        "engine_mismatch": "mismatch",
    },
}

# Settings class -> {name of the field now: {its value now: the value in keys, which recipes had before}}.
RENAMED_VALUES: dict[str, dict[str, dict[Any, Any]]] = {
    "OnlineRl": {"allow_truncated_sampling": {True: "qwen"}},
    "Ppo": {"normalise_rewards": {"running_mean_std": "running"}},
    "Watch": {"stop_on": {"truncated": "clipped", "update_kl": "kl", "engine_mismatch": "mismatch"}},
}


def get_old_field_names(settings_class: type) -> dict[str, str]:
    """Returns {current name: old name} for the renamed fields of a settings class and its base classes."""
    names: dict[str, str] = {}
    for parent in reversed(settings_class.__mro__):
        names |= RENAMED_FIELDS.get(parent.__name__, {})
    return names


def get_old_field_values(settings_class: type) -> dict[str, dict[Any, Any]]:
    """Returns {field: {current value: old value}} for the renamed values of a settings class and its base classes."""
    values: dict[str, dict[Any, Any]] = {}
    for parent in reversed(settings_class.__mro__):
        values |= RENAMED_VALUES.get(parent.__name__, {})
    return values
