"""The rollout engine protocol: requests in, generations out as they finish, weights told apart by a checksum."""

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
    """`n` completions of one prompt, numbered from `first_sample`.

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
    def samples(self) -> range:
        return range(self.first_sample, self.first_sample + self.n)


@dataclass(frozen=True)
class Generation:
    """One finished completion. `token_ids` ends with the stop token when `finish_reason` is "stop".

    For each token, natural logarithms: `logps` under the policy at the sampling temperature before any cut,
    `sampled_logps` under the distribution it was drawn from. Greedy tokens were certain (`sampled_logps` 0)
    and have `logps` at temperature 1.

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
    """Anything that turns requests into generations."""

    @property
    def has_own_weights(self) -> bool:
        """Whether it samples from a copy of the weights, which `sync_weights` updates, and not from the live model."""
        ...

    def generate(self, requests: Sequence[Request]) -> Iterator[Generation]:
        """Samples every completion asked for, in an order of its choosing; the set is a function of the requests.

        The model must not be changed between the first completion taken and the last.
        """
        ...

    def sync_weights(self, model: Any, version: int) -> str | None:
        """Takes the model's weights; returns the checksum of what the engine now holds, None if it cannot tell."""
        ...

    def compute_checksum(self, model: Any) -> str:
        """Returns what `sync_weights` has to return for this model."""
        ...


def check_requests(requests: Sequence[Request], *, vocab_size: int, max_positions: int) -> None:
    """Raises ValueError for a request no engine can answer, naming it."""
    for request in requests:
        where, room = f"request '{request.id}'", max_positions - len(request.prompt_ids)
        if not request.prompt_ids:
            raise ValueError(f"{where}: the prompt is empty; give at least one token to continue")
        if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < vocab_size:
            raise ValueError(f"{where}: a prompt token lies outside the vocabulary of {vocab_size}; wrong tokenizer?")
        if request.n < 1:
            raise ValueError(f"{where}: n is {request.n}; ask for at least one completion")
        if request.sampling.max_tokens > room:
            raise ValueError(
                f"{where}: {len(request.prompt_ids)} prompt tokens and max_tokens {request.sampling.max_tokens} "
                f"exceed the model's {max_positions} positions; at most {room} can follow this prompt"
            )
    asked = Counter((r.seed, r.step, r.id, sample) for r in requests for sample in r.samples)
    for (_, _, name, sample), times in asked.items():
        if times > 1:
            raise ValueError(
                f"request '{name}': sample {sample} is asked for {times} times and would be the same each time; "
                "set first_sample or another id"
            )


def compute_sample_key(request: Request, sample: int) -> int:
    """Returns the signed 64-bit key of a completion's random numbers."""
    name = f"{request.seed}\0{request.step}\0{sample}\0{request.id}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little", signed=True)


def compute_weights_checksum(weights: Iterable[tuple[str, Tensor]]) -> str:
    """Returns 16 hex digits over names, shapes, dtypes and bits of `named_parameters()`, in any order.

    Each tensor's bits are summed twice modulo 2**64, plain and weighted by place, where the tensor lies: a
    changed weight or two exchanged ones show, and no weight is copied to the host. It detects accidents
    (a sync that failed or was partial), not an adversary.
    """
    whole = hashlib.blake2b(digest_size=8)
    for name, weight in sorted(weights, key=lambda item: item[0]):
        whole.update(f"{name}\0{tuple(weight.shape)}\0{weight.dtype}\0{_sum_bits(weight.detach())}\n".encode())
    return whole.hexdigest()


def _sum_bits(weight: Tensor) -> tuple[int, int]:
    """Sums a tensor's bits as integers modulo 2**64, plain and weighted by position."""
    whole = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    bits = weight.flatten().contiguous().view(whole)
    plain = placed = 0
    for start in range(0, bits.numel(), 1 << 24):  # 128 MiB of int64 at a time
        part = bits[start : start + (1 << 24)].to(torch.int64)
        places = torch.arange(start, start + part.numel(), device=part.device)
        plain += int(part.sum())
        placed += int((part * (2 * places + 1)).sum())
    return plain % 2**64, placed % 2**64
