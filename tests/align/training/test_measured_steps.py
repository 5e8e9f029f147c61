"""Peak memory, tokens and operations of a step, against what is held and against counts written out."""

import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, LlamaConfig, MambaConfig, MixtralConfig

from qwen_align.align.context import Context
from qwen_align.align.generation.resumable import find_part_size
from qwen_align.align.pipeline import kernel_kills
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.training import memory_meter
from qwen_align.align.training.measured_steps import StepMeter, count_tokens_and_pairs
from qwen_align.align.training.memory_meter import CpuMeter, PeakMemory
from qwen_align.align.training.model_flops import PEAK_TFLOPS, find_peak_tflops, measure_flop_costs


def test_the_peak_is_what_was_held_between_less_what_was_held_before() -> None:
    meter = CpuMeter()
    held = torch.ones(1 << 26)  # 256 MiB
    time.sleep(0.1)
    del held
    assert 0.24 < meter.read_peak().held < 0.4
    meter.restart()
    assert meter.read_peak().held < 0.1


def test_a_mapped_file_is_not_held(tmp_path: Path) -> None:
    """A checkpoint that is read through a mapping can be dropped by the kernel at any time."""
    (tmp_path / "weights").write_bytes(bytes(1 << 28))
    meter = CpuMeter()
    mapped = torch.from_file(str(tmp_path / "weights"), size=1 << 26)
    assert float(mapped.sum()) == 0
    assert meter.read_peak().held < 0.1


@pytest.mark.parametrize(
    ("config", "width"),
    [
        (MixtralConfig(num_local_experts=2), 16),  # whose config says head_dim: null
        (MambaConfig(state_size=4), 0),
        (LlamaConfig(num_key_value_heads=2, head_dim=12), 24),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_attention_is_as_wide_as_the_queries_of_any_architecture(config: Any, width: int) -> None:
    """A figure must never end a training."""
    sizes = {"vocab_size": 9, "hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2} if width else {}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(type(config)(**config.to_diff_dict() | sizes | heads))
    assert measure_flop_costs(model).pair == 4 * 2 * width


@pytest.mark.parametrize("lora", [False, True])
def test_operations_are_those_that_torch_counts(tiny_model: Path, lora: bool) -> None:
    """One row, whose attention torch counts as the whole square of it; here pairs of a token and one that it sees."""
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="eager")
    if lora:
        model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    costs = measure_flop_costs(model)
    n_tokens = 33
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(n_tokens)[None], use_cache=False).logits.sum().backward()
    counted = costs.count_pass(torch.tensor(n_tokens), torch.tensor(n_tokens**2), with_backward=True)
    # torch leaves out the gradient of the first layer's input where nothing below it is trained.
    assert counter.get_total_flops() == pytest.approx(float(counted), rel=0.06 if lora else 1e-6)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.arange(n_tokens)[None], use_cache=False)
    counted = costs.count_pass(torch.tensor(n_tokens), torch.tensor(n_tokens**2), with_backward=False)
    assert counter.get_total_flops() == pytest.approx(float(counted), rel=1e-6)


def test_a_step_says_its_speed_from_the_tokens_and_pairs_of_its_rows(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    meter, costs = StepMeter(model, torch.device("cpu")), measure_flop_costs(model)
    assert meter.read_speed(1.0) == {}, "nothing is counted yet"
    counted = count_tokens_and_pairs(torch.tensor([3, 1]))
    meter.count_pass(*counted)
    meter.count_reference_pass(*counted)
    flops = 4 * (costs.train + costs.forward) + (6 + 1) * (3 + 1) * costs.pair
    assert meter.read_speed(2.0) == {
        "speed/tokens_per_second": pytest.approx(2.0),
        "speed/tflops": pytest.approx(flops / 2e12),
    }
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100 PCIe")
    assert find_peak_tflops(torch.device("cuda", 0)) == 756.0
    assert find_peak_tflops(torch.device("cpu")) is None


def test_a_name_in_the_table_of_gpus_is_not_hidden_by_one_before_it() -> None:
    names = [name for name, _ in PEAK_TFLOPS]
    for number, name in enumerate(names):
        assert not [before for before in names[:number] if before in name]


def test_logs_after_a_step_come_back_when_they_were_cut(tmp_path: Path) -> None:
    context = Context(tmp_path, 0, Runtime())
    for step in (1, 2, 3):
        context.log_sample(step, {"text": f"of {step}"})
    before = (tmp_path / "samples.jsonl").read_text()
    kept = context.read_logs_after(2)
    context.truncate_logs(2)
    assert (tmp_path / "samples.jsonl").read_text() != before
    context.restore_logs(kept)
    assert (tmp_path / "samples.jsonl").read_text() == before


def test_the_last_part_does_not_say_how_many_prompts_a_part_has(tmp_path: Path) -> None:
    (tmp_path / "00000008-00000010.aa.jsonl").touch()
    assert find_part_size(tmp_path, 10) is None
    (tmp_path / "00000004-00000008.aa.jsonl").touch()
    assert find_part_size(tmp_path, 10) == 4


def test_the_fullest_device_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    peaks = [PeakMemory(1.0, 3.0), None, PeakMemory(2.0, 2.0)]
    monkeypatch.setattr(memory_meter, "gather_objects", lambda _: peaks)
    assert memory_meter.gather_peak_memory() == PeakMemory(2.0, 2.0)


def test_kills_are_counted_where_a_kernel_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_kills, "_CGROUPS", tmp_path)
    monkeypatch.setattr(kernel_kills, "_OWN_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(kernel_kills, "_VMSTAT", tmp_path / "vmstat")
    assert kernel_kills.count_kernel_kills() is None
    (tmp_path / "vmstat").write_text("nr_free_pages 3\noom_kill 1\n")
    assert kernel_kills.count_kernel_kills() == 1
    (tmp_path / "cgroup").write_text("0::/user.slice\n")
    (tmp_path / "user.slice").mkdir()
    (tmp_path / "user.slice" / "memory.events").write_text("low 0\noom 4\noom_kill 2\noom_group_kill 0\n")
    assert kernel_kills.count_kernel_kills() == 2
