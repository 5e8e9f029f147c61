"""Checks of models that two processes load and train as shards; `test_sharded_models.py` runs it, once per process.

Each check is a function here; what it raises is printed as a line of JSON:

    python sharded_models.py RANK PORT FOLDER fsdp2|zero3
"""

import json
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from transformers import (
    PreTrainedModel,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    TrainingArguments,
)

from qwen_align.align.errors import RecipeError
from qwen_align.align.models import loading
from qwen_align.align.models.model_description import ModelFiles
from qwen_align.align.models.weight_precision import Precision
from qwen_align.align.models.zero3_shards import partition_with_zero3
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.training.distributed import gather_objects, get_rank, is_main_process, wait_for_all
from qwen_align.align.training.fsdp2 import shard_model
from qwen_align.align.training.strategies import build_strategy_arguments, start_strategy
from qwen_align.align.training.token_scores import score_tokens

SIZES: dict[str, Any] = {
    "vocab_size": 97,  # does not divide by two processes
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
# No weight is much of it: the whole would be 1.6 times what a process may hold.
LARGER = SIZES | {"vocab_size": 1000, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
IDS = torch.randint(0, 97, (4, 12), generator=torch.Generator().manual_seed(1))
CHECKS: list[Callable[[Path, DeviceMesh], None]] = []


def check(function: Callable[[Path, DeviceMesh], None]) -> Callable[[Path, DeviceMesh], None]:
    CHECKS.append(function)
    return function


def write_model(folder: Path, precision: Precision = "fp32", **sizes: Any) -> Path:
    """Writes a random model in several files, once."""
    if is_main_process():
        torch.manual_seed(0)
        given = SIZES | sizes
        model: Any = (
            Qwen3MoeForCausalLM(Qwen3MoeConfig(**given))
            if "num_experts" in given
            else Qwen3ForCausalLM(Qwen3Config(**given))
        )
        model.to(loading.DTYPES[precision]).save_pretrained(
            folder, max_shard_size="20MB" if sizes == LARGER else "20KB"
        )
    wait_for_all()
    return folder


def write_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    """Writes an adapter of a model whose every weight is random."""
    if is_main_process():
        adapted = add_adapter(loading.load_base_model(base), **settings)
        torch.manual_seed(5)
        for name, weight in adapted.named_parameters():
            if ".lora_" in name and "magnitude" not in name:
                torch.nn.init.normal_(weight.data, std=0.1)
        adapted.save_pretrained(str(folder))
    wait_for_all()
    return folder


def add_adapter(model: PreTrainedModel, **settings: Any) -> Any:
    torch.manual_seed(3)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", **settings)
    adapted: Any = get_peft_model(model, config)
    for weight in adapted.parameters():
        if weight.requires_grad:
            weight.data = weight.data.float()
    return adapted


def require_same_weights(sharded: PreTrainedModel, whole: PreTrainedModel) -> None:
    """Requires that the shards of all processes are the weights of a model, and no process has more than half."""
    for (name, shard), (other, weight) in zip(sharded.named_parameters(), whole.named_parameters(), strict=True):
        assert name == other
        assert isinstance(shard, DTensor), name
        assert shard.dtype == weight.dtype, name
        assert torch.equal(shard.full_tensor(), weight), name
        assert len(shard.to_local()) <= (len(weight) + 1) // 2, name
    for (name, buffer), (_, other) in zip(sharded.named_buffers(), whole.named_buffers(), strict=True):
        assert torch.equal(buffer, other), name


@contextmanager
def measure_peak() -> Iterator[list[int]]:
    """Measures the largest anonymous memory of this process above that of the beginning, in bytes."""

    def read() -> int:
        fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return sum(int(fields[name].split()[0]) << 10 for name in ("RssAnon", "RssShmem"))

    before, peak, is_done = read(), [0], threading.Event()

    def watch() -> None:
        while not is_done.is_set():
            peak[0] = max(peak[0], read() - before)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peak
    finally:
        is_done.set()
        watcher.join()
        peak[0] = max(peak[0], read() - before)


# --- loading


@check
def loads_its_rows_alone(home: Path, mesh: DeviceMesh) -> None:
    for name, sizes in (("tied", {"tie_word_embeddings": True}), ("untied", {}), ("experts", EXPERTS)):
        for precision in ("fp32", "bf16"):
            folder = write_model(home / f"{name}-{precision}", precision, **sizes)
            whole = loading.load_base_model(folder, precision=precision)
            sharded = loading.load_base_model(folder, precision=precision, mesh=mesh)
            require_same_weights(sharded, whole)
            is_tied = sharded.get_output_embeddings().weight is sharded.get_input_embeddings().weight
            assert is_tied == (name == "tied")


@check
def no_process_holds_the_whole(home: Path, mesh: DeviceMesh) -> None:
    folder = write_model(home / "larger", "bf16", **LARGER)
    loading.load_base_model(folder, precision="fp32", mesh=mesh)  # what is allocated once and for all
    with measure_peak() as peak:
        model = loading.load_base_model(folder, precision="fp32", mesh=mesh)
    shard = sum(weight.to_local().nbytes for weight in model.parameters())
    largest = max(weight.numel() * weight.element_size() for weight in model.parameters())
    assert peak[0] < 1.3 * shard + largest, (peak[0], shard, largest)
    assert 2 * shard > 1.4 * (1.3 * shard + largest)  # so the whole would be seen


@check
def refuses_unsound_weights_everywhere(home: Path, mesh: DeviceMesh) -> None:
    folder = write_model(home / "unsound")
    broken = sorted(folder.glob("*.safetensors"))[-1]
    name = ""
    if is_main_process():
        tensors = load_file(broken)
        name = next(name for name, tensor in tensors.items() if tensor.dim() == 2)
        tensors[name][-1, -1] = float("nan")  # in the last rows, which the first process does not read
        save_file(tensors, broken, {"format": "pt"})
    wait_for_all()
    name = gather_objects(name)[0]
    with pytest.raises(RecipeError, match=f"{re.escape(name)} in its weights is not all finite numbers"):
        loading.load_base_model(folder, mesh=mesh)


@check
def merges_adapters_as_one_process(home: Path, mesh: DeviceMesh) -> None:
    for precision in ("fp32", "bf16"):
        base = write_model(home / f"below-{precision}", precision, tie_word_embeddings=True)
        for name, settings in (("lora", {}), ("dora", {"use_dora": True})):
            adapters = [write_adapter(base, home / f"{name}-{precision}-{number}", **settings) for number in (1, 2)]
            files = ModelFiles(str(base), adapters)
            whole = loading.load_with_adapters(files, precision)
            sharded = loading.load_with_adapters(files, precision, mesh=mesh)
            require_same_weights(sharded, whole)
            unmerged = loading.load_base_model(base, precision=precision)
            assert not torch.equal(
                whole.model.layers[0].mlp.up_proj.weight, unmerged.model.layers[0].mlp.up_proj.weight
            )


# --- FSDP2


def train(model: Any, rows: torch.Tensor, steps: int = 3) -> list[tuple[float, float]]:
    """Trains a model on its rows and returns the loss and the gradients' norm of each step, of all processes."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer, figures = torch.optim.AdamW(trained, lr=1e-2), []
    for _ in range(steps):
        loss = model(input_ids=rows, labels=rows).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        is_sharded = isinstance(model, FSDPModule)
        losses = gather_objects(loss.item()) if is_sharded else [loss.item()]
        figures.append((sum(losses) / len(losses), (norm.full_tensor() if isinstance(norm, DTensor) else norm).item()))
    return figures


def require_close(actual: list[tuple[float, float]], expected: list[tuple[float, float]]) -> None:
    for one, other in zip(actual, expected, strict=True):
        assert all(abs(a - b) <= 1e-4 * abs(b) for a, b in zip(one, other, strict=True)), (actual, expected)


@check
def trains_as_one_process(home: Path, mesh: DeviceMesh) -> None:
    rank = get_rank()
    for name, sizes, precision, adapter, recomputes, offloads in (
        ("tied", {"tie_word_embeddings": True}, "fp32", None, False, False),
        ("untied", {}, "fp32", None, True, False),
        ("offloaded", {}, "fp32", None, False, True),
        ("lora", {"tie_word_embeddings": True}, "bf16", {}, True, False),
        ("lora-untied", {}, "bf16", {}, False, False),
    ):
        folder = write_model(home / f"fsdp2-{name}", precision, **sizes)
        one: Any = loading.load_base_model(folder, precision=precision)
        two: Any = loading.load_base_model(folder, precision=precision, mesh=mesh)
        if adapter is not None:
            one, two = add_adapter(one, **adapter), add_adapter(two, **adapter)
        if recomputes:
            for model in (one, two):
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
                model.enable_input_require_grads()
        shard_model(two, mesh, torch.device("cpu"), offloads=offloads)
        held = sum(weight.to_local().nbytes for weight in two.parameters())
        assert held <= 0.52 * sum(weight.nbytes for weight in one.parameters()), name
        require_close(train(two, IDS[2 * rank : 2 * rank + 2]), train(one, IDS))


@check
def reads_the_head_outside_its_forward(home: Path, mesh: DeviceMesh) -> None:
    rank = get_rank()
    for name, is_tied in (("head-tied", True), ("head-untied", False)):
        folder = write_model(home / name, tie_word_embeddings=is_tied)
        one, two = loading.load_base_model(folder), loading.load_base_model(folder, mesh=mesh)

        def score(model: Any) -> Callable[..., Any]:
            def forward(input_ids: torch.Tensor) -> torch.Tensor:
                states = model.model(input_ids, use_cache=False).last_hidden_state[:, :-1].flatten(0, 1)
                scores = score_tokens(states, model.lm_head, input_ids[:, 1:].flatten(), 1.0, needs_entropies=True)
                assert scores.entropies is not None
                mean: torch.Tensor = (scores.logps + 0.1 * scores.entropies).mean()
                return mean

            return forward

        one.forward, two.forward = score(one), score(two)
        shard_model(two, mesh, torch.device("cpu"))
        one(IDS).backward()
        two(IDS[2 * rank : 2 * rank + 2]).backward()
        for (weight_name, weight), (_, shard) in zip(one.named_parameters(), two.named_parameters(), strict=True):
            assert weight.grad is not None, weight_name
            torch.testing.assert_close(shard.grad.full_tensor(), weight.grad, rtol=1e-4, atol=1e-6)


# --- ZeRO-3


def start_zero3(home: Path) -> TrainingArguments:
    """Connects the processes for ZeRO-3. Its settings are known to transformers as long as what is returned lives."""
    runtime = Runtime(strategy="zero3", processes=2, device="cpu")
    arguments = {"output_dir": str(home), "use_cpu": True, "ddp_backend": "gloo", "report_to": "none"}
    args = TrainingArguments(**arguments | build_strategy_arguments(runtime, in_bf16=True))
    start_strategy(args, runtime, home)
    return args


def hands_its_rows_to_zero3(home: Path, mesh: DeviceMesh) -> None:
    from deepspeed import zero

    for name, sizes in (("tied", {"tie_word_embeddings": True}), ("untied", {}), ("even", {"vocab_size": 96})):
        for precision in ("fp32", "bf16"):
            folder = write_model(home / f"zero3-{name}-{precision}", precision, **sizes)
            whole = loading.load_base_model(folder, precision=precision)
            weights: list[Any] = list(
                partition_with_zero3(loading.load_base_model(folder, precision=precision, mesh=mesh)).parameters()
            )
            expected = list(whole.parameters())
            assert len(weights) == len(expected)
            for weight, numbers in zip(weights, expected, strict=True):
                assert weight.ds_tensor.numel() <= (numbers.numel() + 1) // 2
                assert weight.ds_tensor.dtype == numbers.dtype
                with zero.GatheredParameters([weight]):
                    assert torch.equal(weight, numbers)


def main() -> None:
    rank, port, home = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    torch.set_num_threads(1)
    settings = start_zero3(home) if sys.argv[4] == "zero3" else torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    for function in [hands_its_rows_to_zero3] if settings else CHECKS:
        try:
            function(home, mesh)
            fault = ""
        except BaseException:  # noqa: BLE001 - also pytest's own
            fault = traceback.format_exc()
        print(json.dumps({"check": function.__name__, "rank": rank, "fault": fault}), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
