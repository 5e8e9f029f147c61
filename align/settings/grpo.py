"""Defines the settings of `grpo`: group-relative policy optimisation and variants, without a value model.

The method is of arXiv:2402.03300.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from qwen_align.align.errors import RecipeError
from qwen_align.align.settings.loss_defaults import AdvantageScale
from qwen_align.align.settings.online_rl import DynamicSampling, Kl, OnlineRl
from qwen_align.align.settings.runtime import Runtime, split_into_micro_batches
from qwen_align.align.settings.strategy import choose_strategy
from qwen_align.align.settings.workload import TrainingWork

NOT_IN_TRL = (
    "prompt_sampler",
    "updates",
    "importance_sampling_correction",
    "held_out",
    "dynamic_sampling",
    "async_steps",
    "watchdogs",
    "keep_samples",
)


class Grpo(OnlineRl):
    """Settings of a GRPO stage: a completion's advantage is its reward relative to its group."""

    kind: Literal["grpo"]
    trainer: Literal["native", "trl"] = Field(
        "native", description="native: our loop; trl: TRL's GRPOTrainer, with our prompts, engine and rewards"
    )
    loss: Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo"] = Field(
        "dapo",
        description="how token losses are averaged and importance ratios clipped. grpo: a mean over completions of "
        "their token means; dr_grpo: token sums over a constant (arXiv:2503.20783); dapo: a mean over all tokens "
        "(arXiv:2503.14476); gspo: grpo with one ratio per completion (arXiv:2507.18071); cispo: dapo with the ratio "
        "as a bounded weight (arXiv:2506.13585)",
    )
    advantage: Literal["group", "rloo", "reinforce++"] = Field(
        "group",
        description="advantage estimator. group: reward minus the group's mean, over advantage_scale; rloo: minus the "
        "mean of the others (arXiv:2402.14740); reinforce++: no group, normalised over all tokens of the batch "
        "(arXiv:2501.03262)",
    )
    advantage_scale: AdvantageScale | None = Field(
        None,
        description="standard deviation that advantages are divided by: of the group, of the whole batch, or none; "
        "null = as the paper of the loss has it",
    )
    dynamic_sampling: DynamicSampling | None = Field(
        None, description="replace groups whose rewards are all equal by other prompts; null = train on what was drawn"
    )

    @property
    def has_own_loop(self) -> bool:
        return self.trainer == "native"

    @property
    def sees_whole_steps(self) -> bool:
        return self.has_own_loop

    @property
    def loss_name(self) -> str:
        return self.loss

    def get_runtime_key_settings(self, runtime: Runtime) -> dict[str, int]:
        """Returns the micro-batch size as a key setting if the loss depends on it.

        TRL's entropy is a mean over the tokens of a device's forward pass.
        """
        if self.trainer == "trl" and self.entropy:
            return {"rows": split_into_micro_batches(self.prompts_per_step * self.completions_per_prompt, runtime)[0]}
        return {}

    def check_runtime(self, runtime: Runtime) -> None:
        """Raises RecipeError where TRL's trainer would train under a strategy that it was never tried with here."""
        super().check_runtime(runtime)
        if self.trainer == "trl" and (strategy := choose_strategy(runtime)) != "ddp":
            raise RecipeError(f"trainer: trl runs with strategy ddp alone, not {strategy}; take trainer: native")

    def describe_training(self) -> TrainingWork:
        """Returns what the memory and time of the updates depend on."""
        return super().describe_training()._replace(head_of_trl=self.trainer == "trl")

    @model_validator(mode="after")
    def _check_group_settings(self) -> Self:
        """Checks that the settings of groups, advantages and dynamic sampling fit together.

        Raises ValueError otherwise.
        """
        if self.completions_per_prompt < 2 and self.advantage != "reinforce++":
            raise ValueError(
                f"completions_per_prompt: {self.completions_per_prompt}: a completion is compared with others of its "
                "prompt; at least 2"
            )
        if self.advantage != "group" and "advantage_scale" in self.model_fields_set:
            raise ValueError("advantage_scale: is for advantage: group; leave it out")
        if self.loss == "cispo" and self.clip_low is not None:
            raise ValueError("clip_low: cispo bounds its weights from above only (arXiv:2506.13585); leave it out")
        if self.dynamic_sampling and self.dynamic_sampling.max_prompts < self.prompts_per_step:
            raise ValueError(
                f"dynamic_sampling.max_prompts: {self.dynamic_sampling.max_prompts} are fewer than the "
                f"{self.prompts_per_step} prompts of a step"
            )
        if self.dynamic_sampling and self.advantage == "reinforce++":
            raise ValueError("dynamic_sampling: reinforce++ compares no groups, so none of them is without signal")
        return self

    @model_validator(mode="after")
    def _check_trl_support(self) -> Self:
        """Raises ValueError for settings that TRL's GRPO trainer does not support."""
        if self.trainer == "native":
            return self
        defaults = {name: field.get_default() for name, field in type(self).model_fields.items()}
        asked = [name for name in NOT_IN_TRL if getattr(self, name) != defaults[name]]
        if self.advantage != "group":
            asked.append("advantage")
        if self.engine != "local":
            asked.append("engine")
        if self.kl and self.kl != Kl(coefficient=self.kl.coefficient, importance_weighted=self.kl.importance_weighted):
            asked.append("kl")
        if self.kl and self.kl.importance_weighted and self.loss == "gspo":
            asked.append("kl.importance_weighted with gspo (TRL takes the completion's ratio for a token's)")
        if self.entropy and self.entropy.target is not None:
            asked.append("entropy.target")
        if asked:
            raise ValueError(f"{', '.join(asked)}: trainer trl cannot do that; leave it out, or use trainer: native")
        return self
