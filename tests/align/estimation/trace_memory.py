"""Traces the peak memory of the product's own training steps at real widths, without the memory.

The independent truth of `align/estimation`. A model's weights are torch's fake tensors, which have a shape and no
storage, and torch's MemTracker adds up the bytes of what lives. Token ids, masks and lengths are real, so that the
product's code runs as it is: only what is computed from weights is fake.

Not seen: what an operator allocates inside itself and frees before it returns, the allocator's fragmentation, the
CUDA context. Kernels are those of a CPU: TRL's head in torch rather than in Triton, attention by sdpa.
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.distributed._tools.mem_tracker import MemTracker, _MemRefType
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from transformers import AutoModelForCausalLM, AutoTokenizer, DefaultFlowCallback, PreTrainedModel, Qwen3Config

from qwen_align.align.context import Context
from qwen_align.align.generation.batched_decoding import DecodingRow, DecodingSlots
from qwen_align.align.generation.engine import Request
from qwen_align.align.models import loading, quantized_base
from qwen_align.align.models.lora import build_lora_config
from qwen_align.align.rendering.samples import PairIds, Sample
from qwen_align.align.rl.algorithm import build_grpo
from qwen_align.align.rl.rollouts import Rollouts
from qwen_align.align.rl.trainer import OnlineTrainer
from qwen_align.align.settings.dpo import Dpo
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.settings.sampling import Sampling
from qwen_align.align.settings.sft import Sft
from qwen_align.align.settings.training import Lora
from qwen_align.align.stages import dpo, online_rl, sft
from qwen_align.align.training import fit, trl_arguments
from qwen_align.align.training.preference_trainer import PreferenceTrainer
from qwen_align.align.training.reference_logps import COLUMNS

TINY_BASE = Path(__file__).parents[3] / "recipes" / "tiny_base"

Bytes = dict[str, int]
"""Bytes by kind: weights, gradients, optimiser, activations (made in a forward pass), temporary (in a backward one)."""

KINDS = {
    _MemRefType.PARAM: "weights",
    _MemRefType.BUFFER: "weights",
    _MemRefType.GRAD: "gradients",
    _MemRefType.OPT: "optimiser",
    _MemRefType.ACT: "activations",
    _MemRefType.TEMP: "temporary",
    _MemRefType.OTH: "other",
}


_WITH_MASKS = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
)


class RealIntegers(TorchDispatchMode):
    """Runs what reads no weight on real tensors, and everything else on fake ones.

    New tensors of floats that are made from no other tensor are fake. A number read from a fake tensor is 1.
    """

    def __init__(self, fake_mode: FakeTensorMode) -> None:
        super().__init__()
        self.fake_mode = fake_mode

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in _flatten((*args, *kwargs.values())) if isinstance(leaf, Tensor)]
        n_fake = sum(isinstance(tensor, FakeTensor) for tensor in tensors)
        if func in _WITH_MASKS:
            # A real mask chooses as many rows as it does; a fake one could not say.
            rows = [part for index in args[1] for part in self._find_rows(index)]
            args = (args[0], rows, *args[2:])
        if n_fake and func is torch.ops.aten._local_scalar_dense.default:
            return True if args[0].dtype == torch.bool else 1.0 if args[0].dtype.is_floating_point else 1
        if n_fake and func is torch.ops.aten.masked_scatter.default:
            return torch.empty_like(args[0])
        if n_fake and n_fake < len(tensors):
            args, kwargs = tree_map_only(Tensor, self._fake, (args, kwargs))
        if n_fake or (not tensors and _makes_floats(func, args, kwargs)):
            return func(*args, **kwargs)
        with unset_fake_temporarily():
            return func(*args, **kwargs)

    def _fake(self, tensor: Tensor) -> Tensor:
        return tensor if isinstance(tensor, FakeTensor) else self.fake_mode.from_tensor(tensor)

    def _find_rows(self, index: Tensor | None) -> list[Tensor | None]:
        if index is None or isinstance(index, FakeTensor) or index.dtype != torch.bool:
            return [index]
        with unset_fake_temporarily():
            return list(index.nonzero().unbind(dim=1))


def _flatten(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flatten(value)
        else:
            yield value


def _makes_floats(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Returns whether an operator that reads no tensor makes one of floats."""
    if kwargs.get("dtype") is not None:
        return bool(kwargs["dtype"].is_floating_point)
    if func._schema.name in ("aten::arange", "aten::full", "aten::scalar_tensor"):  # of what they are given
        return any(isinstance(leaf, float) for leaf in _flatten(args))
    return True


