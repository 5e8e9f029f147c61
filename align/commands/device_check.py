"""Implements `qwen-align check --gpu`: what a recipe's stages need on GPUs, whether they fit, and what to turn."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import yaml

from qwen_align.align.errors import RecipeError
from qwen_align.align.estimation.cost import DECODING_SHARE, TRAINING_SHARE, Cost, Speed, choose_speed, estimate_cost
from qwen_align.align.estimation.device import CONTEXT_BYTES, FRAGMENTATION_SHARE, Device
from qwen_align.align.estimation.fitting import Fit, find_fit
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
from qwen_align.align.settings.workload import ReadRows


class DeviceQuestion(NamedTuple):
    """What is asked: GPUs, and if given the longest prompt's tokens, 1e12 operations a second, and a price an hour."""

    device: Device
    prompt_tokens: int | None = None
    tflops: float | None = None
    price_per_hour: float | None = None


class _Total(NamedTuple):
    """Sums over the stages of a recipe."""

    seconds: float
    store_bytes: float
    largest_checkpoint: float


def describe_device_use(plan: Plan, question: DeviceQuestion) -> Iterator[str]:
    """Yields lines about the memory, time and disk of each stage that computes with a model.

    Nothing is read but the recipe and the model's config.json.
    """
    device = question.device
    gpus = f"{device.n_devices} GPU{'s' if device.n_devices > 1 else ''} of {format_card(device.n_bytes)}"
    yield f"memory of {gpus}{' each' if device.n_devices > 1 else ''}; figures in GiB, for rows as long as they may be"
    speed = _choose_speed(question)
    total, is_whole = _Total(0.0, 0.0, 0.0), True
    for stage in plan.stages:
        if stage.settings.get_workload() is None:
            continue
        estimate, lines = _describe_stage(plan, stage, question)
        yield from lines
        cost = _estimate_stage_cost(plan, stage, estimate, speed, question) if estimate else None
        if cost is None:
            is_whole = False
            continue
        yield f"    {_describe_cost(cost, speed)}"
        total = _Total(
            total.seconds + cost.seconds,
            total.store_bytes + cost.store_bytes,
            max(total.largest_checkpoint, cost.checkpoint_bytes),
        )
    yield from _describe_total(total, question, is_whole=is_whole)
    yield from _list_assumptions(plan, speed, question)


def _choose_speed(question: DeviceQuestion) -> Speed:
    speed = choose_speed(question.device.n_bytes)
    if question.tflops is None:
        return speed
    return Speed(f"{question.tflops:g} TFLOP/s", question.tflops * 1e12, speed.bandwidth)


def _plan_runtime(runtime: Runtime, device: Device, settings: StageSettings) -> Runtime:
    """Returns the runtime on all devices of the question, one process on each, where the batch can be shared so."""
    workload, processes = settings.get_workload(), device.n_devices
    if workload and isinstance(workload.rows, ReadRows) and workload.rows.per_step % device.n_devices:
        processes = runtime.processes
    return runtime.model_copy(update={"processes": processes, "device": "cuda"})


def _describe_stage(
    plan: Plan, stage: PlannedStage, question: DeviceQuestion
) -> tuple[StageEstimate | None, list[str]]:
    """Returns the estimate of a stage and the lines about its memory."""
    device, settings = question.device, stage.settings
    model = name_model(plan, stage)
    config = find_config(plan, stage)
    if config is None:
        return None, [f"{stage.name}: {model}: its config.json is not on this machine, so its memory is not known"]
    runtime = _plan_runtime(stage.runtime, device, settings)
    try:
        estimate = estimate_stage(settings, runtime, config, device, prompt_tokens=question.prompt_tokens)
    except ValueError as error:
        return None, [f"{stage.name}: {model}: {error}"]
    if estimate is None:
        return None, []
    peak, verdict = estimate.peak, estimate.judge(device)
    lines = [
        f"{stage.name} ({stage.kind}, {model}): {verdict}: {format_gib(peak.total)} of "
        f"{format_gib(device.n_bytes)} in {peak.name} ({peak.moment})",
        *(f"    {_format_phase(phase)}" for phase in estimate.phases),
        f"    {_describe_micro_batch(estimate, runtime)}",
        *(f"    note: {note}" for note in estimate.notes),
    ]
    if verdict != "fits":
        fit = find_fit(settings, runtime, config, device, prompt_tokens=question.prompt_tokens)
        lines += [f"    {line}" for line in describe_fit(fit, stage.runtime, estimate, device)]
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
        said.append(f"{estimate.rows_at_once:,} completions decoded at once")
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
    yield f"turn {setting} first; with this it {'fits' if verdict == 'fits' else 'is tight'}, at {_format_peak(fit)}:"
    if fit.stage:
        yield from (f"  {line}" for line in _to_yaml(fit.stage))
    if fit.runtime:
        kept = runtime.model_dump(exclude_defaults=True)
        yield from (f"  {line}" for line in _to_yaml({"runtime": {**kept, **fit.runtime}}))


