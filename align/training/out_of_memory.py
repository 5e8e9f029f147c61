"""Recognises errors that mean that memory has run out, and words what a stage says of them."""

import errno
import gc
from collections.abc import Iterator

from qwen_align.align.context import Phase
from qwen_align.align.training.memory_meter import PeakMemory

# What libraries say in errors that have no type of their own: torch on a CPU and of mmap, cuBLAS, the CUDA runtime,
# safetensors, vLLM.
_WORDS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "cublas_status_alloc_failed",
    "no available memory for the cache blocks",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error, or one that it was raised from, means that memory has run out."""
    return any(map(_says_out_of_memory, _walk_causes(error)))


def _says_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error itself says that memory has run out."""
    if isinstance(error, MemoryError) or type(error).__name__ in ("OutOfMemoryError", "OutOfMemory"):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    is_of_library = isinstance(error, RuntimeError) or type(error).__module__.startswith("safetensors")
    return is_of_library and any(words in str(error).lower() for words in _WORDS)


def _walk_causes(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and those that it was explicitly raised from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def free_memory() -> None:
    """Frees what nothing refers to any more, also on the GPU."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def describe_out_of_memory(
    phase: Phase,
    *,
    stage: str,
    peak: PeakMemory | None,
    estimate_gib: float | None,
    advice: str,
    kept: str,
    said: str = "",
) -> str:
    """Words the error of a stage that ran out of memory: where, how much, what to turn, and what is left of the work.

    `advice`: which setting to turn. `said`: the library's first words. `kept`: what a further run goes on from.
    """
    figures = [f"longest row {phase.longest_row:,} tokens"] if phase.longest_row else []
    if peak is not None:
        of = f" of {peak.capacity:.1f}" if peak.capacity else ""
        reserved = f" ({peak.reserved:.2f} reserved)" if peak.reserved is not None else ""
        figures.append(f"peak {peak.held:.2f}{reserved}{of} GiB")
    figures.append("no estimate" if estimate_gib is None else f"estimate {estimate_gib:.2f} GiB")
    at = f" of step {phase.step:,}" if phase.step else ""
    library = f" [{said:.160}]" if said else ""
    where = f"the {phase.name} phase{at} of {'an' if stage[0] in 'aeis' else 'a'} {stage} stage"
    return f"out of memory in {where} ({', '.join(figures)}). {advice}. {kept}{library}"
