"""Which device a process gets."""

import pytest
import torch

from qwen_align.align.errors import RecipeError
from qwen_align.align.models.loading import choose_device
from qwen_align.align.settings.runtime import Runtime


@pytest.fixture
def with_gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)
    monkeypatch.setenv("LOCAL_RANK", "1")


@pytest.mark.parametrize("with_gpus", [0], indirect=True)
def test_without_a_gpu_it_is_the_cpu_unless_a_gpu_is_asked_for(with_gpus: None) -> None:
    assert choose_device(Runtime()) == torch.device("cpu")
    with pytest.raises(RecipeError, match="device: cuda, but torch sees no GPU"):
        choose_device(Runtime(device="cuda"))


@pytest.mark.parametrize("with_gpus", [2], indirect=True)
def test_each_process_has_a_gpu_of_its_own(with_gpus: None) -> None:
    assert choose_device(Runtime(processes=2)) == torch.device("cuda", 1)
    assert choose_device(Runtime(processes=2, device="cpu")) == torch.device("cpu")


@pytest.mark.parametrize("with_gpus", [1], indirect=True)
def test_more_processes_than_gpus_are_refused(with_gpus: None) -> None:
    with pytest.raises(RecipeError, match="processes: 2, but torch sees 1 GPUs"):
        choose_device(Runtime(processes=2))
