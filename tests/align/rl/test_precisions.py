"""Old, reference and engine log-probs where they differ in precision: each is that of the policy it is named for."""

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from qwen_align.align.errors import StageError
from qwen_align.align.generation.engine import Generation, Request
from qwen_align.align.generation.local import LocalEngine
from qwen_align.align.rl.actor import Actor
from qwen_align.align.rl.rollouts import Rollouts
from qwen_align.align.rl.trainer import OnlineTrainer
from qwen_align.align.stages import online_rl
from tests.align.rl.test_loop import GRPO, PPO, lines, run

KL = {"coefficient": 0.05}
KL_IN_REWARD = {"coefficient": 0.05, "apply_to": "reward"}
LORA = {"rank": 2, "alpha": 4}
SMALL = {**GRPO, "steps": 2, "sampling": {"temperature": 1.0, "max_tokens": 8}}


class Copying:
    """An engine that samples from a copy of the policy in bfloat16, as vLLM does."""

    has_own_weights = True

    def __init__(self, model: Any, **settings: Any) -> None:
        self.settings = settings
        self.sync_weights(model, 0)

    def generate(self, requests: Sequence[Request]) -> Iterator[Generation]:
        return self.inner.generate(requests)

    def sync_weights(self, model: Any, version: int) -> None:
        self.inner = LocalEngine(copy.deepcopy(model).to(torch.bfloat16), **self.settings)


def use_copying_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        online_rl, "open_local_engine", lambda model, renderer, runtime, **_: Copying(model, stop_ids=renderer.stop_ids)
    )


# Name -> settings, and whether the engine has a copy in bfloat16.
CASES: dict[str, tuple[dict[str, Any], bool]] = {
    "bf16, lora, kl": ({**SMALL, "precision": "bf16", "kl": KL, "lora": LORA}, False),
    "bf16, kl, two minibatches": ({**SMALL, "precision": "bf16", "kl": KL, "updates": {"minibatches": 2}}, False),
    "bf16, kl where it trains": (
        {**SMALL, "precision": "bf16", "kl": {**KL, "include_zero_advantage": False}, "updates": {"epochs": 2}},
        False,
    ),
    "bf16, kl in ppo's reward": ({**PPO, "steps": 2, "precision": "bf16", "kl": KL_IN_REWARD}, False),
    "bf16, kl, a step ahead": (
        {**SMALL, "steps": 3, "precision": "bf16", "kl": {**KL, "include_zero_advantage": False}, "async_steps": 1},
        False,
    ),
    "a copy, kl": ({**SMALL, "kl": KL}, True),
    "a copy, kl in the reward": ({**SMALL, "kl": KL_IN_REWARD, "advantage": "rloo"}, True),
    "a copy, bf16, lora, kl": ({**SMALL, "precision": "bf16", "kl": KL, "lora": LORA}, True),
    "a copy, kl, a step ahead": ({**SMALL, "steps": 3, "kl": KL, "async_steps": 1}, True),
}


IN_FAST = ("bf16, lora, kl", "bf16, kl, two minibatches", "a copy, kl in the reward", "bf16, kl, a step ahead")


