"""Checks before anything is trained that a model folder can be loaded, and that its weights are those of its config.

A tensor that is not in the file would be made up at random by transformers, with a word in a log at most. Nothing here
imports torch.
"""

import importlib.metadata
import importlib.util
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from qwen_align.align.errors import RecipeError
from qwen_align.align.models.tensor_table import (
    EMBEDDINGS,
    HEADS,
    Head,
    Shape,
    list_fused_experts,
    list_tensors,
    ties_head,
)
from qwen_align.align.models.weight_headers import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    FLOATS,
    INDEX,
    StoredTensor,
    read_stored_tensors,
    refuse_lfs_pointers,
)

_SAMPLING_DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "top_k": 50, "min_p": None}  # transformers'
N_NAMED = 4  # kinds of tensors that a message names
_TRUNK_PREFIX = "model."
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
    stored = read_stored_tensors(folder)
    notes = list(_check_generation_config(folder))
    try:
        wanted = list_tensors(config, head)
    except (ValueError, TypeError) as error:
        raise RecipeError(f"{folder / 'config.json'}: {error}") from None
    if wanted is None:
        _refuse_quantised(folder, (name for name in stored if name.endswith(".weight")), stored)
        kind = config["model_type"]
        return [*notes, f"{folder}: names and shapes of a {kind} model's weights are not checked here; loading does"]
    return [*notes, *_compare_tensors(folder, config, wanted, stored, head)]


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


def _compare_tensors(
    folder: Path,
    config: Mapping[str, Any],
    wanted: Mapping[str, Shape],
    stored: Mapping[str, StoredTensor],
    head: Head | None,
) -> Iterator[str]:
    """Yields a note about tensors that are not read. Raises RecipeError for missing ones, other shapes and numbers."""
    found = {_add_trunk_prefix(name, wanted): tensor for name, tensor in stored.items()}
    asked = dict(wanted)
    for fused, (shape, stands_for) in list_fused_experts(config, wanted).items():
        if fused in found:
            asked[fused] = shape
            for name in stands_for:
                asked.pop(name, None)
    is_tied = head == "lm_head" and ties_head(config)
    if is_tied and HEADS["lm_head"] not in found:
        del asked[HEADS["lm_head"]]
    elif is_tied and EMBEDDINGS not in found:  # one of the two is enough, and transformers takes either
        del asked[EMBEDDINGS]
    missing = [name for name in asked if name not in found]
    extra = [name for name in found if name not in asked and name not in HEADS.values()]
    extra += [HEADS[other] for other in HEADS if head is not None and other != head and HEADS[other] in found]
    kind = config["model_type"]
    if missing:
        raise RecipeError(
            f"{folder}: its weights lack {len(missing):,} of the {len(asked):,} tensors of a {kind} model as "
            "config.json says it, which would be made up at random: "
            f"{_name_kinds(missing)}{_explain_missing(missing, extra)}"
        )
    _refuse_quantised(folder, asked, found)
    for name, shape in asked.items():
        if name == HEADS["score"] and found[name].shape[:1] != shape[:1]:
            raise RecipeError(f"{folder}: gives {found[name].shape[0]} numbers; a scorer gives one (num_labels: 1)")
        if found[name].shape != shape:
            raise RecipeError(
                f"{folder / found[name].file}: {name} has shape {list(found[name].shape)}, where config.json asks for "
                f"{list(shape)}; weights and config.json are of different models"
            )
    if extra:
        yield (
            f"{folder}: {_count_tensors(extra)} in its weights that are no part of a {kind} model as config.json says "
            f"it and are not read: {_name_kinds(extra)}"
        )


def _add_trunk_prefix(name: str, wanted: Mapping[str, Shape]) -> str:
    """Returns a tensor's name with the prefix of the trunk, which files of a trunk alone leave out."""
    longer = _TRUNK_PREFIX + name
    is_trunk = longer in wanted or (".mlp.experts." in name and name.startswith("layers."))
    return longer if name not in wanted and is_trunk else name


def _refuse_quantised(folder: Path, names: Iterable[str], stored: Mapping[str, StoredTensor]) -> None:
    """Raises RecipeError where one of the named tensors is not stored as plain floating-point numbers."""
    for name in names:
        if stored[name].dtype not in FLOATS:
            raise RecipeError(
                f"{folder / stored[name].file}: {name} is stored as {stored[name].dtype}: these weights are quantised, "
                "and training needs them as plain numbers; take the model in bf16, fp16 or fp32"
            )


def _explain_missing(missing: list[str], extra: list[str]) -> str:
    """Returns how the file calls the first missing tensor, as the end of an error message."""
    first = missing[0]
    near = [name for name in extra if name.endswith(f".{first}") or first.endswith(f".{name}")]
    if near:
        return f"; the file calls {first} {near[0]}: rename its tensors"
    if missing == [HEADS["lm_head"]]:
        return "; where the head is the embeddings, config.json has to say tie_word_embeddings: true"
    if missing == [HEADS["score"]]:
        return "; a reward model in Hugging Face form has a linear head of this name"
    return f"; the file has {_name_kinds(extra)} instead" if extra else "; download the model again"


def _count_tensors(names: list[str]) -> str:
    """Returns the number of tensors as text."""
    return f"{len(names):,} tensor{'s' if len(names) > 1 else ''}"


def _name_kinds(names: list[str]) -> str:
    """Returns tensor names as text, those of all layers and experts as one with their number."""
    kinds = Counter(re.sub(r"(?<=\.)\d+(?=\.)", "*", name) for name in names)
    named = [f"{kind} ({n:,})" if "*" in kind else kind for kind, n in kinds.most_common(N_NAMED)]
    return ", ".join(named) + (f" and {len(kinds) - N_NAMED} more kinds" if len(kinds) > N_NAMED else "")
