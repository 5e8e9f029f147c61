"""The device that a stage is estimated for, and what it keeps for itself."""

from typing import NamedTuple

# What a CUDA context with cuBLAS's and NCCL's workspaces takes before any tensor is there; our choice, between the 0.3
# to 0.6 GB that are commonly seen.
CONTEXT_BYTES = 500_000_000
# Share of what is allocated that PyTorch's allocator holds in blocks too small to use; our choice.
FRAGMENTATION_SHARE = 0.03
# What a tokenizer takes for each word of its vocabulary, about: Qwen3's takes 117 MiB in transformers. Ours is in the
# command's process and in that of the stage; a stage that trains reads transformers' too.
TOKENIZER_WORD_BYTES = 750
_TOKENIZERS, _TOKENIZERS_OF_TRAINING = 2, 3
# Below this share of free memory a stage that fits is called tight: traces are up to so much above the estimate.
TIGHT_SHARE = 0.08


class Device(NamedTuple):
    """GPUs of one machine: the bytes of each, and how many there are."""

    n_bytes: int
    n_devices: int = 1

    @property
    def comfortable_bytes(self) -> float:
        """Returns the bytes that tensors may take before the device is called tight."""
        return (self.n_bytes * (1 - TIGHT_SHARE) - CONTEXT_BYTES) / (1 + FRAGMENTATION_SHARE)


def measure_gpu_overhead(tensor_bytes: float) -> float:
    """Returns the bytes that a GPU needs beside its tensors: the context, and what fragmentation loses."""
    return CONTEXT_BYTES + FRAGMENTATION_SHARE * tensor_bytes


def measure_host_overhead(n_words: int, *, trains: bool) -> float:
    """Returns the bytes that a stage's processes need on a CPU beside tensors and imports: those of the tokenizers."""
    return float((_TOKENIZERS_OF_TRAINING if trains else _TOKENIZERS) * TOKENIZER_WORD_BYTES * n_words)
