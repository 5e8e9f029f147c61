"""`gradient_checkpointing: auto` is decided by the estimate and the memory of the stage's device."""

from typing import Any

import pytest

from qwen_align.align.estimation.known_configs import build_qwen3_config
from qwen_align.align.settings.ppo import Ppo
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.settings.sft import Sft
from qwen_align.align.training import checkpointing

COMMON: dict[str, Any] = {"name": "s", "from_model": "m", "from_data": ["d"], "learning_rate": 1e-5}
SFT = Sft(kind="sft", max_tokens=2048, batch=8, epochs=1, lora={"rank": 8, "alpha": 8}, **COMMON)
MODEL = build_qwen3_config("0.6B")


def decide(settings: Any, runtime: Runtime) -> Any:
    return checkpointing.decide_checkpointing(settings, runtime, MODEL).gradient_checkpointing


@pytest.mark.parametrize(("gib", "is_on"), [(8, True), (1024, False)])
def test_auto_is_decided_by_the_machines_memory(monkeypatch: pytest.MonkeyPatch, gib: int, is_on: bool) -> None:
    monkeypatch.setattr(checkpointing, "_measure_share_of_host", lambda runtime: gib * 2**30)
    assert decide(SFT, Runtime(device="cpu")) is is_on
    assert decide(SFT, Runtime(device="cpu", gradient_checkpointing=not is_on)) is (not is_on)


def test_processes_share_a_machines_memory() -> None:
    one, two = (checkpointing._measure_share_of_host(Runtime(processes=n)) for n in (1, 2))
    assert one // 2 == two > 2**28


def test_an_adapter_of_the_critics_own_is_never_checkpointed_by_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpointing, "_measure_share_of_host", lambda runtime: 1)
    given = {"rewards": [{"kind": "math_answer"}], "steps": 1, "prompts_per_step": 1, "completions_per_prompt": 2,
             "sampling": {"temperature": 1.0, "max_tokens": 8}, "lora": {"rank": 8, "alpha": 8}}  # fmt: skip
    for kind, is_on in (("separate", False), ("head", True)):
        settings = Ppo(kind="ppo", critic={"kind": kind, "learning_rate": 1e-5}, **COMMON, **given)
        assert decide(settings, Runtime(device="cpu")) is is_on
