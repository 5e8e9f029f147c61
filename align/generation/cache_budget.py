"""Says how many tokens' keys and values may be held while completions are decoded: by a setting, or by free memory."""

from pathlib import Path

import psutil  # type: ignore[import-untyped]  # accelerate needs it
import torch
from transformers import PreTrainedConfig, PreTrainedModel

from qwen_align.align.generation.batched_decoding import find_compute_dtype
from qwen_align.align.training.distributed import get_local_world_size

GIB = 2**30
# The share of what is free that may be taken. On a GPU the rest is for fragmentation; a CPU's memory is shared with
# other programs, which come and go. Our choice.
GPU_SHARE, CPU_SHARE = 0.9, 0.5
_ENGINE_BLOCK = 128  # tokens: vLLM 0.32 gives a row its keys and values in blocks of so many on a CPU


def count_cache_bytes(model: PreTrainedModel) -> int:
    """Counts the bytes of one token's keys and values in all layers."""
    return _count_token_bytes(model.config, find_compute_dtype(model))


def _count_token_bytes(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    return int(2 * config.num_hidden_layers * _count_key_width(config) * dtype.itemsize)


def compute_engine_cache_bytes(
    config: PreTrainedConfig, dtype: torch.dtype, *, kv_cache_gib: float | None, max_rows: int, max_tokens: int
) -> int:
    """Computes the bytes of keys and values that an engine in a process of its own takes of the host's memory.

    They are those of `max_rows` rows of `max_tokens`, as far as memory is free, but of one row at least.
    """
    if kv_cache_gib is not None:
        return round(kv_cache_gib * GIB)
    one_row = _ENGINE_BLOCK * (max_tokens // _ENGINE_BLOCK + 2) * _count_token_bytes(config, dtype)
    return max(one_row, min(max_rows * one_row, _measure_free_share_of_host()))


def _get_head_size(config: PreTrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _count_key_width(config: PreTrainedConfig) -> int:
    """Counts the numbers in one token's keys in one layer."""
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads) * _get_head_size(config)


def compute_cached_tokens(
    model: PreTrainedModel, *, kv_cache_gib: float | None, max_rows: int, prefill_tokens: int
) -> int:
    """Computes the number of tokens whose keys and values may be held on the model's device, rows times columns.

    Without `kv_cache_gib` it is this process's share of the memory that is free now, less what a step needs beside.
    """
    if kv_cache_gib is not None:
        return round(kv_cache_gib * GIB) // count_cache_bytes(model)
    free = _measure_free_gpu_memory(model.device) if model.device.type == "cuda" else _measure_free_share_of_host()
    return max(0, free - _count_step_bytes(model, max_rows, prefill_tokens)) // count_cache_bytes(model)


def _count_step_bytes(model: PreTrainedModel, max_rows: int, prefill_tokens: int) -> int:
    """Counts the bytes of one layer's activations in prefill or of the logits in sampling, whichever is more."""
    config = model.config
    # One layer's widths that a forward pass with gradients holds; without them it holds fewer.
    queries = config.num_attention_heads * _get_head_size(config)
    widths = 10 * config.hidden_size + 4 * queries + 4 * _count_key_width(config) + 6 * config.intermediate_size
    prefill = int(prefill_tokens * widths * find_compute_dtype(model).itemsize)
    # Logits, over the temperature and as probabilities in fp32, their running sum in fp64, what the model gave.
    sampling = int(max_rows * config.vocab_size * (3 * 4 + 8 + 4))
    return max(prefill, sampling)


def _measure_free_gpu_memory(device: torch.device) -> int:
    """Measures the bytes of a GPU that can be allocated: those that are free, and those that torch holds unused."""
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(GPU_SHARE * (free + unused))


def _measure_free_share_of_host() -> int:
    """Measures the bytes of the machine's memory that this process may take, of those free to the stage's on it."""
    free = min(psutil.virtual_memory().available, *_list_cgroup_room(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")))
    return int(CPU_SHARE * free / get_local_world_size())


def _list_cgroup_room(membership: Path, root: Path) -> list[int]:
    """Lists the bytes that each control group of this process may still take, of both versions; pages of files count.

    Most containers limit memory so, and what the machine has free says nothing then. The list ends with a number
    beyond any memory.
    """
    rooms = []
    for line in membership.read_text().splitlines() if membership.exists() else []:
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            folder = root / controllers
            group = folder / path.strip("/")
            rooms += [_read_cgroup_room(one) for one in (group, *group.parents) if one.is_relative_to(folder)]
    return [*rooms, 2**63]


def _read_cgroup_room(group: Path) -> int:
    """Reads the bytes that a control group may still take; a number beyond any memory if it has no limit."""
    for limit, used, pages in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        try:
            n_limit, n_used = (group / limit).read_text().strip(), int((group / used).read_text())
            statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except OSError:
            continue
        if n_limit != "max":
            return max(0, int(n_limit) - n_used + int(statistics.get(pages, 0)))
    return 2**63
