"""The loop as a whole: killed and resumed, warmed up, with LoRA, with groups replaced, with rewards that misbehave."""

import hashlib
import importlib
import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file

from qwen_align.align.context import MEASURED, Context
from qwen_align.align.errors import Preempted, RecipeError, StageError
from qwen_align.align.models.packed_attention import SDPA
from qwen_align.align.models.weight_precision import resolve_precision
from qwen_align.align.rl.algorithm import Algorithm, build_ppo
from qwen_align.align.rl.scoring import Scorer
from qwen_align.align.rl.trainer import OnlineTrainer
from qwen_align.align.rows import to_json_line
from qwen_align.align.settings.recipe import AnyStage
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.stages import online_rl
from qwen_align.data_builders import Arithmetic

STAGE: dict[str, Any] = {
    "name": "rl",
    "from_model": "base",
    "from_data": ["problems"],
    "rewards": [{"kind": "random"}],
    "steps": 3,
    "prompts_per_step": 2,
    "completions_per_prompt": 4,
    "sampling": {"temperature": 1.0, "max_tokens": 12},
    "learning_rate": 1e-3,
    "schedule": "constant",
}
GRPO = {**STAGE, "kind": "grpo"}
PPO = {**STAGE, "kind": "ppo", "critic": {"learning_rate": 1e-2}}
RUNTIME = {"device": "cpu", "micro_batch": 4, "generation_batch": 64, "checkpoint_every": 1}


def prepare(folder: Path, model: Path, settings: dict[str, Any], **runtime: Any) -> None:
    """Input folders and a job.json for the stage."""
    for name, rows in (("problems", "problem"), ("texts", "text"), ("other", "problem")):
        (folder / name).mkdir(parents=True, exist_ok=True)
        made = Arithmetic(rows=rows, n=10, steps=[2]).generate(0 if name != "other" else 1)
        (folder / name / "rows.jsonl").write_text("".join(to_json_line(row) + "\n" for row in made))
    inputs = {"base": str(model), **{name: str(folder / name) for name in ("problems", "texts", "other")}}
    job = {"settings": settings, "inputs": inputs, "runtime": {**RUNTIME, **runtime}}
    (folder / "job.json").write_text(json.dumps(job))


def run(folder: Path, model: Path, settings: dict[str, Any], *, stop: bool = False, **runtime: Any) -> dict[str, Any]:
    """Runs the stage in this process; what it made lies in `out`. `stop`: asked to stop after the first update."""
    prepare(folder, model, settings, **runtime)
    job = json.loads((folder / "job.json").read_text())
    stage: Any = TypeAdapter[Any](AnyStage).validate_python(settings, context={"folder": str(folder)})
    (folder / "out").mkdir(exist_ok=True)
    context = Context(folder / "out", 0, Runtime.model_validate(job["runtime"]))
    context._is_asked_to_stop = stop
    code = importlib.import_module(f"qwen_align.align.stages.{stage.kind}")
    found: dict[str, Any] = code.run(
        stage, {name: Path(path) for name, path in job["inputs"].items()}, folder / "out", context
    )
    return found


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / "out" / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def without_times(metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in one.items() if not name.startswith(MEASURED)} for one in metrics]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "out" / "model" / "model.safetensors")


# --- killed and resumed


class Starter:
    """Runs stages in forks of a process that has imported everything."""

    def __init__(self) -> None:
        line = [sys.executable, str(Path(__file__).with_name("crashing_stage.py"))]
        self._process = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def start(self, folder: Path, *crash: str) -> int:
        assert self._process.stdin
        assert self._process.stdout
        print(json.dumps([str(folder), *crash]), file=self._process.stdin, flush=True)
        code = int(self._process.stdout.readline())
        assert code in (0, 9), (folder / "log.txt").read_text()[-3000:]
        return code

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def starter() -> Iterator[Starter]:
    one = Starter()
    yield one
    one.end()


