"""Settings of `ppo`: proximal policy optimisation (arXiv:1707.06347) with a learned value of every token."""

from typing import Literal, Self

from pydantic import Field, model_validator

from qwen_align.align.references import DataRef, ScorerRef
from qwen_align.align.settings.base import Strict
from qwen_align.align.settings.online_rl import OnlineRl


class Critic(Strict):
    """What predicts the return from every token on.

    separate: a model of its own, which starts as the policy with a new head, or as the scorer of `from_scorer`; with
    LoRA a second adapter on the policy's trunk. head: a new head on the policy's own hidden states; its loss changes
    the trunk too unless `detached`.
    """

    kind: Literal["separate", "head"] = "separate"
    from_scorer: ScorerRef | None = None
    detached: bool = Field(False, description="a head's loss leaves the trunk alone")
    learning_rate: float = Field(gt=0)
    warmup_steps: int = Field(0, ge=0, description="steps that train the value alone")
    clip: float | None = Field(0.15, gt=0, description="how far a value may move in a step's updates")  # Qwen 2023
    weight: float = Field(1.0, gt=0, description="of the value loss beside the policy's")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.detached and self.kind != "head":
            raise ValueError("detached: is for a head on the policy's trunk; leave it out")
        if self.from_scorer and self.kind != "separate":
            raise ValueError("from_scorer: is a model of its own; set kind: separate")
        return self


class Ptx(Strict):
    """Next-token loss on raw texts beside PPO, against forgetting (PPO-ptx, arXiv:2203.02155)."""

    from_data: list[DataRef] = Field(min_length=1)
    coefficient: float = Field(gt=0)
    batch: int = Field(ge=1, description="texts an optimiser step, over all devices")
    max_tokens: int = Field(ge=1, description="longer texts are dropped and counted, never cut")


class Ppo(OnlineRl):
    """Advantages by GAE over token rewards: the verdict at the last token, minus the KL's price at every one."""

    kind: Literal["ppo"]
    critic: Critic
    gamma: float = Field(1.0, gt=0, le=1)
    gae_lambda: float = Field(0.95, ge=0, le=1)  # arXiv:1707.06347
    whiten: bool = Field(True, description="advantages to mean 0 and deviation 1 over all tokens of the step")
    normalise_rewards: Literal["none", "running_mean", "running"] = Field(
        "none", description="verdicts minus their running mean, and over their running deviation"
    )
    ptx: Ptx | None = None

    @model_validator(mode="after")
    def _one_trunk(self) -> Self:
        if self.lora and self.critic.from_scorer:
            raise ValueError(
                "critic.from_scorer: with lora the critic is an adapter on the policy's trunk; leave it out"
            )
        return self
