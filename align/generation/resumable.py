"""Samples completions in parts that are written to disk, so that a killed stage can resume."""

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby, pairwise
from math import ceil
from pathlib import Path
from typing import Literal, NamedTuple

from qwen_align.align.context import Context
from qwen_align.align.errors import StageError
from qwen_align.align.generation import vllm
from qwen_align.align.generation.engine import Engine, Request
from qwen_align.align.generation.local import LocalEngine, open_local_engine
from qwen_align.align.generation.requests import RenderedProblem, build_completion, resolve_sampling, sort_completions
from qwen_align.align.models import loading
from qwen_align.align.models.attention_setting import set_attention
from qwen_align.align.models.model_description import locate_model_files
from qwen_align.align.models.weight_precision import Precision
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rows import Completion, read_rows, to_json_line
from qwen_align.align.settings.evaluate import Evaluate
from qwen_align.align.settings.rollout import Rollout
from qwen_align.align.settings.sampling import SamplingSettings
from qwen_align.align.store.files import write_text
from qwen_align.align.training.distributed import (
    broadcast_from_main,
    connect_on_cpu,
    gather_objects,
    get_rank,
    get_world_size,
    is_main_process,
    wait_for_all,
    wait_until_visible,
)
from qwen_align.reward.base import JUDGED_TOGETHER
from qwen_align.reward.combine import judge_all
from qwen_align.reward.settings import Reward
from qwen_align.reward.verdict import Verdict

BATCHES_A_PART = 4  # so that the engine can sort by length, and a crash loses a minute rather than an hour


@dataclass(frozen=True)
class SamplingRequest:
    """The number of completions per prompt, their sampling settings and their seed."""

    settings: SamplingSettings
    samples: int
    seed: int
    keep_tokens: bool = False


@contextmanager
def open_engine(
    settings: Evaluate | Rollout,
    source: Path,
    renderer: Renderer,
    context: Context,
    prompts: Sequence[RenderedProblem],
) -> Iterator[Engine]:
    """Gives the engine of a stage that only draws, with the stage's model, inside a `with` block.

    Raises RecipeError for an attention implementation that its architecture does not have.
    """
    if settings.engine == "local" or not prompts:
        yield load_engine(source, renderer, context, settings.precision)
        return
    precision = loading.find_precision(source) if settings.precision == "auto" else settings.precision
    max_tokens = max(len(each.prompt.ids) for each in prompts) + settings.sampling.max_tokens
    probe_ids = vllm.choose_probe([each.prompt.ids for each in prompts], max_tokens)
    request = vllm.EngineRequest(precision, max_tokens, probe_ids, trains=False)
    owns_servers = context.runtime.engine.where == "beside"
    # Before servers start, so that no other model is held beside the engine's.
    written = _write_policy(source, context, request) if owns_servers or is_main_process() else None
    with vllm.open_vllm_engine(source, renderer, context, request) as engine:
        if written is not None:
            engine.load_policy(written)
        if not owns_servers:
            wait_for_all()
        yield engine


def _write_policy(source: Path, context: Context, request: vllm.EngineRequest) -> vllm.WrittenPolicy:
    """Returns a stage's model as its engine gets it: written where the servers do not read it from its own folder."""
    policy = loading.load_model(source, request.precision).to(loading.choose_device(context.runtime))
    if context.runtime.engine.is_child and not locate_model_files(source).adapters:
        return vllm.WrittenPolicy(None, 0, vllm.compute_text_logps(policy, request))
    return vllm.write_policy(policy, request, context.out / vllm.FOLDER / f"weights-{get_rank()}", 0)


def load_engine(
    source: Path, renderer: Renderer, context: Context, precision: Precision | Literal["auto"] = "auto"
) -> LocalEngine:
    """Loads a model in a precision onto the runtime's device and returns a local engine for it.

    Raises RecipeError for an attention implementation that its architecture does not have.
    """
    device = loading.choose_device(context.runtime)
    policy = loading.load_model(source, precision).to(device)
    set_attention(policy, context.runtime.attention, device.type)
    return open_local_engine(policy, renderer, context.runtime)


def sample_completions(
    engine: Engine,
    renderer: Renderer,
    prompts: Sequence[RenderedProblem],
    request: SamplingRequest,
    context: Context,
    parts: Path,
) -> Iterator[Completion]:
    """Samples the completions of all prompts and yields them in the order of prompt and sample number.

    Only the main process yields any; in the others this has to be drained all the same.

    The parts depend on runtime.generation_batch and the number of processes alone, so a resumed stage decodes the same
    batches; where there are parts already, as of a run with another generation_batch that ran out of memory, on those.
    """
    parts.mkdir(parents=True, exist_ok=True)
    rank, world = get_rank(), get_world_size()
    connect_on_cpu()
    # The main process says it, as another node may not see yet what parts there are.
    size = broadcast_from_main(_choose_part_size(parts, len(prompts), request, context))
    all_parts = list(divide_into_parts(len(prompts), size, request.samples, world))
    own_parts = all_parts[rank::world]
    total = sum(part.n_completions for part in own_parts)
    done, tokens, started = 0, 0, time.monotonic()
    names: list[str] = []  # of this process's parts
    longest = max((len(each.prompt.ids) for each in prompts), default=0) + request.settings.max_tokens
    for part in own_parts:
        path = find_intact_part(parts, part, context)
        if path is None:
            rows = []
            with context.work_on("draw", rows=part.n_completions, longest_row=longest):
                for row in _sample_part(engine, renderer, prompts[part.start : part.stop], request, part):
                    rows.append(row)
                    tokens += row.n_tokens
                    context.report_progress(done + len(rows), total, tokens, unit="completions")
                ordered = sort_completions(rows, prompts[part.start : part.stop])
                text = "".join(to_json_line(row) + "\n" for row in ordered)
                path = parts / f"{part.name}.{_compute_digest(text.encode())}.jsonl"
                write_text(path, text)
        names.append(path.name)
        done += part.n_completions
        context.stop_if_requested()
    if tokens:
        context.measured["speed/tokens_per_second"] = tokens / (time.monotonic() - started)
    all_names = [name for names_of_one in gather_objects(names) for name in names_of_one]
    if context.is_main:
        for name in all_names:
            wait_until_visible(parts / name)
        for part in all_parts:
            path = find_intact_part(parts, part, context)
            if path is None:
                raise StageError(f"{parts}: the completions of part {part.name} are gone; run again")
            yield from (row for row in read_rows(path) if isinstance(row, Completion))


