"""Losses of our own in TRL's trainer: TRL's loss written as ours trains alike, one without reference loads none."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

from qwen_align.align.context import Context
from qwen_align.align.models import loading
from qwen_align.align.rows import Message, Pair, to_json_line
from qwen_align.align.settings.dpo import Dpo
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.stages import dpo
from qwen_align.align.training.preference_losses import PREFERENCE_LOSSES, PairLogps, PreferenceLoss

pytestmark = pytest.mark.filterwarnings("ignore")


def compute_sigmoid(logps: PairLogps, beta: float, label_smoothing: float) -> Tensor:
    assert logps.reference_chosen is not None
    assert logps.reference_rejected is not None
    difference = logps.chosen - logps.reference_chosen - logps.rejected + logps.reference_rejected
    return -logsigmoid(beta * difference)


def compute_mean_difference(logps: PairLogps, beta: float, label_smoothing: float) -> Tensor:
    """As SimPO (arXiv:2405.14734) without its margin."""
    assert logps.reference_chosen is None
    assert logps.reference_rejected is None
    difference = logps.chosen / logps.n_chosen_tokens - logps.rejected / logps.n_rejected_tokens
    return -logsigmoid(beta * difference)


def write_pairs(folder: Path) -> None:
    folder.mkdir(parents=True)
    questions = ["1 + 1?", "2 + 3?", "4 + 4?", "7 - 2?"]
    rows = [
        Pair(
            id=question,
            messages=[Message(role="user", content=question)],
            chosen=Message(role="assistant", content="I think it is so. " * (1 + number)),
            rejected=Message(role="assistant", content="no"),
            mode="no_think",
            flag="/no_think",
        )
        for number, question in enumerate(questions)
    ]
    (folder / "rows.jsonl").write_text("".join(to_json_line(row) + "\n" for row in rows))


def train(base: Path, folder: Path, **settings: Any) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Trains two steps; returns the weights and what was logged."""
    write_pairs(folder / "pairs")
    parsed = Dpo.model_validate(
        {
            "name": "dpo",
            "kind": "dpo",
            "from_model": "base",
            "from_data": ["pairs"],
            "max_tokens": 256,
            "batch": 4,
            "epochs": 2,
            "beta": 0.3,
            "learning_rate": 1e-3,
            "schedule": "constant",
            **settings,
        }
    )
    out = folder / "out"
    out.mkdir()
    dpo.run(parsed, {"base": base, "pairs": folder / "pairs"}, out, Context(out, 0, Runtime(device="cpu")))
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return loading.load_model(out).state_dict(), metrics


@pytest.mark.parametrize(
    "extra",
    [
        {},
        pytest.param({"sft_weight": 0.5}, marks=pytest.mark.slow),
        pytest.param({"lora": {"rank": 2, "alpha": 4}}, marks=pytest.mark.slow),
    ],
)
def test_trls_loss_written_as_our_own_trains_the_same(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: dict[str, Any]
) -> None:
    theirs, their_metrics = train(tiny_model, tmp_path / "theirs", **extra)
    monkeypatch.setitem(PREFERENCE_LOSSES, "sigmoid", PreferenceLoss(compute=compute_sigmoid))
    ours, our_metrics = train(tiny_model, tmp_path / "ours", **extra)
    assert all(torch.allclose(theirs[name], ours[name], atol=1e-6) for name in theirs)
    assert len(our_metrics) == 2
    for their_step, our_step in zip(their_metrics, our_metrics, strict=True):
        for name in ("loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "logps/chosen"):
            assert our_step[name] == pytest.approx(their_step[name], abs=1e-4), name


def test_a_loss_without_a_reference_loads_none(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[Path] = []
    load_model = loading.load_model

    def count(folder: Path, *arguments: Any, **settings: Any) -> Any:
        loads.append(folder)
        return load_model(folder, *arguments, **settings)

    def refuse(*arguments: Any, **settings: Any) -> Any:
        raise AssertionError("TRL loads a model of its own")

    free = PreferenceLoss(compute=compute_mean_difference, needs_reference=False)
    monkeypatch.setitem(PREFERENCE_LOSSES, "sigmoid", free)
    monkeypatch.setattr(loading, "load_model", count)
    monkeypatch.setattr("trl.trainer.dpo_trainer.create_model_from_path", refuse)
    _, (first, second) = train(tiny_model, tmp_path)
    assert loads.count(tiny_model) == 1, "the policy alone"
    assert second["loss"] < first["loss"]


def test_the_first_loss_of_our_own_is_that_of_the_log_probabilities(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = PreferenceLoss(compute=compute_mean_difference, needs_reference=False)
    monkeypatch.setitem(PREFERENCE_LOSSES, "sigmoid", free)
    _, (first, _) = train(tiny_model, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    renderer = loading.load_renderer(tiny_model)
    losses = []
    for line in (tmp_path / "pairs" / "rows.jsonl").read_text().splitlines():
        pair = renderer.render_pair(Pair.model_validate_json(line))
        means = []
        for side in (pair.chosen, pair.rejected):
            ids = torch.tensor([*pair.prompt, *side])
            with torch.no_grad():
                logps = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
            means.append(logps[len(pair.prompt) - 1 :].mean())
        losses.append(-logsigmoid(0.3 * (means[0] - means[1])))
    assert first["loss"] == pytest.approx(torch.stack(losses).mean().item(), abs=1e-4)
