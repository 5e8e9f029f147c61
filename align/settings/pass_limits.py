"""Says how much goes into one forward pass on a device: what the runtime asks for, and what suits a CPU."""

from collections.abc import Iterable
from typing import NamedTuple

from qwen_align.align.settings.runtime import Runtime

# On a CPU a pass over more tokens leaves the processor's caches even with half a million parameters: 28,000 at once
# took 4 times as long as 2,000 at a time (measured on 2 cores with 2 MiB of level-2 cache each).
CPU_TOKENS = 2048


class PassLimits(NamedTuple):
    """How much goes into one forward pass: as many tokens as `max_rows` of the longest rows, and `max_tokens`.

    None: no such limit; there is at least one. A longer row goes alone.
    """

    max_rows: int | None = None
    max_tokens: int | None = None

    def compute_budget(self, lengths: Iterable[int]) -> int:
        """Returns the largest number of tokens in a pass over rows of these lengths."""
        limits = [] if self.max_tokens is None else [self.max_tokens]
        if self.max_rows is not None:
            limits.append(self.max_rows * max(lengths, default=0))
        return min(limits)


def get_pass_limits(runtime: Runtime, device_type: str) -> PassLimits:
    """Returns the limits of a forward pass: `micro_batch_tokens`, or else `micro_batch` and what suits a CPU."""
    if runtime.micro_batch_tokens is not None:
        return PassLimits(max_tokens=runtime.micro_batch_tokens)
    return PassLimits(runtime.micro_batch, CPU_TOKENS if device_type == "cpu" else None)
