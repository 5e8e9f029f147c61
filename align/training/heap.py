"""Settings of glibc's allocator, in which a CPU's tensors lie."""

import ctypes
import os
import sys

# Blocks from this size on are mapped one by one, and given back when they are freed. By glibc's own rule that size
# grows to the largest block that was freed, up to 32 MiB; the activations of layers then lie on the heap, where what is
# kept for the backward pass leaves holes that later layers do not fit. LoRA on five layers of Qwen3-0.6B's shape, 2 x
# 1,024 tokens, bf16, checkpointing: 0.66 GiB above the imports by that rule, 0.04 GiB with this, for 13 % more CPU
# seconds. The embedded model's steps take as many as before (AMD EPYC, 2 cores, 2026-11-30).
MAPPED_BYTES = 1 << 20
KEPT_BYTES = 64 << 20  # free memory at the heap's end that is kept; our choice: glibc's 128 KiB go back and forth
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def map_large_blocks() -> bool:
    """Makes malloc map blocks of MAPPED_BYTES and more one by one. Returns whether it does.

    Nothing is changed where the C library has no such setting, or the environment sets it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES) and mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))
