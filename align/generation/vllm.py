"""Defines the `vllm` engine, which samples completions from vLLM servers over HTTP.

vLLM lives in an environment of its own: this process starts it, or asks servers that run already. A server gets the
policy's weights as a folder that it reads, and after every update its log-probs of a fixed text are compared with the
policy's own: an update that failed in part goes on drawing, from another policy, without an error.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoConfig, PreTrainedModel

from qwen_align.align.context import Context
from qwen_align.align.engines.catalogue import find_untested
from qwen_align.align.engines.vllm_client import Answer, Prompt, VllmClient
from qwen_align.align.engines.vllm_server import Place, ServedModel, run_servers
from qwen_align.align.engines.worker.qwen_align_worker import PROTOCOL
from qwen_align.align.errors import StageError
from qwen_align.align.generation.cache_budget import compute_engine_cache_bytes
from qwen_align.align.generation.engine import Generation, Request, check_requests, compute_request_seed
from qwen_align.align.models import loading
from qwen_align.align.models.length_limit import compute_length_limit
from qwen_align.align.models.merged_weights import save_merged_weights
from qwen_align.align.models.model_description import locate_model_files
from qwen_align.align.models.weight_precision import Precision
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.store.files import remove_tree, write_json
from qwen_align.align.training.distributed import (
    broadcast_from_main,
    connect_on_cpu,
    get_rank,
    is_main_process,
    wait_for_all,
)

FOLDER = "engine"  # in the stage's folder, while the engine runs
POLICY_ADAPTER = "default"  # PEFT's name of the first

# Mean difference of log-probs, in nats a token, of the engine and the policy on the fixed text. Measured in fp32 on the
# tiny base: 2e-6 after sound updates, 3 to 4 with a head that was left behind. bf16 rounds each number by 0.4 %: the
# bound is that of the watchdog engine_mismatch.
_TOLERANCES: dict[Precision, float] = {"fp32": 1e-4, "bf16": 0.05}
_PROBE_TOKENS = 128  # our choice: tells updates apart, and takes vLLM a few milliseconds


class EngineRequest(NamedTuple):
    """What an engine is opened for: precision, longest prompt with its completion, the text that updates are verified
    on, and whether a policy is trained beside it."""

    precision: Precision
    max_tokens: int
    probe_ids: list[int]
    trains: bool


class WrittenPolicy(NamedTuple):
    """A policy as an engine gets it: the folder of its weights, None where it has them, and its log-probs."""

    folder: Path | None
    version: int
    logps: list[float]


class VllmEngine:
    """A generation engine that samples from copies of the model in vLLM, updated by `sync_weights`.

    `owns_servers`: this process alone asks these servers, and so each process updates its own; others are updated by
    the main process for all.

    The random numbers of a completion are vLLM's, of the request's seed, id, step and the sample's number: the same
    weights draw the same again, but for rounding of other batches. It tells one log-prob a token, of the distribution
    it drew from: with top-k, top-p or min-p that is not the policy's, which is the trainer's to compute.
    """

    has_own_weights = True

    def __init__(
        self,
        client: VllmClient,
        request: EngineRequest,
        *,
        folder: Path,
        max_positions: int | None,
        owns_servers: bool = True,
        can_sleep: bool = False,
    ) -> None:
        self.client, self.request, self.folder = client, request, folder
        self.max_positions, self.owns_servers, self.can_sleep = max_positions, owns_servers, can_sleep
        self._is_asleep = False

    def generate(self, requests: Sequence[Request]) -> Iterator[Generation]:
        """Samples all completions of the requests and yields them prompt by prompt, those that end first first."""
        vocab_size, limit = self.client.vocab_size, self.request.max_tokens
        check_requests(requests, vocab_size=vocab_size, max_positions=min(limit, self.max_positions or limit))
        prompts = [
            Prompt(
                request.prompt_ids, request.n, compute_request_seed(request) + request.first_sample, request.sampling
            )
            for request in requests
        ]
        for number, answers in self.client.complete(prompts):
            request = requests[number]
            for sample, answer in zip(request.sample_numbers, answers, strict=True):
                yield _build_generation(request, sample, answer)

    def sync_weights(self, model: PreTrainedModel, version: int) -> None:
        """Gives the servers the model's weights, adapters merged, and verifies what they draw from then.

        Every process calls it. Raises StageError where it differs from the model.
        """
        self._wake_up()
        if self.owns_servers or is_main_process():
            written = write_policy(model, self.request, self.folder / f"weights-{get_rank()}", version)
            self.load_policy(written)
        if not self.owns_servers:
            wait_for_all()

    def load_policy(self, written: WrittenPolicy) -> None:
        """Has the servers load a written policy, and verifies their log-probs. Raises StageError where they differ."""
        if written.folder is not None:
            held = self.client.call_workers("load_policy", str(written.folder.resolve()))
            remove_tree(written.folder)
            if any(each != {"version": written.version} for each in held):
                raise StageError(f"update {written.version}: the engine says that it has {held}; it was sent another")
            self.client.reset_prefix_cache()
        tolerance = _TOLERANCES[self.request.precision]
        for url, logps in zip(self.client.urls, self.client.score(self.request.probe_ids), strict=True):
            pairs = zip(logps, written.logps, strict=True)
            difference = sum(abs(engine - policy) for engine, policy in pairs) / len(logps)
            if not difference <= tolerance:
                raise StageError(
                    f"update {written.version}: {url}: the engine's weights are not the policy's after they were sent: "
                    f"log-probs of a text of {len(logps)} tokens differ by {difference:.2g} nats a token; "
                    f"{tolerance:g} is rounding in {self.request.precision}"
                )

    @contextmanager
    def stay_awake(self) -> Iterator[None]:
        """Keeps the servers awake inside a `with` block; those that may sleep do so afterwards."""
        self._wake_up()
        yield
        if self.can_sleep:
            self.client.sleep()
            self._is_asleep = True

    def _wake_up(self) -> None:
        """Wakes the servers if they sleep."""
        if self._is_asleep:
            self.client.wake_up()
            self._is_asleep = False


@contextmanager
def open_vllm_engine(
    source: Path,
    renderer: Renderer,
    context: Context,
    request: EngineRequest,
    *,
    stop_ids: Collection[int] | None = None,
) -> Iterator[VllmEngine]:
    """Starts or connects to vLLM for a stage inside a `with` block and gives the engine.

    Its weights are those of the source's base until they are synchronised. Raises RecipeError where vLLM is not
    installed, and StageError where it does not start or a server by URL cannot be given weights.
    """
    connect_on_cpu()
    settings, base = context.runtime.engine, loading.fetch_base_folder(locate_model_files(source))
    config = AutoConfig.from_pretrained(str(base))
    folder = context.out / FOLDER
    owns_servers = settings.where == "beside"
    with ExitStack() as stack:
        urls: list[str] | None = settings.urls
        if settings.is_child and (owns_servers or is_main_process()):
            served = _describe_served(base, config, context, request)
            urls = stack.enter_context(
                run_servers(
                    served,
                    _choose_places(context, request),
                    folder / f"process-{get_rank()}",
                    time_limit_s=settings.start_timeout_s,
                    report=lambda said: context.log_note(0, "engine", said),
                )
            )
        if not owns_servers:
            urls = broadcast_from_main(urls)
        assert urls is not None
        vocab_size = config.get_text_config().vocab_size
        client = VllmClient(urls, stop_ids=renderer.stop_ids if stop_ids is None else stop_ids, vocab_size=vocab_size)
        _check_servers(client, context, request)
        yield VllmEngine(
            client,
            request,
            folder=folder,
            max_positions=compute_length_limit(config.to_dict()),
            owns_servers=owns_servers,
            can_sleep=settings.enable_sleep_mode,
        )
    if is_main_process():
        remove_tree(folder)


def write_policy(model: PreTrainedModel, request: EngineRequest, folder: Path, version: int) -> WrittenPolicy:
    """Writes a model's weights, adapters merged, for an engine to load, with its log-probs of the fixed text."""
    remove_tree(folder)
    folder.mkdir(parents=True)
    save_merged_weights(model, folder, loading.DTYPES[request.precision], POLICY_ADAPTER)
    write_json(folder / "policy.json", {"version": version})
    return WrittenPolicy(folder, version, compute_text_logps(model, request))