class _NoModules:
    """Stands in for MemTracker's tracker of modules, which costs a pass over all of them at every operator."""

    parents: frozenset[str] = frozenset()
    is_bw = False

    def register_user_hooks(self, *_: Any) -> None: ...

    def clear_user_hooks(self) -> None: ...

    def __enter__(self) -> None: ...

    def __exit__(self, *_: Any) -> None: ...


class PhaseTracker(MemTracker):
    """MemTracker that keeps the peak of each phase, named by whoever sets `phase`, with its bytes by kind."""

    def __init__(self) -> None:
        super().__init__()
        self._mod_tracker: Any = _NoModules()
        self.phase = "load"
        self.peaks: dict[str, Bytes] = {}

    @contextmanager
    def enter_phase(self, name: str, *, is_backward: bool = False) -> Iterator[None]:
        """Attributes what is allocated inside to the named phase."""
        before = self.phase, self._mod_tracker.is_bw
        self.phase, self._mod_tracker.is_bw = name, is_backward
        self._update_peak_stats(None)
        try:
            yield
        finally:
            self.phase, self._mod_tracker.is_bw = before

    def track_model(self, model: nn.Module) -> None:
        """Tells weights and gradients of a model from other tensors."""
        self._track_module_params_and_buffers(model)

    def _update_peak_stats(self, peak_state: Any) -> None:
        total = sum(of_device["Total"] for of_device in self._curr_mem_snap.values())
        if total > self.peaks.get(self.phase, {}).get("total", -1):
            peak = dict.fromkeys(dict.fromkeys(KINDS.values()), 0)
            for of_device in self._curr_mem_snap.values():
                for kind, name in KINDS.items():
                    peak[name] += of_device[kind]
            self.peaks[self.phase] = {**peak, "total": total}

    def _track_module_params_and_buffers(self, module: nn.Module, install_grad_hooks: bool = True) -> tuple[int, int]:
        """MemTracker's own fails on frozen weights, to which a hook cannot be added."""

        def note_gradient(gradient: Tensor) -> None:
            self._update_and_maybe_create_winfos(gradient, _MemRefType.GRAD)

        for weight in module.parameters():
            self._update_and_maybe_create_winfos(weight, _MemRefType.PARAM)
            if weight.requires_grad and weight not in self._param_to_grad_hook_handles:
                handles = (
                    weight.register_hook(note_gradient),
                    weight.register_post_accumulate_grad_hook(lambda one: note_gradient(one.grad)),
                )
                self._param_to_grad_hook_handles[weight] = handles
        for buffer in module.buffers():
            self._update_and_maybe_create_winfos(buffer, _MemRefType.BUFFER)
        return 0, 0


# --- models

MODELS = {  # config.json of Qwen3's dense models: hidden size, MLP width, layers, query heads, tied head
    "0.6B": (1024, 3072, 28, 16, True),
    "1.7B": (2048, 6144, 28, 16, True),
    "4B": (2560, 9728, 36, 32, True),
    "8B": (4096, 12288, 36, 32, False),
    "14B": (5120, 17408, 40, 40, False),
    "32B": (5120, 25600, 64, 64, False),
}


def build_config(name: str, n_layers: int | None = None) -> Qwen3Config:
    """Builds the config of a Qwen3 model by its size, with all its layers or the first ones."""
    hidden, mlp, layers, heads, is_tied = MODELS[name]
    return Qwen3Config(
        vocab_size=151_936,
        hidden_size=hidden,
        intermediate_size=mlp,
        num_hidden_layers=n_layers or layers,
        num_attention_heads=heads,
        num_key_value_heads=8,
        head_dim=128,
        tie_word_embeddings=is_tied,
        max_position_embeddings=40_960,
    )


