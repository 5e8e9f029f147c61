"""Implements `qwen-align check --gpu`: what a recipe's stages need on GPUs, whether they fit, and what to turn."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml

from qwen_align.align.errors import RecipeError
from qwen_align.align.estimation.cost import (
    DECODING_SHARE,
    TRAINING_SHARE,
    Cost,
    DiskUse,
    Speed,
    choose_speed,
    estimate_cost,
    estimate_disk_use,
)
from qwen_align.align.estimation.device import CONTEXT_BYTES, FRAGMENTATION_SHARE, TIGHT_SHARE, Device
from qwen_align.align.estimation.stage_estimate import (
    ASSUMED_PROMPT_TOKENS,
    Phase,
    StageEstimate,
    estimate_stage,
    judge_fit,
)
from qwen_align.align.estimation.units import GB, format_card, format_gib, parse_cards, parse_size
from qwen_align.align.pipeline.model_configs import find_config, name_model
from qwen_align.align.pipeline.plan import Plan, PlannedStage
from qwen_align.align.references import DataRef, find_references
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.settings.stage import StageSettings
from qwen_align.align.settings.workload import DrawnRows, ReadRows
from qwen_align.align.stages.fitting import Fit, find_fit

_UNIT_ROWS = 1000  # time is said for so many rows where their number is not known


class DeviceQuestion(NamedTuple):
    """What is asked: GPUs, and if given the longest prompt's tokens, 1e12 operations a second, and a price an hour."""

    device: Device
    prompt_tokens: int | None = None
    tflops: float | None = None
    price_per_hour: float | None = None


class _Stage(NamedTuple):
    """A stage of the plan with the runtime, on the GPUs of the question, that it is estimated for."""

    planned: PlannedStage
    runtime: Runtime
    config: Mapping[str, Any] | None


class _Total(NamedTuple):
    """Sums over the stages of a recipe. left_out: stages whose time is not among them."""

    seconds: float = 0.0
    store_bytes: float = 0.0
    largest_checkpoint: float = 0.0
    left_out: tuple[str, ...] = ()


def describe_device_use(plan: Plan, question: DeviceQuestion) -> Iterator[str]:
    """Yields lines about the memory, time and disk of each stage that computes with a model.

    Nothing is read but the recipe and the model's config.json.
    """
    device = question.device
    gpus = f"{device.n_devices} GPU{'s' if device.n_devices > 1 else ''} of {format_card(device.n_bytes)}"
    each = " each" if device.n_devices > 1 else ""
    yield f"memory of {gpus}{each}; figures in GiB, with every row as long as its stage's max_tokens allows"
    speed = _choose_speed(question)
    total = _Total()
    stages = [_plan_stage(plan, stage, device) for stage in plan.stages if stage.settings.get_workload() is not None]
    for stage in stages:
        estimate, lines = _describe_stage(plan, stage, question)
        yield from lines
        name = stage.planned.name
        if estimate is None:
            total = total._replace(left_out=(*total.left_out, name))
            continue
        disk = estimate_disk_use(stage.planned.settings, estimate)
        n_rows = _count_rows(plan, stage.planned)
        cost = _estimate_stage_cost(stage, estimate, speed, question, n_rows=n_rows or _UNIT_ROWS)
        fits = estimate.judge(device) != "does not fit"
        rows = estimate.workload.rows
        rows_unknown = n_rows is None and not (isinstance(rows, DrawnRows) and rows.steps)
        if fits:
            yield f"    {_describe_cost(cost, disk, for_each=_UNIT_ROWS if rows_unknown else None)}"
        is_left_out = rows_unknown or not fits
        total = _Total(
            total.seconds + (0.0 if is_left_out else cost.seconds),
            total.store_bytes + disk.stored,
            max(total.largest_checkpoint, disk.checkpoint),
            (*total.left_out, name) if is_left_out else total.left_out,
        )
    yield from _describe_total(total, question, nodes=max((stage.runtime.nodes for stage in stages), default=1))
    yield from _list_assumptions(stages, speed, question)


def _choose_speed(question: DeviceQuestion) -> Speed:
    speed = choose_speed(question.device.n_bytes)
    if question.tflops is None:
        return speed
    return Speed(f"{question.tflops:g} TFLOP/s", question.tflops * 1e12, speed.bandwidth)


def _plan_runtime(runtime: Runtime, device: Device, settings: StageSettings) -> Runtime:
    """Returns the runtime on all devices of the question, one process on each, where the batch can be shared so."""
    workload, processes = settings.get_workload(), device.n_devices
    if workload and isinstance(workload.rows, ReadRows) and workload.rows.per_step % (processes * runtime.nodes):
        processes = runtime.processes
    return runtime.model_copy(update={"processes": processes, "device": "cuda"})


def _plan_stage(plan: Plan, stage: PlannedStage, device: Device) -> _Stage:
    return _Stage(stage, _plan_runtime(stage.runtime, device, stage.settings), find_config(plan, stage))