@torch.no_grad()
def compute_text_logps(model: PreTrainedModel, request: EngineRequest) -> list[float]:
    """Computes a model's log-probs of the fixed text's tokens but the first, in the engine's precision."""
    ids = torch.tensor([request.probe_ids], device=model.device)
    was_training = model.training
    model.eval()
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=request.precision == "bf16"):
        logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    model.train(was_training)
    logps: list[float] = logits.float().log_softmax(dim=-1).gather(1, ids[0, 1:, None])[:, 0].tolist()
    return logps


def choose_probe(prompts: Sequence[Sequence[int]], max_tokens: int) -> list[int]:
    """Returns the fixed text that updates are verified on: the first prompts, one behind another."""
    ids = [token for prompt in prompts[:_PROBE_TOKENS] for token in prompt]
    return ids[: min(_PROBE_TOKENS, max_tokens - 1)]


def _build_generation(request: Request, sample: int, answer: Answer) -> Generation:
    """Builds a generation from a server's answer. Greedy tokens were certain, and their log-probs are the policy's."""
    sampled = [0.0] * len(answer.ids) if request.sampling.is_greedy else answer.logps
    return Generation(request, sample, answer.ids, answer.logps, sampled, answer.finish_reason)


def _describe_served(base: Path, config: Any, context: Context, request: EngineRequest) -> ServedModel:
    """Describes the model that the stage's servers serve, and their limits."""
    runtime, cache_bytes = context.runtime, None
    if loading.choose_device(runtime).type == "cpu":
        cache_bytes = compute_engine_cache_bytes(
            config.get_text_config(),
            loading.DTYPES[request.precision],
            kv_cache_gib=runtime.kv_cache_gib,
            max_rows=runtime.generation_batch,
            max_tokens=request.max_tokens,
        )
    elif runtime.kv_cache_gib is not None:
        cache_bytes = round(runtime.kv_cache_gib * 2**30)
    return ServedModel(
        base, request.precision, request.max_tokens, runtime.generation_batch, runtime.prefill_tokens, cache_bytes
    )


