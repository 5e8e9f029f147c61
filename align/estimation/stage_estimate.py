"""Estimates the memory of a stage on each device, phase by phase, from its settings and the model's config.json."""

from collections.abc import Mapping
from math import ceil
from typing import Any, Literal, NamedTuple

from qwen_align.align.estimation.device import TIGHT_SHARE, Device, measure_gpu_overhead, measure_host_overhead
from qwen_align.align.estimation.model_shape import ModelShape, read_model_shape
from qwen_align.align.estimation.numerics import TrainedModel, computes_in_bf16, count_optimizer_bytes, hold_model
from qwen_align.align.estimation.sampling_memory import Drawing, measure_drawing
from qwen_align.align.estimation.sharding import Spread
from qwen_align.align.estimation.training_memory import (
    MicroBatch,
    Moment,
    Parts,
    TrainingPass,
    measure_scoring,
    measure_update,
)
from qwen_align.align.models.router_settings import resolve_router_settings
from qwen_align.align.settings.pass_limits import get_pass_limits
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.settings.stage import StageSettings
from qwen_align.align.settings.training import Optimizer
from qwen_align.align.settings.workload import DrawnRows, ReadRows, TrainingWork, Workload

Verdict = Literal["fits", "tight", "does not fit"]
ASSUMED_PROMPT_TOKENS = 512  # where the prompts are not known; our choice, twice a problem of GSM8K or MATH
COMPARED_TOKENS = 64  # of a QLoRA policy's row: align/models/quantization_error.py
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

    workload: Workload
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
    settings: StageSettings,
    runtime: Runtime,
    config: Mapping[str, Any],
    device: Device | None = None,
    *,
    prompt_tokens: int | None = None,
    is_on_gpu: bool = True,
    merges_adapters: bool = False,
) -> StageEstimate | None:
    """Estimates a stage's memory on each device. Returns None for a kind of stage that gives no workload.

    `device`: for what depends on it: checkpointing by `auto`, and how much of keys and values is held. Without one the
    first is off and the second all that the completions need. `prompt_tokens`: of the longest prompt, where known.
    `merges_adapters`: the stage's model has adapters, which are merged into its base. On a CPU the bytes are those of
    anonymous memory: weights that are frozen, and in the precision of their files, stay pages of these.
    Raises ValueError for a model whose architecture is not known.
    """
    workload = settings.get_workload()
    if workload is None:
        return None
    shape = read_model_shape(config)
    prompt_tokens = prompt_tokens or ASSUMED_PROMPT_TOKENS
    load = Loading(is_on_gpu, merges_adapters)
    if workload.training:
        stage = _Training(workload, workload.training, runtime, shape, device, prompt_tokens, load)
        routers = resolve_router_settings(settings, config, runtime) if isinstance(settings, Optimizer) else None
        stage.balances_experts = routers is not None and routers.load_balancing > 0
        return stage.estimate()
    return _estimate_sampling(workload, runtime, shape, device, prompt_tokens, load)


def choose_checkpointing(
    settings: StageSettings, runtime: Runtime, config: Mapping[str, Any], device_bytes: int, *, is_on_gpu: bool = True
) -> bool:
    """Returns whether gradients are to be checkpointed: as `runtime.gradient_checkpointing` says.

    `auto`: where the estimate of an optimiser step without it is above half of the device's memory. What cannot be
    estimated, a kind of stage without a workload or an architecture that is not known, is checkpointed.
    """
    if runtime.gradient_checkpointing != "auto":
        return runtime.gradient_checkpointing
    workload = settings.get_workload()
    if workload is None or workload.training is None:
        return True
    try:
        shape = read_model_shape(config)
    except ValueError:
        return workload.training.can_checkpoint
    work = _Training(workload, workload.training, runtime, shape, None, ASSUMED_PROMPT_TOKENS, Loading(is_on_gpu))
    return work.needs_checkpointing(device_bytes)


