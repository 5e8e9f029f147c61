"""Settings that the online-RL stages share: how a step draws, judges and scores its completions, and when to stop."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from qwen_align.align.references import DataRef, ModelRef
from qwen_align.align.settings.base import Strict
from qwen_align.align.settings.sampling import SamplingSettings
from qwen_align.align.settings.stage import CanBeEmpty, StageSettings
from qwen_align.align.settings.training import Lora, Optimizer, refuse_dropout
from qwen_align.reward.settings import RewardList, RewardSettings

Watchdog = Literal[
    "clipped", "no_signal", "no_verdict", "held_out", "entropy", "length", "kl", "mismatch", "skipped"
]  # fmt: skip


class Updates(Strict):
    """How often a step's completions train: each of `epochs` passes in `minibatches` optimiser steps."""

    epochs: int = Field(1, ge=1)
    minibatches: int = Field(1, ge=1, description="optimiser steps a pass; whole groups are never needed together")

    @property
    def count(self) -> int:
        return self.epochs * self.minibatches


class Kl(Strict):
    """A price on leaving the model the stage starts from (http://joschu.net/blog/kl-approx.html).

    With r the policy's and q the reference's log-probability of a token: k1 = r - q, k2 = (r - q)^2 / 2,
    k3 = exp(q - r) - (q - r) - 1. In the loss a term of its own; in the reward taken off each token's reward, which is
    k1's place (its gradient in the loss is zero on average).
    """

    coefficient: float = Field(gt=0)
    estimator: Literal["k1", "k2", "k3"] = "k3"
    place: Literal["loss", "reward"] = "loss"
    weighted: bool = Field(
        False, description="in the loss, each token's KL times its ratio: unbiased also after several updates"
    )
    target: float | None = Field(
        None, gt=0, description="nats a completion; the coefficient follows it (arXiv:1909.08593, section 2.2)"
    )
    horizon: int = Field(10_000, ge=1, description="completions over which the coefficient follows")
    everywhere: bool = Field(
        True, description="in the loss, also of completions whose advantage is zero; false saves their passes"
    )
    renew_every: int | None = Field(None, ge=1, description="steps after which the policy becomes the reference")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.place == "loss" and self.estimator == "k1" and not self.weighted:
            raise ValueError("estimator k1 has no gradient in the loss but with weighted: true; else take k2 or k3")
        if self.place == "reward" and {"weighted", "everywhere"} & self.model_fields_set:
            raise ValueError("weighted, everywhere: are for a term of the loss; leave them out")
        if self.target is None and "horizon" in self.model_fields_set:
            raise ValueError("horizon: is for a target; leave it out")
        return self


class Entropy(Strict):
    """A bonus on the mean entropy of the drawn tokens' distributions.

    With a `target` the bonus is paid only while the entropy is at or below it, and the coefficient grows by `change` a
    step then and shrinks otherwise, within 0 and `most` (Skywork-OR1, arXiv:2505.22312).
    """

    coefficient: float = Field(gt=0)
    target: float | None = Field(None, gt=0, description="nats a token")
    change: float = Field(0.0, ge=0)
    most: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.target is None and {"change", "most"} & self.model_fields_set:
            raise ValueError("change, most: are for a target; leave them out")
        return self


class DynamicSampling(Strict):
    """Groups whose rewards are all equal are replaced by the next prompts (DAPO, arXiv:2503.14476, section 3.2).

    At the bound the step trains on the groups it has, each as heavily as in a full step; with none it is skipped.
    """

    most_prompts: int = Field(ge=1, description="prompts a step may try in all")


class Shuffled(Strict):
    """Every prompt once, in an order drawn by the seed, then again in another."""

    kind: Literal["shuffled"] = "shuffled"


class ByPassRate(Strict):
    """As shuffled, without the prompts whose last pass rate lies outside `band`, but for every `retry_every`-th pass.

    Pass rates are those the stage itself sees; until then those of `column`, as `pass_rate` notes them in `meta`.
    """

    kind: Literal["pass_rate"]
    band: list[float] = Field([0.01, 0.99], min_length=2, max_length=2)
    retry_every: int = Field(4, ge=1, description="passes")  # our choice: a model gets better in a few
    column: str | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if not 0 <= self.band[0] < self.band[1] <= 1:
            raise ValueError(f"band: {self.band}: wanted are two shares, the lower first")
        return self


class ByVariance(Strict):
    """Prompts by falling variance of a rollout's rewards, equal ones as they come (Qwen2.5, arXiv:2412.15115)."""

    kind: Literal["variance_first"]
    from_rollout: DataRef
    reward: str = Field("math_answer", min_length=1, description="whose verdicts")


PromptOrder = Annotated[Shuffled | ByPassRate | ByVariance, Field(discriminator="kind")]


class Correction(Strict):
    """Weights for what the engine drew from another distribution than the policy: kernels, precision, truncation.

    The weight of a token is the policy's probability over the one it was drawn with; of a sequence their product.
    """

    level: Literal["token", "sequence"] = "token"
    most: float = Field(3.0, gt=1)  # TRL 1.16's vllm_importance_sampling_clip_max
    beyond: Literal["truncate", "mask"] = Field("truncate", description="what becomes of weights above `most`")


