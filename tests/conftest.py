"""What many tests share: a tiny random Qwen3 made without torch, and the command line run in this process."""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml
from filelock import FileLock
from hypothesis import HealthCheck, settings
from safetensors.numpy import save_file

from qwen_align import cli as command_line
from qwen_align.align.rendering.tiny_tokenizer import END_OF_TEXT, TURN_END, save_tokenizer, train_tokenizer
from qwen_align.data_builders.arithmetic import Arithmetic
from qwen_align.reward.base import count_cores

# bitsandbytes, which PEFT imports in every process, wraps functions in torch.compile: 0.9 s, and 0.1 s without that.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

HIDDEN, LAYERS, HEADS, KV_HEADS, HEAD_DIM, INTERMEDIATE, CONTEXT = 16, 2, 2, 1, 8, 32, 256

# Of a property: the same hundreds of examples in every run, fewer in `make fast`, thousands in `make evidence`.
settings.register_profile(
    "ci", max_examples=200, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("fast", settings.get_profile("ci"), max_examples=50)
settings.register_profile("evidence", settings.get_profile("ci"), max_examples=3000, derandomize=False)
settings.load_profile("ci")


def pytest_xdist_auto_num_workers() -> int:
    """What `pytest -n auto` starts: a process a core, as far as the memory of a common machine goes."""
    return min(8, count_cores())


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files begin in the order of the seconds that their slow tests say they take, so that no core waits at the end."""
    seconds: Counter[Path] = Counter()
    for item in items:
        if slow := item.get_closest_marker("slow"):
            seconds[item.path] += slow.kwargs.get("seconds", 10)
    items.sort(key=lambda item: -seconds[item.path])


def pytest_configure() -> None:
    """With `pytest -n N` the cores are shared out, to processes that tests start too; torch is not imported yet."""
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, count_cores() // int(workers))))


class Said(NamedTuple):
    """How a command ended and what it printed."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """`made_once("name", make)`: a folder that `make` fills once in a test run, however many processes it has."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent  # each process has a folder of its own in it

    def get(name: str, make: Callable[[Path], None]) -> Path:
        folder, ended = shared / f"made-{name}", shared / f"made-{name}.txt"
        with FileLock(shared / f"made-{name}.lock"):
            if not ended.exists():
                folder.mkdir()
                ended.write_text("it could not be made; the first test that asked for it says why")
                make(folder)
                ended.write_text("")
            if said := ended.read_text():
                pytest.fail(f"{name}: {said}")
        return folder

    return get


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a two-layer Qwen3 with random weights, a tokenizer and a hybrid chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    texts = [row.text for row in Arithmetic(rows="text", n=200, steps=[1, 2, 3]).generate(0)]
    tokenizer = train_tokenizer(texts, vocab_size=400)
    save_tokenizer(tokenizer, folder, max_tokens=CONTEXT)
    ends = {"eos_token_id": tokenizer.token_to_id(TURN_END), "pad_token_id": tokenizer.token_to_id(END_OF_TEXT)}
    vocab = tokenizer.get_vocab_size()
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": vocab,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "max_position_embeddings": CONTEXT,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0},
        "tie_word_embeddings": True,
        **ends,
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps(ends))
    save_file(_weights(vocab), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def bf16_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny model with its weights rounded to bf16."""
    import torch
    from safetensors.torch import load_file
    from safetensors.torch import save_file as save_tensors

    folder = tmp_path_factory.mktemp("models") / "tiny-bf16"
    shutil.copytree(tiny_model, folder)
    weights = load_file(folder / "model.safetensors")
    rounded = {name: weight.to(torch.bfloat16) for name, weight in weights.items()}
    save_tensors(rounded, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _weights(vocab: int) -> dict[str, np.ndarray]:
    shapes: dict[str, tuple[int, ...]] = {"embed_tokens": (vocab, HIDDEN), "norm": (HIDDEN,)}
    for layer in range(LAYERS):
        here = f"layers.{layer}."
        shapes |= {
            here + "input_layernorm": (HIDDEN,),
            here + "post_attention_layernorm": (HIDDEN,),
            here + "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
            here + "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
            here + "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
            here + "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
            here + "self_attn.q_norm": (HEAD_DIM,),
            here + "self_attn.k_norm": (HEAD_DIM,),
            here + "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
            here + "mlp.up_proj": (INTERMEDIATE, HIDDEN),
            here + "mlp.down_proj": (HIDDEN, INTERMEDIATE),
        }
    random = np.random.default_rng(0)
    return {
        f"model.{name}.weight": np.ones(shape, np.float32)
        if len(shape) == 1
        else random.normal(0.0, 0.1, shape).astype(np.float32)
        for name, shape in shapes.items()
    }


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """`cli("check", recipe, "--set", ...)` in this process, with `tmp_path` as home unless `home` is given."""

    def run(command: str, *arguments: object, home: Path = tmp_path) -> Said:
        capsys.readouterr()
        try:
            code = command_line.main([command, *map(str, arguments), "--home", str(home)])
        except SystemExit as ended:  # argparse's way of refusing arguments
            code = int(str(ended.code))
        printed = capsys.readouterr()
        return Said(code, printed.out, printed.err)

    return run


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """`write_recipe(stages, file="recipe.yaml", models=..., ...)` into `tmp_path`."""

    def write(stages: list[dict[str, Any]], *, file: str = "recipe.yaml", **rest: Any) -> Path:
        path = tmp_path / file
        path.write_text(yaml.safe_dump({"name": "trial", **rest, "stages": stages}, sort_keys=False))
        return path

    return write
