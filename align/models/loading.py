"""What a model on disk is, loading it, and saving what a stage made of it.

A stage's folder says in `model.json` either `{"model": "model"}`, a full model beside it, or
`{"base": FOLDER or "hub:ID@COMMIT", "adapters": [FOLDER, ...]}`, adapters to be merged in that order; folders are
relative to the stage's own, or absolute.
"""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from qwen_align.align.errors import RecipeError, StageError
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rendering.tokenizer_check import check_vocabulary
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.store.files import read_json, write_json
from qwen_align.align.training.distributed import get_local_rank

# What the folder of a tokenizer may hold; copied unchanged, so a tuned model keeps its inference template.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
)
MERGE_TOLERANCE = 1e-3  # largest logit difference between adapter and merged model; fp32 rounding is about 1e-5


class ModelFiles(NamedTuple):
    """A base and the adapters merged into it, first to last."""

    base: str
    adapters: list[Path]


def locate(folder: Path) -> ModelFiles:
    """What the model of a stage's folder, of a model folder or of `hub:ID@COMMIT` consists of."""
    described = folder / "model.json"
    if not described.exists():
        return ModelFiles(str(folder), [])
    said = read_json(described)
    if "model" in said:
        return ModelFiles(str(folder / said["model"]), [])
    base = said["base"] if said["base"].startswith("hub:") else str(folder / said["base"])
    return ModelFiles(base, [folder / adapter for adapter in said["adapters"]])


def base_folder(files: ModelFiles) -> Path:
    """The base's folder, downloaded from the hub if it is there (safetensors and tokenizer files only)."""
    if not files.base.startswith("hub:"):
        return Path(files.base)
    from huggingface_hub import snapshot_download

    name, _, revision = files.base.removeprefix("hub:").partition("@")
    wanted = ["*.safetensors", "*.json", *TOKENIZER_FILES]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=wanted))
    except (OSError, ValueError) as error:  # what huggingface_hub's errors are, offline ones included
        raise RecipeError(f"models: {name} at {revision} cannot be had from the hub: {error}") from None


def renderer_of(folder: Path) -> Renderer:
    """The renderer of the model's base; raises RecipeError where tokenizer and model do not belong together."""
    base = base_folder(locate(folder))
    renderer = Renderer.load(base)
    check_vocabulary(base, renderer)
    return renderer


def device_of(runtime: Runtime) -> torch.device:
    """This process's device: of several GPUs the one that torchrun gave it. RecipeError when there is none for it."""
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if runtime.device == "cpu" or (runtime.device == "auto" and not n_gpus):
        return torch.device("cpu")
    if not n_gpus:
        raise RecipeError("runtime.device: cuda, but torch sees no GPU: `qwen-align doctor`")
    if (number := get_local_rank()) >= n_gpus:
        raise RecipeError(
            f"runtime.processes: {runtime.processes}, but torch sees {n_gpus} GPUs; ask for fewer, or for `device: cpu`"
        )
    return torch.device("cuda", number)


def load(folder: Path) -> PreTrainedModel:
    """The model with its adapters merged, weights in fp32, on the CPU.

    Raises StageError when a merged adapter's logits differ from the adapter's own.
    """
    return load_files(locate(folder))


def load_files(files: ModelFiles) -> PreTrainedModel:
    """As `load`."""
    model = load_folder(base_folder(files))
    for adapter in files.adapters:
        model = _merged(model, adapter)
    return model.requires_grad_(True)  # peft has frozen what it adapted


def load_folder(folder: Path) -> PreTrainedModel:
    logging.disable_progress_bar()  # of the loading of weights, which is not what anyone waits for
    try:
        model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, use_safetensors=True)
    except OSError as error:
        raise RecipeError(f"{folder}: cannot be loaded as a causal LM in safetensors form: {error}") from None
    assert isinstance(model, PreTrainedModel)
    return model


def _merged(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    from peft import PeftModel

    tuned = PeftModel.from_pretrained(model, str(adapter)).eval()
    probe = torch.arange(64).remainder(model.config.get_text_config().vocab_size).unsqueeze(0)
    with torch.inference_mode():
        expected = tuned(input_ids=probe).logits
        merged = tuned.merge_and_unload()
        apart = (merged(input_ids=probe).logits - expected).abs().max().item()
    if not apart < MERGE_TOLERANCE:
        raise StageError(
            f"{adapter}: the merged model's logits are {apart:.2g} from the adapter's; it cannot be merged"
        )
    assert isinstance(merged, PreTrainedModel)
    return merged


def describe(source: Path, out: Path, adapters: list[str]) -> None:
    """Says in model.json that the model is the source's with these adapters, folders in `out`, on top."""
    files = locate(source)
    base = files.base if files.base.startswith("hub:") else _from(out, Path(files.base))
    write_json(out / "model.json", {"base": base, "adapters": [*(_from(out, a) for a in files.adapters), *adapters]})


def _from(out: Path, path: Path) -> str:
    """The path relative to `out` if both lie in one store, so that a store can be moved; else absolute."""
    store = out.resolve().parent
    return os.path.relpath(path.resolve(), out.resolve()) if path.resolve().is_relative_to(store) else str(path)


def copy_tokenizer(source: Path, target: Path) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


def stop_at_end_of_turn(folder: Path) -> None:
    """Adds the end of a turn to what generation_config.json stops at; a base's stops at the end of a text only."""
    path = folder / "generation_config.json"
    said = read_json(path) if path.exists() else {}
    ends = said.get("eos_token_id", [])
    ends = ends if isinstance(ends, list) else [ends]
    end_of_turn = Renderer.load(folder).end_of_turn_id
    if end_of_turn not in ends:
        write_json(path, {**said, "eos_token_id": [end_of_turn, *(end for end in ends if end is not None)]})
