"""Estimates the memory of a stage on each device, phase by phase, from its settings and the model's config.json."""

from collections.abc import Mapping
from math import ceil
from typing import Any, Literal, NamedTuple

from qwen_align.align.estimation.device import TIGHT_SHARE, Device, measure_overhead
from qwen_align.align.estimation.model_shape import ModelShape, read_model_shape
from qwen_align.align.estimation.numerics import TrainedModel, count_optimizer_bytes, hold_model
from qwen_align.align.estimation.sampling_memory import Drawing, measure_drawing
from qwen_align.align.estimation.training_memory import (
    MicroBatch,
    Moment,
    Parts,
    TrainingPass,
    measure_scoring,
    measure_update,
)
from qwen_align.align.models.weight_precision import Precision, resolve_precision
from qwen_align.align.settings.dpo import Dpo
from qwen_align.align.settings.evaluate import Evaluate
from qwen_align.align.settings.online_rl import OnlineRl, Vllm
from qwen_align.align.settings.ppo import Ppo
from qwen_align.align.settings.reward_model import RewardModel
from qwen_align.align.settings.rollout import Rollout
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.settings.sft import Sft

Verdict = Literal["fits", "tight", "does not fit"]
ASSUMED_PROMPT_TOKENS = 512  # where the prompts are not known; our choice, twice a problem of GSM8K or MATH
CPU_TOKENS = 2048  # of a pass on a CPU, whatever the runtime says: align/training/micro_batches.py
_FP32, _BF16 = 4, 2


class Phase(NamedTuple):
    """A phase of a stage at its worst moment: what is alive then, by part, in bytes."""

    name: str
    moment: str
    parts: Parts

    @property
    def total(self) -> float:
        """Returns the bytes of the phase with the device's overhead, which is a part."""
        return sum(self.parts.values())


class StageEstimate(NamedTuple):
    """What a stage needs on each device.

    checkpointing: whether gradients are checkpointed, None where the stage trains nothing. micro_batch, rows_in_pass:
    of a training pass, in rows as long as may be. rows_at_once: completions whose keys and values fit side by side.
    notes: what is assumed, or not counted. n_trained: trained parameters, those of a critic among them.
    """

    phases: list[Phase]
    shape: ModelShape
    model: TrainedModel | None
    checkpointing: bool | None
    micro_batch: MicroBatch | None
    rows_in_pass: int | None
    rows_at_once: int | None
    notes: list[str]
    n_trained: int = 0

    @property
    def peak(self) -> Phase:
        """Returns the phase that needs most."""
        return max(self.phases, key=lambda phase: phase.total)

    def judge(self, device: Device) -> Verdict:
        """Returns whether the stage fits a device."""
        return judge_fit(self.peak.total, device.n_bytes)


def judge_fit(n_bytes: float, device_bytes: float) -> Verdict:
    """Returns whether so many bytes fit a device, and whether with less than TIGHT_SHARE of it to spare."""
    if n_bytes > device_bytes:
        return "does not fit"
    return "tight" if n_bytes > (1 - TIGHT_SHARE) * device_bytes else "fits"


def estimate_stage(
    settings: Any,
    runtime: Runtime,
    config: Mapping[str, Any],
    device: Device | None = None,
    *,
    prompt_tokens: int | None = None,
    is_on_gpu: bool = True,
) -> StageEstimate | None:
    """Estimates a stage's memory on each device. Returns None for a kind of stage that needs none worth speaking of.

    `device`: for what depends on it: checkpointing by `auto`, and how much of keys and values is held. Without one the
    first is off and the second all that the completions need. `prompt_tokens`: of the longest prompt, where known.
    Raises ValueError for a model whose architecture is not known.
    """
    if isinstance(settings, Evaluate | Rollout):
        return _estimate_sampling(settings, runtime, read_model_shape(config), device, prompt_tokens)
    if isinstance(settings, Sft | Dpo | RewardModel | OnlineRl):
        work = _Training(settings, runtime, read_model_shape(config), device, prompt_tokens, is_on_gpu)
        return work.estimate()
    return None


def choose_checkpointing(
    settings: Any, runtime: Runtime, config: Mapping[str, Any], device_bytes: int, *, is_on_gpu: bool = True
) -> bool:
    """Returns whether gradients are to be checkpointed: as `runtime.gradient_checkpointing` says.

    `auto`: where the estimate of an optimiser step without it is above half of the device's memory. An architecture
    that is not known is checkpointed.
    """
    if runtime.gradient_checkpointing != "auto":
        return runtime.gradient_checkpointing
    try:
        shape = read_model_shape(config)
    except ValueError:
        return True
    work = _Training(settings, runtime, shape, None, None, is_on_gpu)
    return work.needs_checkpointing(device_bytes)


