"""Compares the tensors of a model's files with those that its config.json asks for. Nothing here imports torch."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from qwen_align.align.errors import RecipeError
from qwen_align.align.models.tensor_table import EMBEDDINGS, HEADS, Head, Shape, list_fused_experts, ties_head
from qwen_align.align.models.weight_headers import FLOATS, StoredTensor, differ_in_samples

N_NAMED = 4  # kinds of tensors that a message names
_TRUNK_PREFIX = "model."


def compare_tensors(
    folder: Path,
    config: Mapping[str, Any],
    wanted: Mapping[str, Shape],
    stored: Mapping[str, StoredTensor],
    head: Head | None,
) -> Iterator[str]:
    """Yields a note about tensors that are not read. Raises RecipeError for missing ones, other shapes and numbers."""
    found = _name_as_wanted(folder, stored, wanted)
    asked = _choose_forms(folder, config, wanted, found)
    if head == "lm_head" and ties_head(config):
        _settle_tied_head(folder, asked, found)
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
    refuse_quantised(folder, asked, found)
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


def _name_as_wanted(
    folder: Path, stored: Mapping[str, StoredTensor], wanted: Mapping[str, Shape]
) -> dict[str, StoredTensor]:
    """Returns the stored tensors by the names of the wanted ones. Raises RecipeError where two have one name."""
    found: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        full_name = _add_trunk_prefix(name, wanted)
        if full_name in found:
            raise _build_twice_error(folder, full_name, full_name.removeprefix(_TRUNK_PREFIX))
        found[full_name] = tensor
    return found


def _choose_forms(
    folder: Path, config: Mapping[str, Any], wanted: Mapping[str, Shape], found: Mapping[str, StoredTensor]
) -> dict[str, Shape]:
    """Returns the wanted tensors in the form in which a mixture's experts are stored: one each, or one of a layer.

    Raises RecipeError where they are stored in both.
    """
    asked = dict(wanted)
    for fused, (shape, stands_for) in list_fused_experts(config, wanted).items():
        if fused not in found:
            continue
        if single := next((name for name in stands_for if name in found), None):
            raise _build_twice_error(folder, fused, single)
        asked[fused] = shape
        for name in stands_for:
            asked.pop(name, None)
    return asked


def _settle_tied_head(folder: Path, asked: dict[str, Shape], found: Mapping[str, StoredTensor]) -> None:
    """Takes one of head and embeddings out of the wanted tensors where the file has only the other.

    Raises RecipeError where it has both and they are not the same.
    """
    head = HEADS["lm_head"]
    if head not in found:
        del asked[head]
    elif EMBEDDINGS not in found:  # one of the two is enough, and transformers takes either
        del asked[EMBEDDINGS]
    elif differ_in_samples(folder, found[head], found[EMBEDDINGS]):
        raise build_tied_error(folder)


def build_tied_error(folder: Path) -> RecipeError:
    """Builds the error for a model whose head should be its embeddings and is not."""
    return RecipeError(
        f"{folder}: config.json says that the head is the embeddings (tie_word_embeddings), but the weights have "
        f"another head ({HEADS['lm_head']}); programs read one model or the other: set tie_word_embeddings: "
        "false, or take the head out of the weights"
    )


def _build_twice_error(folder: Path, name: str, other: str) -> RecipeError:
    """Builds the error for weights that are in a model's files twice."""
    return RecipeError(
        f"{folder}: its weights have {name} twice, also as {other}, and only one can be meant; save the model again "
        "from the program that made it"
    )


def _add_trunk_prefix(name: str, wanted: Mapping[str, Shape]) -> str:
    """Returns a tensor's name with the prefix of the trunk, which files of a trunk alone leave out."""
    longer = _TRUNK_PREFIX + name
    is_trunk = longer in wanted or (".mlp.experts." in name and name.startswith("layers."))
    return longer if name not in wanted and is_trunk else name


def refuse_quantised(folder: Path, names: Iterable[str], stored: Mapping[str, StoredTensor]) -> None:
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
