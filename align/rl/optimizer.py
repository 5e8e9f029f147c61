"""Optimiser and learning-rate schedule of an actor, whose policy and critic have rates of their own."""

from collections.abc import Callable, Collection
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainingArguments, get_scheduler

from qwen_align.align.rl.actor import Actor


def group_parameters(
    actor: Actor, decayed: Collection[str], args: TrainingArguments, critic_learning_rate: float | None
) -> list[dict[str, Any]]:
    """Groups the trained parameters by policy or critic and by weight decay, without empty groups.

    `decayed` are the names of parameters with weight decay; without a rate for the critic there are only the policy's.
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


def build_schedule(optimizer: Optimizer, args: TrainingArguments, n_steps: int, n_critic_updates: int) -> LambdaLR:
    """Returns the recipe's learning-rate schedule; the policy's begins after the steps that train the critic alone."""

    def build_factor(steps: int) -> Callable[[int], float]:
        name, warmup = args.lr_scheduler_type, args.warmup_steps
        schedule = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=max(1, steps))
        return schedule.lr_lambdas[0]  # type: ignore[no-any-return]

    policy, value = build_factor(n_steps - n_critic_updates), build_factor(n_steps)

    def policy_factor(step: int) -> float:
        return policy(step - n_critic_updates) if step >= n_critic_updates else 0.0

    return LambdaLR(optimizer, [value if group["is_value"] else policy_factor for group in optimizer.param_groups])
