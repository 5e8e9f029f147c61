"""sft against its loss written out, however its batches are cut, and gone on with after a stop."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from qwen_align.align.context import Context
from qwen_align.align.errors import Preempted
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rendering.training_set import render_rows
from qwen_align.align.rows import to_json_line
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.settings.sft import Sft
from qwen_align.align.stages import sft
from qwen_align.align.training.row_order import draw_row_order
from qwen_align.data_builders.arithmetic import Arithmetic

BASE = Path(__file__).parents[3] / "recipes" / "tiny_base"
ROWS = list(Arithmetic(rows="trace", n=8, steps=[1, 4]).generate(0))  # of unlike lengths
BATCH = 4


def run(folder: Path, model: Path, *, micro_batch: int = 4, stop: bool = False, **settings: Any) -> Path:
    """Trains and returns the stage's folder; `stop`: asked to stop after the first step."""
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    (folder / "rows" / "rows.jsonl").write_text("".join(to_json_line(row) + "\n" for row in ROWS))
    spec = Sft.model_validate(
        {
            "name": "sft",
            "kind": "sft",
            "from_model": "base",
            "from_data": ["rows"],
            "max_tokens": 256,
            "batch": BATCH,
            "epochs": 1.5,
            "learning_rate": 1e-3,
            **settings,
        }
    )
    out = folder / "out"
    out.mkdir(exist_ok=True)
    context = Context(out, 0, Runtime(device="cpu", micro_batch=micro_batch))
    context._is_asked_to_stop = stop
    sft.run(spec, {"base": model, "rows": folder / "rows"}, out, context)
    return out


@pytest.mark.parametrize("micro_batch", [1, 2, 4])
def test_the_loss_is_the_mean_over_all_trained_tokens_of_the_batch(tmp_path: Path, micro_batch: int) -> None:
    """So neither prompts count, nor does it matter how a batch is cut into forward passes."""
    samples = render_rows(Renderer.load(BASE), ROWS, 256).samples
    model = AutoModelForCausalLM.from_pretrained(BASE)
    losses = []
    for row in draw_row_order(len(samples), BATCH, 0):
        ids, mask = torch.tensor(samples[row].ids), torch.tensor(samples[row].mask)
        logps = model(ids[None]).logits[0, :-1].log_softmax(-1)
        losses.append(-logps.gather(1, ids[1:, None])[mask[1:], 0])
    loss = torch.cat(losses).mean()
    loss.backward()
    gradients = [one.grad for one in model.parameters() if one.grad is not None]
    norm = torch.stack([one.square().sum() for one in gradients]).sum().sqrt().item()

    out = run(tmp_path, BASE, micro_batch=micro_batch, epochs=0.5)
    (said,) = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert said["loss"] == pytest.approx(loss.item(), rel=1e-4)
    assert said["grad_norm"] == pytest.approx(norm, rel=1e-3)


def test_stopped_and_resumed_with_dropout_equals_uninterrupted(tiny_model: Path, tmp_path: Path) -> None:
    """Dropout draws from torch's own generator, and Adam has moments: both have to come back with the weights."""
    lora = {"lora": {"rank": 4, "alpha": 8, "dropout": 0.5}, "schedule": "constant"}
    whole = run(tmp_path / "whole", tiny_model, **lora)
    with pytest.raises(Preempted):
        run(tmp_path / "stopped", tiny_model, stop=True, **lora)
    resumed = run(tmp_path / "stopped", tiny_model, **lora)
    one, two = (load_file(out / "adapter" / "adapter_model.safetensors") for out in (whole, resumed))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(one[name].any() for name in one if "lora_B" in name)