KILLED = {
    "grpo, several updates, a reference that is renewed": {
        **GRPO,
        "steps": 4,
        "updates": {"epochs": 2, "minibatches": 2},
        "kl": {"coefficient": 0.05, "reference_sync_steps": 2},
        "entropy": {"coefficient": 0.01, "target": 1.0, "coefficient_delta": 0.002},
        "prompt_sampler": {"kind": "pass_rate"},
        "dynamic_sampling": {"max_prompts": 4},
        "held_out": {"from_data": ["other"], "every_steps": 2},
    },
    "grpo, a step ahead": {**GRPO, "steps": 4, "async_steps": 1},
    "ppo, several updates": {
        **PPO,
        "steps": 4,
        "updates": {"epochs": 2, "minibatches": 2},
        "kl": {"coefficient": 0.05, "apply_to": "reward", "estimator": "k1", "target": 2.0, "horizon": 50},
        "normalise_rewards": "running_mean_std",
        "ptx": {"from_data": ["texts"], "coefficient": 0.1, "batch": 3, "max_tokens": 200},
    },
}
CRASHES = [
    ("rollouts", "20"),
    ("judging", "6"),
    ("update", "1"),
    ("checkpoint", "1"),
    ("half a checkpoint", "1"),
    ("rollouts", "15"),
    ("judging", "2"),
    ("update", "2"),
    ("half a checkpoint", "2"),
    ("checkpoint", "2"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", KILLED)
def test_killed_anywhere_and_resumed_equals_uninterrupted(
    tiny_model: Path, tmp_path: Path, starter: Starter, name: str
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        prepare(folder, tiny_model, KILLED[name])
    assert starter.start(whole) == 0
    died = 0
    for crash in CRASHES:
        died += starter.start(killed, *crash) == 9
    assert died >= 7, "the crashes have to come before the end"
    assert starter.start(killed) == 0
    assert digest(killed) == digest(whole)
    assert without_times(lines(killed, "metrics.jsonl")) == without_times(lines(whole, "metrics.jsonl"))
    for file in ("samples.jsonl", "notes.jsonl"):
        assert lines(killed, file) == lines(whole, file)
    assert json.loads((killed / "out" / "summary.json").read_text()) == json.loads(
        (whole / "out" / "summary.json").read_text()
    )


@pytest.mark.parametrize("weights_are_an_engines", [False, True])
def test_stopped_and_resumed_goes_on_with_what_it_had_learnt_of_the_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights_are_an_engines: bool
) -> None:
    """Coefficients that follow the run are no weights and no settings, and still decide what comes next.

    Nor do they come with the weights, which DeepSpeed and FSDP load by themselves, without transformers' method.
    """
    if weights_are_an_engines:

        def load_as_an_engine(self: OnlineTrainer, resume_from_checkpoint: str, model: Any = None) -> None:
            self.model.load_state_dict(load_file(Path(resume_from_checkpoint) / "trained.safetensors"), strict=False)

        monkeypatch.setattr(OnlineTrainer, "_load_from_checkpoint", load_as_an_engine)
    kl = {"coefficient": 0.05, "target": 2.0, "horizon": 50}
    entropy = {"coefficient": 0.01, "target": 9.0, "coefficient_delta": 0.002}
    settings = {**GRPO, "steps": 2, "kl": kl, "entropy": entropy}
    run(tmp_path / "whole", tiny_model, settings)
    with pytest.raises(Preempted):
        run(tmp_path / "stopped", tiny_model, settings, stop=True)
    run(tmp_path / "stopped", tiny_model, settings)
    whole, resumed = (without_times(lines(tmp_path / name, "metrics.jsonl")) for name in ("whole", "stopped"))
    assert resumed == whole
    for name in ("kl/coefficient", "entropy/coefficient"):
        assert whole[0][name] != whole[1][name]


@pytest.mark.slow(seconds=12)
def test_two_processes_die_while_they_save_and_another_number_goes_on(
    tiny_model: Path, tmp_path: Path, starter: Starter
) -> None:
    settings = {**GRPO, "kl": {"coefficient": 0.05, "reference_sync_steps": 1}}
    for name in ("whole", "killed"):
        prepare(tmp_path / name, tiny_model, settings, processes=2)
    assert starter.start(tmp_path / "whole") == 0
    whole = lines(tmp_path / "whole", "metrics.jsonl")
    assert starter.start(tmp_path / "killed", "half a checkpoint", "2") == 9
    checkpoints = tmp_path / "killed" / "out" / "checkpoints"
    assert (checkpoints / "checkpoint-1" / "rng_state_1.pth").exists()
    assert (checkpoints / "partial" / "checkpoint-2" / "rng_state_1.pth").exists()
    for n_processes in (1, 3):
        folder = tmp_path / str(n_processes)
        shutil.copytree(tmp_path / "killed", folder)
        prepare(folder, tiny_model, settings, processes=n_processes)
        assert starter.start(folder) == 0
        resumed = lines(folder, "metrics.jsonl")
        assert without_times(resumed[:1]) == without_times(whole[:1])
        for left, right in zip(resumed, whole, strict=True):
            for name in ("step", "loss", "grad_norm", "kl"):
                assert left[name] == pytest.approx(right[name], rel=1e-5, abs=1e-7), (n_processes, name)


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "out" / "model" / "model.safetensors").read_bytes()).hexdigest()


