"""Which device a process gets, and which files of a folder make its model."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import qwen_align
from qwen_align.align.errors import RecipeError
from qwen_align.align.models.loading import choose_device, load_model
from qwen_align.align.models.model_description import HubModel, name_hub_model, parse_hub_model
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


@pytest.fixture
def adapted(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model with an adapter beside it, which changes every logit."""
    folder = Path(shutil.copytree(tiny_model, tmp_path / "adapted"))
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(r=2, target_modules=["q_proj"]))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(weight)
    model.save_pretrained(folder)
    return folder


def test_an_adapter_beside_a_model_is_not_followed(tiny_model: Path, adapted: Path, tmp_path: Path) -> None:
    plain, loaded = load_model(tiny_model), load_model(adapted)
    with pytest.raises(RecipeError, match="lies beside the whole model"):
        qwen_align.load_model(adapted)
    assert plain.state_dict().keys() == loaded.state_dict().keys()
    ids = torch.arange(32).unsqueeze(0)
    with torch.inference_mode():
        assert torch.equal(plain(input_ids=ids).logits, loaded(input_ids=ids).logits)
    loaded.save_pretrained(tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").exists()


@pytest.mark.parametrize("ignores_adapter", [False, True])
def test_a_hub_model_with_an_adapter_beside_it_is_refused_unless_that_is_ignored(
    adapted: Path, monkeypatch: pytest.MonkeyPatch, ignores_adapter: bool
) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(adapted))
    source = name_hub_model("a/b", "0123", ignores_adapter=ignores_adapter)
    assert parse_hub_model(source) == HubModel("a/b", "0123", ignores_adapter)
    if ignores_adapter:
        load_model(Path(source))
    else:
        with pytest.raises(RecipeError, match="lies beside the whole model"):
            load_model(Path(source))
    (adapted / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match="holds an adapter"):
        load_model(Path(source))
