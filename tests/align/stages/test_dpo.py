"""dpo against the paper's loss written out: which side is pushed up, how hard, and from which reference."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, PreTrainedModel

from qwen_align.align.context import Context
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rendering.samples import PairIds
from qwen_align.align.rendering.training_set import render_pairs
from qwen_align.align.rows import Message, Pair, to_json_line
from qwen_align.align.settings.dpo import Dpo
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.stages import dpo
from qwen_align.data_builders.arithmetic import Arithmetic, box_answer

BASE = Path(__file__).parents[3] / "recipes" / "tiny_base"
BETA = 0.3  # not TRL's default
N_PAIRS = 4


def pairs() -> list[Pair]:
    """Chosen and rejected differ in length and in most of their tokens."""
    made = []
    for row in Arithmetic(rows="trace", n=N_PAIRS, steps=[2]).generate(7):
        assert row.row == "trace"
        chosen = Message(role="assistant", content=row.answer, thinking=row.thinking)
        rejected = Message(role="assistant", content=box_answer("1"), thinking="I do not know. " * 3)
        made.append(Pair(id=row.id, messages=row.messages, chosen=chosen, rejected=rejected, mode="think"))
    return made


def run(folder: Path, epochs: int) -> tuple[PreTrainedModel, list[dict[str, Any]]]:
    """As many steps as epochs: every batch holds all pairs."""
    (folder / "pairs").mkdir(parents=True)
    (folder / "pairs" / "rows.jsonl").write_text("".join(to_json_line(row) + "\n" for row in pairs()))
    spec = Dpo.model_validate(
        {
            "name": "dpo",
            "kind": "dpo",
            "from_model": "base",
            "from_data": ["pairs"],
            "max_tokens": 256,
            "batch": N_PAIRS,
            "epochs": epochs,
            "beta": BETA,
            "learning_rate": 1e-3,
            "schedule": "constant",
        }
    )
    out = folder / "out"
    out.mkdir()
    dpo.run(spec, {"base": BASE, "pairs": folder / "pairs"}, out, Context(out, 0, Runtime(device="cpu")))
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return AutoModelForCausalLM.from_pretrained(out / "model"), metrics


def logp(model: PreTrainedModel, prompt: list[int], said: list[int]) -> torch.Tensor:
    """The sum over a completion's tokens."""
    ids = torch.tensor([*prompt, *said])
    logps = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    return logps[len(prompt) - 1 :].sum()


@torch.no_grad()
def rewards(policy: PreTrainedModel, reference: PreTrainedModel, one: PairIds) -> tuple[torch.Tensor, torch.Tensor]:
    """beta times how much likelier the policy is to say chosen and rejected than the reference (arXiv:2305.18290)."""
    chosen = logp(policy, one.prompt, one.chosen) - logp(reference, one.prompt, one.chosen)
    rejected = logp(policy, one.prompt, one.rejected) - logp(reference, one.prompt, one.rejected)
    return BETA * chosen, BETA * rejected


def test_the_second_steps_loss_is_that_of_the_paper(tmp_path: Path) -> None:
    """After one step policy and reference differ, so the loss tells every part of itself."""
    after_one, _ = run(tmp_path / "one", 1)
    after_two, (first, second) = run(tmp_path / "two", 2)
    base = AutoModelForCausalLM.from_pretrained(BASE)
    rendered = render_pairs(Renderer.load(BASE), pairs(), 256).pairs
    chosen, rejected = torch.tensor([rewards(after_one, base, one) for one in rendered]).T
    assert first["loss"] == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-4)
    assert second["rewards/chosen"] == pytest.approx(chosen.mean().item(), abs=1e-3)
    assert second["rewards/rejected"] == pytest.approx(rejected.mean().item(), abs=1e-3)
    assert second["loss"] == pytest.approx(-logsigmoid(chosen - rejected).mean().item(), abs=1e-3)
    margins = [
        sum(one - other for one, other in (rewards(policy, base, pair) for pair in rendered))
        for policy in (base, after_one, after_two)
    ]
    assert margins[0] == 0 < margins[1] < margins[2], "training prefers what was chosen more and more"