class HeldOut(Strict):
    """Accuracy on other questions while RL goes on, at temperature 1 as it trains, or as `sampling` says."""

    from_data: list[DataRef] = Field(min_length=1)
    every: int = Field(ge=1, description="steps; also before the first and after the last")
    samples: int = Field(1, ge=1)
    sampling: SamplingSettings | None = None
    rewards: list[RewardSettings] = Field([], description="settings of rewards that questions name")


class Watch(Strict):
    """What the watchdogs look for, and which of them stop the stage; what is no number always does.

    Shares are of completions or groups; `steps` in a row have to agree, so that one odd batch is no alarm.
    """

    stop_on: list[Watchdog] = Field([])
    steps: int = Field(3, ge=1)
    clipped_share: float = Field(0.5, gt=0, le=1)  # our choice, as all numbers here: well above a sound run's
    no_signal_share: float = Field(0.9, gt=0, le=1)
    no_verdict_share: float = Field(0.5, gt=0, le=1)
    held_out_fall: float = Field(2.0, gt=0, description="standard errors below its best, while the reward rises")
    entropy_share: float = Field(0.1, gt=0, lt=1, description="of the first steps' entropy")
    length_factor: float = Field(3.0, gt=1, description="of the first steps' mean length")
    kl: float = Field(1.0, gt=0, description="nats a token between the policy and the one that drew")
    mismatch: float = Field(0.05, gt=0, description="nats a token between the engine's and the trainer's log-probs")


class Vllm(Strict):
    """vLLM draws the completions: on the trainer's own GPUs, or on a server (`trl vllm-serve` or `vllm serve`)."""

    kind: Literal["vllm"]
    mode: Literal["colocate", "server"] = "colocate"
    base_url: str | None = Field(None, description="of the server, as http://localhost:8000")
    group_port: int = Field(51216, ge=1, le=65535, description="through which weights go to the server")  # TRL's
    server_timeout_s: float = Field(240.0, gt=0)
    memory_share: float = Field(0.3, gt=0, lt=1, description="of each GPU's memory for a colocated vLLM")
    sleeps: bool = Field(False, description="a colocated vLLM gives its memory back while the policy is updated")

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if (self.mode == "server") != (self.base_url is not None):
            raise ValueError("base_url: goes with mode: server, and a server needs one")
        return self


class OnlineRl(StageSettings, Optimizer, CanBeEmpty):
    """`steps` times: draw `samples` completions of `prompts` prompts, judge them, train on them."""

    from_model: ModelRef
    from_data: list[DataRef] = Field(min_length=1)
    rewards: RewardList
    steps: int = Field(ge=1, description="batches of rollouts")
    prompts: int = Field(ge=1, description="prompts a step, over all devices")
    samples: int = Field(ge=1, description="completions a prompt")
    sampling: SamplingSettings
    truncated_sampling: Literal["qwen"] | None = Field(
        None, description="qwen: allow top_p, top_k or min_p, as Qwen's PPO had top_p 0.9 (arXiv:2309.16609)"
    )
    order: PromptOrder = Shuffled()
    updates: Updates = Updates()
    clip_low: float = Field(0.2, gt=0)
    clip_high: float = Field(0.28, gt=0)  # clip-higher, DAPO, arXiv:2503.14476
    kl: Kl | None = None
    entropy: Entropy | None = None
    mask_truncated: bool = Field(False, description="completions cut by max_tokens train nothing")
    correction: Correction | None = None
    async_steps: Literal[0, 1] = Field(0, description="1: draw with the model of the step before, judge meanwhile")
    engine: Literal["local"] | Vllm = "local"
    held_out: HeldOut | None = None
    watch: Watch = Watch()
    keep_samples: int = Field(4, ge=0, description="completions a step in samples.jsonl")
    lora: Lora | None = None

    @model_validator(mode="after")
    def _no_dropout(self) -> Self:
        return refuse_dropout(self, self.lora)

    @model_validator(mode="after")
    def _one_reference(self) -> Self:
        if self.lora and self.kl and self.kl.renew_every:
            raise ValueError("kl.renew_every: with lora the reference is the model without the adapter; leave it out")
        return self

    @model_validator(mode="after")
    def _exact_sampling(self) -> Self:
        drawn = self.sampling
        if drawn.temperature is None or drawn.temperature == 0:
            raise ValueError("sampling.temperature must be given and above 0: a group of equal answers teaches nothing")
        if self._cuts != (self.truncated_sampling is not None):
            raise ValueError(
                "sampling: top_p, top_k or min_p draws from another distribution than the one trained, which "
                "biases the ratio; leave them out, or set truncated_sampling: qwen if you mean it"
                if self._cuts
                else "truncated_sampling: sampling cuts nothing; leave it out"
            )
        return self

    @property
    def _cuts(self) -> bool:
        drawn = self.sampling
        return drawn.top_p not in (None, 1.0) or drawn.top_k not in (None, 0) or drawn.min_p != 0

    @property
    def optimizer_steps(self) -> int:
        return self.steps * self.updates.count
