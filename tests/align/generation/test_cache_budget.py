from pathlib import Path

import psutil
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from qwen_align.align.generation import cache_budget
from qwen_align.align.generation.cache_budget import GIB, compute_cached_tokens, count_cache_bytes

SIZES = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MODELS = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),
    "llama, a key head a query head": lambda: LlamaForCausalLM(LlamaConfig(**SIZES | {"num_key_value_heads": 4})),
}
REQUEST = {"kv_cache_gib": None, "max_rows": 8, "prefill_tokens": 100}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MODELS)
def test_the_bytes_of_a_token_are_those_of_transformers_cache(name, dtype):
    model = MODELS[name]().to(dtype)
    cache = model(input_ids=torch.ones(2, 5, dtype=torch.int64), use_cache=True).past_key_values
    n_bytes = sum(tensor.nbytes for layer in cache.layers for tensor in (layer.keys, layer.values))
    assert count_cache_bytes(model) == n_bytes / 10
    assert compute_cached_tokens(model, **REQUEST | {"kv_cache_gib": 0.5}) == GIB // 2 // (n_bytes // 10)


def test_without_a_setting_a_process_takes_its_share_of_free_memory_less_what_a_step_needs(monkeypatch):
    model = MODELS["qwen3"]()
    monkeypatch.setattr(cache_budget, "_list_cgroup_room", lambda *_: [2**63])
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 4 * GIB}))

    def count_bytes(**change):
        return compute_cached_tokens(model, **REQUEST | change) * count_cache_bytes(model)

    alone = count_bytes()
    assert 1.99 * GIB < alone < 2 * GIB, "half of a machine's memory"
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert 0.49 * GIB < count_bytes() < 0.5 * GIB
    logits = 100_000 * 61 * 4
    assert count_bytes() - count_bytes(max_rows=100_000) >= 3 * logits
    layer = 10_000 * (2 * 32 + 6 * 48) * 4  # two hidden states and the MLP alone
    assert count_bytes() - count_bytes(prefill_tokens=10_000) >= layer
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 0}))
    assert count_bytes() == 0


def test_a_gpu_has_what_is_free_and_what_torch_holds_unused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 6 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 4 * GIB)
    assert cache_budget._measure_free_gpu_memory(torch.device("cuda", 0)) == int(0.9 * 12 * GIB)


def write_group(folder: Path, limit: str, used: int, pages: int, *, version: int) -> None:
    names = ("memory.max", "memory.current") if version == 2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    name = "inactive_file" if version == 2 else "total_inactive_file"
    (folder / "memory.stat").write_text(f"anon 5\n{name} {pages}\n")


@pytest.mark.parametrize(("version", "line", "top"), [(2, "0::/a/b", ""), (1, "4:memory:/a/b", "memory")])
def test_a_containers_limit_counts_and_those_around_it(tmp_path, version, line, top):
    membership, root = tmp_path / "cgroup", tmp_path / "fs"
    membership.write_text(f"7:cpu:/a\n{line}\n")
    write_group(root / top / "a" / "b", "max" if version == 2 else str(2**62), 10, 0, version=version)
    write_group(root / top / "a", str(9 * GIB), 5 * GIB, 2 * GIB, version=version)
    assert min(cache_budget._list_cgroup_room(membership, root)) == 6 * GIB
    write_group(root / top / "a" / "b", str(3 * GIB), 2 * GIB, 0, version=version)
    assert min(cache_budget._list_cgroup_room(membership, root)) == 1 * GIB


def test_without_control_groups_there_is_no_limit(tmp_path):
    assert min(cache_budget._list_cgroup_room(tmp_path / "none", tmp_path)) == 2**63