class _Training:
    """The estimate of a stage that trains: what it holds at any moment, and its phases."""

    def __init__(
        self,
        settings: Sft | Dpo | RewardModel | OnlineRl,
        runtime: Runtime,
        shape: ModelShape,
        device: Device | None,
        prompt_tokens: int | None,
        is_on_gpu: bool,
    ) -> None:
        self.settings, self.runtime, self.shape, self.device = settings, runtime, shape, device
        self.prompt_tokens = prompt_tokens or ASSUMED_PROMPT_TOKENS
        self.is_on_gpu = is_on_gpu
        self.model = hold_model(settings, settings.lora, shape)
        self.notes: list[str] = []
        if isinstance(settings, RewardModel):  # a new head with one output in the place of the model's own
            headless = shape.without_head()
            trained = self.model.trained + shape.layer.hidden - (0 if settings.lora else shape.head)
            self.shape, self.model = headless, self.model._replace(shape=headless, trained=trained)

    def estimate(self) -> StageEstimate:
        """Estimates all phases."""
        settings = self.settings
        checkpointing = self._decide_checkpointing()
        work = self._build_pass(checkpointing=checkpointing)
        phases = [self._build_phase("load", Moment("weights", self._list_loaded(work)))]
        rows_at_once = None
        if isinstance(settings, OnlineRl):
            drawn, rows_at_once = self._measure_drawing(settings, work)
            phases.append(drawn)
            phases.append(self._build_phase("score", measure_scoring(work)))
        if isinstance(settings, Dpo) and self.model.lora is None:
            phases.append(self._build_phase("score", measure_scoring(work._replace(optimizer_bytes=0.0))))
        phases.append(self._build_phase("update", measure_update(work)))
        if isinstance(settings, OnlineRl) and isinstance(settings.engine, Vllm):
            phases.append(self._build_phase("sync", Moment("one layer's merged weights", self._list_synced(work))))
        phases.append(self._build_phase("save", Moment("the weights that are written", self._list_saved(work))))
        if self.runtime.deepspeed is not None:
            self.notes.append("what DeepSpeed shares out among devices is counted whole on each")
        if self.shape.is_mixture:
            self.notes.append("activations of a mixture of experts as if tokens were spread over the experts evenly")
        return StageEstimate(
            phases,
            self.shape,
            self.model,
            checkpointing,
            work.batch,
            max(1, work.batch.n_tokens // self._get_longest_row()),
            rows_at_once,
            list(dict.fromkeys(self.notes)),
            self._count_trained(),
        )

    def needs_checkpointing(self, device_bytes: float) -> bool:
        """Returns whether an optimiser step without checkpointing needs more than half of a device's memory."""
        without = self._build_phase("update", measure_update(self._build_pass(checkpointing=False)))
        return without.total > device_bytes / 2

    def _decide_checkpointing(self) -> bool:
        asked = self.runtime.gradient_checkpointing
        if asked == "auto":
            return self.device is not None and self.needs_checkpointing(self.device.n_bytes)
        return asked

    def _build_pass(self, *, checkpointing: bool) -> TrainingPass:
        """Builds the training pass over the largest micro-batch."""
        settings = self.settings
        batch, accumulates = self._plan_micro_batch()
        return TrainingPass(
            model=self.model,
            batch=batch,
            optimizer_bytes=count_optimizer_bytes(settings.optimizer, self._count_trained()),
            checkpointing=checkpointing,
            is_on_gpu=self.is_on_gpu,
            accumulates=accumulates,
            resident=self._list_resident(),
            reference_pass=isinstance(settings, Dpo) and settings.lora is not None,
            head="trl_on_cpu" if not self.is_on_gpu and getattr(settings, "trainer", None) == "trl" else None,
            has_head=not isinstance(settings, RewardModel),
            entropy_gradient=isinstance(settings, OnlineRl) and settings.entropy is not None,
            trunks=2 if isinstance(settings, Ppo) and settings.critic.kind == "separate" else 1,
            offloads_activations=self.runtime.activation_offloading,
        )

    def _plan_micro_batch(self) -> tuple[MicroBatch, bool]:
        """Returns the largest micro-batch, of rows as long as may be, and whether a step has more than one.

        Completions of a prompt share it: where a step has few, a pass has fewer tokens than it may have.
        """
        settings, runtime, longest = self.settings, self.runtime, self._get_longest_row()
        if isinstance(settings, OnlineRl):
            drawn = settings.prompts_per_step * settings.completions_per_prompt
            share = max(1, drawn // runtime.processes // settings.updates.minibatches)
            n_prompts = ceil(share / settings.completions_per_prompt)
            scored = share * settings.sampling.max_tokens
            total = scored + n_prompts * self.prompt_tokens
        else:
            share = max(1, settings.batch // runtime.processes)
            total = scored = share * longest
        budget = min(runtime.micro_batch, share) * longest
        if runtime.micro_batch_tokens is not None:  # in the place of both other limits: get_pass_limits
            budget = max(longest, runtime.micro_batch_tokens)
        elif not self.is_on_gpu:
            budget = max(longest, min(budget, CPU_TOKENS))
        n_tokens = min(budget, total)
        n_attended = max(n_tokens, round(n_tokens * share * longest / total))
        picks_queries = not isinstance(settings, OnlineRl) or settings.sampling.max_tokens >= self.prompt_tokens
        batch = MicroBatch(n_tokens, max(1, round(n_tokens * scored / total)), n_attended, picks_queries)
        return batch, total > n_tokens

    def _get_longest_row(self) -> int:
        """Returns the tokens of the longest row, or of the longest pair's two sides."""
        settings = self.settings
        if isinstance(settings, OnlineRl):
            return self.prompt_tokens + settings.sampling.max_tokens
        return settings.max_tokens * (1 if isinstance(settings, Sft) else 2)

    def _count_trained(self) -> int:
        """Counts the trained parameters, those of a critic among them."""
        return self.model.trained + self._count_critic_parameters()

    def _count_critic_parameters(self) -> int:
        if not isinstance(self.settings, Ppo):
            return 0
        head = self.shape.layer.hidden + 1
        if self.settings.critic.kind == "head":
            return head
        return head + (self.model.trained if self.settings.lora else self.shape.without_head().n_parameters)

    def _list_resident(self) -> Parts:
        """Lists what is there at any moment beside the policy: reference, critic, another engine's memory."""
        settings, parts = self.settings, Parts()
        if not isinstance(settings, OnlineRl):
            return parts
        if settings.kl is not None and settings.lora is None:
            parts["reference"] = float(self.shape.n_parameters * (_BF16 if self.model.autocast else _FP32))
        if isinstance(settings, Ppo):  # with its gradients
            parts["critic"] = 2.0 * _FP32 * self._count_critic_parameters()
        if isinstance(settings.engine, Vllm) and settings.engine.mode == "colocate":
            parts["engine"] = self._count_engine_bytes(settings.engine)
            if settings.engine.enable_sleep_mode:
                parts["engine"] = 0.0
        if any(reward.kind in ("learned", "qwen2_5_math") for reward in settings.rewards):
            self.notes.append("reward models are not counted")
        return parts

    def _count_engine_bytes(self, engine: Vllm) -> float:
        """Returns what a vLLM in the trainer's processes takes: its share of the device, or its weights alone."""
        weights = float(_BF16 * self.shape.n_parameters)
        return weights if self.device is None else max(weights, engine.gpu_memory_utilization * self.device.n_bytes)

    def _list_loaded(self, work: TrainingPass) -> Parts:
        adapters = float(_FP32 * self.model.trained) if self.model.lora else 0.0
        return {"weights": self.model.weight_bytes, "adapters": adapters, **work.resident}

    def _list_synced(self, work: TrainingPass) -> Parts:
        merged = float(_FP32 * self.shape.largest_linear) if self.model.lora else 0.0
        assert isinstance(self.settings, OnlineRl)
        assert isinstance(self.settings.engine, Vllm)
        parts = {**self._list_loaded(work), "optimiser": work.optimizer_bytes, "merged weights": merged}
        if self.settings.engine.mode == "colocate":
            parts["engine"] = self._count_engine_bytes(self.settings.engine)
        return parts

    def _list_saved(self, work: TrainingPass) -> Parts:
        """Lists what is there while a trained model is written: of a full one another copy, where that is in bf16."""
        copy = 0.0
        if self.model.lora is None and self._saves_bf16():
            copy = float(_BF16 * self.shape.n_parameters)
        return {**self._list_loaded(work), "optimiser": work.optimizer_bytes, "copy": copy}

    def _saves_bf16(self) -> bool:
        stored: Precision = "bf16" if self.shape.stored_bytes == _BF16 else "fp32"
        return resolve_precision(self.settings, stored).save_weights == "bf16"

    def _measure_drawing(self, settings: OnlineRl, work: TrainingPass) -> tuple[Phase, int | None]:
        """Returns the phase in which completions are drawn, and how many at once."""
        parts = {**self._list_loaded(work), "optimiser": work.optimizer_bytes}
        if isinstance(settings.engine, Vllm):
            if settings.engine.mode == "colocate":
                parts["engine"] = self._count_engine_bytes(settings.engine)
            return self._build_phase("draw", Moment("vLLM", parts)), None
        weight_bytes = _BF16 if self.model.autocast else _FP32
        if self.model.autocast:  # the engine draws with bf16 copies of what is not bf16
            n_copied = self.model.trained if self.model.lora else self.shape.n_parameters
            parts["drawing copy"] = float(_BF16 * n_copied)
        completions = settings.prompts_per_step * settings.completions_per_prompt // self.runtime.processes
        columns = self.prompt_tokens + settings.sampling.max_tokens - 1
        phase, at_once = _measure_drawing(
            self.shape,
            self.runtime,
            (max(1, completions), columns, self.prompt_tokens),
            weight_bytes,
            parts,
            self.device,
        )
        return phase, at_once

    def _build_phase(self, name: str, moment: Moment) -> Phase:
        return _add_overhead(name, moment)


def _add_overhead(name: str, moment: Moment) -> Phase:
    """Returns a moment as a phase, with the device's overhead as another part and without empty ones."""
    parts = {part: n_bytes for part, n_bytes in moment.parts.items() if n_bytes}
    return Phase(name, moment.name, {**parts, "overhead": measure_overhead(sum(parts.values()))})


def _measure_drawing(
    shape: ModelShape,
    runtime: Runtime,
    sizes: tuple[int, int, int],
    weight_bytes: int,
    parts: Parts,
    device: Device | None,
) -> tuple[Phase, int]:
    """Returns the phase in which the local engine draws, and how many completions have their keys and values at once.

    `sizes`: completions to draw, columns of cache of each, prompt tokens. Without `kv_cache_gib` as many as there is
    room for, but one at least.
    """
    completions, columns, prompt_tokens = sizes
    rows = min(runtime.generation_batch, completions)
    prefill = max(prompt_tokens, min(runtime.prefill_tokens, rows * prompt_tokens))
    drawn = measure_drawing(shape, Drawing(rows, columns, prefill, weight_bytes))
    held = drawn.all_rows
    if runtime.kv_cache_gib is not None:
        held = min(held, max(drawn.one_row, runtime.kv_cache_gib * 2**30))
    elif device is not None:
        others = sum(parts.values()) + drawn.activations + drawn.logits
        held = min(held, max(drawn.one_row, device.comfortable_bytes - others))
    parts = {**parts, "keys and values": held, "activations": drawn.activations, "logits": drawn.logits}
    return _add_overhead("draw", Moment("reading prompts" if drawn.activations else "sampling", parts)), max(
        1, int(held / drawn.one_row)
    )


def _estimate_sampling(
    settings: Evaluate | Rollout, runtime: Runtime, shape: ModelShape, device: Device | None, prompt_tokens: int | None
) -> StageEstimate:
    """Estimates a stage that only draws and judges completions."""
    is_bf16 = settings.precision == "bf16" or (settings.precision == "auto" and shape.stored_bytes == _BF16)
    weight_bytes = _BF16 if is_bf16 else _FP32
    weights = {"weights": float(weight_bytes * shape.n_parameters)}
    prompt_tokens = prompt_tokens or ASSUMED_PROMPT_TOKENS
    columns = prompt_tokens + settings.sampling.max_tokens - 1
    sizes = (runtime.generation_batch, columns, prompt_tokens)
    drawn, at_once = _measure_drawing(shape, runtime, sizes, weight_bytes, weights, device)
    notes = []
    rewards = list(settings.rewards)
    if any(reward.kind in ("learned", "qwen2_5_math") for reward in rewards) or (
        isinstance(settings, Evaluate) and settings.best_of_n_scorer is not None
    ):
        notes.append("reward models are not counted")
    loaded = _add_overhead("load", Moment("weights", dict(weights)))
    return StageEstimate([loaded, drawn], shape, None, None, None, None, at_once, notes)