class Part(NamedTuple):
    """The prompts from `start` to `stop`, and of each the samples from `first` to `last`, neither end included.

    `is_slice`: the prompt has other samples too, in other parts.
    """

    start: int
    stop: int
    first: int
    last: int
    is_slice: bool = False

    @property
    def name(self) -> str:
        """Returns what the name of the part's file begins with."""
        return f"{self.start:08d}-{self.stop:08d}" + (f"_{self.first}-{self.last}" if self.is_slice else "")

    @property
    def n_completions(self) -> int:
        return (self.stop - self.start) * (self.last - self.first)


def divide_into_parts(n_prompts: int, size: int, samples: int, n_processes: int) -> Iterator[Part]:
    """Yields the parts of `size` prompts each, in order.

    Where there are more processes than prompts, each prompt's samples are divided too, so that more of them draw.
    """
    n_slices = min(samples, max(1, n_processes // max(1, n_prompts))) if size == 1 else 1
    bounds = [samples * number // n_slices for number in range(n_slices + 1)]
    for start in range(0, n_prompts, size):
        for first, last in pairwise(bounds):
            yield Part(start, min(start + size, n_prompts), first, last, is_slice=n_slices > 1)


def _choose_part_size(parts: Path, n_prompts: int, request: SamplingRequest, context: Context) -> int:
    """Returns how many prompts a part has: those of parts that are there, else a few batches.

    No more than leave a part for every process, where there are enough prompts.
    """
    size = max(1, BATCHES_A_PART * context.runtime.generation_batch // request.samples)
    share = max(1, ceil(n_prompts / get_world_size()))
    return find_part_size(parts, n_prompts) or min(size, share)


def find_part_size(parts: Path, n_prompts: int) -> int | None:
    """Returns how many prompts the parts have that lie in a folder. Returns None where none says it.

    The last part may have fewer.
    """
    for path in parts.glob("*.jsonl"):
        start, stop = map(int, path.name.partition(".")[0].partition("_")[0].split("-"))
        if stop < n_prompts:
            return stop - start
    return None


def judge_completions(rows: Iterable[Completion], rewards: Sequence[Reward]) -> Iterator[tuple[Completion, Verdict]]:
    """Judges completions with the rewards and yields each with its verdict, in order.

    `rows` come by prompt, whose completions are judged together.
    """
    waiting: list[Completion] = []
    for _, group in groupby(rows, key=lambda row: row.prompt_id):
        waiting.extend(group)
        if len(waiting) >= JUDGED_TOGETHER:
            yield from zip(waiting, judge_all(rewards, waiting), strict=True)
            waiting = []
    yield from zip(waiting, judge_all(rewards, waiting), strict=True)


def find_intact_part(parts: Path, part: Part, context: Context) -> Path | None:
    """Returns the path of a part file of sampled completions if its digest is right.

    A damaged one is deleted and noted. Returns None if there is no undamaged one.
    """
    for path in parts.glob(f"{part.name}.*.jsonl"):
        if path.suffixes[0] == f".{_compute_digest(path.read_bytes())}":
            return path
        context.log_note(0, "damaged part", f"{path}: is not what was written; it is drawn again")
        path.unlink()
    return None


def _compute_digest(content: bytes) -> str:
    """Returns the first 16 hex digits of the content's SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]


def _sample_part(
    engine: Engine, renderer: Renderer, prompts: Sequence[RenderedProblem], request: SamplingRequest, part: Part
) -> Iterator[Completion]:
    """Samples the completions of a part, whose prompts these are, and yields them as they finish."""
    by_id = {rendered.problem.id: rendered for rendered in prompts}
    requests = [
        Request(
            id=rendered.problem.id,
            prompt_ids=rendered.prompt.ids,
            n=part.last - part.first,
            first_sample=part.first,
            sampling=resolve_sampling(rendered, renderer, request.settings),
            seed=request.seed,
        )
        for rendered in prompts
    ]
    for generation in engine.generate(requests):
        row = build_completion(by_id[generation.request.id], generation, renderer)
        if request.keep_tokens:
            row = row.model_copy(update={"token_ids": generation.token_ids, "logps": generation.logps})
        yield row
