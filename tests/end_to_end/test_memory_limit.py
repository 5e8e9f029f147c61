"""A run whose processes may have less memory than a stage needs: what it says, and how it goes on as it is told to."""

import json
import re
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from qwen_align.align.training.row_order import draw_row_order
from tests.evidence.real_shape import list_descendants

ROOT = Path(__file__).parents[2]
N_SHORT, N_LONG, BATCH = 16, 8, 8
WORDS = "one two three four five six seven eight nine ten".split()


class Run(NamedTuple):
    """How a run ended, what it said, and the most address space that one of its processes had, in bytes."""

    code: int
    said: str
    peak: int


def build_base(folder: Path) -> None:
    """A model with activations that are large beside its weights: 77 M parameters, 8 layers."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shutil.copytree(ROOT / "recipes" / "tiny_base", folder)
    config = Qwen3Config.from_pretrained(folder)
    config.update({"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 8, "num_attention_heads": 12})
    config.update({"num_key_value_heads": 4, "head_dim": 64, "layer_types": ["full_attention"] * 8})
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)


def write_rows(path: Path) -> None:
    rows = []
    for number in range(N_SHORT + N_LONG):
        n_words = 8 if number < N_SHORT else 60
        said = " ".join(WORDS[(number + place) % len(WORDS)] for place in range(n_words))
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": f"count on from {number}"},
                    {"role": "assistant", "content": said},
                ]
            }
        )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def find_seed() -> int:
    """A seed with which the first step has short rows alone, and the second most of the long ones."""
    for seed in range(5000):
        order = draw_row_order(N_SHORT + N_LONG, N_SHORT + N_LONG, seed)
        if max(order[:BATCH]) < N_SHORT and sum(row >= N_SHORT for row in order[BATCH : 2 * BATCH]) >= BATCH - 1:
            return seed
    raise AssertionError("no such seed")


def run(recipe: Path, home: Path, *, limit: int | None = None, **runtime: Any) -> Run:
    """Runs a recipe in processes that may have so many bytes of address space."""
    changes = [f"--set=runtime.{name}={value}" for name, value in runtime.items()]
    line = [sys.executable, "-m", "qwen_align.cli", "run", str(recipe), "--home", str(home), *changes]

    def limit_memory() -> None:
        if limit:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    peak = 0
    with (home / "said.txt").open("w+") as said:
        process = subprocess.Popen(line, stdout=said, stderr=said, preexec_fn=limit_memory)
        while process.poll() is None:
            peak = max(peak, *(read_address_space(pid) for pid in list_descendants(process.pid)), 0)
            time.sleep(0.02)
        said.seek(0)
        return Run(process.returncode, said.read(), peak)


def read_address_space(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    _, found, rest = status.partition("VmPeak:")
    return int(rest.split()[0]) * 1024 if found else 0


@pytest.mark.evidence
def test_a_stage_that_gets_too_little_says_what_to_turn_and_goes_on_with_it(
    tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    build_base(tmp_path / "base")
    write_rows(tmp_path / "rows.jsonl")
    builder = {"kind": "local_file", "path": str(tmp_path / "rows.jsonl"), "format": "messages", "rows": "chat"}
    sft = {"kind": "sft", "from_model": "base", "from_data": ["rows"], "max_tokens": 512, "batch": BATCH, "epochs": 1}
    sft |= {"learning_rate": 1e-4, "lora": {"rank": 4, "alpha": 8}, "seed": find_seed()}
    recipe = write_recipe(
        [
            {"name": "rows", "kind": "build_data", "builder": {**builder, "mode": "no_think"}},
            {"name": "sft", **sft},
        ],
        models={"base": {"path": str(tmp_path / "base")}},
        runtime={"device": "cpu", "threads": 1, "gradient_checkpointing": False},
    )
    few, many = (tmp_path / name for name in ("few", "many"))
    peaks = []
    for home, rows in ((few, 1), (many, 8)):
        home.mkdir()
        whole = run(recipe, home, micro_batch=rows)
        assert whole.code == 0, whole.said
        peaks.append(whole.peak)
    limit = sum(peaks) // 2
    print([one / 2**30 for one in peaks], limit / 2**30)
    assert peaks[1] - peaks[0] > 2**28
    home = tmp_path / "limited"
    home.mkdir()
    short = run(recipe, home, limit=limit, micro_batch=8)
    print(short.said)
    assert short.code == 4
    found = re.search(
        r"out of memory in the update phase of step 2 of an sft stage \(longest row (\d+) tokens, peak ([\d.]+) of "
        r"[\d.]+ GiB, estimate ([\d.]+) GiB\)\. Set runtime\.micro_batch: (\d) \(now 8\)\. Step 1 is saved",
        " ".join(short.said.split()),
    )
    assert found, short.said
    longest, peak, estimate, rows = int(found[1]), float(found[2]), float(found[3]), int(found[4])
    assert 0 < peak < estimate
    assert 200 < longest < 512
    (unfinished,) = home.glob("store/sft-*")
    while True:
        again = run(recipe, home, limit=limit, micro_batch=rows)
        print(rows, again.said)
        if again.code == 0 or rows == 1:
            break
        rows //= 2
    assert again.code == 0
    assert list(home.glob("store/sft-*")) == [unfinished]
    steps = [json.loads(text)["step"] for text in (unfinished / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
