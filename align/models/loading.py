"""Loads models from stage folders, model folders and the hub, and writes the model.json of a stage.

A stage's folder says in `model.json` either `{"model": "model"}`, a full model beside it, or
`{"base": FOLDER or "hub:ID@COMMIT", "adapters": [FOLDER, ...]}`, adapters to be merged in that order; folders are
relative to the stage's own, or absolute. `precision` beside them: the precision that `auto` means for this model, where
that is not the one of its files.
"""

import atexit
import os
import shutil
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch.distributed.device_mesh import DeviceMesh
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from qwen_align.align.errors import RecipeError
from qwen_align.align.models.adapters import merge_adapter
from qwen_align.align.models.extended_folder import make_extended_folder
from qwen_align.align.models.length_limit import read_length_limit
from qwen_align.align.models.model_description import (
    MODEL,
    ModelFiles,
    locate_model_files,
    parse_hub_model,
    read_model_description,
)
from qwen_align.align.models.tensor_comparison import build_tied_error
from qwen_align.align.models.tensor_table import Head, ties_head
from qwen_align.align.models.weight_check import check_weights, refuse_adapter_alone, refuse_stray_adapter
from qwen_align.align.models.weight_precision import Precision, Trained, read_precision, resolve_precision
from qwen_align.align.models.weight_shards import get_held_numbers, has_shards, load_as_shards
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rendering.tokenizer_check import check_tokenizer_fits_model
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.store.files import read_json, write_json
from qwen_align.align.training.distributed import gather_objects, get_local_rank
from qwen_align.align.training.out_of_memory import is_out_of_memory

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
# What every from_pretrained of a model is given: no pickles, and no adapter beside it, for there is no such subfolder.
FROM_PRETRAINED_ARGUMENTS = {"use_safetensors": True, "adapter_kwargs": {"subfolder": "no adapter is taken from here"}}
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}
ROUTER_OUTPUTS = "output_router_logits"  # of a mixture's config.json: whether a model returns them, and a loss of them
_SAMPLING_ONLY = ("temperature", "top_p", "top_k", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff")


def fetch_base_folder(files: ModelFiles) -> Path:
    """Returns the folder of the base model.

    It is downloaded first if it is on the hub (safetensors and tokenizer files).
    """
    if not files.base.startswith("hub:"):
        return Path(files.base)
    from huggingface_hub import snapshot_download

    hub = parse_hub_model(files.base)
    patterns = ["*.safetensors", "*.json", *TOKENIZER_FILES]
    try:
        folder = Path(snapshot_download(hub.name, revision=hub.revision, allow_patterns=patterns))
    except (OSError, ValueError) as error:  # the types of huggingface_hub's errors, offline ones included
        raise RecipeError(f"models: {hub.name} at {hub.revision} cannot be downloaded from the hub: {error}") from None
    refuse_adapter_alone(folder)
    if not hub.ignores_adapter:
        refuse_stray_adapter(folder)
    return make_extended_folder(folder, hub.yarn, _make_own_folder(os.getpid())) if hub.yarn else folder


@cache
def _make_own_folder(pid: int) -> Path:
    """Makes a folder that lives as long as this process, whose number is `pid`."""
    folder = Path(tempfile.mkdtemp(prefix="qwen-align-"))

    def remove() -> None:
        if os.getpid() == pid:  # a fork runs this too
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


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


def read_model_config(folder: Path) -> dict[str, Any]:
    """Reads the config.json of a model's base, completed by transformers' defaults."""
    config: dict[str, Any] = AutoConfig.from_pretrained(str(fetch_base_folder(locate_model_files(folder)))).to_dict()
    return config


def read_router_outputs(folder: Path) -> dict[str, Any]:
    """Reads what config.json says of a mixture's router logits, which nothing here asks a model for."""
    config = read_json(fetch_base_folder(locate_model_files(folder)) / "config.json")
    return {ROUTER_OUTPUTS: config[ROUTER_OUTPUTS]} if ROUTER_OUTPUTS in config else {}


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


def find_precision(folder: Path) -> Precision:
    """Returns the precision of a model's files: what `auto` means for it."""
    return read_precision(folder, fetch_base_folder(locate_model_files(folder))).precision


def resolve_settings(settings: Trained, source: Path) -> Trained:
    """Returns the settings of a stage that trains the source model with no `auto` left in its precisions."""
    return resolve_precision(settings, find_precision(source))


def load_model(
    folder: Path,
    precision: Precision | Literal["auto"] = "auto",
    *,
    needs_head: bool = True,
    mesh: DeviceMesh | None = None,
) -> PreTrainedModel:
    """Loads a model and merges its adapters, on the CPU; auto = in the precision of its files.

    `needs_head`: false where a new head takes the place of the model's own, which may then be missing. `mesh`: the
    processes that each load a shard. Raises StageError when a merged adapter's logits differ from the adapter's own.
    """
    held = find_precision(folder) if precision == "auto" else precision
    return load_with_adapters(locate_model_files(folder), held, needs_head=needs_head, mesh=mesh)


def load_model_to_train(
    source: Path, settings: Trained, *, needs_head: bool = True, mesh: DeviceMesh | None = None
) -> PreTrainedModel:
    """Loads the model that a stage with resolved settings trains: fp32 weights, or the frozen base of its adapters.

    Weights that are trained are fp32 whatever the precision: AdamW's steps in bf16 weights would round to nothing.
    """
    base_weights = settings.lora.base_weights if settings.lora else "fp32"
    assert base_weights in ("fp32", "bf16"), "a base in 4 bits is that of quantized_base"
    return load_model(source, base_weights, needs_head=needs_head, mesh=mesh)


def load_with_adapters(
    files: ModelFiles, precision: Precision, *, needs_head: bool = True, mesh: DeviceMesh | None = None
) -> PreTrainedModel:
    """Loads a base model and merges its adapters into it, as `load_model` does."""
    model = load_base_model(fetch_base_folder(files), "lm_head" if needs_head else None, precision, mesh=mesh)
    for adapter in files.adapters:
        model = merge_adapter(model, adapter)
    return model.requires_grad_(True)  # peft has frozen what it adapted


def load_base_model(
    folder: Path,
    head: Head | None = "lm_head",
    precision: Precision | Literal["auto"] = "auto",
    more: Mapping[str, Any] | None = None,
    mesh: DeviceMesh | None = None,
) -> PreTrainedModel:
    """Loads a model from one folder: a causal language model, or with the head `score` a sequence classifier.

    Weights are read into the precision without another copy of them; auto = that of the files.
    An adapter beside it is not followed; the pipeline refuses one unless the recipe ignores it. `head` None: a causal
    language model whose head may be made up. `more`: further arguments of from_pretrained. `mesh`: the processes that
    each load their own rows of every weight; None = this one loads the whole model. Raises RecipeError when it cannot
    be loaded, or a weight is not in its files, which transformers would make up at random.
    """
    check_weights(folder, head)
    logging.disable_progress_bar()
    auto_class: Any = AutoModelForSequenceClassification if head == "score" else AutoModelForCausalLM
    try:
        with load_as_shards(mesh):
            model, info = auto_class.from_pretrained(
                str(folder),
                dtype=DTYPES[find_precision(folder) if precision == "auto" else precision],
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
                generation_config=GenerationConfig(),  # its file is read below, because transformers may refuse it
                **FROM_PRETRAINED_ARGUMENTS,
                **(more or {}),
            )
    except Exception as error:  # whatever a library says of a config or of weights
        if is_out_of_memory(error):
            raise
        kind = "" if isinstance(error, OSError | ValueError | ImportError) else f"{type(error).__name__}: "
        said = " ".join(str(error).split())
        raise RecipeError(f"{folder}: transformers cannot load it in safetensors form: {kind}{said:.300}") from error
    assert isinstance(model, PreTrainedModel)
    made_up = set(info["missing_keys"]) - (_list_head_weights(model) if head is None else set())
    mismatched = {name: f"{list(found)}, not {list(wanted)}" for name, found, wanted in info["mismatched_keys"]}
    if made_up or mismatched:
        named = [*sorted(made_up), *(f"{name} (has shape {shapes})" for name, shapes in sorted(mismatched.items()))]
        raise RecipeError(
            f"{folder}: its weights lack {len(named):,} of the model's tensors, which would be made up at random: "
            f"{', '.join(named[:4])}{' and others' if len(named) > 4 else ''}"
        )
    _refuse_unsound_weights(folder, model, head)
    if hasattr(model.config, ROUTER_OUTPUTS):  # the loss of them fails at the masks of generation
        setattr(model.config, ROUTER_OUTPUTS, False)
    if model.can_generate():
        model.generation_config = _read_generation_config(folder, model)
    return model


def _refuse_unsound_weights(folder: Path, model: PreTrainedModel, head: Head | None) -> None:
    """Raises RecipeError where a head that should be the embeddings is not, or weights are NaN or infinite."""
    output = model.get_output_embeddings() if head == "lm_head" and ties_head(model.config.to_dict()) else None
    if output is not None and output.weight is not model.get_input_embeddings().weight:  # transformers saw it
        raise build_tied_error(folder)
    unsound = [name for name, weight in model.named_parameters() if not torch.isfinite(get_held_numbers(weight).sum())]
    found = [name for names in gather_objects(unsound) for name in names] if has_shards(model) else unsound
    if found:
        raise RecipeError(f"{folder}: {found[0]} in its weights is not all finite numbers; take a sound copy")


def _list_head_weights(model: PreTrainedModel) -> set[str]:
    """Returns the names of the weights of a model's head."""
    head = model.get_output_embeddings()
    heads = [name for name, module in model.named_modules() if head is not None and module is head]
    return {f"{name}.{part}" for name in heads for part in ("weight", "bias")}


def _read_generation_config(folder: Path, model: PreTrainedModel) -> GenerationConfig:
    """Reads how a model is to generate, without what contradicts itself: transformers would not save that.

    Most often do_sample is not true beside a temperature, which nothing reads then. Trained models get the file of the
    source as it is (`copy_tokenizer_files`).
    """
    config = GenerationConfig.from_model_config(model.config)
    if (folder / "generation_config.json").exists():
        try:
            config = GenerationConfig.from_pretrained(str(folder))
        except ValueError:  # it contradicts itself so much that transformers does not load it
            config = GenerationConfig(eos_token_id=config.eos_token_id)
    if not _is_valid(config) and config.do_sample is not True:
        for name in _SAMPLING_ONLY:
            setattr(config, name, None)
    return config if _is_valid(config) else GenerationConfig(eos_token_id=config.eos_token_id)


def _is_valid(config: GenerationConfig) -> bool:
    """Returns whether transformers would save these generation settings."""
    try:
        config.validate(strict=True)
    except ValueError:
        return False
    return True


def write_model_json(source: Path, out: Path, adapters: list[str]) -> None:
    """Writes the model.json of a model that adds adapters to the source model.

    The adapters are folders in `out`.
    """
    files = locate_model_files(source)
    base = files.base if files.base.startswith("hub:") else _to_store_path(out, Path(files.base))
    said = read_model_description(source).get("precision") if (source / MODEL).exists() else None
    description = {"base": base, "adapters": [*(_to_store_path(out, a) for a in files.adapters), *adapters]}
    write_json(out / MODEL, description | ({"precision": said} if said else {}))


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
