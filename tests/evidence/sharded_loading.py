"""Measures what memory each of two processes takes while it loads Qwen3-4B's shape as shards, under ZeRO-3 or FSDP2.

    python tests/evidence/sharded_loading.py write FOLDER [--layers 36]
    python tests/evidence/sharded_loading.py measure FOLDER zero3|fsdp2 bf16|fp32

`write` writes random weights once, 8 GB of bf16 in several files. `measure` prints a line of JSON for each process:

- shard: the bytes of this process's part of the weights, in the precision they are held in (not that of the files)
- largest: those of the largest weight as a whole: the embeddings, which are the head too
- peak: the largest anonymous and shared memory while loading, above that before; read every 5 ms from /proc. Pages of
  the files that are mapped do not count, for the system takes them back when it needs them: `mapped` is their peak
- ratio: peak over the limit, 1.3 shards and the largest weight

ZeRO-3 needs DeepSpeed, whose operators are built first. It ends with 1 where a process is over the limit.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

SHAPE: dict[str, Any] = {  # Qwen3-4B's config.json
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
    "tie_word_embeddings": True,
    "dtype": "bfloat16",
}
LAYERS_A_FILE = 9
PROCESSES = 2
FIELDS = {"own": ("RssAnon", "RssShmem"), "mapped": ("RssFile",)}


def write_model(folder: Path, n_layers: int) -> None:
    """Writes random weights of the shape with so many layers, in several files."""
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(SHAPE | {"num_hidden_layers": n_layers}, indent=1))
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(folder)))
    names = {name: weight.shape for name, weight in model.named_parameters()}
    pool = torch.empty(1 << 24, dtype=torch.bfloat16).normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
    files: dict[int, list[str]] = {}
    for name in names:
        layer = int(name.split(".")[2]) if ".layers." in name else -1
        files.setdefault(layer // LAYERS_A_FILE, []).append(name)
    index = {}
    for number, group in sorted(files.items()):
        file = f"model-{number + 2:05d}-of-{len(files):05d}.safetensors"
        save_file({name: _repeat(pool, names[name]) for name in group}, folder / file, {"format": "pt"})
        index |= dict.fromkeys(group, file)
    total = sum(2 * shape.numel() for shape in names.values())
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {"total_size": total}, "weight_map": index})
    )
    print(f"{total / 1e9:.2f} GB in {len(files)} files")


def _repeat(pool: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Returns the numbers of a pool as a tensor of a shape, as often as they are needed."""
    return pool.repeat(-(-shape.numel() // len(pool)))[: shape.numel()].view(shape).clone()


def read_memory() -> dict[str, int]:
    """Returns this process's own memory and that of mapped files, in bytes."""
    said = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: sum(int(said[field].split()[0]) << 10 for field in fields) for name, fields in FIELDS.items()}


@contextmanager
def measure_peaks() -> Iterator[dict[str, int]]:
    """Measures the largest memory of this process above that of the beginning, by the names of `FIELDS`."""
    before, peaks, is_done = read_memory(), dict.fromkeys(FIELDS, 0), threading.Event()

    def watch() -> None:
        while not is_done.is_set():
            for name, value in read_memory().items():
                peaks[name] = max(peaks[name], value - before[name])
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peaks
    finally:
        is_done.set()
        watcher.join()


def load(folder: Path, strategy: Any, precision: Any, rank: int, port: str) -> None:
    """Loads the model in one of the processes, as a stage does, and prints what it took."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(PROCESSES)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    from transformers import TrainingArguments

    from qwen_align.align.models import loading, weight_shards, zero3_shards
    from qwen_align.align.settings.runtime import Runtime
    from qwen_align.align.training.strategies import build_strategy_arguments, start_strategy

    torch.set_num_threads(1)
    runtime = Runtime(strategy=strategy, processes=PROCESSES, device="cpu")
    out = Path(tempfile.mkdtemp())
    arguments = {"output_dir": str(out), "use_cpu": True, "report_to": "none", "ddp_backend": "gloo"}
    args = TrainingArguments(**{**arguments, **build_strategy_arguments(runtime, in_bf16=False)})
    start_strategy(args, runtime, out)
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo")
    mesh = weight_shards.build_shard_mesh(runtime, torch.device("cpu"))
    started = time.monotonic()
    with measure_peaks() as peaks:
        model = loading.load_base_model(folder, precision=precision, mesh=mesh)
        model = zero3_shards.partition_with_zero3(model)
    weights: list[Any] = list(model.parameters())
    is_zero3 = strategy == "zero3"
    shard = sum((weight.ds_tensor if is_zero3 else weight.to_local()).nbytes for weight in weights)
    largest = max((weight.ds_numel if is_zero3 else weight.numel()) * weight.element_size() for weight in weights)
    print(
        json.dumps(
            {
                "strategy": strategy,
                "precision": precision,
                "rank": rank,
                "shard": shard,
                "largest": largest,
                "peak": peaks["own"],
                "mapped": peaks["mapped"],
                "peak_over_shard": round(peaks["own"] / shard, 3),
                "ratio": round(peaks["own"] / (1.3 * shard + largest), 3),
                "seconds": round(time.monotonic() - started, 1),
            }
        ),
        flush=True,
    )
    torch.distributed.destroy_process_group()


def measure(folder: Path, strategy: str, precision: str) -> int:
    """Loads the model in two processes and prints what each took. Returns 1 where one took too much."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, __file__, "load", str(folder), strategy, precision]
    processes = [
        subprocess.Popen([*command, str(rank), port], stdout=subprocess.PIPE, text=True) for rank in range(PROCESSES)
    ]
    lines = [line for process in processes for line in process.communicate()[0].splitlines() if line.startswith("{")]
    print("\n".join(lines), flush=True)
    return int(len(lines) < PROCESSES or any(json.loads(line)["ratio"] > 1 for line in lines))


def main() -> int:
    """Writes the weights, measures, or is one of the measured processes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("write", "measure", "load"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("more", nargs="*")
    parser.add_argument("--layers", type=int, default=36)
    asked = parser.parse_args()
    if asked.what == "write":
        write_model(asked.folder, asked.layers)
        return 0
    if asked.what == "measure":
        return measure(asked.folder, *asked.more)
    load(asked.folder, *asked.more[:2], int(asked.more[2]), asked.more[3])
    return 0


if __name__ == "__main__":
    sys.exit(main())