@dataclass(frozen=True)
class Case:
    """What one trace is of: a model, what trains it, and one micro-batch.

    `weights` is what frozen weights, or without LoRA trained ones, are held in; `nf4` is QLoRA.
    """

    model: str
    stage: str  # sft, dpo, grpo, score (the reference's pass alone), decode
    rows: int  # pairs of dpo
    tokens: int  # of a row, of a pair's longer side, of prompt and completion
    lora_rank: int | None = 16
    weights: str = "bf16"  # bf16, fp32, nf4
    precision: str = "bf16"
    checkpointing: bool = True
    accumulation: int = 1
    prompt_tokens: int = 0  # that are not in the loss
    completions_per_prompt: int = 1
    kl: bool = True
    entropy: bool = True
    layers: int | None = None  # of all
    is_real: bool = False  # with weights that take memory, to be measured


DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "nf4": torch.bfloat16}


class PackedLinear(nn.Module):
    """Stands in for bitsandbytes' Linear4bit, whose kernels know no fake tensors.

    Holds half a byte a weight and the scales of double quantisation (one byte per 64 weights, four per 256 of those),
    and unpacks the whole matrix to bf16 at every call, forward and backward.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        n = linear.weight.numel()
        self.register_buffer("packed", torch.empty(n // 2, dtype=torch.uint8, device="meta"))
        self.register_buffer("scales", torch.empty(n // 64, dtype=torch.uint8, device="meta"))
        self.register_buffer("scales_of_scales", torch.empty(n // 64 // 256, dtype=torch.float32, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        return _MultiplyPacked.apply(x, self.packed, (self.out_features, self.in_features))


class _MultiplyPacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.shape, ctx.dtype = shape, x.dtype
        return nn.functional.linear(x, packed.new_empty(shape, dtype=x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (packed,) = ctx.saved_tensors
        return gradient @ packed.new_empty(ctx.shape, dtype=ctx.dtype), None, None


def build_meta_model(case: Case) -> PreTrainedModel:
    """Builds the case's model without memory, in the dtype of its weights."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            build_config(case.model, case.layers), dtype=DTYPES[case.weights]
        )
    model.config._attn_implementation = "sdpa"
    return model


def pack_frozen_linears(model: nn.Module) -> None:
    """Puts 4-bit stand-ins into the place of the linear layers below LoRA adapters."""
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and isinstance(module.base_layer, nn.Linear):
            module.base_layer = PackedLinear(module.base_layer)


def replace_weights(model: nn.Module, mode: AbstractContextManager[Any]) -> None:
    """Replaces a meta model's weights and buffers by ones on the CPU, made in a mode. Tied ones stay tied."""
    replaced: dict[int, Tensor] = {}
    with mode:
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is None or tensor.device.type != "meta" or isinstance(tensor, FakeTensor):
                        continue
                    if id(tensor) not in replaced:
                        made = torch.zeros(tensor.shape, dtype=tensor.dtype)
                        is_weight = isinstance(tensor, nn.Parameter)
                        replaced[id(tensor)] = nn.Parameter(made, tensor.requires_grad) if is_weight else made
                    tensors[name] = replaced[id(tensor)]


@contextmanager
def trace_phases(trainer: Any, tracker: PhaseTracker) -> Iterator[None]:
    """Names the phases of a transformers Trainer's step: forward, backward, update.

    AdamW's moments are there from the start, as after a first step.
    """
    # What TRL's trainers and ours call their forward pass.
    forward = "_compute_completion_loss" if isinstance(trainer, OnlineTrainer) else "compute_loss"
    compute_loss, backward = getattr(trainer, forward), trainer.accelerator.backward
    create_optimizer = trainer.create_optimizer

    def compute_loss_in_phase(*arguments: Any, **settings: Any) -> Any:
        with tracker.enter_phase("forward"):
            return compute_loss(*arguments, **settings)

    def run_backward_in_phase(*arguments: Any, **settings: Any) -> Any:
        with tracker.enter_phase("backward", is_backward=True):
            return backward(*arguments, **settings)

    def create_optimizer_with_moments(*arguments: Any) -> Any:
        if trainer.optimizer is None:
            create_optimizer(*arguments)
            add_moments(trainer.optimizer)
            tracker.track_external(trainer.optimizer)
        return trainer.optimizer

    with (
        patch.object(trainer, forward, compute_loss_in_phase),
        patch.object(trainer.accelerator, "backward", run_backward_in_phase),
        patch.object(trainer, "create_optimizer", create_optimizer_with_moments),
        patch.object(trainer, "_save_checkpoint", lambda *_: None),
    ):
        tracker.phase = "update"
        yield


