"""Cuts the rows of an optimiser step into micro-batches of at most so many rows and tokens."""

from collections.abc import Sequence

from qwen_align.align.settings.runtime import Runtime

# On a CPU a pass over more tokens leaves the processor's caches even with half a million parameters: 28,000 at once
# took 4 times as long as 2,000 at a time (measured on 2 cores with 2 MiB of level-2 cache each).
CPU_TOKENS = 2048


def plan_micro_batches(lengths: Sequence[int], runtime: Runtime, *, is_on_cpu: bool) -> list[list[int]]:
    """Plans the forward passes over rows of the given lengths, in tokens; each is a list of row numbers.

    A pass has at most `runtime.micro_batch` rows and `runtime.micro_batch_tokens` tokens, on a CPU never more than
    fit its caches. A longer row goes alone. Rows go by length, the longest first: what does not fit into memory fails
    at once.
    """
    limits = [limit for limit in (runtime.micro_batch_tokens, CPU_TOKENS if is_on_cpu else None) if limit is not None]
    passes: list[list[int]] = []
    n_tokens = 0
    for row in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        is_full = not passes or len(passes[-1]) == runtime.micro_batch
        if is_full or any(n_tokens + lengths[row] > limit for limit in limits):
            passes.append([])
            n_tokens = 0
        passes[-1].append(row)
        n_tokens += lengths[row]
    return passes
