"""Settings of `grpo`: group-relative policy optimisation (arXiv:2402.03300) and its kin, without a value model."""

from typing import Literal, Self

from pydantic import Field, model_validator

from qwen_align.align.settings.online_rl import DynamicSampling, Kl, OnlineRl, Shuffled, Updates
from qwen_align.align.settings.runtime import Runtime, split_into_micro_batches

NOT_IN_TRL = ("order", "updates", "correction", "held_out", "dynamic_sampling", "async_steps")


class Grpo(OnlineRl):
    """The advantage of a completion is its reward against the others of its prompt.

    loss: how tokens are weighed and ratios clipped. grpo, a mean over completions of their token means; dr_grpo, token
    sums over a constant (arXiv:2503.20783); dapo, a mean over all tokens (arXiv:2503.14476); gspo, grpo with one ratio
    a completion (arXiv:2507.18071); cispo, dapo with the ratio as a bounded weight (arXiv:2506.13585).
    advantage: group, minus the group's mean, over `advantage_scale`; rloo, minus the mean of the others
    (arXiv:2402.14740); reinforce++, no group, normalised over the whole batch's tokens (arXiv:2501.03262).
    """

    kind: Literal["grpo"]
    trainer: Literal["native", "trl"] = Field("native", description="trl: TRL's GRPOTrainer, with what it can do")
    loss: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"] = "dapo"
    advantage: Literal["group", "rloo", "reinforce++"] = "group"
    advantage_scale: Literal["group", "batch", "none"] = Field(
        "group", description="the standard deviation that group advantages are divided by"
    )
    dynamic_sampling: DynamicSampling | None = None

    def runtime_in_key(self, runtime: Runtime) -> dict[str, int]:
        """TRL's entropy is a mean over the tokens of a device's forward pass, so it depends on its size."""
        if self.trainer == "trl" and self.entropy:
            return {"rows": split_into_micro_batches(self.prompts * self.samples, runtime)[0]}
        return {}

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.samples < 2 and self.advantage != "reinforce++":
            raise ValueError(f"samples: {self.samples}: a completion is compared with others of its prompt; at least 2")
        if self.advantage != "group" and "advantage_scale" in self.model_fields_set:
            raise ValueError("advantage_scale: is for advantage: group; leave it out")
        if self.dynamic_sampling and self.dynamic_sampling.most_prompts < self.prompts:
            raise ValueError(
                f"dynamic_sampling.most_prompts: {self.dynamic_sampling.most_prompts} are fewer than the "
                f"{self.prompts} prompts of a step"
            )
        if self.dynamic_sampling and self.advantage == "reinforce++":
            raise ValueError("dynamic_sampling: reinforce++ compares no groups, so none of them is without signal")
        return self

    @model_validator(mode="after")
    def _trl_can(self) -> Self:
        if self.trainer == "native":
            return self
        defaults = {"order": Shuffled(), "updates": Updates(), "async_steps": 0}
        asked = [name for name in NOT_IN_TRL if getattr(self, name) != defaults.get(name)]
        if self.advantage != "group":
            asked.append("advantage")
        if self.engine != "local":
            asked.append("engine")
        if self.kl and self.kl != Kl(coefficient=self.kl.coefficient, weighted=self.kl.weighted):
            asked.append("kl")
        if self.entropy and self.entropy.target is not None:
            asked.append("entropy.target")
        if asked:
            raise ValueError(f"{', '.join(asked)}: trainer trl cannot do that; leave it out, or use trainer: native")
        return self