# --- PPO


@pytest.mark.slow(seconds=2)
def test_fifty_steps_of_warm_up_leave_every_bit_of_the_policy(tiny_model: Path, tmp_path: Path) -> None:
    settings = {**PPO, "steps": 50, "critic": {"learning_rate": 1e-2, "warmup_steps": 50}, "weight_decay": 0.1}
    run(tmp_path, tiny_model, settings, checkpoint_every=1000)
    before, after = load_file(tiny_model / "model.safetensors"), weights(tmp_path)
    assert all(torch.equal(before[name], after[name]) for name in before)
    errors = [one["value/loss"] for one in lines(tmp_path, "metrics.jsonl")]
    assert sum(errors[-10:]) < sum(errors[:10]), "the critic learns meanwhile"


def test_after_the_warm_up_the_policy_moves(tiny_model: Path, tmp_path: Path) -> None:
    settings = {**PPO, "steps": 3, "critic": {"learning_rate": 1e-2, "warmup_steps": 2}}
    run(tmp_path, tiny_model, settings)
    before, after = load_file(tiny_model / "model.safetensors"), weights(tmp_path)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    rates = [one["learning_rate"] for one in lines(tmp_path, "metrics.jsonl")]
    assert rates == [0.0, 0.0, 1e-3]


@pytest.mark.parametrize("critic", [{}, {"kind": "head"}, {"kind": "head", "detached": True}])
@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4}])
def test_every_kind_of_critic_trains(
    tiny_model: Path, tmp_path: Path, critic: dict[str, Any], lora: dict[str, Any] | None
) -> None:
    kl = {"coefficient": 0.05, "apply_to": "reward", "estimator": "k1"}
    settings = {**PPO, "critic": {"learning_rate": 1e-2, **critic}, "kl": kl, "steps": 2, "lora": lora}
    run(tmp_path, tiny_model, settings)
    first, second = lines(tmp_path, "metrics.jsonl")
    assert first["kl"] == pytest.approx(0, abs=1e-9)
    assert second["kl"] > 1e-12
    assert second["mismatch/mean"] < 1e-5, "what drew is what is trained"
    assert math.isfinite(second["value/loss"])
    trained = load_file(next((tmp_path / "out" / "checkpoints").glob("checkpoint-2/trained.safetensors")))
    assert any(name.startswith("critic.head") for name in trained)
    if lora:
        assert all("lora_" in name or name.startswith("critic.head") for name in trained), "the trunk is shared"
        assert any(".value." in name for name in trained) == (critic == {})
        files = {path.name for path in (tmp_path / "out" / "adapter").iterdir()}
        assert "adapter_model.safetensors" in files
        assert not any(
            "value" in name for name in load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
        )


def read_moments(folder: Path) -> list[tuple[bool, dict[str, Any]]]:
    """Of the only checkpoint's parameters: whether each is the critic's, and Adam's moments, in order."""
    (path,) = folder.glob("out/checkpoints/checkpoint-*/optimizer.pt")
    optimizer = torch.load(path, weights_only=True)
    is_value = [group["is_value"] for group in optimizer["param_groups"] for _ in group["params"]]
    return [
        (value, optimizer["state"][number]) for number, value in enumerate(is_value) if number in optimizer["state"]
    ]


