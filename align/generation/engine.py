"""Defines generation requests, generations and the protocol of engines that sample completions for requests.

A checksum tells whether an engine has the trainer's weights.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from qwen_align.align.settings.sampling import Sampling

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Request:
    """A request for `n` completions of one prompt, numbered from `first_sample`.

    `seed`, `step`, `id` and the sample's number fix every random number of a completion: asking for samples
    0-3 at once, or for 0-1 and then 2-3, or beside other prompts, draws with the same numbers.
    """

    id: str
    prompt_ids: list[int]
    n: int
    sampling: Sampling
    seed: int
    step: int = 0
    first_sample: int = 0

    @property
    def sample_numbers(self) -> range:
        """Returns the numbers of the request's samples."""
        return range(self.first_sample, self.first_sample + self.n)


@dataclass(frozen=True)
class Generation:
    """A finished completion as token ids and log-probs.

    `token_ids` ends with the stop token when `finish_reason` is "stop". For each token, natural logarithms: `logps`
    under the policy at the sampling temperature before any cut, `sampled_logps` under the distribution it was drawn
    from. Greedy tokens were certain (`sampled_logps` 0) and have `logps` at temperature 1.

    `loss_mask` says of each token whether it is the policy's own choice. Tokens that were forced on it or come from a
    tool (False) condition what follows and are in no loss, ratio, KL or entropy. Without a mask all are in the loss.
    """

    request: Request
    sample: int
    token_ids: list[int]
    logps: list[float]
    sampled_logps: list[float]
    finish_reason: FinishReason
    loss_mask: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        mask = self.loss_mask or [True] * len(self.token_ids)
        if len(mask) != len(self.token_ids):
            raise ValueError(
                f"request '{self.request.id}', sample {self.sample}: a loss mask of {len(mask)} for "
                f"{len(self.token_ids)} tokens; it has one entry a token"
            )
        object.__setattr__(self, "loss_mask", mask)


class Engine(Protocol):
    """A protocol of engines that sample completions for requests."""

    @property
    def has_own_weights(self) -> bool:
        """Returns whether the engine samples from its own copy of the weights.

        `sync_weights` updates that copy. Otherwise it samples from the live model.
        """
        ...

    def generate(self, requests: Sequence[Request]) -> Iterator[Generation]:
        """Samples all completions of the requests and yields them in any order.

        The set is a function of the requests. The model must not be changed between the first completion taken and the
        last.
        """
        ...

    def sync_weights(self, model: Any, version: int) -> str | None:
        """Copies the model's weights to the engine and returns a checksum of the weights it then has.

        Returns None if the engine cannot tell.
        """
        ...

    def compute_checksum(self, model: Any) -> str:
        """Computes the checksum that `sync_weights` is expected to return for a model."""
        ...


def check_requests(requests: Sequence[Request], *, vocab_size: int, max_positions: int | None) -> None:
    """Checks that an engine can serve all requests. Without `max_positions` the model has no length limit.

    Raises ValueError, naming the first request that no engine can serve.
    """
    for request in requests:
        where = f"request '{request.id}'"
        room = None if max_positions is None else max_positions - len(request.prompt_ids)
        if not request.prompt_ids:
            raise ValueError(f"{where}: the prompt is empty; give at least one token to continue")
        if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < vocab_size:
            raise ValueError(f"{where}: a prompt token lies outside the vocabulary of {vocab_size}; wrong tokenizer?")
        if request.n < 1:
            raise ValueError(f"{where}: n is {request.n}; ask for at least one completion")
        if room is not None and request.sampling.max_tokens > room:
            raise ValueError(
                f"{where}: {len(request.prompt_ids)} prompt tokens and max_tokens {request.sampling.max_tokens} "
                f"exceed the model's {max_positions} positions; at most {room} can follow this prompt"
            )
    requested = Counter((r.seed, r.step, r.id, sample) for r in requests for sample in r.sample_numbers)
    for (_, _, name, sample), times in requested.items():
        if times > 1:
            raise ValueError(
                f"request '{name}': sample {sample} is asked for {times} times and would be the same each time; "
                "set first_sample or another id"
            )


def compute_sample_key(request: Request, sample: int) -> int:
    """Returns the signed 64-bit seed of a completion's random numbers."""
    name = f"{request.seed}\0{request.step}\0{sample}\0{request.id}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little", signed=True)


def compute_weights_checksum(weights: Iterable[tuple[str, Tensor]]) -> str:
    """Computes a checksum of named weights, 16 hex digits over names, shapes, dtypes and bits.

    The weights may come in any order. Each tensor's bits are summed twice modulo 2**64, plain and weighted by position,
    where the tensor lies: a changed weight or two exchanged ones show, and no weight is copied to the host. It detects
    accidents (a sync that failed or was partial), not an adversary.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name, weight in sorted(weights, key=lambda item: item[0]):
        digest.update(f"{name}\0{tuple(weight.shape)}\0{weight.dtype}\0{_sum_bits(weight.detach())}\n".encode())
    return digest.hexdigest()


def _sum_bits(weight: Tensor) -> tuple[int, int]:
    """Sums the bits of a tensor as integers modulo 2**64, once plain and once weighted by position."""
    integer_type = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    bits = weight.flatten().contiguous().view(integer_type)
    plain = weighted = 0
    for start in range(0, bits.numel(), 1 << 24):  # 128 MiB of int64 at a time
        part = bits[start : start + (1 << 24)].to(torch.int64)
        positions = torch.arange(start, start + part.numel(), device=part.device)
        plain += int(part.sum())
        weighted += int((part * (2 * positions + 1)).sum())
    return plain % 2**64, weighted % 2**64
