"""Stages that train, run as users run them: with LoRA, with several rewards, with nothing to learn."""

import json
import math
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qwen_align.align.rows import Completion, read_rows
from qwen_align.reward.verdict import Verdict
from tests.end_to_end.ladder import BASE, DPO, PAIRS, metrics, outputs, run, stage, weights, write_recipe

pytestmark = pytest.mark.slow


def children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_second_run_does_nothing_but_start(trained: Path) -> None:
    """In at most twice the processor time of its imports, which on the reference machine are a second."""
    before = outputs(trained)
    times = {path: path.stat().st_mtime_ns for path in trained.glob("store/*/*")}
    started = children_cpu_s()
    subprocess.run([sys.executable, "-c", "import qwen_align.cli, qwen_align.align.pipeline.run"], check=True)
    imported = children_cpu_s()
    said = run(trained / "recipe.yaml", trained)
    assert children_cpu_s() - imported < 2 * (imported - started)
    assert said.count("stored") == len(list((trained / "runs" / "trained" / "stages").iterdir()))
    assert "started" not in said
    assert outputs(trained) == before
    assert {path: path.stat().st_mtime_ns for path in trained.glob("store/*/*") if path.name != "lease"} == {
        path: when for path, when in times.items() if path.name != "lease"
    }


def test_first_dpo_loss_is_ln_2_and_training_widens_the_margin(trained: Path) -> None:
    steps = metrics(trained, "dpo")
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert steps[-1]["rewards/margins"] > 0.05


def test_lora_stages_chain_and_the_reference_is_the_stage_before(trained: Path) -> None:
    folder = stage(trained, "lora_dpo")
    said = json.loads((folder / "model.json").read_text())
    assert [(folder / adapter).resolve().parent for adapter in said["adapters"]] == [
        stage(trained, "lora_sft"),
        folder,
    ]
    assert metrics(trained, "kl_grpo")[0]["kl"] == pytest.approx(0, abs=1e-5)
    for name in ("lora_dpo", "full_dpo"):
        assert metrics(trained, name)[0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert (stage(trained, "full_dpo") / "model" / "model.safetensors").exists()


def test_grpo_with_lora_draws_from_the_adapted_model(trained: Path) -> None:
    adapter = load_file(stage(trained, "lora_grpo") / "adapter" / "adapter_model.safetensors")
    # At the second step the adapter is no longer zero; what drew must have been the model that is trained.
    assert metrics(trained, "lora_grpo")[1]["mismatch/mean"] < 1e-5
    assert max(weight.abs().max().item() for name, weight in adapter.items() if "lora_B" in name) > 0


def test_several_rewards_in_rollout_and_grpo(trained: Path) -> None:
    labels = ["math_answer", "judge", "kimi_length", "format"]
    for row in read_rows(stage(trained, "several_rollout") / "rows.jsonl"):
        assert isinstance(row, Completion)
        assert list(row.verdicts) == sorted(labels)
        assert row.verdicts["judge"] == Verdict(value=float(len(row.text) % 2), reason=str(row.gold))
    (line,) = metrics(trained, "several_grpo")
    assert {f"reward/{label}" for label in labels} <= set(line)


def test_constant_reward_leaves_the_model_bytes_as_they_are(trained: Path) -> None:
    assert {line["reward_std"] for line in metrics(trained, "constant")} == {0.0}
    base, after = load_file(BASE / "model.safetensors"), weights(trained, "constant")
    assert base.keys() == after.keys()
    assert all(torch.equal(base[name], after[name]) for name in base)


def test_a_base_that_ends_and_pads_with_the_end_of_a_text_learns_to_end_its_turn(trained: Path) -> None:
    ends = json.loads((BASE / "generation_config.json").read_text())
    of_text, of_turn = ends["pad_token_id"], ends["eos_token_id"][0]
    made = json.loads((stage(trained, "ended") / "model" / "generation_config.json").read_text())
    assert made["eos_token_id"] == [of_turn, of_text]


def test_without_data_a_stage_ends_with_3(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, {**PAIRS, "on_empty": "pass_through"}, DPO)
    (tmp_path / "pairs.jsonl").write_text("")
    assert "on_empty: pass_through" in run(recipe, tmp_path, code=3)


def test_without_data_a_stage_hands_the_model_on_if_it_is_told_to(trained: Path) -> None:
    handed_on = stage(trained, "handed_on")
    assert json.loads((handed_on / "model.json").read_text())["adapters"] == []
    assert json.loads((handed_on / "manifest.json").read_text())["summary"]["passed_through"] is True
    assert (stage(trained, "of_handed_on") / "rows.jsonl").exists()


def test_a_reward_model_learns_its_pairs_and_pays_in_grpo(trained: Path) -> None:
    learned = metrics(trained, "rm")
    assert learned[0]["loss"] == pytest.approx(math.log(2), abs=1e-6), "a new head says 0 of both sides"
    assert sum(one["accuracy"] for one in learned[-5:]) / 5 > 0.8
    assert (stage(trained, "rm_lora") / "adapter" / "adapter_model.safetensors").exists()
    for name, label in {"paid": "learned", "paid_lora": "learned", "shaped": "qwen2_5_math"}.items():
        assert f"reward/{label}" in metrics(trained, name)[0]
