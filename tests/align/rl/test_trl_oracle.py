"""TRL's GRPOTrainer as the oracle: on one batch our loss and its gradient are TRL's, and so are ten steps' weights."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOTrainer

from qwen_align.align.rl.actor import Actor
from qwen_align.align.rl.algorithm import build_grpo
from qwen_align.align.rl.micro_batches import iterate_micro_batches
from qwen_align.align.rl.objective import UpdateTerms, compute_loss, count_step_totals
from qwen_align.align.rl.rollouts import Rollouts
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.training import trl_arguments
from tests.align.settings.test_loss_defaults import PAPERS

N_PROMPT, N_TOKENS, MAX_TOKENS = [5, 9, 3, 7], [6, 2, 8, 5], 12
TEMPERATURE = 0.8


def spec(**settings: Any) -> Grpo:
    return Grpo.model_validate(
        {
            "kind": "grpo",
            "name": "grpo",
            "from_model": "base",
            "from_data": ["problems"],
            "rewards": [{"kind": "math_answer"}],
            "steps": 1,
            "prompts_per_step": 2,
            "completions_per_prompt": 2,
            "sampling": {"temperature": TEMPERATURE, "max_tokens": MAX_TOKENS},
            "learning_rate": 1e-3,
            **settings,
        }
    )


def rollouts(vocab: int) -> Rollouts:
    """Four completions whose old and reference log-probs are far enough from the model's that all bounds are met."""
    draw = torch.Generator().manual_seed(0)
    n_tokens = torch.tensor(N_TOKENS)

    def flat(scale: float, shift: float = 0.0) -> torch.Tensor:
        return torch.randn(int(n_tokens.sum()), generator=draw) * scale + shift

    return Rollouts(
        ids=torch.randint(5, vocab, (sum(N_PROMPT) + sum(N_TOKENS),), generator=draw),
        n_prompt=torch.tensor(N_PROMPT),
        n_tokens=n_tokens,
        group=torch.tensor([0, 0, 1, 1]),
        reward=torch.tensor([1.0, 0.0, 0.5, 0.0]),
        truncated=torch.tensor([False, False, True, False]),
        old_logps=flat(0.4, -6.0),
        sampled_logps=flat(0.4, -6.0),
        counts=torch.ones(4, dtype=torch.bool),
        advantages=torch.tensor([0.7, -0.7, 1.2, -1.2]).repeat_interleave(n_tokens),
        reference_logps=flat(0.4, -6.0),
    )


def theirs(one: Rollouts, *, mask_truncated: bool) -> dict[str, torch.Tensor]:
    """The batch as TRL's loss takes it: prompts padded on the left, completions on the right."""
    prompts = [one.get_token_ids(row)[:n] for row, n in enumerate(N_PROMPT)]
    completions = [one.get_token_ids(row)[n:] for row, n in enumerate(N_PROMPT)]
    width, length = max(N_PROMPT), max(N_TOKENS)
    mask = torch.tensor([[1] * n + [0] * (length - n) for n in N_TOKENS])
    if mask_truncated:
        mask = mask * ~one.truncated[:, None]
    return {
        "prompt_ids": torch.tensor([[0] * (width - len(ids)) + ids for ids in prompts]),
        "prompt_mask": torch.tensor([[0] * (width - n) + [1] * n for n in N_PROMPT]),
        "completion_ids": torch.tensor([ids + [0] * (length - len(ids)) for ids in completions]),
        "completion_mask": mask,
        "advantages": one.advantages[one.n_tokens.cumsum(0) - 1],
        "old_per_token_logps": one.pad_tokens(one.old_logps),
        "ref_per_token_logps": one.pad_tokens(one.reference_logps) if one.reference_logps is not None else None,
        "num_items_in_batch": mask.sum(),
    }