@pytest.mark.parametrize("loss_weight", [1.0, 1e4])
def test_policy_and_critic_are_clipped_apart(tiny_model: Path, tmp_path: Path, loss_weight: float) -> None:
    """Adam's first moment after one step is a tenth of the clipped gradient."""
    critic = {"learning_rate": 1e-2, "loss_weight": loss_weight}
    settings = {**PPO, "critic": critic, "steps": 1, "max_grad_norm": 0.05, "rewards": [{"kind": "random", "p": 0.5}]}
    run(tmp_path, tiny_model, settings)
    (figures,) = lines(tmp_path, "metrics.jsonl")
    norms = {"grad_norm": figures["grad_norm"], "value/grad_norm": figures["value/grad_norm"]}
    assert min(norms.values()) > 0.05, "both are clipped"
    for is_value in (False, True):
        clipped = [10 * state["exp_avg"].double() for value, state in read_moments(tmp_path) if value == is_value]
        assert float(sum(part.square().sum() for part in clipped)) ** 0.5 == pytest.approx(0.05, rel=1e-3)


@pytest.mark.slow(seconds=15)
@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4}])
def test_texts_beside_ppo_in_two_processes_give_the_gradients_of_one(
    tiny_model: Path, tmp_path: Path, starter: Starter, lora: dict[str, Any] | None
) -> None:
    """Policy's and critic's; at a rate at which the second step's weights are still the first's."""
    ptx = {"from_data": ["texts"], "coefficient": 0.1, "batch": 3, "max_tokens": 200}
    critic = {"learning_rate": 1e-8}
    settings = {**PPO, "steps": 3, "prompts_per_step": 3, "ptx": ptx, "critic": critic, "learning_rate": 1e-8}
    for n_processes in (1, 2):
        folder = tmp_path / str(n_processes)
        prepare(folder, tiny_model, {**settings, "lora": lora, "max_grad_norm": 1e6}, processes=n_processes)
        assert starter.start(folder) == 0
    one, two = (read_moments(tmp_path / str(n)) for n in (1, 2))
    assert len(one) == len(two)
    for (is_value, left), (is_still_value, right) in zip(one, two, strict=True):
        assert is_value == is_still_value
        torch.testing.assert_close(left["exp_avg"], right["exp_avg"], atol=1e-6, rtol=1e-4)
    assert {is_value for is_value, state in one if state["exp_avg"].any()} == {True, False}
    for left, right in zip(*(lines(tmp_path / str(n), "metrics.jsonl") for n in (1, 2)), strict=True):
        for name in ("grad_norm", "value/grad_norm", "ptx/loss", "value/loss"):
            assert left[name] == pytest.approx(right[name], rel=1e-4), name


@pytest.mark.slow(seconds=8)
def test_a_process_that_has_nothing_to_train_adds_up_the_same_figures(
    tiny_model: Path, tmp_path: Path, starter: Starter
) -> None:
    """One completion with a verdict, for two processes: the other makes an idle pass."""
    body = "def judge(completion, gold):\n    return float(len(completion.text)) if completion.sample == 1 else None\n"
    settings = {**PPO, "steps": 2, "prompts_per_step": 1, "rewards": python_reward(tmp_path, body)}
    prepare(tmp_path, tiny_model, settings, processes=2)
    assert starter.start(tmp_path) == 0
    assert all(math.isfinite(line["value/loss"]) for line in lines(tmp_path, "metrics.jsonl"))


# --- LoRA


def test_new_adapters_are_drawn_with_the_stages_seed(tiny_model: Path, tmp_path: Path) -> None:
    settings = TypeAdapter[Any](AnyStage).validate_python({**PPO, "lora": {"rank": 2, "alpha": 4}})
    spec = resolve_precision(settings, "fp32")
    drawn = []
    for seed in (0, 0, 1):
        torch.rand(seed + 3)  # what was drawn before does not matter
        context = Context(tmp_path, seed, Runtime.model_validate(RUNTIME))
        actor = online_rl._build_actor(build_ppo(spec), tiny_model, {}, context, SDPA)
        drawn.append({name: weight for name, weight in actor.named_parameters() if "lora_A" in name})
    first, again, other = drawn
    assert {".value." in name for name in first} == {True, False}
    for name in first:
        assert torch.equal(first[name], again[name])
        assert not torch.equal(first[name], other[name])


