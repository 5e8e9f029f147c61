"""Devices are asked for in a process of its own, and what fits them is told. GPUs are pretended."""

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.doctor import devices
from qwen_align.align.doctor.devices import DeviceProbe, Probed, check_fit
from qwen_align.align.doctor.finding import Finding
from qwen_align.align.estimation.units import GB

H200 = {"name": "NVIDIA H200", "free": 149 * GB, "total": 150 * GB, "capability": [9, 0]}


def probe(monkeypatch: pytest.MonkeyPatch, script: str) -> tuple[Probed | None, list[Finding]]:
    monkeypatch.setattr(devices, "_PROBE", script)
    return DeviceProbe().collect()


def answer(monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[Finding]:
    said = {"torch": "2.13.0", "build": "CUDA 13.0", "gpus": [], "threads": 2, "backends": ["gloo"], **changes}
    probed, findings = probe(monkeypatch, f"print({json.dumps(said)!r})")
    assert probed == Probed([gpu["total"] for gpu in said["gpus"]], said["backends"])
    return findings


def test_a_torch_that_cannot_be_imported_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    probed, findings = probe(monkeypatch, "raise ImportError('libcudart.so: not found')")
    assert probed is None
    assert findings == [Finding("torch", "ImportError: libcudart.so: not found", "reinstall torch", is_bad=True)]


def test_a_torch_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "PROBE_LIMIT_S", 0.2)
    probed, (finding,) = probe(monkeypatch, "import time; time.sleep(60)")
    assert probed is None
    assert finding.is_bad
    assert "a driver or a file system that hangs" in finding.advice


def test_a_machine_without_gpu_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "find_gpu_driver", lambda: None)
    assert answer(monkeypatch) == [Finding("devices", "no GPU, 2 CPU threads")]


def test_a_gpu_that_torch_does_not_see_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "find_gpu_driver", lambda: "/dev/nvidiactl")
    (of_cpu,) = answer(monkeypatch, torch="2.13.0+cpu", build="")
    assert of_cpu.is_bad
    assert "torch 2.13.0+cpu is a build for CPUs" in of_cpu.found
    (old,) = answer(monkeypatch)
    assert old.is_bad
    assert "is the driver too old" in old.advice


def test_gpus_are_listed_with_what_others_have_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    old = {"name": "Tesla V100", "free": 4 * GB, "total": 16 * GB, "capability": [7, 0]}
    findings = answer(monkeypatch, gpus=[H200, H200, old])
    assert findings[0] == Finding("devices", "2 x NVIDIA H200, Tesla V100 (CUDA 13.0)")
    assert [(one.what, one.state) for one in findings[1:]] == [
        ("memory", "ok"),
        ("memory", "ok"),
        ("memory", "note"),
        ("precision", "note"),
    ]
    assert findings[3].found == "GPU 2: 3.73 of 14.9 GiB free"


def test_what_fits_is_what_the_tables_of_scaling_say() -> None:
    """docs/scaling.md, SFT on one GPU of 80 GB: at 2,048 tokens full 1.7B, LoRA 32B; GRPO on 24 GB: QLoRA 14B."""
    (of_80,) = check_fit(Probed([80 * GB], []))
    assert "sft full 1.7B, LoRA 32B, QLoRA 32B" in of_80.found
    (of_24,) = check_fit(Probed([24 * GB], []))
    assert "grpo full 0.6B, LoRA 8B, QLoRA 14B" in of_24.found
    one, eight = check_fit(Probed([80 * GB] * 8, []))
    assert one.found == of_80.found
    assert eight.found.endswith("8 GPUs of 74.5 GiB, zero3, 2,048 tokens: sft full 14B; grpo full 14B")


def test_on_a_cpu_weights_that_are_read_from_files_have_to_fit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "read_memory_limit", lambda: 24 * 2**30)
    (finding,) = check_fit(Probed([], []))
    assert "sft full 0.6B, LoRA 8B, QLoRA" in finding.found  # 32B in bf16 are 61 GiB


@pytest.mark.slow(seconds=10)
def test_torch_is_asked_for_real(tmp_path: Path) -> None:
    probed, findings = DeviceProbe().collect()
    assert probed is not None
    assert "gloo" in probed.backends
    assert not [finding for finding in findings if finding.is_bad]