@pytest.mark.parametrize(
    "settings", [{}, {"kl": {"coefficient": 0.3}}, {"kl": {"coefficient": 0.3, "importance_weighted": True}}]
)
@pytest.mark.parametrize("mask_truncated", [False, True])
@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "gspo", "cispo"])
def test_loss_and_gradient_are_trls(
    tiny_model: Path, tmp_path: Path, loss: str, mask_truncated: bool, settings: dict[str, Any]
) -> None:
    if loss == "gspo" and settings.get("kl", {}).get("importance_weighted"):
        pytest.skip("TRL weighs a token's KL by its completion's mean ratio, which is no importance weight")
    settings = {**settings, "loss": loss, "mask_truncated": mask_truncated}
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    one = rollouts(model.config.vocab_size)
    ours = spec(**settings)
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=trl_arguments.build_grpo_arguments(
            spec(**settings, trainer="trl"), ours.sampling.resolve_for_policy(), Runtime(device="cpu"), tmp_path, seed=0
        ),
        train_dataset=datasets.Dataset.from_dict({"prompt": ["a"] * 4}),
        processing_class=AutoTokenizer.from_pretrained(tiny_model),
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    expected = trainer._compute_loss(trainer.model, theirs(one, mask_truncated=mask_truncated))
    expected.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    if mask_truncated:
        one.counts = ~one.truncated
    fresh = AutoModelForCausalLM.from_pretrained(tiny_model)
    actor = Actor(fresh, TEMPERATURE)
    totals = count_step_totals(one, [0, 1, 2, 3], MAX_TOKENS)
    coefficient = ours.kl.coefficient if ours.kl else 0.0
    terms = UpdateTerms(on_policy=False, policy=True, value=False, kl_coefficient=coefficient, entropy_coefficient=0.0)
    total = torch.zeros(())
    for batch in iterate_micro_batches(one, range(4), max_rows=1):  # in several passes, whose losses have to add up
        part, _ = compute_loss(actor(batch), batch, one, totals, terms, build_grpo(ours))
        part.backward()
        total += part.detach()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    for name, parameter in fresh.named_parameters():
        apart = (parameter.grad - gradients[name]).abs().max().item()
        assert apart <= 1e-5 * max(1.0, gradients[name].abs().max().item()), name


@pytest.mark.parametrize("loss", ["grpo", "dr_grpo", "dapo", "gspo", "cispo"])
def test_trl_is_told_the_bounds_and_the_scale_of_the_losss_paper(loss: str, tmp_path: Path) -> None:
    settings = spec(loss=loss, trainer="trl")
    found = trl_arguments.build_grpo_arguments(
        settings, settings.sampling.resolve_for_policy(), Runtime(device="cpu"), tmp_path, seed=0
    )
    low, high, scale = PAPERS[loss]
    assert (found.epsilon, found.epsilon_high) == (low, 1 + high if loss == "cispo" else high)
    assert found.scale_rewards == scale


GRPO: dict[str, Any] = {
    "kind": "grpo",
    "from_model": "base",
    "from_data": ["problems"],
    "rewards": [{"kind": "random"}],
    "steps": 10,
    "prompts_per_step": 4,
    "completions_per_prompt": 4,
    "sampling": {"temperature": 1.0, "max_tokens": 32},
    "learning_rate": 1e-3,
    "schedule": "linear",
    "warmup_steps": 2,
    "kl": {"coefficient": 0.02},
}
RECIPE: dict[str, Any] = {
    "name": "oracle",
    "models": {"base": {"shipped": "tiny_base"}},
    "runtime": {"device": "cpu", "threads": 1, "micro_batch": 16},
    "stages": [
        {
            "name": "problems",
            "kind": "build_data",
            "builder": {"kind": "arithmetic", "rows": "problem", "n": 40, "steps": [2]},
        },
        *(
            {**GRPO, "name": f"{trainer}_{loss}", "trainer": trainer, "loss": loss}
            for trainer in ("native", "trl")
            for loss in ("dapo", "grpo")
        ),
    ],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stages' folders by their names."""
    home = tmp_path_factory.mktemp("oracle")
    (home / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    line = [sys.executable, "-m", "qwen_align.cli", "run", str(home / "recipe.yaml"), "--home", str(home)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return home / "runs" / "oracle" / "stages"


@pytest.mark.slow(seconds=10)
@pytest.mark.parametrize("loss", ["dapo", "grpo"])
def test_ten_steps_give_the_weights_that_trl_gives(trained: Path, loss: str) -> None:
    ours, theirs = (
        load_file(trained / f"{trainer}_{loss}" / "model" / "model.safetensors") for trainer in ("native", "trl")
    )
    base = load_file(Path(__file__).parents[3] / "recipes" / "tiny_base" / "model.safetensors")
    for name, weight in ours.items():
        assert (weight - theirs[name]).abs().max().item() < 1e-4, name
    assert max((weight - base[name]).abs().max().item() for name, weight in ours.items()) > 1e-3
