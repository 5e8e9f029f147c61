"""Defines the settings that all online-RL stages share: sampling, rewards, updates and stopping."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from qwen_align.align.errors import RecipeError
from qwen_align.align.references import DataRef, ModelRef
from qwen_align.align.settings.base import Strict
from qwen_align.align.settings.engine import DrawsWithEngine
from qwen_align.align.settings.loss_defaults import LossDefaults, get_loss_defaults
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.settings.sampling import MAX_COMPLETIONS, SamplingSettings
from qwen_align.align.settings.stage import CanBeEmpty, StageSettings, VerdictLimit
from qwen_align.align.settings.strategy import SHARDINGS, choose_strategy
from qwen_align.align.settings.training import MAX_BATCH, Optimizer, refuse_dropout
from qwen_align.align.settings.workload import DrawnRows, TrainingWork, Workload
from qwen_align.reward.settings import RewardList, Rewards, needs_scorer

Watchdog = Literal[
    "truncated", "no_signal", "no_verdict", "held_out", "entropy", "length", "update_kl", "engine_mismatch", "skipped"
]  # fmt: skip


class Updates(Strict):
    """The optimiser steps on the completions of a training step: `epochs` times `minibatches`."""

    epochs: int = Field(1, ge=1, le=1000, description="passes over the completions of a step")
    minibatches: int = Field(
        1,
        ge=1,
        le=10_000,
        description="optimiser steps per pass, each on its share of the completions; groups may be split",
    )

    @property
    def count(self) -> int:
        """Returns the number of optimiser steps on the completions of one training step."""
        return self.epochs * self.minibatches


class Kl(Strict):
    """The KL penalty for leaving the reference policy, which is the model that the stage starts from.

    With r the policy's and q the reference's log-probability of a token: k1 = r - q, k2 = (r - q)^2 / 2,
    k3 = exp(q - r) - (q - r) - 1 (http://joschu.net/blog/kl-approx.html).
    """

    coefficient: float = Field(gt=0, description="weight of the penalty; where it starts, if there is a target")
    estimator: Literal["k1", "k2", "k3"] = Field(
        "k3",
        description="how the KL of a token is estimated. In the loss: k2, k3 (the default), or k1 with "
        "importance_weighted; in the reward: k1, which is also the default there",
    )
    apply_to: Literal["loss", "reward"] = Field(
        "loss", description="loss: a term of its own in the loss; reward: subtracted from the reward of each token"
    )
    importance_weighted: bool = Field(
        False,
        description="in the loss, multiply each token's KL by its importance ratio; unbiased after updates",
    )
    target: float | None = Field(
        None,
        gt=0,
        description="KL per completion, in nats, that the coefficient is adapted to reach (arXiv:1909.08593, section "
        "2.2); null = the coefficient is fixed",
    )
    horizon: int = Field(10_000, ge=1, description="completions over which the coefficient is adapted to the target")
    include_zero_advantage: bool = Field(
        True,
        description="in the loss, penalise completions without an advantage too; false saves their forward passes",
    )
    reference_sync_steps: int | None = Field(
        None, ge=1, description="steps after which the policy becomes the new reference; null = never"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in_estimator(cls, data: Any) -> Any:
        """Adds the estimator k1 to the settings of a penalty on the reward that name none."""
        if isinstance(data, Mapping) and data.get("apply_to") == "reward" and "estimator" not in data:
            return {**data, "estimator": "k1"}
        return data

    @model_validator(mode="after")
    def _check_kl_settings(self) -> Self:
        """Checks that the settings of the KL penalty fit together. Raises ValueError otherwise."""
        if self.apply_to == "loss" and self.estimator == "k1" and not self.importance_weighted:
            raise ValueError(
                "estimator k1 has no gradient in the loss but with importance_weighted: true; else take k2 or k3"
            )
        if self.apply_to == "reward" and self.estimator in ("k2", "k3"):
            raise ValueError(
                f"estimator {self.estimator} in the reward does not hold the policy: near the reference its expected "
                "gradient is an eighth of the KL's and points away from the reference in half of the cases (measured, "
                "docs/rl.md). Take k1, or apply_to: loss"
            )
        if self.apply_to == "reward" and {"importance_weighted", "include_zero_advantage"} & self.model_fields_set:
            raise ValueError("importance_weighted, include_zero_advantage: are for a term of the loss; leave them out")
        if self.target is None and "horizon" in self.model_fields_set:
            raise ValueError("horizon: is for a target; leave it out")
        return self


class Entropy(Strict):
    """An entropy bonus, which raises the mean entropy of the policy's next-token distributions.

    With a `target` the bonus is paid only while the entropy is at or below it, and the coefficient grows by
    `coefficient_delta` a step then and shrinks otherwise, within 0 and `max_coefficient` (Skywork-OR1,
    arXiv:2505.22312).
    """

    coefficient: float = Field(gt=0, description="weight of the bonus; where it starts, if there is a target")
    target: float | None = Field(
        None, gt=0, description="entropy in nats per token below which the bonus is paid; null = it is always paid"
    )
    coefficient_delta: float = Field(
        0.0, ge=0, description="change of the coefficient per step: up while the entropy is below the target, else down"
    )
    max_coefficient: float | None = Field(None, gt=0, description="upper bound of the coefficient; null = none")

    @model_validator(mode="after")
    def _check_entropy_settings(self) -> Self:
        """Checks that the settings of the entropy bonus fit together. Raises ValueError otherwise."""
        if self.target is None and {"coefficient_delta", "max_coefficient"} & self.model_fields_set:
            raise ValueError("coefficient_delta, max_coefficient: are for a target; leave them out")
        return self


class DynamicSampling(Strict):
    """Dynamic sampling, which replaces groups with all-equal rewards by groups of the next prompts.

    Source: DAPO, arXiv:2503.14476, section 3.2.

    At the bound the step trains on the groups it has, each as heavily as in a full step; with none it is skipped.
    """

    max_prompts: int = Field(ge=1, le=MAX_BATCH, description="largest number of prompts that a step may try in all")


class Shuffled(Strict):
    """A prompt order that takes every prompt once in a random order, then all again in another random order."""

    kind: Literal["shuffled"] = "shuffled"


class ByPassRate(Strict):
    """A random prompt order that leaves out prompts whose last pass rate was outside `pass_rate_range`.

    Pass rates are those that the stage itself sees; until then those of `pass_rate_column`.
    """

    kind: Literal["pass_rate"]
    pass_rate_range: list[float] = Field(
        [0.01, 0.99],
        min_length=2,
        max_length=2,
        description="lowest and highest share of right completions with which a prompt is taken again",
    )
    retry_every: int = Field(
        4,  # our choice: a model gets better in a few
        ge=1,
        description="every so many passes over the prompts all are tried again",
    )
    pass_rate_column: str | None = Field(
        None,
        min_length=1,
        description="column of `meta` with pass rates to begin with, as the builder pass_rate writes it; null = none",
    )

    @model_validator(mode="after")
    def _check_pass_rate_range(self) -> Self:
        """Checks that the lower bound of the pass rate is below the upper one. Raises ValueError otherwise."""
        if not 0 <= self.pass_rate_range[0] < self.pass_rate_range[1] <= 1:
            raise ValueError(f"pass_rate_range: {self.pass_rate_range}: wanted are two shares, the lower first")
        return self


class ByVariance(Strict):
    """A prompt order by falling variance of the prompts' rewards in an earlier rollout (Qwen2.5, arXiv:2412.15115)."""

    kind: Literal["variance_first"]
    from_rollout: DataRef = Field(description="the rollout of these prompts whose rewards are compared")
    reward: str = Field("math_answer", min_length=1, description="name of the reward whose verdicts are compared")


PromptOrder = Annotated[Shuffled | ByPassRate | ByVariance, Field(discriminator="kind")]


class Correction(Strict):
    """Importance weights that correct the mismatch between the sampling engine and the trained policy.

    The weight of a token is the policy's probability over the one it was sampled with; of a sequence their product.
    """

    level: Literal["token", "sequence"] = Field("token", description="one weight per token, or one per completion")
    max_weight: float = Field(
        3.0,  # TRL 1.16's vllm_importance_sampling_clip_max
        gt=1,
        description="upper bound of a weight",
    )
    above_max: Literal["truncate", "mask"] = Field(
        "truncate", description="truncate: cut larger weights to the bound; mask: leave their tokens out of the loss"
    )


class HeldOut(VerdictLimit):
    """Settings of the evaluation on a held-out set during training."""

    from_data: list[DataRef] = Field(min_length=1, description="data sets of questions, evaluated together")
    every_steps: int = Field(ge=1, description="steps between evaluations; also before the first and after the last")
    completions_per_prompt: int = Field(
        1, ge=1, le=MAX_COMPLETIONS, description="completions sampled for each question"
    )
    sampling: SamplingSettings | None = Field(None, description="how tokens are sampled; null = as in training")
    rewards: Rewards = Field([], description="settings of the rewards that questions name; others have their defaults")


class Watch(Strict):
    """Thresholds of the watchdogs that alert when training goes wrong, and which alerts stop the stage.

    A metric that is NaN or infinite always stops it. All numbers are our choice, well above those of a sound run.
    """

    stop_on: list[Watchdog] = Field([], description="watchdogs whose alert stops the stage; the others only warn")
    patience_steps: int = Field(3, ge=1, description="steps in a row that must be over a threshold before an alert")
    truncated_share: float = Field(
        0.5, gt=0, le=1, description="truncated: alert above this share of completions cut at max_tokens"
    )
    no_signal_share: float = Field(
        0.9, gt=0, le=1, description="no_signal: alert above this share of groups whose rewards are all equal"
    )
    no_verdict_share: float = Field(
        0.5, gt=0, le=1, description="no_verdict: alert above this share of completions that no reward could judge"
    )
    held_out_fall: float = Field(
        2.0,
        gt=0,
        description="held_out: alert when held-out accuracy is this many standard errors below its best while the "
        "reward rises",
    )
    min_entropy_share: float = Field(
        0.1, gt=0, lt=1, description="entropy: alert below this share of the first steps' entropy"
    )
    length_factor: float = Field(
        3.0, gt=1, description="length: alert when completions are so many times longer or shorter than at first"
    )
    update_kl: float = Field(
        1.0,
        gt=0,
        description="update_kl: alert above this KL, in nats per token, between the policy before and after a batch's "
        "updates",
    )
    engine_mismatch: float = Field(
        0.05,
        gt=0,
        description="engine_mismatch: alert above this mean difference, in nats per token, of the engine's and the "
        "trainer's log-probabilities",
    )


class OnlineRl(StageSettings, Optimizer, CanBeEmpty, DrawsWithEngine):
    """Settings of every online-RL stage, which samples completions, judges them and trains on them, `steps` times."""

    from_model: ModelRef = Field(description="the policy to train")
    from_data: list[DataRef] = Field(min_length=1, description="data sets of prompts")
    rewards: RewardList = Field(description="rewards that judge each completion; their weighted sum is its reward")
    steps: int = Field(ge=1, le=10_000_000, description="steps, each on a new batch of completions")
    prompts_per_step: int = Field(ge=1, le=MAX_BATCH, description="prompts per step, over all devices")
    completions_per_prompt: int = Field(
        ge=1, le=MAX_COMPLETIONS, description="completions sampled for each prompt: the group size"
    )
    sampling: SamplingSettings = Field(description="how tokens are sampled; RL needs a temperature above 0")
    allow_truncated_sampling: bool = Field(
        False,
        description="allow top_p, top_k or min_p, which sample from another distribution than the one trained (Qwen's "
        "PPO had top_p 0.9, arXiv:2309.16609)",
    )
    prompt_sampler: PromptOrder = Field(Shuffled(), description="which prompts are taken, in which order")
    updates: Updates = Field(Updates(), description="optimiser steps on the completions of a step")
    clip_low: float | None = Field(
        None,
        gt=0,
        description="importance ratios are clipped below 1 - clip_low; null = as the paper of the loss has it",
    )
    clip_high: float | None = Field(
        None,
        gt=0,
        description="importance ratios are clipped above 1 + clip_high; null = as the paper of the loss has it",
    )
    kl: Kl | None = Field(None, description="KL penalty against the reference policy; null = none, and no reference")
    entropy: Entropy | None = Field(None, description="entropy bonus; null = none")
    mask_truncated: bool = Field(False, description="leave completions cut at max_tokens out of the loss")
    importance_sampling_correction: Correction | None = Field(
        None, description="importance weights against the mismatch of engine and policy; null = none"
    )
    async_steps: Literal[0, 1] = Field(
        0, description="1: sample each batch with the policy of the step before, so that judging takes no extra time"
    )
    held_out: HeldOut | None = Field(
        None, description="evaluation on a held-out set while training goes on; null = none"
    )
    watchdogs: Watch = Field(Watch(), description="thresholds of the alerts, and which alerts stop the stage")
    keep_samples: int = Field(4, ge=0, description="completions per step that are written to samples.jsonl")

    @model_validator(mode="after")
    def _check_no_dropout(self) -> Self:
        """Raises ValueError if the LoRA settings have a dropout."""
        return refuse_dropout(self, self.lora)

    @model_validator(mode="after")
    def _check_engine_has_base(self) -> Self:
        """Raises ValueError if vLLM, which has the base in full precision, would draw for a policy in 4 bits."""
        if self.lora and self.lora.base_weights == "nf4" and self.engine != "local":
            raise ValueError("lora.base_weights: nf4: only engine: local draws from the 4-bit policy that is trained")
        return self

    @model_validator(mode="after")
    def _check_single_reference(self) -> Self:
        """Raises ValueError if the reference policy would be synchronised although LoRA is used."""
        if self.lora and self.kl and self.kl.reference_sync_steps:
            raise ValueError(
                "kl.reference_sync_steps: with lora the reference is the model without the adapter; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _check_sampling_is_exact(self) -> Self:
        """Checks that the policy is sampled at a positive temperature and without truncation.

        Truncation is accepted with `allow_truncated_sampling`. Raises ValueError otherwise.
        """
        drawn = self.sampling
        if drawn.temperature is None or drawn.temperature == 0:
            raise ValueError("sampling.temperature must be given and above 0: a group of equal answers teaches nothing")
        if self._is_truncated != self.allow_truncated_sampling:
            raise ValueError(
                "sampling: top_p, top_k or min_p draws from another distribution than the one trained, which "
                "biases the ratio; leave them out, or set allow_truncated_sampling: true if you mean it"
                if self._is_truncated
                else "allow_truncated_sampling: sampling cuts nothing; leave it out"
            )
        return self

    def check_runtime(self, runtime: Runtime) -> None:
        """Raises RecipeError where processes would hold parts of a policy that cannot be drawn from or made so."""
        strategy = choose_strategy(runtime)
        if not SHARDINGS[strategy].parameters:
            return
        if self.engine != "local":
            raise RecipeError(
                f"engine: vllm is not sent weights that processes hold in parts, as with strategy {strategy}; take "
                "zero2, or engine: local"
            )
        if self.lora and self.lora.dora:
            raise RecipeError(
                f"lora.dora: its magnitudes are norms of whole weights, of which processes hold parts with strategy "
                f"{strategy}; take zero2, or leave it out"
            )

    def get_workload(self) -> Workload:
        """Returns what the stage's memory and time depend on."""
        rows = DrawnRows(
            self.completions_per_prompt,
            self.sampling.max_tokens,
            self.prompts_per_step,
            self.steps,
            self.engine,
        )
        return Workload(self.precision, rows, self.describe_training(), needs_scorer(self.rewards))

    def describe_training(self) -> TrainingWork:
        """Returns what the memory and time of the updates depend on."""
        return TrainingWork(
            self.lora,
            self.optimizer,
            self.save_weights,
            passes=self.updates.epochs,
            minibatches=self.updates.minibatches,
            scoring_passes=(self.kl is not None) + (self.updates.count > 1),
            reference="copy" if self.kl and not self.lora else None,
            trains_entropy=self.entropy is not None,
        )

    @property
    def has_own_loop(self) -> bool:
        """Returns whether our own loop trains, which scores tokens itself."""
        return True

    @property
    def loss_name(self) -> str:
        """Returns the name of the policy loss, as the table of their papers' defaults has it."""
        raise NotImplementedError

    @property
    def loss_settings(self) -> LossDefaults:
        """Returns clip bounds and advantage scale: those that are set, and the loss's paper's for the others."""
        defaults = get_loss_defaults(self.loss_name)
        return defaults._replace(**self._list_set_loss_settings())

    def describe_departures(self) -> list[str]:
        """Returns the settings of the policy loss that are not its paper's, each with the value of the paper."""
        defaults = get_loss_defaults(self.loss_name)
        return [
            f"{name} {value} ({defaults.source}: {getattr(defaults, name)})"
            for name, value in self._list_set_loss_settings().items()
            if value != getattr(defaults, name)
        ]

    def _list_set_loss_settings(self) -> dict[str, Any]:
        """Returns the settings of the policy loss that the recipe sets, by name."""
        names = [name for name in LossDefaults._fields if name in type(self).model_fields]
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def _is_truncated(self) -> bool:
        """Returns whether top_p, top_k or min_p truncates the sampling distribution."""
        drawn = self.sampling
        return drawn.top_p not in (None, 1.0) or drawn.top_k not in (None, 0) or drawn.min_p != 0

    @property
    def optimizer_steps(self) -> int:
        """Returns the number of optimiser steps of the whole stage."""
        return self.steps * self.updates.count
