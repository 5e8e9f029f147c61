"""The `vllm` engine: completions from vLLM beside the trainer or on a server of its own, through TRL's VLLMGeneration.

Untested on hardware: what is tested is what is asked of VLLMGeneration and what is made of its answers.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from qwen_align.align.generation.engine import FinishReason, Generation, Request, check_requests
from qwen_align.align.training.distributed import gather_objects, is_connected

_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class VllmEngine:
    """Completions of a copy of the model that vLLM holds; `sync_weights` brings it up to date.

    `generation` is TRL's VLLMGeneration, or whatever answers as it does. vLLM draws its own random numbers, so a run is
    not repeated bit by bit. It tells one log-prob a token, of the distribution it drew from; the policy's is the
    trainer's to compute.
    """

    has_own_weights = True

    def __init__(self, generation: Any, *, stop_ids: Collection[int], vocab_size: int, max_positions: int) -> None:
        self.generation = generation
        self.stop_ids = frozenset(stop_ids)
        self.vocab_size, self.max_positions = vocab_size, max_positions

    def generate(self, requests: Sequence[Request]) -> Iterator[Generation]:
        """Samples every completion asked for, prompt by prompt; all requests need the same sampling and number."""
        check_requests(requests, vocab_size=self.vocab_size, max_positions=self.max_positions)
        asked = self._pad_requests(requests)
        if not asked:
            return
        first = asked[0]
        if any((one.sampling, one.n) != (first.sampling, first.n) for one in asked):
            raise ValueError("the vllm engine draws one kind of sampling and one number of completions at a time")
        self._apply_sampling(first)
        prompts = [one.prompt_ids for one in asked for _ in range(one.n)]
        _, completions, logprobs, _ = self.generation.generate(prompts, None, first.n)
        if not len(completions) == len(logprobs) == len(prompts):
            raise RuntimeError(f"vLLM gave {len(completions)} completions for {len(prompts)} prompts; see its log")
        rows = zip(completions, logprobs, strict=True)
        for one in requests:
            for sample in one.samples:
                ids, found = next(rows)
                yield self._build_generation(one, sample, list(ids), [token[0] for token in found])

    def sync_weights(self, model: Any, version: int) -> str | None:
        """Sends the weights; returns the checksum of what vLLM now holds, None where it is out of reach (a server)."""
        self.generation.sync_weights()
        if self.generation.mode != "colocate":
            return None
        held = self.generation.llm.llm_engine.model_executor.driver_worker.model_runner.model
        return compute_order_free_checksum(held.named_parameters(), self.dtype)

    def compute_checksum(self, model: Any) -> str:
        """Returns the checksum of what is sent: adapters are merged, as they are for vLLM."""
        return compute_order_free_checksum(self.generation._iter_named_params(), self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """The precision that vLLM holds weights in."""
        held = self.generation.llm.llm_engine.model_executor.driver_worker.model_runner.model
        found: torch.dtype = next(iter(held.parameters())).dtype
        return found

    def _apply_sampling(self, request: Request) -> None:
        sampling, generation = request.sampling, self.generation
        generation.temperature, generation.top_p = sampling.temperature, sampling.top_p
        generation.top_k, generation.min_p = sampling.top_k, sampling.min_p
        generation.max_completion_length = sampling.max_tokens
        generation.generation_kwargs = {"stop_token_ids": sorted(self.stop_ids)}

    def _pad_requests(self, requests: Sequence[Request]) -> list[Request]:
        """Repeats the last request until all processes ask a server for as many; the answers to repeats go unused."""
        listed = list(requests)
        if self.generation.mode != "server" or not is_connected():
            return listed
        counts = gather_objects((len(listed), listed[-1] if listed else None))
        most = max(count for count, _ in counts)
        last = listed[-1] if listed else next((one for _, one in counts if one is not None), None)
        return listed + [last] * (most - len(listed)) if last is not None else []

    def _build_generation(self, request: Request, sample: int, ids: list[int], logps: list[float]) -> Generation:
        if len(ids) != len(logps) or any(logp is None or logp != logp for logp in logps):
            raise FloatingPointError(
                f"request '{request.id}', sample {sample}: vLLM gave {len(ids)} tokens, and no log-prob for some; "
                "a server needs --logprobs-mode processed_logprobs"
            )
        reason: FinishReason = "stop" if ids and ids[-1] in self.stop_ids else "length"
        return Generation(request, sample, ids, logps, logps, reason)


def compute_order_free_checksum(weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> str:
    """Returns 16 hex digits over the bits of all weights in this precision, whatever their names and however joined.

    vLLM joins projections and pads the vocabulary with zeros, so names, shapes and order cannot be compared; the sums
    of all bits and of their squares, modulo 2**64, can. A shared weight counts once.
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
            whole = part.to(torch.int64)
            plain += int(whole.sum())
            squared += int((whole * whole).sum())
    return f"{(plain * 0x9E3779B97F4A7C15 + squared) % 2**64:016x}"
