"""A ladder of adapters: what a stage leaves on disk, and what the merged model says."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoConfig, Qwen3ForCausalLM

from qwen_align.align.models import loading
from qwen_align.align.models.model_description import ModelFiles, locate_model_files
from qwen_align.align.store.files import measure_gib

pytestmark = pytest.mark.slow(seconds=20)

LORA = {"rank": 4, "alpha": 8}
TUNED = {"max_tokens": 256, "batch": 4, "epochs": 0.25, "learning_rate": 1e-3}
REWARDS = [{"kind": "random"}]
SAMPLING = {"temperature": 1.0, "max_tokens": 16}
ONLINE = {
    "rewards": REWARDS,
    "steps": 2,
    "prompts_per_step": 2,
    "completions_per_prompt": 4,
    "sampling": SAMPLING,
    "learning_rate": 1e-3,
}


def data(name: str, **builder: Any) -> dict[str, Any]:
    return {"name": name, "kind": "build_data", "builder": builder}


SFT = {**TUNED, "name": "sft", "kind": "sft", "from_model": "base", "from_data": ["traces"]}
STAGES: list[dict[str, Any]] = [
    data("traces", kind="arithmetic", rows="trace", n=32, steps=[1]),
    data("problems", kind="arithmetic", rows="problem", n=8, steps=[1]),
    data("pairs", kind="local_file", path="pairs.jsonl", rows="typed"),
    {**SFT, "lora": LORA},
    {
        **TUNED,
        "name": "dpo",
        "kind": "dpo",
        "from_model": "sft",
        "from_data": ["pairs"],
        "beta": 0.1,
        "lora": LORA,
    },
    {**ONLINE, "name": "grpo", "kind": "grpo", "from_model": "dpo", "from_data": ["problems"], "lora": LORA},
    {**SFT, "name": "full"},
]


def write_pairs(path: Path) -> None:
    pairs = [
        {
            "row": "pair",
            "id": f"pair-{place}",
            "messages": [{"role": "user", "content": f"What is {place} plus 1?"}],
            "chosen": {"role": "assistant", "content": str(place + 1)},
            "rejected": {"role": "assistant", "content": str(place)},
            "mode": "no_think",
        }
        for place in range(16)
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in pairs))


def write_model(tiny_model: Path, folder: Path) -> None:
    """A random Qwen3 of three million parameters, wide enough for adapters to be small beside it."""
    shutil.copytree(tiny_model, folder)
    config = AutoConfig.from_pretrained(folder)
    for name, value in {
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "layer_types": ["full_attention"] * 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
    }.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    Qwen3ForCausalLM(config).save_pretrained(folder)


def test_adapters_take_a_tenth_of_a_model_at_most_and_merge_exactly(
    tiny_model: Path, tmp_path: Path, write_recipe: Callable[..., Path], cli: Callable[..., Any]
) -> None:
    write_model(tiny_model, tmp_path / "base")
    write_pairs(tmp_path / "pairs.jsonl")
    runtime = {"device": "cpu", "threads": 1, "checkpoint_every": 1}
    recipe = write_recipe(STAGES, models={"base": {"path": str(tmp_path / "base")}}, runtime=runtime)
    said = cli("run", recipe)
    assert said.code == 0, said.out + said.err
    stages = tmp_path / "runs" / "trial" / "stages"
    full = measure_gib(stages / "full" / ".")
    for name, n_adapters in (("sft", 1), ("dpo", 2), ("grpo", 3)):
        folder = (stages / name).resolve()
        share = measure_gib(folder) / full
        assert share <= 0.1, f"{name} takes {share:.3f} of what a full model's stage takes"
        left = [path.name for path in folder.rglob("*") if path.name.startswith(("checkpoint", "optimizer", "part"))]
        assert not left, f"{name}: nothing of the way there stays"
        files = locate_model_files(folder)
        assert len(files.adapters) == n_adapters
        before = loading.load_with_adapters(ModelFiles(files.base, files.adapters[:-1]), "fp32")
        as_plain_adapter = Path(shutil.copytree(files.adapters[-1], tmp_path / f"adapter-of-{name}"))
        for config in as_plain_adapter.glob("stacked_adapter_config.json"):
            config.rename(as_plain_adapter / "adapter_config.json")
        vocabulary = before.config.vocab_size
        ids = torch.randint(vocabulary, (4, 32), generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            plain = before(input_ids=ids).logits
            adapted = PeftModel.from_pretrained(before, str(as_plain_adapter)).eval()(input_ids=ids).logits
            merged = loading.load_model(folder)(input_ids=ids).logits
        assert (adapted - plain).abs().max() > 1e-3, "the adapter does something"
        assert (merged - adapted).abs().max() < 1e-4
