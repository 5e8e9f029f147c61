"""A stage trains under the strategy that it was asked for, or not at all."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate.utils import DistributedType

from qwen_align.align.errors import StageError
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.training.strategies import (
    build_strategy_arguments,
    read_strategy,
    require_strategy,
    start_strategy,
)


def make_trainer(kind: DistributedType, *, zero: int = 0, fsdp: int = 0, processes: int = 2) -> Any:
    """What is read of a trainer: the accelerator that the libraries have made of its arguments."""
    plugins = {"deepspeed_plugin": SimpleNamespace(zero_stage=zero), "fsdp_plugin": SimpleNamespace(fsdp_version=fsdp)}
    state = SimpleNamespace(**plugins)
    return SimpleNamespace(
        accelerator=SimpleNamespace(distributed_type=kind, state=state, num_processes=processes),
    )


TRAINERS = {
    "ddp": make_trainer(DistributedType.MULTI_CPU),
    "zero1": make_trainer(DistributedType.DEEPSPEED, zero=1),
    "zero2": make_trainer(DistributedType.DEEPSPEED, zero=2),
    "zero3": make_trainer(DistributedType.DEEPSPEED, zero=3),
    "fsdp2": make_trainer(DistributedType.FSDP, fsdp=2),
}


@pytest.mark.parametrize("asked", TRAINERS)
def test_a_strategy_that_the_libraries_have_swapped_is_refused(asked: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate trains with DDP where FSDP2 finds no GPU, and leaves DeepSpeed out under --cpu, with exit code 0."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    runtime = Runtime.model_validate({"strategy": asked, "processes": 2})
    for actual, trainer in TRAINERS.items():
        assert read_strategy(trainer.accelerator) == actual
        if actual == asked:
            require_strategy(trainer, runtime)
            continue
        with pytest.raises(
            StageError, match=f"runtime.strategy is {asked}, but the libraries would train with {actual}"
        ):
            require_strategy(trainer, runtime)


def test_fewer_processes_than_were_started_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    trainer = make_trainer(DistributedType.DEEPSPEED, zero=2, processes=1)
    with pytest.raises(StageError, match="the stage has 2 processes, but training would run in 1"):
        require_strategy(trainer, Runtime.model_validate({"strategy": "zero2", "processes": 2}))


def test_what_a_deepspeed_file_leaves_out_is_what_the_stage_says(tmp_path: Path) -> None:
    """DeepSpeed does not clip where its settings say nothing, whatever max_grad_norm is."""
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, "gradient_clipping": 0.5}))
    arguments = build_strategy_arguments(Runtime.model_validate({"deepspeed": str(path)}), in_bf16=False)["deepspeed"]
    assert arguments["gradient_clipping"] == 0.5
    assert arguments["train_micro_batch_size_per_gpu"] == arguments["gradient_accumulation_steps"] == "auto"
    own = build_strategy_arguments(Runtime.model_validate({"strategy": "zero2"}), in_bf16=True)["deepspeed"]
    assert own["gradient_clipping"] == "auto"


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
def test_bf16_is_autocast_with_deepspeed_too(strategy: str) -> None:
    """DeepSpeed's own bf16 rounds the tables of rotations: losses of the tiny base were off by 4 %."""
    arguments = build_strategy_arguments(Runtime.model_validate({"strategy": strategy}), in_bf16=True)
    assert arguments["deepspeed"]["bf16"] == {"enabled": False}
    assert arguments["deepspeed"]["torch_autocast"]["enabled"] is True
    assert arguments["bf16"] is False


@pytest.mark.parametrize("in_bf16", [True, False])
def test_zero3_computes_in_bf16_by_autocast(tmp_path: Path, in_bf16: bool) -> None:
    """DeepSpeed's own bf16 would leave weights that were partitioned in fp32 as they are, and compute in fp32."""
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    for runtime in ({"deepspeed": str(path)}, {"strategy": "zero3"}):
        arguments = build_strategy_arguments(Runtime.model_validate(runtime), in_bf16=in_bf16)
        assert arguments["bf16"] is False
        assert arguments["deepspeed"]["bf16"] == {"enabled": False}
        assert arguments["deepspeed"]["torch_autocast"]["enabled"] is in_bf16
        assert arguments["deepspeed"]["torch_autocast"]["lower_precision_safe_modules"] == []


@pytest.mark.parametrize("strategy", ["zero2", "zero3", "fsdp2"])
def test_what_the_library_gets_is_kept_and_autocast_keeps_no_whole_model(
    strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy in bf16 of each weight, kept until the forward pass ends, would be a whole model in every process."""
    runtime = Runtime.model_validate({"strategy": strategy, "processes": 2})
    arguments = build_strategy_arguments(runtime, in_bf16=True)
    given = {"deepspeed": None, "fsdp_config": None, **arguments, "use_cpu": True}
    monkeypatch.setitem(sys.modules, "deepspeed", SimpleNamespace(init_distributed=lambda **_: None))
    cached: list[bool] = []
    monkeypatch.setattr(torch, "set_autocast_cache_enabled", cached.append)
    start_strategy(SimpleNamespace(**given), runtime, tmp_path)  # type: ignore[arg-type]
    (kept,) = tmp_path.iterdir()
    assert kept.name == ("fsdp.json" if strategy == "fsdp2" else "deepspeed.json")
    assert json.loads(kept.read_text()) == (arguments.get("deepspeed") or arguments["fsdp_config"])
    assert cached == ([] if strategy == "zero2" else [False])
