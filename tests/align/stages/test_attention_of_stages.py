"""`runtime.attention` is that of every model that a stage runs, of any kind: policies, references, critics, scorers."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from qwen_align.align.models.packed_attention import EAGER
from qwen_align.align.stages.registry import STAGE_KINDS
from tests.architecture.settings_probes import SFT, World

SAMPLING = {"temperature": 1.0, "max_tokens": 4}
PAIRS = {"from_model": "base", "from_data": ["pairs"], "max_tokens": 256, "batch": 2, "epochs": 0.5}
TRAINING = {"learning_rate": 1e-3}
LORA = {"rank": 2, "alpha": 4}
LEARNED = [{"kind": "learned", "from_scorer": "scorer"}]
ONLINE = {
    "from_model": "base",
    "from_data": ["problems"],
    "rewards": LEARNED,
    "steps": 1,
    "prompts_per_step": 2,
    "completions_per_prompt": 2,
    "sampling": SAMPLING,
    **TRAINING,
}
KL = {"kl": {"coefficient": 0.1}}
CRITIC = {"learning_rate": 1e-3}
ASKED = {"from_model": "base", "completions_per_prompt": 2, "sampling": SAMPLING}

# Settings of each kind that between them have it run every model that it can.
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "pretrain": [
        {
            "from_data": "texts",
            "steps": 1,
            "batch": 2,
            "sequence_length": 8,
            "warmup_steps": 0,
            "tokenizer": {"vocab_size": 330, "texts": 20},
            "architecture": {"hidden": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "intermediate": 16},
        }
    ],
    "rollout": [{**ASKED, "from_data": "problems", "rewards": LEARNED}],
    "sft": [SFT, {**SFT, "lora": {**LORA, "base_weights": "nf4"}}],
    "dpo": [{**PAIRS, **TRAINING, "beta": 0.1}, {**PAIRS, **TRAINING, "beta": 0.1, "lora": LORA}],
    "reward_model": [{**PAIRS, **TRAINING}, {**PAIRS, **TRAINING, "lora": {**LORA, "base_weights": "nf4"}}],
    "grpo": [{**ONLINE, **KL}, {**ONLINE, **KL, "trainer": "trl"}],
    "ppo": [
        {**ONLINE, **KL, "critic": {**CRITIC, "kind": "separate"}},
        {**ONLINE, **KL, "critic": {**CRITIC, "kind": "separate", "from_scorer": "scorer"}},
    ],
    "evaluate": [{**ASKED, "from_data": ["problems"], "best_of_n_scorer": "scorer"}],
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> World:
    return World(tmp_path_factory.mktemp("attention"), tiny_model)


@contextmanager
def record_attention() -> Iterator[set[str]]:
    """The attention implementations of the models that run inside, and torch's own where anything calls that."""
    found: set[str] = set()
    by_torch = torch.nn.functional.scaled_dot_product_attention

    def note(module: torch.nn.Module, _: Any) -> None:
        if name := getattr(getattr(module, "config", None), "_attn_implementation", None):
            found.add(name)

    def attend(*args: Any, **kwargs: Any) -> Any:
        found.add("torch's")
        return by_torch(*args, **kwargs)

    hook = register_module_forward_pre_hook(note)
    try:
        with mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", attend):
            yield found
    finally:
        hook.remove()


def test_every_kind_of_stage_that_needs_torch_has_settings_here() -> None:
    assert set(SETTINGS) == {name for name, kind in STAGE_KINDS.items() if kind.needs_torch}


QUICK = ("rollout", "evaluate")


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        pytest.param(kind, number, marks=[] if kind in QUICK else pytest.mark.slow(seconds=1))
        for kind, variants in SETTINGS.items()
        for number in range(len(variants))
    ],
)
def test_all_models_of_a_stage_have_the_attention_that_its_runtime_says(kind: str, number: int, world: World) -> None:
    stage = {"kind": kind, **SETTINGS[kind][number], "runtime": {"attention": "eager"}}
    with record_attention() as found:
        world.stage(stage)
    assert found == {EAGER}