# --- groups and rewards


def test_groups_without_signal_are_replaced_up_to_the_bound(tiny_model: Path, tmp_path: Path) -> None:
    rewards = [{"kind": "random", "p": 0.1}]
    plain = run(tmp_path / "plain", tiny_model, {**GRPO, "rewards": rewards, "steps": 6})
    found = run(
        tmp_path / "dynamic",
        tiny_model,
        {**GRPO, "rewards": rewards, "steps": 6, "dynamic_sampling": {"max_prompts": 4}},
    )
    assert plain["counts"]["groups"] == 12
    assert plain["counts"]["groups without signal"] > 0
    figures = lines(tmp_path / "dynamic", "metrics.jsonl")
    assert all(one["groups/used"] <= 2 and one["groups/tried"] <= 4 for one in figures)
    assert any(one["groups/tried"] > 2 for one in figures)
    assert found["counts"]["groups"] == sum(one["groups/tried"] for one in figures)
    short = [one["step"] for one in figures if 0 < one["groups/used"] < 2]
    said = [one for one in lines(tmp_path / "dynamic", "notes.jsonl") if one["what"] == "dynamic_sampling"]
    assert [one["step"] for one in said] == short
    assert all("1 of 2 groups with a signal among 4 prompts" in one["message"] for one in said)


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4}])
def test_the_reference_scores_what_trains_and_that_changes_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: dict[str, Any] | None
) -> None:
    scored: list[int] = []
    score_logps = Scorer.score_logps

    def counted(self: Scorer, model: Any, rollouts: Any, rows: Any) -> torch.Tensor:
        scored.append(len(rows))
        return score_logps(self, model, rollouts, rows)

    monkeypatch.setattr(Scorer, "score_logps", counted)
    kl = {"coefficient": 0.5, "include_zero_advantage": False}
    rewards = [{"kind": "random", "p": 0.2}]
    settings = {**GRPO, "rewards": rewards, "prompts_per_step": 4, "learning_rate": 1e-2, "kl": kl, "lora": lora}
    run(tmp_path / "some", tiny_model, settings)
    some, scored[:] = scored[:], []
    monkeypatch.setattr(Algorithm, "needs_reference_everywhere", True)
    run(tmp_path / "all", tiny_model, settings)
    assert scored == [16, 16, 16]
    assert 0 < sum(some) < sum(scored)
    found = [load_file(next((tmp_path / name).glob("out/*/*model.safetensors"))) for name in ("some", "all")]
    assert max(float((found[0][name] - found[1][name]).abs().max()) for name in found[0]) < 1e-5
    for one, figures in zip(some, lines(tmp_path / "some", "metrics.jsonl"), strict=True):
        assert one == 4 * round(4 * (1 - figures["groups/no_signal_share"])), "whole groups"
        assert math.isfinite(figures["kl"])
    assert lines(tmp_path / "some", "metrics.jsonl")[-1]["kl"] > 1e-6, "it has moved"


def test_a_step_without_any_signal_is_skipped_counted_and_moves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    settings = {**GRPO, "rewards": [{"kind": "constant"}], "steps": 2, "dynamic_sampling": {"max_prompts": 4}}
    found = run(tmp_path, tiny_model, {**settings, "weight_decay": 0.1})
    assert found["skipped_updates"] == 2
    assert found["counts"]["skipped batches"] == 2
    assert [one["skipped"] for one in lines(tmp_path, "metrics.jsonl")] == [1.0, 1.0]
    before, after = load_file(tiny_model / "model.safetensors"), weights(tmp_path)
    assert all(torch.equal(before[name], after[name]) for name in before)


def python_reward(folder: Path, body: str, **settings: Any) -> list[dict[str, Any]]:
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "mine.py").write_text(body)
    return [{"kind": "python", "file": "mine.py", **settings}]