class Loading(NamedTuple):
    """Where a stage's model is loaded to, and whether adapters are merged into it."""

    is_on_gpu: bool
    merges_adapters: bool = False


class Place(NamedTuple):
    """What a stage's overhead depends on: the kind of device, and whether it trains."""

    is_on_gpu: bool
    trains: bool


class _Training:
    """The estimate of a stage that trains: what it holds at any moment, and its phases."""

    balances_experts = False  # over a whole optimiser step

    def __init__(
        self,
        workload: Workload,
        training: TrainingWork,
        runtime: Runtime,
        shape: ModelShape,
        device: Device | None,
        prompt_tokens: int,
        load: Loading,
    ) -> None:
        self.workload, self.training, self.rows = workload, training, workload.rows
        self.has_engine = isinstance(workload.rows, DrawnRows) and workload.rows.engine == "vllm"
        self.runtime, self.shape, self.device = runtime, shape, device
        self.prompt_tokens, self.is_on_gpu = prompt_tokens, load.is_on_gpu
        self.model = hold_model(workload.precision, training.lora, shape)
        if training.lora is not None and not load.is_on_gpu:
            self.model = self.model._replace(maps_files=True, maps_linear=not load.merges_adapters)
        if training.trains_scorer:  # a new head with one output in the place of the model's own
            headless = shape.without_head()
            trained = self.model.trained + shape.layer.hidden - (0 if training.lora else shape.head)
            self.shape, self.model = headless, self.model._replace(shape=headless, trained=trained)

    def estimate(self) -> StageEstimate:
        """Estimates all phases."""
        checkpointing = self._decide_checkpointing()
        work = self._build_pass(checkpointing=checkpointing)
        if self.balances_experts and work.accumulates:  # each pass is made once more before, without gradients
            n_passes = self.training.scoring_passes + self.training.passes
            self.training = self.training._replace(scoring_passes=n_passes)
            self.workload = self.workload._replace(training=self.training)
        phases = [self._build_phase("load", Moment("weights", self._list_loaded(work)))]
        rows_at_once = None
        if isinstance(self.rows, DrawnRows):
            drawn, rows_at_once = self._measure_drawing(self.rows, work)
            phases.append(drawn)
            phases.append(self._build_phase("score", measure_scoring(work)))
        if self.training.reference == "before":
            phases.append(self._build_phase("score", measure_scoring(work._replace(optimizer_bytes=0.0))))
        phases.append(self._build_phase("update", measure_update(work)))
        if self.has_engine:
            synced = self._list_synced(work)
            phases.append(self._build_phase("sync", Moment("the weights that are written", synced)))
        phases.append(self._build_phase("save", Moment("the weights that are written", self._list_saved(work))))
        if self.model.is_quantised and not self.is_on_gpu:
            phases.append(self._build_phase("compare", Moment("the merged base", self._list_compared(work))))
        return StageEstimate(
            self.workload,
            phases,
            self.shape,
            self.model,
            checkpointing,
            work.batch,
            max(1, work.batch.n_tokens // self._get_longest_row()),
            rows_at_once,
            self._list_notes(),
            self._count_trained(),
        )

    def _list_notes(self) -> list[str]:
        notes = _list_notes(self.workload)
        if self.runtime.offload != "none":
            notes.append("what is offloaded takes host memory, which is not counted")
        if self.shape.is_mixture:
            notes.append("activations of a mixture of experts as if tokens were spread over the experts evenly")
        return notes

    def needs_checkpointing(self, device_bytes: float) -> bool:
        """Returns whether an optimiser step without checkpointing needs more than half of a device's memory.

        Never where activations cannot be computed again.
        """
        if not self.training.can_checkpoint:
            return False
        without = self._build_phase("update", measure_update(self._build_pass(checkpointing=False)))
        return without.total > device_bytes / 2

    def _decide_checkpointing(self) -> bool:
        asked = self.runtime.gradient_checkpointing
        if asked == "auto":
            return self.device is not None and self.needs_checkpointing(self.device.n_bytes)
        return asked

    def _build_pass(self, *, checkpointing: bool) -> TrainingPass:
        """Builds the training pass over the largest micro-batch."""
        training = self.training
        batch, accumulates = self._plan_micro_batch()
        return TrainingPass(
            model=self.model,
            batch=batch,
            optimizer_bytes=count_optimizer_bytes(training.optimizer, self._count_trained()),
            checkpointing=checkpointing,
            is_on_gpu=self.is_on_gpu,
            accumulates=accumulates,
            resident=self._list_resident(),
            reference_pass=training.reference == "base",
            head="trl_on_cpu" if training.head_of_trl and not self.is_on_gpu else None,
            has_head=not training.trains_scorer,
            entropy_gradient=training.trains_entropy,
            trunks=2 if training.critic == "separate" else 1,
            offloads_activations=self.runtime.activation_offloading,
        )

    def _plan_micro_batch(self) -> tuple[MicroBatch, bool]:
        """Returns the largest micro-batch, of rows as long as may be, and whether a step has more than one.

        Completions of a prompt share it: where a step has few, a pass has fewer tokens than it may have.
        """
        runtime, longest, picks_queries = self.runtime, self._get_longest_row(), True
        share = max(1, self.rows.per_step // runtime.world_size // self.training.minibatches)
        total = scored = share * longest
        if isinstance(self.rows, DrawnRows):
            scored = share * self.rows.max_tokens
            total = scored + ceil(share / self.rows.completions_per_prompt) * self.prompt_tokens
            picks_queries = self.rows.max_tokens >= self.prompt_tokens
        limits = get_pass_limits(runtime, "cuda" if self.is_on_gpu else "cpu")
        n_tokens = min(max(longest, limits.compute_budget([longest])), total)
        n_attended = max(n_tokens, round(n_tokens * share * longest / total))
        batch = MicroBatch(n_tokens, max(1, round(n_tokens * scored / total)), n_attended, picks_queries)
        return batch, total > n_tokens

    def _get_longest_row(self) -> int:
        """Returns the tokens of the longest row, or of the longest pair's two sides."""
        if isinstance(self.rows, DrawnRows):
            return self.prompt_tokens + self.rows.max_tokens
        return self.rows.max_tokens * self.rows.sides

    def _count_trained(self) -> int:
        """Counts the trained parameters, those of a critic among them."""
        return self.model.trained + self._count_critic_parameters()

    def _count_critic_parameters(self) -> int:
        if self.training.critic is None:
            return 0
        head = self.shape.layer.hidden + 1
        if self.training.critic == "head":
            return head
        return head + (self.model.trained if self.model.lora else self.shape.without_head().n_parameters)

    def _list_resident(self) -> Parts:
        """Lists what is there at any moment beside the policy: reference, critic, another engine's memory."""
        parts: Parts = {}
        held = _BF16 if self.model.autocast else _FP32
        if self.training.reference == "copy" and (self.is_on_gpu or held != self.shape.stored_bytes):
            parts["reference"] = float(self.shape.n_parameters * held)
        parts["critic"] = 2.0 * _FP32 * self._count_critic_parameters()  # with its gradients
        if self.has_engine and not self.runtime.engine.enable_sleep_mode:
            parts["engine"] = self._count_engine_bytes()
        return parts

    def _count_engine_bytes(self) -> float:
        """Counts what an engine beside the trainer takes of its device."""
        held = _BF16 if self.model.autocast else _FP32
        place = Place(self.is_on_gpu, trains=True)
        return _count_engine_bytes(self.rows, self.prompt_tokens, self.shape, self.runtime, held, self.device, place)

    def _list_loaded(self, work: TrainingPass) -> Parts:
        adapters = float(_FP32 * self.model.trained) if self.model.lora else 0.0
        return {"weights": self.model.weight_bytes, "adapters": adapters, **work.resident}

    def _list_synced(self, work: TrainingPass) -> Parts:
        """Lists what is there while the policy is written for the engine: of what is cast or merged, another copy."""
        merged = float(_FP32 * self.shape.largest_linear) if self.model.lora else 0.0
        copy = float(_BF16 * self.shape.n_parameters) if self.model.autocast else 0.0
        if self.model.lora and not self.model.autocast:
            copy = float(_FP32 * self.shape.linear)
        engine = self._count_engine_bytes()
        return {**self._list_kept(work), "merged weights": merged + copy, "engine": engine}

    def _list_saved(self, work: TrainingPass) -> Parts:
        """Lists what is there while a trained model is written: of a full one another copy, where that is in bf16."""
        copy = 0.0
        if self.model.lora is None and self.model.autocast and self.training.save_weights != "fp32":
            copy = float(_BF16 * self.shape.n_parameters)
        return {**self._list_kept(work), "copy": copy}

    def _list_compared(self, work: TrainingPass) -> Parts:
        """Lists what is there while the trained policy is compared with the base that it is merged into.

        Its linear layers are written anew, and there are five times the logits of the tokens that are compared.
        """
        merged = float(self.shape.linear * self.shape.stored_bytes)
        logits = 5.0 * _FP32 * COMPARED_TOKENS * self.shape.vocabulary
        return {**self._list_kept(work), "merged weights": merged, "logits": logits}

    def _list_kept(self, work: TrainingPass) -> Parts:
        """Lists what is there between updates."""
        return {**self._list_loaded(work), "optimiser": work.optimizer_bytes}

    def _measure_drawing(self, rows: DrawnRows, work: TrainingPass) -> tuple[Phase, int | None]:
        """Returns the phase in which completions are drawn, and how many at once."""
        parts = self._list_kept(work)
        if self.has_engine:
            parts["engine"] = self._count_engine_bytes()
            return self._build_phase("draw", Moment("vLLM", parts)), None
        weight_bytes = _BF16 if self.model.autocast else _FP32
        if self.model.autocast:  # the engine draws with bf16 copies of what is not bf16
            n_copied = self.model.trained if self.model.lora else self.shape.n_parameters
            parts["drawing copy"] = float(_BF16 * n_copied)
        return _measure_drawing(
            rows,
            self.prompt_tokens,
            self.shape,
            self.runtime,
            weight_bytes,
            self._divide("draw", parts),
            self.device,
            Place(self.is_on_gpu, trains=True),
        )

    def _build_phase(self, name: str, moment: Moment) -> Phase:
        divided = self._divide(name, moment.parts)
        return _add_overhead(name, moment._replace(parts=divided), self.shape, Place(self.is_on_gpu, trains=True))

    def _divide(self, phase: str, parts: Parts) -> Parts:
        """Returns what each process holds of the parts of a phase."""
        return Spread(self.runtime, self.model, self.runtime.world_size).divide(phase, parts)


def _add_overhead(name: str, moment: Moment, shape: ModelShape, place: Place) -> Phase:
    """Returns a moment as a phase, with the device's overhead as another part and without empty ones."""
    parts = {part: n_bytes for part, n_bytes in moment.parts.items() if n_bytes}
    on_host = measure_host_overhead(shape.vocabulary, trains=place.trains)
    overhead = measure_gpu_overhead(sum(parts.values())) if place.is_on_gpu else on_host
    return Phase(name, moment.name, {**parts, "overhead": overhead})


def _measure_drawing(
    rows: DrawnRows,
    prompt_tokens: int,
    shape: ModelShape,
    runtime: Runtime,
    weight_bytes: int,
    parts: Parts,
    device: Device | None,
    place: Place,
) -> tuple[Phase, int]:
    """Returns the phase in which the local engine draws, and how many completions have their keys and values at once.

    Without `kv_cache_gib` as many as there is room for, but one at least.
    """
    side_by_side = runtime.generation_batch
    if rows.per_step:
        side_by_side = min(side_by_side, max(1, rows.per_step // runtime.world_size))
    columns = prompt_tokens + rows.max_tokens - 1
    n_prompts = ceil(side_by_side / rows.completions_per_prompt)  # each is read once
    prefill = max(prompt_tokens, min(runtime.prefill_tokens, n_prompts * prompt_tokens))
    drawn = measure_drawing(shape, Drawing(side_by_side, columns, prompt_tokens, prefill, weight_bytes))
    held = drawn.all_rows
    if runtime.kv_cache_gib is not None:
        held = min(held, max(drawn.one_row, runtime.kv_cache_gib * 2**30))
    elif device is not None:
        others = sum(parts.values()) + max(drawn.reading, drawn.sampling)
        held = min(held, max(drawn.one_row, device.comfortable_bytes - others))
    # On a CPU columns of the cache take memory when they are first written, those of completions after the prompts.
    read = held if place.is_on_gpu else min(held, drawn.prompts)
    moments = (
        Moment("reading prompts", {**parts, "keys and values": read, "activations": drawn.reading}),
        Moment("sampling", {**parts, "keys and values": held, "logits": drawn.sampling}),
    )
    worst = max(moments, key=lambda moment: moment.total)
    phase = _add_overhead("draw", worst, shape, place)
    return phase, max(1, int(held / drawn.one_row))


def _count_engine_bytes(
    rows: ReadRows | DrawnRows,
    prompt_tokens: int,
    shape: ModelShape,
    runtime: Runtime,
    weight_bytes: int,
    device: Device | None,
    place: Place,
) -> float:
    """Counts what a vLLM takes of the stage's own device: its share of a GPU, or weights, keys and values on a CPU.

    None of what runs on GPUs of its own, or on a server.
    """
    assert isinstance(rows, DrawnRows)
    if runtime.engine.where != "beside":
        return 0.0
    weights = float(weight_bytes * shape.n_parameters)
    if place.is_on_gpu:
        share = runtime.engine.get_memory_share(trains=place.trains)
        return weights if device is None else max(weights, share * device.n_bytes)
    columns = prompt_tokens + rows.max_tokens
    cache = measure_drawing(shape, Drawing(runtime.generation_batch, columns, prompt_tokens, columns, weight_bytes))
    held = cache.all_rows if runtime.kv_cache_gib is None else runtime.kv_cache_gib * 2**30
    return weights + held


def _estimate_sampling(
    workload: Workload, runtime: Runtime, shape: ModelShape, device: Device | None, prompt_tokens: int, load: Loading
) -> StageEstimate | None:
    """Estimates a stage that only draws and judges completions."""
    if not isinstance(workload.rows, DrawnRows):
        return None
    weight_bytes = _BF16 if computes_in_bf16(workload.precision, shape) else _FP32
    is_mapped = not load.is_on_gpu and weight_bytes == shape.stored_bytes
    n_held = (shape.linear if load.merges_adapters else 0) if is_mapped else shape.n_parameters
    weights = {"weights": float(weight_bytes * n_held)}
    place = Place(load.is_on_gpu, trains=False)
    loaded = _add_overhead("load", Moment("weights", dict(weights)), shape, place)
    if workload.rows.engine == "vllm":  # this process frees its model before
        engine = _count_engine_bytes(workload.rows, prompt_tokens, shape, runtime, weight_bytes, device, place)
        drawn = _add_overhead("draw", Moment("vLLM", {"engine": engine}), shape, place)
        return StageEstimate(workload, [loaded, drawn], shape, None, None, None, None, None, _list_notes(workload))
    drawn, at_once = _measure_drawing(
        workload.rows, prompt_tokens, shape, runtime, weight_bytes, weights, device, place
    )
    return StageEstimate(workload, [loaded, drawn], shape, None, None, None, None, at_once, _list_notes(workload))


def _list_notes(workload: Workload) -> list[str]:
    return ["reward models are not counted"] if workload.needs_scorer else []
