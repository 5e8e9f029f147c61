"""Builds optimiser parameter groups and the learning-rate schedule for a policy and its critic."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments, get_scheduler

from qwen_align.align.rl.actor import Actor


def group_parameters(
    actor: Actor, decayed: Collection[str], args: TrainingArguments, critic_learning_rate: float | None
) -> list[dict[str, Any]]:
    """Groups the trained parameters by policy or critic and by weight decay.

    Empty groups are left out. `decayed` are the names of parameters with weight decay; without a rate for the critic
    there are only the policy's.
    """
    parts = [(False, args.learning_rate, list(actor.policy_parameters()))]
    if critic_learning_rate is not None:
        parts.append((True, critic_learning_rate, list(actor.value_parameters())))
    groups = [
        {
            "params": [parameter for name, parameter in named if (name in decayed) == is_decayed],
            "weight_decay": args.weight_decay if is_decayed else 0.0,
            "lr": rate,
            "is_value": is_value,
        }
        for is_value, rate, named in parts
        for is_decayed in (True, False)
    ]
    return [group for group in groups if group["params"]]


def keep_embeddings_in_32_bits(model: nn.Module, settings: Mapping[str, Any]) -> None:
    """Keeps AdamW's moment estimates of embeddings in 32 bits where an optimiser holds those of others in 8.

    As transformers' Trainer does for its own optimisers (arXiv:2110.02861, section 2.3). `settings`: the optimiser's.
    """
    if settings.get("optim_bits") != 8:
        return
    from bitsandbytes.optim import GlobalOptimManager

    for module in model.modules():
        if isinstance(module, nn.Embedding):
            GlobalOptimManager.get_instance().register_module_override(module, "weight", {"optim_bits": 32})


def build_schedule(optimizer: Optimizer, args: TrainingArguments, n_steps: int, n_critic_updates: int) -> LambdaLR:
    """Builds the learning-rate schedule of the policy and the critic.

    The policy's begins after the steps that train only the critic.
    """

    def build_rate_factor(steps: int) -> Callable[[int], float]:
        name, warmup = args.lr_scheduler_type, args.warmup_steps
        schedule = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=max(1, steps))
        return schedule.lr_lambdas[0]  # type: ignore[no-any-return]

    policy, value = build_rate_factor(n_steps - n_critic_updates), build_rate_factor(n_steps)

    def compute_policy_factor(step: int) -> float:
        return policy(step - n_critic_updates) if step >= n_critic_updates else 0.0

    return LambdaLR(
        optimizer, [value if group["is_value"] else compute_policy_factor for group in optimizer.param_groups]
    )
