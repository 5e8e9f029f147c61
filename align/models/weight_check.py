"""Checks before anything is trained that a model folder can be loaded, and that its weights are those of its config.

A tensor that is not in the file would be made up at random by transformers, with a word in a log at most. Nothing here
imports torch.
"""

import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from qwen_align.align.errors import RecipeError
from qwen_align.align.models.rotary_scaling import check_rotary_scaling
from qwen_align.align.models.tensor_comparison import compare_tensors, refuse_quantised
from qwen_align.align.models.tensor_table import Head, list_tensors
from qwen_align.align.models.weight_headers import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    INDEX,
    read_stored_tensors,
    refuse_lfs_pointers,
)

_SAMPLING_DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "min_p": None}  # transformers'
_AUTO_CLASSES = {"lm_head": "CAUSAL_LM", "score": "SEQUENCE_CLASSIFICATION"}


def check_weights(folder: Path, head: Head | None = "lm_head") -> list[str]:
    """Checks a model folder's config and weights, and returns notes: what is not read, and what was not checked.

    `head`: the layer behind the trunk that is read from the file; None where the stage makes a new one. Raises
    RecipeError for a folder that holds an adapter only, that other code than transformers' would have to load, or
    whose weights are quantised, cut, missing, or of other shapes than the config says.
    """
    refuse_lfs_pointers(folder)
    refuse_adapter_alone(folder)
    config = read_model_config(folder)
    _refuse_unknown_type(folder, config, head)
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method", "unknown method") if isinstance(quantization, Mapping) else ""
        raise RecipeError(
            f"{folder / 'config.json'}: quantization_config: the weights are quantised ({method}), and training needs "
            "them as plain numbers; take the model in bf16, fp16 or fp32"
        )
    _refuse_odd_fields(folder, config)
    stored = read_stored_tensors(folder)
    notes = list(_check_generation_config(folder))
    try:
        notes += [f"{folder / 'config.json'}: {note}" for note in check_rotary_scaling(config)]
    except ValueError as error:
        raise RecipeError(f"{folder / 'config.json'}: {error}") from None
    try:
        wanted = list_tensors(config, head)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{folder / 'config.json'}: {error}") from None
    if wanted is None:
        refuse_quantised(folder, (name for name in stored if name.endswith(".weight")), stored)
        kind = config["model_type"]
        return [*notes, f"{folder}: names and shapes of a {kind} model's weights are not checked here; loading does"]
    return [*notes, *compare_tensors(folder, config, wanted, stored, head)]


def read_model_config(folder: Path) -> dict[str, Any]:
    """Returns the config.json of a model folder. Raises RecipeError where it is no JSON object or names no type."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from None
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise RecipeError(f"{path}: has no model_type, so nothing says what kind of model this is")
    return config


def refuse_adapter_alone(folder: Path) -> None:
    """Raises RecipeError when a folder holds an adapter without the model that it adapts."""
    has_weights = (
        any(path.name != ADAPTER_WEIGHTS for path in folder.glob("*.safetensors")) or (folder / INDEX).exists()
    )
    if (folder / ADAPTER_CONFIG).exists() and not has_weights:
        raise RecipeError(
            f"{folder}: holds an adapter ({ADAPTER_CONFIG}) and no model; its base is {_read_base_name(folder)}: name "
            "that, or merge the adapter into it first (peft: merge_and_unload, then save_pretrained)"
        )


def refuse_stray_adapter(folder: Path) -> None:
    """Raises RecipeError when an adapter lies beside a whole model: transformers would load it, silently."""
    if (folder / ADAPTER_CONFIG).exists():
        raise RecipeError(
            f"{folder}: an adapter ({ADAPTER_CONFIG}, of {_read_base_name(folder)}) lies beside the whole model; move "
            "it away, merge it into the model, or set `adapter: ignore` to take the model without it"
        )


def _read_base_name(folder: Path) -> str:
    """Returns the name of the base that an adapter's config gives, or `?`."""
    try:
        return str(json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        return "?"


def _refuse_unknown_type(folder: Path, config: Mapping[str, Any], head: Head | None) -> None:
    """Raises RecipeError for a type of model that the installed transformers has no class of."""
    known = read_known_types(_AUTO_CLASSES[head or "lm_head"])
    if known and config["model_type"] not in known:
        has_own_code = isinstance(config.get("auto_map"), Mapping)
        own_code = "; it brings code of its own (auto_map), which is not run here" if has_own_code else ""
        what = "sequence classifier" if head == "score" else "causal language model"
        raise RecipeError(
            f"{folder / 'config.json'}: transformers {importlib.metadata.version('transformers')} has no {what} of "
            f"type '{config['model_type']}'{own_code}; take a model of a type that it has, such as qwen3"
        )


@cache
def read_known_types(task: str) -> frozenset[str]:
    """Returns the model types for which the installed transformers has a class for the task.

    They are read from its source, because importing it takes seconds. Empty where the source is laid out otherwise:
    then loading says it.
    """
    spec = importlib.util.find_spec("transformers")
    source = Path(str(spec.origin)).parent / "models" / "auto" / "modeling_auto.py" if spec else Path()
    if not source.is_file():
        return frozenset()
    _, _, rest = source.read_text(encoding="utf-8").partition(f"\nMODEL_FOR_{task}_MAPPING_NAMES = OrderedDict(")
    table, _, _ = rest.partition("\n)\n")
    return frozenset(re.findall(r'^\s+\("([\w-]+)", ?"', table, flags=re.MULTILINE))


def _refuse_odd_fields(folder: Path, config: Mapping[str, Any]) -> None:
    """Raises RecipeError for fields of config.json with which transformers does not build the model."""
    n_layers, kinds = config.get("num_hidden_layers"), config.get("layer_types")
    if isinstance(kinds, list) and isinstance(n_layers, int) and len(kinds) != n_layers:
        raise RecipeError(
            f"{folder / 'config.json'}: layer_types names {len(kinds)} layers, num_hidden_layers is {n_layers}"
        )
    vocab_size, padding = config.get("vocab_size"), config.get("pad_token_id")
    if isinstance(vocab_size, int) and isinstance(padding, int) and not -vocab_size <= padding < vocab_size:
        raise RecipeError(
            f"{folder / 'config.json'}: pad_token_id {padding} has no embedding; there are {vocab_size} (vocab_size)"
        )


def _check_generation_config(folder: Path) -> Iterator[str]:
    """Yields a note where generation_config.json sets how to sample, and not to. Raises RecipeError for no JSON."""
    path = folder / "generation_config.json"
    if not path.exists():
        return
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(f"{path}: is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise RecipeError(f"{path}: is no JSON object")
    unused = [name for name, default in _SAMPLING_DEFAULTS.items() if config.get(name) not in (None, default)]
    if config.get("do_sample") is not True and unused:
        yield (
            f"{path}: sets {', '.join(unused)} without do_sample: true; trained models get the file as it is, and "
            "transformers' own save_pretrained refuses it: set do_sample: true, or take the others out"
        )