def add_moments(optimizer: torch.optim.Optimizer) -> None:
    """Adds AdamW's two moments of every trained weight, in its dtype."""
    for group in optimizer.param_groups:
        for weight in group["params"]:
            optimizer.state[weight] = {
                "step": torch.zeros((), dtype=torch.float32),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }


def run_trainer(
    trainer: Any, case: Case, others: Sequence[nn.Module] = (), tracker: PhaseTracker | None = None
) -> dict[str, Bytes]:
    """Runs a Trainer's train() on fake weights and returns the peaks of its phases."""
    if case.weights == "nf4":
        pack_frozen_linears(trainer.model)
    for callback in list(trainer.callback_handler.callbacks):
        if not isinstance(callback, DefaultFlowCallback):
            trainer.remove_callback(callback)
    if case.is_real:
        return {"all": {"total": _measure_peak(trainer, others)}}
    fake_mode, tracker = FakeTensorMode(allow_non_fake_inputs=True), tracker or PhaseTracker()
    for model in (trainer.model, *others):
        replace_weights(model, fake_mode)
        tracker.track_model(model)
    with fake_mode, RealIntegers(fake_mode), tracker, trace_phases(trainer, tracker):
        trainer.train()
    return tracker.peaks


def _measure_peak(trainer: Any, others: Sequence[nn.Module]) -> int:
    """Runs a Trainer's train() on real weights; returns the peak of this process's anonymous memory."""
    readings, is_over = [_read_anonymous_bytes()], Event()

    def watch() -> None:
        while not is_over.wait(0.002):
            readings.append(_read_anonymous_bytes())

    watcher = Thread(target=watch)
    watcher.start()
    for model in (trainer.model, *others):
        replace_weights(model, nullcontext())
    with trace_phases(trainer, PhaseTracker()):
        trainer.train()
    is_over.set()
    watcher.join()
    return max(readings) - readings[0]


def _read_anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


class _Done(Exception):
    """Ends a stage where the trace ends."""


def trace_case(case: Case) -> dict[str, Bytes]:
    """Traces a case and returns the peak of each phase, in bytes by kind."""
    torch.manual_seed(0)
    with TemporaryDirectory() as folder, _as_on_a_large_device(case):
        return TRACES[case.stage](case, Path(folder))


@contextmanager
def _as_on_a_large_device(case: Case) -> Iterator[None]:
    """Lets models without memory be loaded and stay where they are, and no pass be cut to a CPU's caches."""
    ours = [module for name, module in sys.modules.items() if name.startswith("qwen_align.align.")]
    with ExitStack() as patches:
        patches.enter_context(patch.object(nn.Module, "to", lambda self, *_, **__: self))
        for module in ours:
            if hasattr(module, "CPU_TOKENS"):
                patches.enter_context(patch.object(module, "CPU_TOKENS", 1 << 40))
        for module, name in (
            (loading, "load_model"),
            (loading, "load_model_to_train"),
            (quantized_base, "load_for_training"),
        ):
            patches.enter_context(patch.object(module, name, lambda *_, **__: build_meta_model(case)))
        patches.enter_context(patch.object(loading, "find_precision", lambda *_: case.precision))
        config = build_meta_model(case).config.to_dict()
        patches.enter_context(patch.object(loading, "read_model_config", lambda *_: config))
        yield


def _build_settings(case: Case) -> dict[str, Any]:
    lora = {"rank": case.lora_rank, "alpha": 2 * case.lora_rank} if case.lora_rank else None
    return {"learning_rate": 1e-4, "precision": case.precision, "lora": lora, "batch": case.rows * case.accumulation}


def _build_runtime(case: Case) -> Runtime:
    return Runtime(device="cpu", micro_batch=case.rows, gradient_checkpointing=case.checkpointing)


def _draw_ids(n: int) -> list[int]:
    return torch.randint(0, 150_000, (n,)).tolist()