@pytest.mark.parametrize(
    "name", [name if name in IN_FAST else pytest.param(name, marks=pytest.mark.slow(seconds=2)) for name in CASES]
)
def test_the_first_kl_is_zero_in_every_precision(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    settings, is_copied = CASES[name]
    if is_copied:
        use_copying_engine(monkeypatch)
    run(tmp_path, tiny_model, settings)
    first, *later = [line for line in lines(tmp_path, "metrics.jsonl") if "kl" in line]
    assert first["kl"] == pytest.approx(0, abs=1e-6)
    assert later[-1]["kl"] > 1e-6
    assert 1e-4 < first["mismatch/mean"] < 0.05, "what drew had another precision, and that is measured"


@pytest.mark.parametrize(
    "name",
    [
        "bf16, kl, two minibatches",
        pytest.param("a copy, kl", marks=pytest.mark.slow(seconds=2)),
        pytest.param("bf16, kl, a step ahead", marks=pytest.mark.slow(seconds=2)),
    ],
)
def test_a_reference_that_is_another_model_still_stops_the_stage(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    settings, is_copied = CASES[name]
    if is_copied:
        use_copying_engine(monkeypatch)
    load = online_rl._load_reference

    def load_another(*arguments: Any) -> Actor | None:
        actor = load(*arguments)
        assert actor is not None
        torch.manual_seed(0)
        for weight in actor.parameters():
            weight.data += 0.1 * weight.data.std() * torch.randn_like(weight)
        return actor

    monkeypatch.setattr(online_rl, "_load_reference", load_another)
    with pytest.raises(StageError, match=r"the first KL is .*, not 0: the reference is another model"):
        run(tmp_path, tiny_model, settings)


@pytest.mark.parametrize(
    ("precision", "is_copied"),
    [("bf16", False), *(pytest.param("fp32", copied, marks=pytest.mark.slow(seconds=2)) for copied in (True, False))],
)
def test_a_step_ahead_the_old_log_probs_are_those_of_the_policy_that_drew(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, is_copied: bool
) -> None:
    """The second batch is drawn before the first update, by the policy that the stage starts from."""
    if is_copied:
        use_copying_engine(monkeypatch)
    seen: list[Rollouts] = []
    plan = OnlineTrainer._plan_passes

    def record(self: OnlineTrainer, rows: list[int]) -> Any:
        assert self.rollouts is not None
        seen.append(self.rollouts)
        return plan(self, rows)

    monkeypatch.setattr(OnlineTrainer, "_plan_passes", record)
    rewards = [{"kind": "random", "p": 0.5}]
    settings = {**SMALL, "rewards": rewards, "async_steps": 1, "precision": precision, "learning_rate": 3e-2}
    run(tmp_path, tiny_model, settings)
    first, second = lines(tmp_path, "metrics.jsonl")
    assert first["policy/kl"] < 1e-4
    assert second["policy/kl"] > 0.01, "it has moved since it drew"
    expected = score_by_hand(tiny_model, seen[1])
    assert float((seen[1].old_logps - expected).abs().mean()) < 0.01
    moved = score_by_hand(tmp_path / "out" / "model", seen[1])
    assert float((moved - expected).abs().mean()) > 0.05


@torch.no_grad()
def score_by_hand(folder: Path, rollouts: Rollouts) -> torch.Tensor:
    """The tokens' log-probs under a model of a folder, row by row; flat."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    parts = []
    for row in range(len(rollouts)):
        ids, n_prompt = torch.tensor([rollouts.get_token_ids(row)]), int(rollouts.n_prompt[row])
        logps = model(input_ids=ids).logits[0, n_prompt - 1 : -1].log_softmax(-1)
        parts.append(logps.gather(1, ids[0, n_prompt:, None])[:, 0])
    return torch.cat(parts)


@pytest.mark.parametrize(
    ("settings", "is_copied"),
    [
        ({"updates": {"epochs": 2}}, False),
        ({"updates": {"epochs": 2, "minibatches": 2}, "precision": "bf16"}, False),
        ({"async_steps": 1}, False),
        pytest.param({"updates": {"minibatches": 2}, "kl": KL}, True, marks=pytest.mark.slow(seconds=2)),
        pytest.param({"kl": KL}, True, marks=pytest.mark.slow(seconds=2)),
    ],
)
def test_an_engine_that_says_other_log_probs_is_noticed_however_often_a_batch_is_updated(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], is_copied: bool
) -> None:
    generate = LocalEngine.generate

    def generate_wrong(self: LocalEngine, requests: Sequence[Request]) -> Iterator[Generation]:
        for one in generate(self, requests):
            yield dataclasses.replace(one, logps=[logp - 0.3 for logp in one.logps])

    monkeypatch.setattr(LocalEngine, "generate", generate_wrong)
    if is_copied:
        use_copying_engine(monkeypatch)
    run(tmp_path, tiny_model, {**SMALL, **settings, "watchdogs": {"patience_steps": 2}, "learning_rate": 1e-5})
    (alert,) = [note for note in lines(tmp_path, "notes.jsonl") if note["what"] == "engine_mismatch"]
    assert "engine and trainer differ by 0.3 nats" in alert["message"]
