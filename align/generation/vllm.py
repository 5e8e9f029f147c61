"""Defines the `vllm` engine, which samples completions with vLLM in the trainer's process or on a server.

It uses TRL's VLLMGeneration. Untested on hardware: what is tested is what is asked of VLLMGeneration and what is made
of its answers.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from qwen_align.align.generation.engine import FinishReason, Generation, Request, check_requests
from qwen_align.align.training.distributed import gather_objects, is_connected

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class VllmEngine:
    """A generation engine that samples from a copy of the model in vLLM, updated by `sync_weights`.

    `generation` is TRL's VLLMGeneration, or whatever answers as it does. vLLM draws its own random numbers, so a run is
    not repeated bit by bit. It tells one log-prob a token, of the distribution it drew from; the policy's is the
    trainer's to compute.
    """

    has_own_weights = True

    def __init__(
        self, generation: Any, *, stop_ids: Collection[int], vocab_size: int, max_positions: int | None
    ) -> None:
        self.generation = generation
        self.stop_ids = frozenset(stop_ids)
        self.vocab_size, self.max_positions = vocab_size, max_positions

    def generate(self, requests: Sequence[Request]) -> Iterator[Generation]:
        """Samples all completions of the requests and yields them prompt by prompt.

        All requests need the same sampling and the same number of completions.
        """
        check_requests(requests, vocab_size=self.vocab_size, max_positions=self.max_positions)
        padded = self._pad_requests(requests)
        if not padded:
            return
        first = padded[0]
        if any((request.sampling, request.n) != (first.sampling, first.n) for request in padded):
            raise ValueError("the vllm engine draws one kind of sampling and one number of completions at a time")
        self._apply_sampling(first)
        prompts = [request.prompt_ids for request in padded for _ in range(request.n)]
        _, completions, logprobs, _ = self.generation.generate(prompts, None, first.n)
        if not len(completions) == len(logprobs) == len(prompts):
            raise RuntimeError(f"vLLM gave {len(completions)} completions for {len(prompts)} prompts; see its log")
        rows = zip(completions, logprobs, strict=True)
        for request in requests:
            for sample in request.sample_numbers:
                ids, token_logprobs = next(rows)
                yield self._build_generation(request, sample, list(ids), [logps[0] for logps in token_logprobs])

    def sync_weights(self, model: Any, version: int) -> str | None:
        """Sends the model's weights to vLLM and returns the checksum of the weights it then has.

        Returns None for a server, whose weights are out of reach.
        """
        self.generation.sync_weights()
        if self.generation.mode != "colocate":
            return None
        model_copy = self.generation.llm.llm_engine.model_executor.driver_worker.model_runner.model
        return compute_order_free_checksum(model_copy.named_parameters(), self.dtype)

    def compute_checksum(self, model: Any) -> str:
        """Computes the checksum of the weights that are sent to vLLM.

        Adapters are merged, as they are for vLLM.
        """
        return compute_order_free_checksum(self.generation._iter_named_params(), self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """Returns the data type in which vLLM stores the weights."""
        model_copy = self.generation.llm.llm_engine.model_executor.driver_worker.model_runner.model
        dtype: torch.dtype = next(iter(model_copy.parameters())).dtype
        return dtype

    def _apply_sampling(self, request: Request) -> None:
        """Sets a request's sampling settings on TRL's vLLM generation."""
        sampling, generation = request.sampling, self.generation
        generation.temperature, generation.top_p = sampling.temperature, sampling.top_p
        generation.top_k, generation.min_p = sampling.top_k, sampling.min_p
        generation.max_completion_length = sampling.max_tokens
        generation.generation_kwargs = {"stop_token_ids": sorted(self.stop_ids)}

    def _pad_requests(self, requests: Sequence[Request]) -> list[Request]:
        """Repeats the last request until all processes send a server the same number of requests.

        The completions of repeats are not used.
        """
        own = list(requests)
        if self.generation.mode != "server" or not is_connected():
            return own
        counts = gather_objects((len(own), own[-1] if own else None))
        most = max(count for count, _ in counts)
        last = own[-1] if own else next((request for _, request in counts if request is not None), None)
        return own + [last] * (most - len(own)) if last is not None else []

    def _build_generation(self, request: Request, sample: int, ids: list[int], logps: list[float]) -> Generation:
        """Builds a generation from vLLM's token ids and log-probs.

        Raises FloatingPointError where a log-prob is missing.
        """
        if len(ids) != len(logps) or any(logp is None or logp != logp for logp in logps):
            raise FloatingPointError(
                f"request '{request.id}', sample {sample}: vLLM gave {len(ids)} tokens, and no log-prob for some; "
                "a server needs --logprobs-mode processed_logprobs"
            )
        reason: FinishReason = "stop" if ids and ids[-1] in self.stop_ids else "length"
        return Generation(request, sample, ids, logps, logps, reason)


def compute_order_free_checksum(weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> str:
    """Computes a checksum of weights that does not depend on their names, shapes or order; 16 hex digits.

    The weights are cast to `dtype` first. vLLM joins projections and pads the vocabulary with zeros, so names, shapes
    and order cannot be compared; the sums of all bits and of their squares, modulo 2**64, can. A shared weight counts
    once.
    """
    plain = squared = 0
    seen: set[int] = set()
    for _, weight in weights:
        if weight.data_ptr() in seen:
            continue
        seen.add(weight.data_ptr())
        flat = weight.detach().to(dtype).flatten()
        bits = flat.view(_INTEGERS[flat.element_size()])
        for part in torch.split(bits, 1 << 24):  # 128 MiB of int64 at a time
            integers = part.to(torch.int64)
            plain += int(integers.sum())
            squared += int((integers * integers).sum())
    return f"{(plain * 0x9E3779B97F4A7C15 + squared) % 2**64:016x}"
