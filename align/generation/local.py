"""Defines the `local` engine, which samples completions from the live weights of a transformers model."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby

import torch
from transformers import PreTrainedModel

from qwen_align.align.generation.batched_decoding import DecodingRow, DecodingSlots, count_cache_columns
from qwen_align.align.generation.engine import Generation, Request, check_requests, compute_weights_checksum
from qwen_align.align.models.bf16_weights import copy_in_bf16
from qwen_align.align.models.length_limit import compute_length_limit
from qwen_align.align.models.packed_attention import has_full_attention, supports_masks
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.settings.runtime import Runtime


def open_local_engine(
    model: PreTrainedModel, renderer: Renderer, runtime: Runtime, *, draws_in_bf16: bool = False
) -> "LocalEngine":
    """Builds a local generation engine for a model, with the runtime's row limit and the template's stop tokens."""
    return LocalEngine(
        model, stop_ids=renderer.stop_ids, max_rows=runtime.generation_batch, draws_in_bf16=draws_in_bf16
    )


class LocalEngine:
    """A generation engine that samples from a transformers model in this process.

    It samples from `model` as it is when asked: nothing is copied, so `sync_weights` only names the weights. `max_rows`
    bounds a micro-batch, and so does `max_batch_tokens`: its rows times the columns of cache they need. Finished rows
    are dropped once they are `compact_at` of the micro-batch; 0 drops each at once.

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
        max_batch_tokens: int = 131_072,
        compact_at: float = 0.0,
        draws_in_bf16: bool = False,
    ) -> None:
        self.stop_ids = frozenset(stop_ids)
        self.max_rows = max_rows
        self.max_batch_tokens = max_batch_tokens
        self.compact_at = compact_at
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
        for rows in plan_batches(requests, max_rows=self.max_rows, max_batch_tokens=self.max_batch_tokens):
            with _disable_gradients(model):
                slots = DecodingSlots(model, rows, stop_ids=self.stop_ids)
            while slots.rows:
                with _disable_gradients(model):
                    finished = slots.decode_until_finished(self.compact_at)
                yield from finished

    def stream_tokens(self, request: Request) -> Iterator[int]:
        """Yields the tokens of one completion as they are sampled.

        The stop token is included; the tokens are those that `generate` gives.
        """
        config = self.model.config
        check_requests([request], vocab_size=config.vocab_size, max_positions=self.length_limit)
        with _disable_gradients(self.model):
            slots = DecodingSlots(self.model, [DecodingRow(request, request.first_sample)], stop_ids=self.stop_ids)
        is_done = False
        while not is_done:
            with _disable_gradients(self.model):
                token, is_done = slots.decode_token()
            yield token

    @property
    def length_limit(self) -> int | None:
        """Returns the number of tokens that the model can read. None if it has no limit."""
        return compute_length_limit(self.model.config.to_dict())

    @property
    def has_own_weights(self) -> bool:
        return False

    def sync_weights(self, model: PreTrainedModel, version: int) -> str:
        """Sets the model that completions are sampled from and returns the checksum of its weights."""
        self.model = _check_model(model, self.stop_ids)
        return self.compute_checksum(model)

    def compute_checksum(self, model: PreTrainedModel) -> str:
        return compute_weights_checksum(model.named_parameters())


def plan_batches(requests: Sequence[Request], *, max_rows: int, max_batch_tokens: int) -> list[list[DecodingRow]]:
    """Splits the requests into micro-batches of rows within a token budget, longest prompts first.

    Each has one way of sampling. Rows of one prompt stay together unless they exceed the budget by themselves. A
    completion that exceeds it alone is decoded alone.
    """

    def count_fitting_rows(n_prompt: int, max_tokens: int) -> int:
        return min(max_rows, max_batch_tokens // count_cache_columns(n_prompt, max_tokens))

    rows = [DecodingRow(request, sample) for request in requests for sample in request.sample_numbers]
    rows.sort(key=lambda row: (row.sampling_key, -row.n_prompt, row.request.prompt_ids))
    batches: list[list[DecodingRow]] = []
    for _, alike in groupby(rows, key=lambda row: row.sampling_key):
        batch: list[DecodingRow] = []
        longest = 0
        for prompt, same in groupby(alike, key=lambda row: row.request.prompt_ids):
            group = list(same)
            limit = max(row.max_tokens for row in group)
            alone = max(1, count_fitting_rows(len(prompt), limit))
            longest = max(longest, limit)
            if batch and len(batch) + len(group) > count_fitting_rows(batch[0].n_prompt, longest):
                batches.append(batch)
                batch, longest = [], limit
            while len(group) > alone:
                batches.append(group[:alone])
                group = group[alone:]
            batch += group
        batches.append(batch)
    return batches


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
