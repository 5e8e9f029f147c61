"""Decides in which precision a stage computes, holds its weights and hands them on. Nothing here imports torch.

What `auto` means comes of the model's files alone, never of the machine: the same recipe computes the same everywhere.
"""

from collections import Counter
from math import prod
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

from qwen_align.align.errors import RecipeError
from qwen_align.align.models.model_description import MODEL, locate_model_files, read_model_description
from qwen_align.align.models.tensor_table import HEADS
from qwen_align.align.models.weight_headers import FLOATS, read_stored_tensors
from qwen_align.align.settings.training import Optimizer

Precision = Literal["fp32", "bf16"]
Trained = TypeVar("Trained", bound=Optimizer)

# Below it a full stage's update is mostly smaller than half a step of bf16, see docs/real_models.md.
LEAST_RATE_FOR_BF16 = 1e-5


class StoredPrecision(NamedTuple):
    """The precision that a model's files ask for, and a note where that is not simply theirs."""

    precision: Precision
    note: str | None = None


def read_precision(folder: Path, base: Path | None = None) -> StoredPrecision:
    """Returns the precision of a stage's folder or a model folder. `base`: where the weights of a hub model lie.

    bf16 is bf16 and fp32 fp32. fp16 counts as fp32, which holds it exactly; of a mixture the greater part decides.
    Adapters, which are fp32, do not count: what they are trained on does. A stage that hands on fp32 weights of a model
    that is computed with in bf16 says so in its model.json.
    """
    if (folder / MODEL).exists():
        said = read_model_description(folder).get("precision")
        if said in ("fp32", "bf16"):
            return StoredPrecision(said)
    return read_files_precision(base or Path(locate_model_files(folder).base))


def read_files_precision(base: Path) -> StoredPrecision:
    """Returns the precision of the weights in a model folder's files, from their headers.

    The head of a scorer does not count: it is fp32 on any trunk.
    """
    counts: Counter[str] = Counter()
    for name, tensor in read_stored_tensors(base).items():
        if tensor.dtype in FLOATS and name != HEADS["score"]:
            counts[tensor.dtype] += prod(tensor.shape)
    precision: Precision = "bf16" if counts["BF16"] * 2 > counts.total() else "fp32"
    if set(counts) <= {"BF16"} or set(counts) <= {"F32"}:
        return StoredPrecision(precision)
    parts = " and ".join(f"{counts[kind]:,} in {kind}" for kind, _ in counts.most_common())
    return StoredPrecision(precision, f"{base}: its numbers are stored as {parts}; precision auto is {precision} here")


def resolve_precision(settings: Trained, stored: Precision) -> Trained:
    """Returns the settings of a stage that trains with no `auto` left in what is said of precisions.

    `stored` is the precision of the model that it starts from. Raises RecipeError for settings that contradict each
    other.
    """
    precision: Precision = stored if settings.precision == "auto" else settings.precision
    lora = settings.lora
    if lora is None:
        saved = _choose_saved_precision(settings, precision, stored)
        return settings.model_copy(update={"precision": precision, "save_weights": saved})
    if settings.save_weights != "auto":
        raise RecipeError(
            f"save_weights: {settings.save_weights}: adapters are handed on as they are trained, in fp32; leave it out"
        )
    base_weights = lora.base_weights
    if base_weights == "auto":
        base_weights = "bf16" if precision == "bf16" and stored == "bf16" else "fp32"
    if base_weights == "bf16" and precision == "fp32":
        why = "" if settings.precision == "fp32" else " (auto: the model's files are)"
        raise RecipeError(
            f"lora.base_weights: bf16, but precision is fp32{why}: a base in bf16 computes in bf16; say precision: bf16"
        )
    lora = lora.model_copy(update={"base_weights": base_weights})
    return settings.model_copy(update={"precision": precision, "lora": lora})


def _choose_saved_precision(settings: Optimizer, precision: Precision, stored: Precision) -> Precision:
    """Returns the precision in which a model that was trained in full is handed on.

    By itself that is bf16 where files and computation are, unless the learning rate is so low that rounding would lose
    most of the update.
    """
    if settings.save_weights != "auto":
        return settings.save_weights
    is_bf16 = stored == precision == "bf16" and settings.learning_rate >= LEAST_RATE_FOR_BF16
    return "bf16" if is_bf16 else "fp32"


def find_handed_on_precision(resolved: Optimizer, stored: Precision) -> Precision:
    """Returns the precision that `auto` means for the model that a stage makes.

    `resolved` has no `auto` left, `stored` is the precision of the model it starts from. A model of bf16 files that was
    trained in bf16 stays one, also where its weights are handed on in fp32.
    """
    if resolved.lora is not None or stored == resolved.precision:
        return stored
    return "bf16" if resolved.save_weights == "bf16" else "fp32"


def describe_precision(settings: Optimizer, stored: Precision) -> str | None:
    """Returns how a stage whose model is stored in bf16 computes and hands on, as text. Returns None for plain fp32."""
    resolved = resolve_precision(settings, stored)
    if resolved.precision == "fp32" and stored == "fp32" and resolved.save_weights in ("auto", "fp32"):
        return None
    if resolved.lora:
        return f"computed in {resolved.precision}; the base is held in {resolved.lora.base_weights}, adapters in fp32"
    line = f"computed in {resolved.precision} over fp32 weights, handed on in {resolved.save_weights}"
    is_too_low = settings.save_weights == "auto" and stored == resolved.precision and resolved.save_weights == "fp32"
    if is_too_low:
        line += f": at a learning rate of {settings.learning_rate:g} bf16 would lose most of the update (save_weights)"
    return line