def _choose_places(context: Context, request: EngineRequest) -> list[Place]:
    """Returns where this process starts servers."""
    settings = context.runtime.engine
    share = settings.get_memory_share(trains=request.trains)
    if settings.where == "beside":
        device = loading.choose_device(context.runtime)
        gpus = () if device.type == "cpu" else (device.index,)
        return [Place(gpus, share, settings.enable_sleep_mode)]
    assert settings.gpus is not None
    size = settings.tensor_parallel
    starts = range(0, len(settings.gpus), size)
    return [Place(tuple(settings.gpus[start : start + size]), share, can_sleep=False) for start in starts]


def _check_servers(client: VllmClient, context: Context, request: EngineRequest) -> None:
    """Checks that servers can be given weights, in the stage's precision, and notes a version that was never tested.

    Raises StageError where they cannot.
    """
    for version in dict.fromkeys(client.read_version()):
        if untested := find_untested("vllm", version):
            context.log_note(0, "engine", untested)
    dtype = str(loading.DTYPES[request.precision]).removeprefix("torch.")
    wanted = {"protocol": PROTOCOL, "dtype": dtype}
    for found in client.call_workers("describe_weight_updates"):
        if found != wanted:
            raise StageError(
                f"runtime.engine: {', '.join(client.urls)}: the engine's workers say {found}, and the stage needs "
                f"{wanted}; see docs/rl.md for how a server is started"
            )
