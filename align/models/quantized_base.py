"""Loads a frozen base in 4 bits for QLoRA (arXiv:2305.14314), and measures what the rounding to 4 bits changes.

The linear layers are held as nf4 with double quantisation, by bitsandbytes through transformers; embeddings, norms and
the head are held as they are. The adapters are trained on that base and merged into the full-precision one: merged in
4 bits they would be rounded away.
"""

import ctypes
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from qwen_align.align.errors import RecipeError
from qwen_align.align.models import loading
from qwen_align.align.models.model_description import locate_model_files
from qwen_align.align.models.router_settings import resolve_router_settings
from qwen_align.align.models.tensor_table import Head
from qwen_align.align.models.weight_precision import Precision, Trained
from qwen_align.align.models.weight_shards import build_shard_mesh
from qwen_align.align.models.zero3_shards import partition_with_zero3
from qwen_align.align.settings.runtime import Runtime
from qwen_align.align.training.expert_load import freeze_routers

# What transformers sets on a model that it has quantised; PEFT and TRL read them.
_MARKS = ("is_quantized", "quantization_method", "hf_quantizer", "is_loaded_in_4bit")


def load_for_training(folder: Path, settings: Trained, runtime: Runtime, *, needs_head: bool = True) -> PreTrainedModel:
    """Loads the model that a stage with resolved settings trains: as `loading.load_model_to_train`, or in 4 bits.

    Where processes shard the weights, each loads its shard. Of a mixture of experts the routers are frozen where the
    settings say so, which are refused where they do not fit the model.
    """
    device = loading.choose_device(runtime)
    routers = resolve_router_settings(settings, loading.read_model_config(folder), runtime)
    if settings.lora is None or settings.lora.base_weights != "nf4":
        mesh = build_shard_mesh(runtime, device)
        model = partition_with_zero3(loading.load_model_to_train(folder, settings, needs_head=needs_head, mesh=mesh))
        if routers and not routers.are_trained:
            freeze_routers(model)
        return model
    assert settings.precision != "auto"
    return load_quantized_model(folder, settings.precision, device, needs_head=needs_head)


def load_quantized_model(
    folder: Path, compute: Precision, device: torch.device, *, needs_head: bool = True
) -> PreTrainedModel:
    """Loads a model with its linear layers in 4 bits, on the given device, that computes in the given precision.

    Embeddings, norms and head are in the precision of the files, fp32 where the model computes in that. Of a base alone
    one layer at a time is in memory in full precision; a model with adapters is loaded whole on the CPU and merged
    first. Raises RecipeError where bitsandbytes is not installed, or as `loading.load_base_model` does.
    """
    files = locate_model_files(folder)
    held: Precision = "fp32" if compute == "fp32" else loading.find_precision(folder)
    arguments = _build_quantization_arguments(compute, device)
    if files.adapters:
        merged = loading.load_with_adapters(files, held, needs_head=needs_head)
        arguments |= {"config": merged.config, "generation_config": merged.generation_config}
        arguments |= {"dtype": loading.DTYPES[held], "state_dict": merged.state_dict()}
        model: Any = type(merged).from_pretrained(None, **arguments)
    else:
        head: Head | None = "lm_head" if needs_head else None
        model = loading.load_base_model(loading.fetch_base_folder(files), head, held, more=arguments)
    assert isinstance(model, PreTrainedModel)
    for layer in list_quantized_layers(model):
        if not torch.isfinite(layer.weight.quant_state.offset):
            raise RecipeError(f"{folder}: its weights are not all finite numbers; take a sound copy")
    disable_cpu_repacking(model)
    _return_freed_memory()
    return model


def mark_as_quantized(model: Any, causal: PreTrainedModel) -> None:
    """Sets on a model with the trunk of a 4-bit one what transformers set on that, and moves its head to its device."""
    if is_quantized(causal):
        model.score.to(causal.device)
        for name in _MARKS:
            setattr(model, name, getattr(causal, name))


def _build_quantization_arguments(compute: Precision, device: torch.device) -> dict[str, Any]:
    """Builds the arguments with which transformers quantises a model while it loads it."""
    from transformers import BitsAndBytesConfig

    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise RecipeError(f"lora.base_weights: nf4: bitsandbytes cannot be imported: {error}") from error
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=loading.DTYPES[compute],
    )
    return {"quantization_config": config, "device_map": {"": device}}


def list_quantized_layers(model: torch.nn.Module) -> list[Any]:
    """Returns the 4-bit linear layers of a model, in its order."""
    from bitsandbytes.nn import Linear4bit

    return [module for module in model.modules() if isinstance(module, Linear4bit)]


def disable_cpu_repacking(model: torch.nn.Module) -> None:
    """Keeps the 4-bit weights of a model in the one layout that gradients are computed from.

    bitsandbytes 0.50.2 repacks them in the first forward pass in evaluation mode on CPUs with AVX512-BF16, and its
    backward pass then reads the new layout as the old: gradients are wrong by 80 %, without a word. A copy of a layer
    keeps the flag.
    """
    for layer in list_quantized_layers(model):
        layer.support_avx512bf16_for_cpu = False


def _return_freed_memory() -> None:
    """Gives memory that the rounding needed back to the system, where the C library can: it is twice the 4-bit weights.

    Measured on Qwen3-0.6B's shape in bf16: 0.7 to 0.9 GiB of anonymous memory after loading, 0.2 GiB after this.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def is_quantized(model: Any) -> bool:
    """Returns whether a model, or the base below its adapters, is held in 4 bits."""
    base: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    return bool(getattr(base, "is_loaded_in_4bit", False))