def trace_sft(case: Case, folder: Path) -> dict[str, Bytes]:
    """Traces an sft stage's step: forward, backward, update."""
    mask = [False] * case.prompt_tokens + [True] * (case.tokens - case.prompt_tokens)
    samples = [Sample(_draw_ids(case.tokens), mask) for _ in range(case.rows * case.accumulation)]
    settings = Sft(
        kind="sft", name="s", from_model="m", from_data=["d"], max_tokens=case.tokens, epochs=1, **_build_settings(case)
    )
    return _trace_trl_stage(case, folder, sft, settings, "SampleStream", samples)


def trace_dpo(case: Case, folder: Path) -> dict[str, Bytes]:
    """Traces a dpo stage's step: forward (the reference's pass first), backward, update."""
    sides = [_draw_ids(case.tokens - case.prompt_tokens) for _ in range(2 * case.rows * case.accumulation)]
    pairs = [PairIds(_draw_ids(case.prompt_tokens), *sides[i : i + 2]) for i in range(0, len(sides), 2)]
    settings = Dpo(
        kind="dpo",
        name="s",
        from_model="m",
        from_data=["d"],
        max_tokens=case.tokens,
        epochs=1,
        beta=0.1,
        **_build_settings(case),
    )
    return _trace_trl_stage(case, folder, dpo, settings, "PairStream", pairs)


def _add_reference_columns(_: Any, dataset: Any, *__: Any) -> Any:
    """Adds a reference's log-probs of each pair, which are computed before training where there is no adapter."""
    for column in COLUMNS:
        dataset = dataset.add_column(column, [-1.0] * len(dataset))
    return dataset


class _DrawnStream(list[Any]):
    """Stands in for what renders a training set, with rows of token ids that are drawn already."""

    def describe(self) -> dict[str, Any]:
        return {"dropped": {}, "modes": {}, "longest": max(row.n_tokens for row in self), "supervised_tokens": 0}


def _trace_trl_stage(
    case: Case, folder: Path, stage: Any, settings: Any, stream: str, rows: Sequence[Any]
) -> dict[str, Bytes]:
    """Runs a stage up to its trainer, on rows of token ids, and traces the trainer's step."""
    traced: dict[str, Bytes] = {}

    context = Context(folder, seed=0, runtime=_build_runtime(case))

    def train_instead(trainer: Any, *_: Any, **__: Any) -> None:
        trainer.context = context
        reference = getattr(trainer, "ref_model", None)
        traced.update(run_trainer(trainer, case, [reference] if reference is not None else []))
        raise _Done

    tokenizer = AutoTokenizer.from_pretrained(str(TINY_BASE))
    tokenizer.pad_token = tokenizer.eos_token
    with (
        patch.object(stage, stream, lambda *_, **__: _DrawnStream(rows)),
        patch.object(loading, "load_renderer", lambda *_, **__: None),
        patch.object(loading, "find_length_limit", lambda *_, **__: None),
        patch.object(fit, "load_padding_tokenizer", lambda *_: tokenizer),
        patch.object(fit, "train_and_save", train_instead),
        patch.object(PreferenceTrainer, "_precompute_ref_logps", _add_reference_columns),
        suppress(_Done),
    ):
        stage.run(settings, {"m": folder, "d": folder}, folder, context)
    return traced


def trace_grpo(case: Case, folder: Path) -> dict[str, Bytes]:
    """Traces the updates of a grpo step on completions that are drawn and judged: score (by the reference), forward,
    backward, update."""
    trainer = _build_online_trainer(case, folder)
    rollouts = _build_rollouts(case, case.rows * case.accumulation)

    def start_batch() -> None:
        trainer.rollouts = rollouts
        rows = range(len(rollouts))
        if trainer.settings.kl:
            with tracker.enter_phase("score"):
                trainer._score_by_reference(rollouts, rows)
            rollouts.reference_logps = rollouts.old_logps
        trainer.minibatches = [list(rows)]

    tracker = PhaseTracker()
    others = [trainer.reference] if trainer.reference is not None else []
    with (
        patch.object(trainer, "_start_batch", start_batch),
        patch.object(trainer, "_record_state", lambda: None),
        patch.object(trainer, "_check_watchdogs", lambda: None),
    ):
        return run_trainer(trainer, case, others, tracker)


