"""Defines the `local` engine, which samples completions from the live weights of a transformers model."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from qwen_align.align.generation.batched_decoding import DecodingLimits, DecodingSlots
from qwen_align.align.generation.cache_budget import compute_cached_tokens
from qwen_align.align.generation.decoding_rows import DecodingRow, list_rows, plan_batches
from qwen_align.align.generation.engine import Generation, Request, check_requests
from qwen_align.align.models.bf16_weights import copy_in_bf16
from qwen_align.align.models.length_limit import compute_length_limit
from qwen_align.align.models.packed_attention import has_full_attention, supports_masks
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.settings.runtime import Runtime

# A GPU computes on while the host does not look: rows that have finished are computed a few steps more instead. Ours.
STEPS_UNSEEN_ON_GPU = 8


def open_local_engine(
    model: PreTrainedModel, renderer: Renderer, runtime: Runtime, *, draws_in_bf16: bool = False
) -> "LocalEngine":
    """Builds a local generation engine for a model, with the runtime's limits and the template's stop tokens."""
    return LocalEngine(
        model,
        stop_ids=renderer.stop_ids,
        max_rows=runtime.generation_batch,
        kv_cache_gib=runtime.kv_cache_gib,
        prefill_tokens=runtime.prefill_tokens,
        draws_in_bf16=draws_in_bf16,
    )


class LocalEngine:
    """A generation engine that samples from a transformers model in this process.

    It samples from `model` as it is when asked: nothing is copied, so `sync_weights` only names the model. `max_rows`
    bounds a micro-batch, and so do `kv_cache_gib` of keys and values; None for what memory is free whenever completions
    are asked for. Rows that grow beyond it are interrupted and go on later. `prefill_tokens` bounds a forward pass over
    prompts. Whether rows have finished is looked up every `check_every` steps; None for what suits the device. None of
    these changes a completion, but for the rounding of other batches.

    With `draws_in_bf16` it copies the weights that are not bf16 whenever it is asked, and frees the copy when the last
    completion is taken: 2 bytes a trained weight beside the trainer's, while it draws. bf16 weights draw 1.6 times as
    fast as autocast over fp32 ones (SmolLM2-135M, a CPU with AMX).
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        stop_ids: Collection[int],
        max_rows: int = 512,
        kv_cache_gib: float | None = None,
        prefill_tokens: int = 16_384,
        check_every: int | None = None,
        draws_in_bf16: bool = False,
    ) -> None:
        self.stop_ids = frozenset(stop_ids)
        self.max_rows = max_rows
        self.kv_cache_gib = kv_cache_gib
        self.prefill_tokens = prefill_tokens
        self.check_every = check_every
        self.draws_in_bf16 = draws_in_bf16
        self.model = _check_model(model, self.stop_ids)

    def generate(self, requests: Sequence[Request]) -> Iterator[Generation]:
        """Samples all completions of the requests, long prompts first, and yields each when its row is finished.

        A row is yielded as soon as it is dropped. Modules are back in their own train or eval mode whenever a
        completion is yielded.
        """
        config = self.model.config
        check_requests(requests, vocab_size=config.vocab_size, max_positions=self.length_limit)
        model = copy_in_bf16(self.model) if self.draws_in_bf16 else self.model
        limits = self._measure_limits(model)
        rows = list_rows(requests)
        while rows:
            interrupted: list[DecodingRow] = []
            for batch in plan_batches(rows, max_rows=self.max_rows, max_cached_tokens=limits.max_cached_tokens):
                with _disable_gradients(model):
                    slots = DecodingSlots(model, batch, stop_ids=self.stop_ids, limits=limits)
                while slots.rows:
                    with _disable_gradients(model):
                        finished = slots.decode_until_finished()
                    yield from finished
                interrupted += slots.interrupted
            rows = interrupted

    def stream_tokens(self, request: Request) -> Iterator[int]:
        """Yields the tokens of one completion as they are sampled.

        The stop token is included; the tokens are those that `generate` gives.
        """
        config = self.model.config
        check_requests([request], vocab_size=config.vocab_size, max_positions=self.length_limit)
        with _disable_gradients(self.model):
            row = DecodingRow(request, request.first_sample)
            slots = DecodingSlots(self.model, [row], stop_ids=self.stop_ids, limits=self._measure_limits(self.model))
        is_done = False
        while not is_done:
            with _disable_gradients(self.model):
                token, is_done = slots.decode_token()
            yield token

    def _measure_limits(self, model: PreTrainedModel) -> DecodingLimits:
        """Measures how much of a model may be decoded at once now."""
        max_cached_tokens = compute_cached_tokens(
            model,
            kv_cache_gib=self.kv_cache_gib,
            max_rows=self.max_rows,
            prefill_tokens=self.prefill_tokens,
        )
        default = 1 if model.device.type == "cpu" else STEPS_UNSEEN_ON_GPU
        return DecodingLimits(max_cached_tokens, self.prefill_tokens, self.check_every or default)

    @property
    def length_limit(self) -> int | None:
        """Returns the number of tokens that the model can read. None if it has no limit."""
        return compute_length_limit(self.model.config.to_dict())

    @property
    def has_own_weights(self) -> bool:
        return False

    def sync_weights(self, model: PreTrainedModel, version: int) -> None:
        """Sets the model that completions are sampled from."""
        self.model = _check_model(model, self.stop_ids)


def _check_model(model: PreTrainedModel, stop_ids: Collection[int]) -> PreTrainedModel:
    """Returns the model if the local engine can run it.

    Raises ValueError otherwise.
    """
    config = model.config
    if not supports_masks(config):
        raise ValueError(
            f"the local engine needs attn_implementation 'sdpa' or 'eager', not '{config._attn_implementation}'; "
            "load the model with attn_implementation='sdpa' or use another engine"
        )
    if not has_full_attention(config):
        kinds = set(config.layer_types)
        raise ValueError(f"the local engine runs full attention only, and this model has {sorted(kinds)}")
    strange = [token for token in stop_ids if not 0 <= token < config.vocab_size]
    if strange:
        raise ValueError(f"stop_ids {strange} lie outside the model's vocabulary of {config.vocab_size}")
    return model


@contextmanager
def _disable_gradients(model: PreTrainedModel) -> Iterator[None]:
    """Switches gradients and dropout off inside a context manager.

    Every module is back in its own mode afterwards. Not inference_mode: a rotary embedding may store what it computed
    here, and training must be able to use it.
    """
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True
