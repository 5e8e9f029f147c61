"""Defines the settings of `ppo`: proximal policy optimisation (arXiv:1707.06347) with a value of every token."""

from typing import Literal, Self

from pydantic import Field, model_validator

from qwen_align.align.errors import RecipeError
from qwen_align.align.references import DataRef, ScorerRef
from qwen_align.align.settings.base import Strict
from qwen_align.align.settings.online_rl import OnlineRl
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.settings.workload import TrainingWork


class Critic(Strict):
    """The value model, which predicts the return from every token on.

    separate: a model of its own, which starts as the policy with a new head, or as the scorer of `from_scorer`; with
    LoRA a second adapter on the policy's trunk. head: a new head on the policy's own hidden states; its loss changes
    the trunk too unless `detached`.
    """

    kind: Literal["separate", "head"] = "separate"
    from_scorer: ScorerRef | None = Field(
        None, description="reward model that a separate value model starts as; null = it starts as the policy"
    )
    detached: bool = Field(False, description="of kind head: the value loss does not change the policy's trunk")
    learning_rate: float = Field(gt=0, description="peak learning rate of the value model")
    warmup_steps: int = Field(0, ge=0, description="steps, at the start, that train the value model alone")
    clip: float | None = Field(
        0.15,  # Qwen's PPO, arXiv:2309.16609
        gt=0,
        description="value clipping: how far a value may move in the updates on one batch; null = no limit",
    )
    loss_weight: float = Field(1.0, gt=0, description="weight of the value loss beside the policy loss")

    @model_validator(mode="after")
    def _check_critic_settings(self) -> Self:
        """Checks that the settings of the value model fit together. Raises ValueError otherwise."""
        if self.detached and self.kind != "head":
            raise ValueError("detached: is for a head on the policy's trunk; leave it out")
        if self.from_scorer and self.kind != "separate":
            raise ValueError("from_scorer: is a model of its own; set kind: separate")
        return self


class Ptx(Strict):
    """Settings of PPO-ptx: a next-token loss on raw texts added to PPO against forgetting (arXiv:2203.02155)."""

    from_data: list[DataRef] = Field(min_length=1, description="data sets of raw texts")
    coefficient: float = Field(gt=0, description="weight of the next-token loss beside the PPO loss")
    batch: int = Field(ge=1, description="batch size: texts per optimiser step, over all devices")
    max_tokens: int = Field(ge=1, description="longest text in tokens; longer ones are dropped and counted, never cut")


class Ppo(OnlineRl):
    """Settings of a PPO stage, which trains a policy and a value model.

    Advantages come by GAE from rewards per token: the completion's reward at its last token, minus the KL penalty at
    every one.
    """

    kind: Literal["ppo"]
    critic: Critic = Field(description="the value model and how it is trained")
    gamma: float = Field(1.0, gt=0, le=1, description="discount of later rewards, per token")
    gae_lambda: float = Field(
        0.95,  # arXiv:1707.06347
        ge=0,
        le=1,
        description="lambda of generalised advantage estimation: 1 = returns minus values, 0 = one-step differences",
    )
    whiten_advantages: bool = Field(
        True, description="normalise advantages to mean 0 and standard deviation 1 over all tokens of a step"
    )
    normalise_rewards: Literal["none", "running_mean", "running_mean_std"] = Field(
        "none",
        description="running_mean: subtract the mean of all rewards so far; running_mean_std: also divide by their "
        "standard deviation",
    )
    ptx: Ptx | None = Field(None, description="next-token loss on raw texts beside PPO; null = none")

    @property
    def loss_name(self) -> str:
        return "ppo"

    def describe_training(self) -> TrainingWork:
        """Returns what the memory and time of the updates depend on.

        Beside a critic that is an adapter too, activations would be computed again under another adapter than at first.
        """
        has_two_adapters = self.lora is not None and self.critic.kind == "separate"
        return super().describe_training()._replace(critic=self.critic.kind, can_checkpoint=not has_two_adapters)

    def check_runtime(self, runtime: Runtime) -> None:
        """Raises RecipeError where activations would be computed again under another adapter than at first."""
        super().check_runtime(runtime)
        if runtime.gradient_checkpointing is True and not self.describe_training().can_checkpoint:
            raise RecipeError(
                "runtime.gradient_checkpointing: with critic: separate and lora activations would be computed again "
                "under the wrong adapter; leave it out, or take critic: {kind: head}"
            )

    @model_validator(mode="after")
    def _check_single_trunk(self) -> Self:
        """Raises ValueError if the value model would start from a reward model although LoRA is used."""
        if self.lora and self.critic.from_scorer:
            raise ValueError(
                "critic.from_scorer: with lora the critic is an adapter on the policy's trunk; leave it out"
            )
        return self