def _build_online_trainer(case: Case, folder: Path) -> OnlineTrainer:
    kl = {"coefficient": 0.01, "apply_to": "loss"} if case.kl else None
    settings = Grpo(
        kind="grpo",
        name="s",
        from_model="m",
        from_data=["d"],
        rewards=[{"kind": "math_answer"}],
        steps=1,
        prompts_per_step=1,
        completions_per_prompt=max(2, case.completions_per_prompt),
        sampling={"max_tokens": case.tokens - case.prompt_tokens, "temperature": 1.0},
        kl=kl,
        entropy={"coefficient": 0.01} if case.entropy else None,
        **{name: value for name, value in _build_settings(case).items() if name != "batch"},
    )
    algorithm = build_grpo(settings)
    context = Context(folder, seed=0, runtime=_build_runtime(case))
    actor = online_rl._build_actor(algorithm, folder, {}, context, "sdpa")
    reference = online_rl._load_reference(algorithm, folder, context, "sdpa")
    arguments = trl_arguments.build_online_rl_arguments(
        settings, context.runtime, folder, seed=0, has_unused_parameters=False
    )
    engine = SimpleNamespace(has_own_weights=False)
    setup = SimpleNamespace(sampling=settings.sampling, engine=engine)
    source: Any = SimpleNamespace(setup=setup, engine=engine, batches=1)
    return OnlineTrainer(actor, arguments, algorithm, source, context, reference=reference)


def _build_rollouts(case: Case, n: int) -> Rollouts:
    """Builds completions of prompts that are all of one length, each of which trains."""
    n_tokens = case.tokens - case.prompt_tokens
    prompts = [_draw_ids(case.prompt_tokens) for _ in range(-(-n // case.completions_per_prompt))]
    ids = [id for i in range(n) for id in (*prompts[i // case.completions_per_prompt], *_draw_ids(n_tokens))]
    flat = torch.rand(n * n_tokens)
    return Rollouts(
        ids=torch.tensor(ids),
        n_prompt=torch.full((n,), case.prompt_tokens),
        n_tokens=torch.full((n,), n_tokens),
        group=torch.arange(n) // case.completions_per_prompt,
        reward=torch.ones(n),
        truncated=torch.zeros(n, dtype=torch.bool),
        old_logps=-flat,
        sampled_logps=-flat,
        counts=torch.ones(n, dtype=torch.bool),
        advantages=flat,
    )


def trace_decoding(case: Case, folder: Path) -> dict[str, Bytes]:
    """Traces the local engine: prefill of the prompts, and the last decoding step, with the longest cache."""
    model = build_meta_model(case)
    if case.lora_rank:
        lora = Lora(rank=case.lora_rank, alpha=case.lora_rank)
        model = get_peft_model(model, build_lora_config(lora, model)).get_base_model()
    fake_mode, tracker = FakeTensorMode(allow_non_fake_inputs=True), PhaseTracker()
    replace_weights(model, fake_mode)
    tracker.track_model(model)
    model.eval()
    sampling = Sampling(max_tokens=case.tokens - case.prompt_tokens, temperature=1.0)
    n_prompts = -(-case.rows // case.completions_per_prompt)
    requests = [
        Request(
            id=str(i),
            prompt_ids=_draw_ids(case.prompt_tokens),
            n=case.completions_per_prompt,
            sampling=sampling,
            seed=0,
        )
        for i in range(n_prompts)
    ]
    rows = [DecodingRow(request, sample) for request in requests for sample in range(case.completions_per_prompt)][
        : case.rows
    ]
    with fake_mode, RealIntegers(fake_mode), tracker, torch.inference_mode():
        with tracker.enter_phase("prefill"):
            slots = DecodingSlots(model, rows, stop_ids=[1])
        slots.n_made = sampling.max_tokens - 1
        with tracker.enter_phase("decode"):
            slots._decode_step()
    return tracker.peaks


TRACES: dict[str, Callable[[Case, Path], dict[str, Bytes]]] = {
    "sft": trace_sft,
    "dpo": trace_dpo,
    "grpo": trace_grpo,
    "decode": trace_decoding,
}