def _format_peak(fit: Fit) -> str:
    return format_gib(fit.estimate.peak.total)


def _advise_beyond(estimate: StageEstimate, device: Device) -> str:
    """Returns what would help where no setting of the stage does."""
    if estimate.model is not None and estimate.model.lora is None:
        return "train adapters instead (lora), or take a larger card"
    if device.n_devices > 1:
        return "each GPU holds the whole model: more GPUs make it faster, not smaller"
    return "take a larger card, or a smaller model"


def _to_yaml(value: Mapping[str, Any]) -> list[str]:
    text: str = yaml.safe_dump(dict(value), default_flow_style=None, sort_keys=False, width=1000)
    return text.splitlines()


def _estimate_stage_cost(
    plan: Plan, stage: PlannedStage, estimate: StageEstimate, speed: Speed, question: DeviceQuestion
) -> Cost | None:
    return estimate_cost(
        estimate,
        speed,
        n_devices=question.device.n_devices,
        n_rows=_count_rows(plan, stage),
        prompt_tokens=question.prompt_tokens or ASSUMED_PROMPT_TOKENS,
    )


def _count_rows(plan: Plan, stage: PlannedStage) -> int | None:
    """Returns the number of rows that a stage reads, as far as the recipe says it."""
    makers = {other.name: other for other in plan.stages}
    targets = [stage.targets[str(ref)] for _, ref in find_references(stage.settings) if isinstance(ref, DataRef)]
    counts = [makers[target].settings.get_expected_rows() for target in targets if target in makers]
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(targets) else None


def _describe_cost(cost: Cost, speed: Speed) -> str:
    """Formats what a stage takes at most."""
    tokens = [
        f"{count / 1e6:,.1f} M tokens {what}"
        for count, what in ((cost.trained_tokens, "trained"), (cost.drawn_tokens, "drawn"))
        if count
    ]
    said = [*tokens, f"{cost.flops:.1e} FLOP", f"{cost.seconds / 3600:,.1f} h"]
    if cost.store_bytes:
        said.append(f"store {cost.store_bytes / GB:,.2f} GB, a checkpoint {cost.checkpoint_bytes / GB:,.2f} GB")
    return "at most: " + ", ".join(said)


def _describe_total(total: _Total, question: DeviceQuestion, *, is_whole: bool) -> Iterator[str]:
    hours = total.seconds / 3600
    some = "" if is_whole else " (of the stages whose rows are known)"
    price = ""
    if question.price_per_hour is not None:
        sum_ = hours * question.device.n_devices * question.price_per_hour
        price = f", {sum_:,.2f} at {question.price_per_hour:g} a GPU and hour"
    yield f"together at most {hours:,.1f} h{some}{price}"
    disk = total.store_bytes + 2 * total.largest_checkpoint  # the new one is written before the old one is deleted
    yield f"disk: {disk / GB:,.1f} GB for the store and two checkpoints"


def _list_assumptions(plan: Plan, speed: Speed, question: DeviceQuestion) -> Iterator[str]:
    """Yields what the figures rest on."""
    yield (
        f"note: overhead is {CONTEXT_BYTES / GB:g} GB for the device's context and {FRAGMENTATION_SHARE:.0%} for "
        "fragmentation; a stage that leaves less than 8 % is called tight"
    )
    if question.prompt_tokens is None:
        yield f"note: prompts of up to {ASSUMED_PROMPT_TOKENS} tokens are assumed (--prompt-tokens)"
    yield (
        f"note: time as on {speed.name}: {speed.flops / 1e12:g} TFLOP/s in bf16 (--tflops), of which training reaches "
        f"{TRAINING_SHARE:.0%}; {speed.bandwidth / 1e12:g} TB/s, of which decoding reaches {DECODING_SHARE:.0%}"
    )
    if question.device.n_devices > 1:
        yield "note: each GPU holds a whole replica; gradients are averaged over them"


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
