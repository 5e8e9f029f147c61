"""DPO's reference log-probs: the starting model's, computed once, stored, and used again for the same pairs alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from trl import DPOTrainer

from qwen_align.align.context import Context
from qwen_align.align.errors import Preempted
from qwen_align.align.models import loading
from qwen_align.align.rendering.training_set import render_pairs
from qwen_align.align.rows import read_rows
from qwen_align.align.settings.dpo import Dpo
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.stages import dpo
from qwen_align.align.training import reference_logps
from qwen_align.align.training.row_order import draw_row_order
from tests.align.training.test_preference_losses import write_pairs

SETTINGS = {
    "name": "dpo", "kind": "dpo", "from_model": "base", "from_data": ["pairs"], "max_tokens": 256, "batch": 2,
    "epochs": 1, "beta": 0.3, "learning_rate": 1e-3,
}  # fmt: skip


def train(base: Path, folder: Path, *, stop: bool = False, **settings: Any) -> list[dict[str, Any]]:
    """Trains two steps, or one where it is asked to stop; returns what was logged."""
    if not (folder / "pairs").exists():
        write_pairs(folder / "pairs")
    out = folder / "out"
    out.mkdir(exist_ok=True)
    context = Context(out, 0, Runtime(device="cpu", checkpoint_every=1, gradient_checkpointing=False))
    context._is_asked_to_stop = stop
    dpo.run(Dpo.model_validate({**SETTINGS, **settings}), {"base": base, "pairs": folder / "pairs"}, out, context)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of sides in each batch that the reference scores."""
    counts: list[int] = []
    score = DPOTrainer.compute_ref_log_probs

    def count(self: Any, model: Any, inputs: Any) -> Any:
        counts.append(len(inputs["input_ids"]))
        return score(self, model, inputs)

    monkeypatch.setattr(DPOTrainer, "compute_ref_log_probs", count)
    return counts


@torch.no_grad()
def score_by_hand(model: Any, prompt: list[int], said: list[int]) -> float:
    ids = torch.tensor([*prompt, *said])
    logps = model(ids[None]).logits[0, :-1].log_softmax(-1).gather(1, ids[1:, None])[:, 0]
    return float(logps[len(prompt) - 1 :].sum())


def test_they_are_those_of_the_model_that_the_stage_starts_from(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scored: list[int]
) -> None:
    """Of every row in the order of training, though the policy has moved; no second model is loaded."""
    kept: list[Path] = []
    loads: list[Path] = []
    add, load = reference_logps.add_reference_logps, loading.load_base_model

    def keep(trainer: Any, *arguments: Any) -> Any:
        dataset = add(trainer, *arguments)
        kept.append(Path(trainer.args.output_dir) / reference_logps.FILE)
        return dataset

    def count(folder: Path, *arguments: Any, **more: Any) -> Any:
        loads.append(folder)
        return load(folder, *arguments, **more)

    monkeypatch.setattr("qwen_align.align.training.preference_trainer.add_reference_logps", keep)
    monkeypatch.setattr(loading, "load_base_model", count)
    first, _ = train(tiny_model, tmp_path)
    assert (first["rewards/chosen"], first["rewards/rejected"]) == pytest.approx((0, 0), abs=1e-5)
    assert loads == [tiny_model]
    assert scored == [4, 4], "two batches of two pairs"
    stored = load_file(kept[0])
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    pairs = render_pairs(loading.load_renderer(tiny_model), read_rows(tmp_path / "pairs" / "rows.jsonl"), 256).pairs
    for place, row in enumerate(draw_row_order(len(pairs), 4, 0)):
        pair = pairs[row]
        for name, side in zip(reference_logps.COLUMNS, (pair.chosen, pair.rejected), strict=True):
            assert stored[name][place].item() == pytest.approx(score_by_hand(model, pair.prompt, side), abs=1e-3)


@pytest.mark.slow(seconds=4)
def test_a_resumed_run_takes_what_was_stored_and_ends_as_the_other(
    tiny_model: Path, tmp_path: Path, scored: list[int]
) -> None:
    (tmp_path / "killed").mkdir()
    with pytest.raises(Preempted):
        train(tiny_model, tmp_path / "killed", stop=True)
    assert scored == [4, 4]
    resumed = train(tiny_model, tmp_path / "killed")
    assert scored == [4, 4], "nothing was scored again"
    (tmp_path / "whole").mkdir()
    whole = train(tiny_model, tmp_path / "whole")
    assert [line["loss"] for line in resumed] == [line["loss"] for line in whole]


def test_what_was_stored_of_other_pairs_or_is_damaged_is_not_taken(tmp_path: Path) -> None:
    path, stored = tmp_path / reference_logps.FILE, {name: torch.ones(3) for name in reference_logps.COLUMNS}
    assert reference_logps._read_stored(path, "of these pairs") is None
    save_file(stored, path, metadata={"of": "of these pairs"})
    found = reference_logps._read_stored(path, "of these pairs")
    assert found is not None
    assert found.keys() == stored.keys()
    assert reference_logps._read_stored(path, "of others") is None
    path.write_bytes(path.read_bytes()[:-8])
    assert reference_logps._read_stored(path, "of these pairs") is None


def test_the_digest_is_of_every_token_and_of_the_order() -> None:
    rows = [{"prompt_ids": [1], "chosen_ids": [2, 3], "rejected_ids": [4]} for _ in range(2)]
    digest = reference_logps.compute_digest(rows)
    for name in rows[0]:
        assert reference_logps.compute_digest([rows[0], {**rows[1], name: [9]}]) != digest
    moved = [rows[0], {"prompt_ids": [1, 2], "chosen_ids": [3], "rejected_ids": [4]}]
    assert reference_logps.compute_digest(moved) != digest
    assert reference_logps.compute_digest(moved[::-1]) != reference_logps.compute_digest(moved)


def test_adapters_are_switched_off_instead(tiny_model: Path, tmp_path: Path, scored: list[int]) -> None:
    first, _ = train(tiny_model, tmp_path, lora={"rank": 2, "alpha": 4})
    assert (first["rewards/chosen"], first["rewards/rejected"]) == pytest.approx((0, 0), abs=1e-5)
    assert scored == []
