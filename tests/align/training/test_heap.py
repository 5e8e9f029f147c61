"""The allocator gives memory of freed tensors back while others are kept."""

import subprocess
import sys

import pytest

# Keeps a block of 1 MiB after each of 4 MiB, all in one, and frees those of 4 MiB: how many MiB stay resident.
HOLES = """
import ctypes, sys
from qwen_align.align.training.heap import map_large_blocks
if sys.argv[1] == "ours":
    assert map_large_blocks()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def take(n_mib):
    block = libc.malloc(n_mib << 20)
    ctypes.memset(block, 1, n_mib << 20)
    return block
def read():
    return int(open("/proc/self/status").read().partition("RssAnon:")[2].split()[0]) // 1024
libc.free(take(16))
before = read()
large = []
for _ in range(20):
    large.append(take(4))
    take(1)
for block in large:
    libc.free(block)
print(read() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mallopt is glibc's")
def test_memory_of_freed_blocks_goes_back_between_blocks_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    by_default, ours = (
        int(subprocess.run([sys.executable, "-c", HOLES, who], capture_output=True, text=True, check=True).stdout)
        for who in ("glibc", "ours")
    )
    assert by_default > 90
    assert ours < 25