BROKEN = {
    "raises": ("def judge(completion, gold):\n    raise KeyError('x')\n", {}, "none of .* has a verdict.*KeyError"),
    "returns NaN": ("def judge(completion, gold):\n    return float('nan')\n", {}, "none of .* has a verdict"),
    "returns None": ("def judge(completion, gold):\n    return None\n", {}, "none of .* has a verdict.*no verdict"),
    "returns text": ("def judge(completion, gold):\n    return 'good'\n", {}, "none of .* has a verdict"),
    "returns the wrong count": (
        "def judge(completions):\n    return [1.0]\n",
        {"group": True},
        "none of .* has a verdict.*1 values returned for 4",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_reward_that_never_judges_stops_the_stage(tiny_model: Path, tmp_path: Path, name: str) -> None:
    body, settings, message = BROKEN[name]
    with pytest.raises(StageError, match=message):
        run(tmp_path, tiny_model, {**GRPO, "rewards": python_reward(tmp_path, body, **settings)})
    assert not (tmp_path / "out" / "model").exists()


def test_a_reward_that_hangs_is_killed_and_its_completions_are_worth_nothing(tiny_model: Path, tmp_path: Path) -> None:
    body = (
        "import time\n\n\ndef judge(completion, gold):\n"
        "    if completion.sample == 0:\n        time.sleep(60)\n    return float(completion.sample % 2)\n"
    )
    rewards = python_reward(tmp_path, body, time_limit_s=0.2)
    found = run(tmp_path, tiny_model, {**GRPO, "rewards": rewards, "steps": 1})
    assert found["counts"]["judge: time limit"] == 2
    assert found["counts"]["judge: judged"] == 6


def test_completions_without_a_verdict_train_nothing_and_are_counted(tiny_model: Path, tmp_path: Path) -> None:
    body = "def judge(completion, gold):\n    return [None, float('nan'), 0.0, 1.0][completion.sample]\n"
    settings = {**GRPO, "rewards": python_reward(tmp_path, body), "steps": 1, "keep_samples": 8}
    found = run(tmp_path, tiny_model, settings)
    assert found["counts"]["no verdict"] == 4
    (figures,) = lines(tmp_path, "metrics.jsonl")
    assert figures["completions/no_verdict_share"] == 0.5
    assert figures["reward"] == 0.5
    for one in lines(tmp_path, "samples.jsonl"):
        assert one["advantage"] == pytest.approx({0: 0.0, 1: 0.0, 2: -0.7071, 3: 0.7071}[one["sample"]], abs=1e-3)


# --- what is written, and who sees what


def test_samples_hold_prompt_completion_verdicts_and_advantage(tiny_model: Path, tmp_path: Path) -> None:
    rewards = [{"kind": "random"}, {"kind": "format", "weight": 0.1}]
    run(tmp_path, tiny_model, {**GRPO, "rewards": rewards, "steps": 2, "keep_samples": 3})
    samples = lines(tmp_path, "samples.jsonl")
    assert [one["step"] for one in samples] == [1, 1, 1, 2, 2, 2]
    for one in samples:
        assert one["prompt"][0]["role"] == "user"
        assert isinstance(one["text"], str)
        assert set(one["verdicts"]) == {"random", "format"}
        assert all(said["reason"] for said in one["verdicts"].values())
    for step in (1, 2):
        advantages = [one["advantage"] for one in samples if one["step"] == step]
        assert advantages == sorted(advantages, reverse=True)
        assert advantages[0] > 0 > advantages[-1]


def test_rewards_see_the_mode_of_prompts_that_think_and_of_those_that_do_not(tiny_model: Path, tmp_path: Path) -> None:
    body = "def judge(completion, gold):\n    return {'value': completion.sample % 2, 'reason': str(completion.mode)}\n"
    settings = {
        **GRPO,
        "rewards": python_reward(tmp_path, body),
        "prompts_per_step": 10,
        "steps": 1,
        "keep_samples": 40,
    }
    prepare(tmp_path, tiny_model, settings)
    rows = list(Arithmetic(rows="problem", n=10, steps=[2]).generate(0))
    modes = ["think", "no_think"]
    mixed = [row.model_copy(update={"mode": modes[place % 2]}) for place, row in enumerate(rows)]
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed" / "rows.jsonl").write_text("".join(to_json_line(row) + "\n" for row in mixed))
    stage: Any = TypeAdapter[Any](AnyStage).validate_python(settings, context={"folder": str(tmp_path)})
    (tmp_path / "out").mkdir()
    context = Context(tmp_path / "out", 0, Runtime.model_validate(RUNTIME))
    code = importlib.import_module("qwen_align.align.stages.grpo")
    found = code.run(stage, {"base": tiny_model, "problems": tmp_path / "mixed"}, tmp_path / "out", context)
    assert (found["counts"]["judge: think"], found["counts"]["judge: no_think"]) == (20, 20)
    for one in lines(tmp_path, "samples.jsonl"):
        assert one["text"].startswith("<think>\n\n</think>\n\n") == (one["mode"] == "no_think")


def test_a_look_before_the_first_step(tiny_model: Path, tmp_path: Path) -> None:
    run(tmp_path, tiny_model, {**GRPO, "rewards": [{"kind": "random"}], "steps": 1})
    (note,) = [one for one in lines(tmp_path, "notes.jsonl") if one["what"] == "preflight"]
    assert note["step"] == 0
    for part in ("16 rollouts before the first step", "% right", "spread", "groups with a signal", "% cut at 12"):
        assert part in note["message"]


def test_held_out_accuracy_goes_along(tiny_model: Path, tmp_path: Path) -> None:
    held_out = {"from_data": ["other"], "every_steps": 2, "completions_per_prompt": 2}
    found = run(tmp_path, tiny_model, {**GRPO, "steps": 3, "held_out": held_out})
    assert [("held_out/accuracy" in one) for one in lines(tmp_path, "metrics.jsonl")] == [True, False, True]
    assert found["held_out_accuracy"] == 0.0


def test_a_policy_that_breaks_stops_the_stage(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises((StageError, FloatingPointError), match=r"nan|not numbers|not a number"):
        run(tmp_path, tiny_model, {**GRPO, "learning_rate": 1e30, "steps": 5, "max_grad_norm": 1e30})


def test_old_log_probs_are_the_engines_or_recomputed(tiny_model: Path, tmp_path: Path) -> None:
    """With several updates the first one starts at ratios of 1 either way."""
    found = {}
    for precision in ("fp32", "bf16"):
        settings = {**GRPO, "updates": {"epochs": 2}, "precision": precision, "steps": 1}
        run(tmp_path / precision, tiny_model, settings)
        found[precision] = lines(tmp_path / precision, "metrics.jsonl")
        assert found[precision][0]["policy/kl"] == pytest.approx(0, abs=1e-8)
        assert found[precision][1]["policy/kl"] > 1e-9
    assert found["fp32"][0]["mismatch/mean"] < 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling": {"temperature": 1.0, "top_p": 0.9, "max_tokens": 9}}, "allow_truncated_sampling: true"),
        ({"allow_truncated_sampling": True}, "sampling cuts nothing"),
        ({"kl": {"coefficient": 0.1, "estimator": "k1"}}, "k1 has no gradient"),
        (
            {"kl": {"coefficient": 0.1, "reference_sync_steps": 3}, "lora": {"rank": 2, "alpha": 2}},
            "kl.reference_sync_steps",
        ),
        ({"completions_per_prompt": 1}, "at least 2"),
        ({"dynamic_sampling": {"max_prompts": 1}}, "fewer than the 2 prompts"),
        ({"trainer": "trl", "dynamic_sampling": {"max_prompts": 4}}, "trainer trl cannot do that"),
        (
            {"trainer": "trl", "watchdogs": {"patience_steps": 1}, "keep_samples": 9},
            "watchdogs, keep_samples: trainer trl",
        ),
        ({"trainer": "trl", "updates": {"epochs": 2}}, "updates: trainer trl cannot"),
        ({"trainer": "trl", "kl": {"coefficient": 0.1, "estimator": "k2"}}, "kl: trainer trl cannot"),
        ({"advantage": "rloo", "advantage_scale": "none"}, "advantage_scale: is for advantage: group"),
        ({"engine": {"kind": "vllm"}}, "engine: is a name: write engine: vllm; where vLLM runs is in runtime.engine"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TypeAdapter[Any](AnyStage).validate_python({**GRPO, **settings})


def test_vllm_is_asked_for_where_it_is_not_installed(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QWEN_ALIGN_ENGINES", str(tmp_path / "none"))
    with pytest.raises(RecipeError, match=r"vllm.*qwen-align engines install vllm"):
        run(tmp_path, tiny_model, {**GRPO, "engine": "vllm"})
