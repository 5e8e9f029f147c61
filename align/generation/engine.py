"""Defines generation requests, generations and the protocol of engines that sample completions for requests."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

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

    def sync_weights(self, model: Any, version: int) -> None:
        """Copies the model's weights to the engine.

        Raises StageError where the engine's weights are not the model's afterwards.
        """
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


def compute_request_seed(request: Request) -> int:
    """Returns a seed of a request that leaves room to count on from it for its samples; 62 bits, not negative.

    It does not depend on which samples are asked for: those of an engine that numbers its samples itself are then the
    same whether they are asked for at once or in parts.
    """
    name = f"{request.seed}\0{request.step}\0{request.id}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") >> 2