def _describe_stage(plan: Plan, stage: _Stage, question: DeviceQuestion) -> tuple[StageEstimate | None, list[str]]:
    """Returns the estimate of a stage and the lines about its memory."""
    planned, runtime, config = stage
    device, settings = question.device, planned.settings
    model = name_model(plan, planned)
    if config is None:
        return None, [
            f"{planned.name}: {model}: its config.json is not on this machine, so its memory is not known; "
            f"`hf download {model} config.json --revision REVISION`, with that of the recipe, fetches it alone"
        ]
    try:
        estimate = estimate_stage(settings, runtime, config, device, prompt_tokens=question.prompt_tokens)
    except ValueError as error:
        return None, [f"{planned.name}: {model}: {error}"]
    if estimate is None:
        return None, []
    peak, verdict = estimate.peak, estimate.judge(device)
    lines = [
        f"{planned.name} ({planned.kind}, {model}): {verdict}: {format_gib(peak.total)} of "
        f"{format_gib(device.n_bytes)} in {peak.name} ({peak.moment})",
        *(f"    {_format_phase(phase)}" for phase in estimate.phases),
        f"    {_describe_micro_batch(estimate, runtime)}",
        *(f"    note: {note}" for note in estimate.notes),
    ]
    if runtime.processes != device.n_devices:
        lines.append(
            f"    note: batch: {estimate.workload.rows.per_step} does not divide by "
            f"{device.n_devices * runtime.nodes} GPUs; estimated for {runtime.format_processes()}"
        )
    if verdict != "fits":
        fit = find_fit(settings, runtime, config, device, prompt_tokens=question.prompt_tokens)
        lines += [f"    {line}" for line in describe_fit(fit, planned.runtime, estimate, device)]
        estimate = fit.estimate if fit else estimate
    return estimate, lines


def _format_phase(phase: Phase) -> str:
    """Formats a phase as its name, its sum and its parts, the largest first."""
    parts = sorted(phase.parts.items(), key=lambda part: -part[1])
    said = ", ".join(f"{name} {format_gib(n_bytes)}" for name, n_bytes in parts if n_bytes > 5e6)
    return f"{phase.name:<7} {format_gib(phase.total):>7}  {said}"


def _describe_micro_batch(estimate: StageEstimate, runtime: Runtime) -> str:
    said = []
    if estimate.micro_batch:
        said.append(f"up to {estimate.micro_batch.n_tokens:,} tokens in a training pass")
        asked = runtime.gradient_checkpointing
        how = " (auto)" if asked == "auto" else ""
        said.append(f"gradient checkpointing {'on' if estimate.checkpointing else 'off'}{how}")
    if estimate.rows_at_once:
        rows = estimate.rows_at_once
        said.append(f"{rows:,} completion{'s' if rows > 1 else ''} decoded at once")
    return "; ".join(said)


def describe_fit(fit: Fit | None, runtime: Runtime, estimate: StageEstimate, device: Device) -> Iterator[str]:
    """Yields what to turn first, and settings to paste with which a stage fits, or why none do."""
    if fit is None:
        parts = estimate.peak.parts
        largest = max((name for name in parts if name != "overhead"), key=lambda name: parts[name])
        yield f"no runtime fits: {largest} alone: {format_gib(parts[largest])}; {_advise_beyond(estimate, device)}"
        return
    changes = {**fit.stage, **fit.runtime}
    if not changes:
        return
    first = next(iter(changes))
    setting = first if first in fit.stage else f"runtime.{first}"
    verdict = fit.estimate.judge(device)
    yield f"change {setting} first; with this it {'fits' if verdict == 'fits' else 'is tight'}, at {_format_peak(fit)}:"
    for name, value in fit.stage.items():
        yield f"  {name}: {_to_yaml(value)}"
    if fit.runtime:
        kept = runtime.model_dump(exclude_defaults=True)
        yield f"  runtime: {_to_yaml({**kept, **fit.runtime})}"


def _format_peak(fit: Fit) -> str:
    return format_gib(fit.estimate.peak.total)


def _advise_beyond(estimate: StageEstimate, device: Device) -> str:
    """Returns what would help where no setting of the stage does."""
    if estimate.model is not None and estimate.model.lora is None:
        return "train adapters instead (lora), or take a larger card"
    if device.n_devices > 1:
        return "each GPU holds the whole model: more GPUs make it faster, not smaller"
    return "take a larger card, or a smaller model"


def _to_yaml(value: Any) -> str:
    """Formats a setting's value as YAML on one line."""
    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1000)
    return text.removesuffix("...\n").strip()


def _estimate_stage_cost(
    stage: _Stage, estimate: StageEstimate, speed: Speed, question: DeviceQuestion, *, n_rows: int
) -> Cost:
    return estimate_cost(
        estimate,
        speed,
        n_devices=stage.runtime.world_size,
        n_rows=n_rows,
        prompt_tokens=question.prompt_tokens or ASSUMED_PROMPT_TOKENS,
    )


