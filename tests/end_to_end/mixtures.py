"""Small mixtures of experts with the embedded model's tokenizer, and a ladder of every kind of stage for them."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.end_to_end.ladder import BASE, PAIRS, SAMPLING, write_recipe

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
SIZES: dict[str, dict[str, Any]] = {"qwen3_moe": {}, "qwen2_moe": {**SMALL, "shared_expert_intermediate_size": 32}}


def write_mixture(kind: str, folder: Path) -> Path:
    """A mixture whose config.json asks for router logits, as a model does that another toolkit has trained.

    qwen3_moe: the embedded model with four copies of each MLP for experts, which is what the embedded model computes
    until they are trained (sparse upcycling, arXiv:2212.05055). qwen2_moe: a random start.
    """
    shutil.copytree(BASE, folder)
    config = json.loads((folder / "config.json").read_text())
    width = config["intermediate_size"] if kind == "qwen3_moe" else 16
    kept = {name: config[name] for name in config if name not in ("architectures", "model_type", "layer_types")}
    kept |= {"moe_intermediate_size": width, "norm_topk_prob": True, **EXPERTS, **SIZES[kind]}
    kept |= {"output_router_logits": True, "router_aux_loss_coef": 0.02}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **kept))
    if kind == "qwen3_moe":
        copy_experts(model, load_file(folder / "model.safetensors"))
    model.save_pretrained(folder)
    return folder


def copy_experts(model: Any, dense: dict[str, torch.Tensor]) -> None:
    """Sets a mixture's weights to those of a dense model, whose MLP every expert is."""
    for name, weight in model.named_parameters():
        layer, found, rest = name.partition(".mlp.experts.")
        if not found:
            weight.data.copy_(dense.get(name, weight))
            continue
        parts = ("gate", "up") if rest == "gate_up_proj" else ("down",)
        whole = torch.cat([dense[f"{layer}.mlp.{part}_proj.weight"] for part in parts])
        weight.data.copy_(whole.expand_as(weight))


def build_ladder(n: int, *, steps: int, completions: int = 4, mixes_own: bool = False) -> list[dict[str, Any]]:
    """Every kind of stage that meets a model, each on what the one before it made, of `n` rows and some steps of RL.

    mixes_own: thinking is fused from the model's own right completions, as a model has that has learnt something.
    """
    sampling = {**SAMPLING, "max_tokens": 96}
    of_rows = {"max_tokens": 256, "batch": 8, "epochs": 1, "learning_rate": 2e-3}
    of_rl = {
        "from_data": ["problems"],
        "rewards": [{"kind": "math_answer"}, {"kind": "learned", "from_scorer": "rm", "weight": 0.01}],
        "steps": steps,
        "prompts_per_step": 4,
        "completions_per_prompt": completions,
        "sampling": sampling,
        "learning_rate": 1e-4,
    }
    of_pairs = {"from_data": ["pairs"], **of_rows}
    critic = {"learning_rate": 1e-3, "warmup_steps": 1}
    arithmetic = {"kind": "arithmetic", "n": n, "steps": [1, 2]}
    drawn = {"kind": "rollout", "from_data": "problems", "sampling": sampling, "rewards": [{"kind": "math_answer"}]}
    mix: dict[str, Any] = {"kind": "think_mix", "from_rollout": "drawn", "from_chats": "direct"}
    if not mixes_own:
        mix = {"kind": "mixture", "sources": [{"from_data": "traces"}, {"from_data": "direct"}]}
    kl_in_reward = {"coefficient": 0.05, "apply_to": "reward", "estimator": "k1"}
    switches = [{"method": "flag", "mode": "think"}, {"method": "kwarg", "mode": "no_think"}]
    return [
        {"name": "traces", "kind": "build_data", "builder": {**arithmetic, "rows": "trace"}},
        {"name": "problems", "kind": "build_data", "builder": {**arithmetic, "rows": "problem"}},
        {"name": "direct", "kind": "build_data", "builder": {**arithmetic, "rows": "direct"}},
        PAIRS,
        {"name": "sft", "kind": "sft", "from_model": "base", "from_data": ["traces"], **of_rows, "epochs": 4},
        {"name": "dpo", "kind": "dpo", "from_model": "sft", "beta": 0.3, **of_pairs, "learning_rate": 1e-4},
        {"name": "rm", "kind": "reward_model", "from_model": "sft", **of_pairs},
        {"name": "grpo", "kind": "grpo", "from_model": "dpo", **of_rl, "kl": {"coefficient": 0.1}},
        {"name": "ppo", "kind": "ppo", "from_model": "grpo", **of_rl, "critic": critic, "kl": kl_in_reward},
        {"name": "drawn", **drawn, "from_model": "ppo", "completions_per_prompt": 2},
        {"name": "mixed", "kind": "build_data", "builder": mix},
        {"name": "fusion", "kind": "sft", "from_model": "ppo", "from_data": ["mixed"], **of_rows},
        {"name": "measured", "kind": "evaluate", "from_model": "fusion", "from_data": ["problems"],
         "completions_per_prompt": 1, "sampling": sampling, "rewards": [{"kind": "math_answer"}],
         "thinking_switches": switches},
    ]  # fmt: skip


def write_mixture_recipe(kind: str, folder: Path, *stages: dict[str, Any], **runtime: Any) -> Path:
    """A recipe of these stages on a mixture that lies beside it."""
    folder.mkdir(exist_ok=True)
    path = write_recipe(folder, *stages, **runtime)
    write_mixture(kind, folder / "mixture")
    recipe = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(recipe | {"models": {"base": {"path": "mixture"}}}))
    return path
