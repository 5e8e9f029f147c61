"""Loads models from stage folders, model folders and the hub, and writes the model.json of a stage.

A stage's folder says in `model.json` either `{"model": "model"}`, a full model beside it, or
`{"base": FOLDER or "hub:ID@COMMIT", "adapters": [FOLDER, ...]}`, adapters to be merged in that order; folders are
relative to the stage's own, or absolute.
"""

import os
import shutil
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from qwen_align.align.errors import RecipeError, StageError
from qwen_align.align.models.length_limit import read_length_limit
from qwen_align.align.models.model_description import MODEL, ModelFiles, locate_model_files
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rendering.tokenizer_check import check_tokenizer_fits_model
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


def fetch_base_folder(files: ModelFiles) -> Path:
    """Returns the folder of the base model.

    It is downloaded first if it is on the hub (safetensors and tokenizer files).
    """
    if not files.base.startswith("hub:"):
        return Path(files.base)
    from huggingface_hub import snapshot_download

    name, _, revision = files.base.removeprefix("hub:").partition("@")
    patterns = ["*.safetensors", "*.json", *TOKENIZER_FILES]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:  # the types of huggingface_hub's errors, offline ones included
        raise RecipeError(f"models: {name} at {revision} cannot be downloaded from the hub: {error}") from None


def load_renderer(folder: Path) -> Renderer:
    """Loads the renderer of a model's base.

    Raises RecipeError where tokenizer and model do not belong together.
    """
    base = fetch_base_folder(locate_model_files(folder))
    renderer = Renderer.load(base)
    check_tokenizer_fits_model(base, renderer)
    return renderer


def find_length_limit(folder: Path) -> int | None:
    """Returns the number of tokens that a model can read, from the config of its base. None if it has no limit."""
    return read_length_limit(fetch_base_folder(locate_model_files(folder)))


def choose_device(runtime: Runtime) -> torch.device:
    """Returns the torch device of this process.

    Of several GPUs it is that of its local rank. Raises RecipeError where torch sees too few GPUs.
    """
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if runtime.device == "cpu" or (runtime.device == "auto" and not n_gpus):
        return torch.device("cpu")
    if not n_gpus:
        raise RecipeError("runtime.device: cuda, but torch sees no GPU: `qwen-align doctor`")
    if (local_rank := get_local_rank()) >= n_gpus:
        raise RecipeError(
            f"runtime.processes: {runtime.processes}, but torch sees {n_gpus} GPUs; ask for fewer, or for `device: cpu`"
        )
    return torch.device("cuda", local_rank)


def load_model(folder: Path) -> PreTrainedModel:
    """Loads a model and merges its adapters, in fp32 on the CPU.

    Raises StageError when a merged adapter's logits differ from the adapter's own.
    """
    return load_with_adapters(locate_model_files(folder))


def load_with_adapters(files: ModelFiles) -> PreTrainedModel:
    """Loads a base model and merges its adapters into it, as `load_model` does."""
    model = load_base_model(fetch_base_folder(files))
    for adapter in files.adapters:
        model = _merge_adapter(model, adapter)
    return model.requires_grad_(True)  # peft has frozen what it adapted


def load_base_model(folder: Path) -> PreTrainedModel:
    """Loads a causal language model from one folder in fp32.

    Raises RecipeError when it cannot.
    """
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32, use_safetensors=True)
    except OSError as error:
        raise RecipeError(f"{folder}: cannot be loaded as a causal LM in safetensors form: {error}") from None
    assert isinstance(model, PreTrainedModel)
    return model


def _merge_adapter(model: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """Merges an adapter into a model.

    Raises StageError when that changes the logits.
    """
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(model, str(adapter)).eval()
    probe = torch.arange(64).remainder(model.config.get_text_config().vocab_size).unsqueeze(0)
    with torch.inference_mode():
        expected = adapted(input_ids=probe).logits
        merged = adapted.merge_and_unload()
        largest_difference = (merged(input_ids=probe).logits - expected).abs().max().item()
    if not largest_difference < MERGE_TOLERANCE:
        raise StageError(
            f"{adapter}: the merged model's logits are {largest_difference:.2g} from the adapter's; it cannot be merged"
        )
    assert isinstance(merged, PreTrainedModel)
    return merged


def write_model_json(source: Path, out: Path, adapters: list[str]) -> None:
    """Writes the model.json of a model that adds adapters to the source model.

    The adapters are folders in `out`.
    """
    files = locate_model_files(source)
    base = files.base if files.base.startswith("hub:") else _to_store_path(out, Path(files.base))
    write_json(out / MODEL, {"base": base, "adapters": [*(_to_store_path(out, a) for a in files.adapters), *adapters]})


def _to_store_path(out: Path, path: Path) -> str:
    """Converts a path to one relative to `out` if both lie in one store, so that the store can be moved.

    Else it stays as it is.
    """
    store = out.resolve().parent
    return os.path.relpath(path.resolve(), out.resolve()) if path.resolve().is_relative_to(store) else str(path)


def copy_tokenizer_files(source: Path, target: Path) -> None:
    """Copies the tokenizer files of the source folder, as far as it has them, to the target folder."""
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


def add_end_of_turn_stop(folder: Path) -> None:
    """Adds the end-of-turn token to the stop ids in the folder's generation_config.json.

    A base stops at the end of a text only.
    """
    path = folder / "generation_config.json"
    config = read_json(path) if path.exists() else {}
    stop_ids = config.get("eos_token_id", [])
    stop_ids = stop_ids if isinstance(stop_ids, list) else [stop_ids]
    end_of_turn = Renderer.load(folder).end_of_turn_id
    if end_of_turn not in stop_ids:
        stop_ids = [end_of_turn, *(stop_id for stop_id in stop_ids if stop_id is not None)]
        write_json(path, {**config, "eos_token_id": stop_ids})