def _count_rows(plan: Plan, stage: PlannedStage) -> int | None:
    """Returns the number of rows that a stage reads, as far as the recipe says it."""
    makers = {other.name: other for other in plan.stages}
    targets = [stage.targets[str(ref)] for _, ref in find_references(stage.settings) if isinstance(ref, DataRef)]
    counts = [_count_most_rows(makers, target) for target in targets]
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(targets) else None


def _count_most_rows(makers: Mapping[str, PlannedStage], name: str) -> int | None:
    """Returns the most rows that a stage can make; None where that is not known."""
    if name not in makers:
        return None
    maker = makers[name]
    return maker.settings.count_most_rows(lambda ref: _count_most_rows(makers, maker.targets[ref]))


def _describe_cost(cost: Cost, disk: DiskUse, *, for_each: int | None) -> str:
    """Formats what a stage takes at most. `for_each`: the rows that it is for, where their number is not known."""
    tokens = [
        f"{count / 1e6:,.1f} M tokens {what}"
        for count, what in ((cost.trained_tokens, "trained"), (cost.drawn_tokens, "drawn"))
        if count
    ]
    said = [*tokens, f"{cost.flops:.1e} FLOP", f"{cost.seconds / 3600:,.1f} h"]
    if disk.stored:
        said.append(f"on disk the model {disk.stored / GB:,.2f} GB, a checkpoint {disk.checkpoint / GB:,.2f} GB")
    return f"at most{f', for every {for_each:,} rows' if for_each else ''}: {', '.join(said)}"


def _describe_total(total: _Total, question: DeviceQuestion, *, nodes: int) -> Iterator[str]:
    hours = total.seconds / 3600
    some = f", without {', '.join(total.left_out)}" if total.left_out else ""
    price = ""
    if question.price_per_hour is not None:
        sum_ = hours * nodes * question.device.n_devices * question.price_per_hour
        price = f", {sum_:,.2f} at {question.price_per_hour:g} per GPU hour"
    if total.seconds:
        yield f"all stages together: at most {hours:,.1f} h{price}{some}"
    disk = total.store_bytes + 2 * total.largest_checkpoint  # the new one is written before the old one is deleted
    yield f"disk: {disk / GB:,.1f} GB for what the stages leave and two checkpoints, without models that are downloaded"


def _list_assumptions(stages: list[_Stage], speed: Speed, question: DeviceQuestion) -> Iterator[str]:
    """Yields what the figures rest on."""
    yield (
        f"note: overhead is {CONTEXT_BYTES / GB:g} GB for the device's context and {FRAGMENTATION_SHARE:.0%} for "
        f"fragmentation; a stage that leaves less than {TIGHT_SHARE:.0%} is called tight"
    )
    if question.prompt_tokens is None:
        yield f"note: prompts are taken to have up to {ASSUMED_PROMPT_TOKENS} tokens (--prompt-tokens)"
    yield (
        f"note: time as on {speed.name}: {speed.flops / 1e12:g} TFLOP/s in bf16 (--tflops), of which training reaches "
        f"{TRAINING_SHARE:.0%}; {speed.bandwidth / 1e12:g} TB/s, of which decoding reaches {DECODING_SHARE:.0%}"
    )
    if question.device.n_devices > 1:
        yield "note: with strategy ddp each GPU holds a whole replica of the model"
        if any(stage.planned.runtime.processes != stage.runtime.processes for stage in stages):
            n_devices = question.device.n_devices
            yield f"note: estimated with `runtime: {{processes: {n_devices}}}`, which the recipe has to say"


def build_question(gpu: str | None, gpus: str | None, **given: Any) -> DeviceQuestion:
    """Builds the question from the command line. Raises RecipeError for sizes that cannot be read."""
    if gpu and gpus:
        raise RecipeError("--gpu and --gpus: give one of the two")
    n_devices, n_bytes = parse_cards(gpus) if gpus else (1, parse_size(gpu or ""))
    return DeviceQuestion(Device(n_bytes, n_devices), **given)


def describe_peaks(plan: Plan, device: Device) -> str:
    """Returns the largest phase of each stage in GiB, and the worst verdict, on one line.

    Stages of one name in their recipe count once, and so do those that begin alike up to an underscore, by the largest.
    """
    peaks: dict[str, float] = {}
    for stage in plan.stages:
        config = find_config(plan, stage) if stage.settings.get_workload() else None
        if config is None:
            continue
        runtime = _plan_runtime(stage.runtime, device, stage.settings)
        estimate = estimate_stage(stage.settings, runtime, config, device)
        if estimate is not None:
            name = stage.origin.partition("_")[0]
            peaks[name] = max(peaks.get(name, 0.0), estimate.peak.total)
    said = ", ".join(f"{name} {format_gib(n_bytes)}" for name, n_bytes in peaks.items())
    return f"{said}: {judge_fit(max(peaks.values()), device.n_bytes)}"
