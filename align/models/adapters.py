"""Loads, merges and labels LoRA adapters.

An adapter that was trained on top of others is none of its base alone: its config has another name
(`stacked_adapter_config.json`), so that PEFT refuses it instead of giving another model without a word.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PreTrainedModel

from qwen_align.align.errors import StageError
from qwen_align.align.models.bf16_weights import round_to_bf16
from qwen_align.align.models.model_description import ModelFiles, parse_hub_model
from qwen_align.align.models.weight_headers import ADAPTER_CONFIG
from qwen_align.align.models.weight_shards import gather_in_forward, gather_layer, hide_shards
from qwen_align.align.store.files import read_json, write_json, write_text

STACKED_CONFIG = "stacked_adapter_config.json"

# A merge rounds the weights anew: logits of scale s then differ by some hundred roundings of s. The square root of the
# precision is 2,900 of them in fp32 (3.5e-4 of the scale) and 11 in bf16. Measured after sound stages, in fp32:
# SmolLM2-135M 3e-5 of its scale of 36.
_TOLERANCE_POWER = 0.5

# Rows and tokens that are read before and after a merge. Rounding sends a token of a mixture to another expert now and
# then, which changes its logits by their size, and those of the tokens behind it: of a mixture's rows half may differ.
# A wrong merge changes all.
_PROBE = (8, 8)


def load_adapter(model: PreTrainedModel, folder: Path) -> Any:
    """Puts an adapter of a stage's folder on a model and returns the PEFT model, in evaluation mode.

    Raises StageError when the folder lacks weights of the adapter, which PEFT would make up.
    """
    from peft import PeftConfig, get_peft_model

    name = STACKED_CONFIG if (folder / STACKED_CONFIG).exists() else ADAPTER_CONFIG
    config = PeftConfig.from_peft_type(**PeftConfig.from_json_file(str(folder / name)))
    config.inference_mode = True
    with hide_shards(model):  # DoRA starts with norms of the weights, and then has those of its file
        adapted = get_peft_model(model, config)
    missing = adapted.load_adapter(str(folder), "default").missing_keys
    if missing:
        raise StageError(f"{folder}: its weights lack {len(missing):,} of the adapter's tensors, such as {missing[0]}")
    return adapted.eval()


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Merges an adapter into a model.

    Raises StageError when that changes the logits.
    """
    adapted = load_adapter(model, folder)
    probe = torch.arange(64).remainder(model.config.get_text_config().vocab_size).view(_PROBE)
    is_mixture = any(".experts." in name for name, _ in model.named_parameters())
    # Weights that are made in inference mode could never be trained.
    with torch.no_grad(), gather_in_forward(model, needs_whole=(BaseTunerLayer,)):
        expected = adapted(input_ids=probe).logits
        merged = merge_and_unload(adapted)
        actual = merged(input_ids=probe).logits
    require_equal_logits(actual, expected, f"{folder}: the merged model", is_mixture=is_mixture)
    assert isinstance(merged, PreTrainedModel)
    return merged


def merge_and_unload(adapted: Any) -> Any:
    """Merges a PEFT model's adapter into its weights and returns the model below.

    Into bf16 weights it is merged in fp32, one layer at a time, and the sum is rounded stochastically: rounded to the
    nearest, an update smaller than half a step of bf16 would be lost as a whole (12 % of it survived a learning rate of
    1e-5 in the tiny base, docs/real_models.md).
    """
    for name, module in adapted.named_modules():
        if isinstance(module, BaseTunerLayer):
            with gather_layer(module, changes=True):
                merge_layer(module, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that layers are merged already
        return adapted.merge_and_unload()


def merge_layer(module: Any, name: str, adapters: list[str] | None = None) -> None:
    """Merges adapters of one layer of a PEFT model, by default those that are active.

    `name`: what the rounding of bf16 weights is drawn from.
    """
    weight = getattr(module.get_base_layer(), getattr(module, "parameter_name", "weight"))
    is_bf16 = weight.dtype == torch.bfloat16
    if is_bf16:
        weight.data = weight.data.float()
    module.merge(adapter_names=adapters)
    if is_bf16:
        weight.data = round_to_bf16(weight.data, name)


def require_equal_logits(actual: torch.Tensor, expected: torch.Tensor, what: str, *, is_mixture: bool = False) -> None:
    """Checks that logits (rows, T, V) differ by rounding only, in relation to their scale and precision.

    Of a mixture of experts half of the rows may differ. Raises StageError otherwise.
    """
    scale = expected.abs().max().item()
    tolerance = torch.finfo(expected.dtype).eps ** _TOLERANCE_POWER
    of_rows = (actual - expected).abs().flatten(start_dim=1).amax(dim=1)
    is_sound = bool(of_rows.isfinite().all())  # a median would pass over NaN
    largest_difference = (of_rows.median() if is_mixture and is_sound else of_rows.max()).item()
    if not largest_difference <= tolerance * scale:
        raise StageError(
            f"{what}'s logits are up to {largest_difference:.2g} from the adapter's, at a scale of {scale:.2g} "
            f"({tolerance:.2g} of the scale is rounding); it cannot be merged"
        )


def label_adapter(folder: Path, below: ModelFiles, *, in_4_bits: bool = False) -> None:
    """Makes an adapter's config and README say what it was trained on: a base, and the adapters merged into that.

    `in_4_bits`: that model was held in 4 bits, and the adapter is to be merged into it in full precision.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    if below.base.startswith("hub:"):
        hub = parse_hub_model(below.base)
        config |= {"base_model_name_or_path": hub.name, "revision": hub.revision}
        base = f"`{hub.name}` at commit `{hub.revision}`"
        if hub.yarn:
            original = hub.yarn.original_positions or "its max_position_embeddings"
            base += f" with YaRN in its config.json (factor {hub.yarn.factor:g}, original positions: {original})"
    else:
        config |= {"base_model_name_or_path": str(Path(below.base).resolve()), "revision": None}
        base = "the model in the folder that `base_model_name_or_path` names"
    if below.adapters:
        (folder / ADAPTER_CONFIG).unlink()
    name = STACKED_CONFIG if below.adapters else ADAPTER_CONFIG
    write_json(folder / name, config)
    write_text(folder / "README.md", _describe_adapter(config, base, len(below.adapters), in_4_bits=in_4_bits))


def _describe_adapter(config: dict[str, Any], base: str, n_below: int, *, in_4_bits: bool) -> str:
    """Returns the README of an adapter's folder."""
    scale = ", scaled by alpha / sqrt(rank) (rsLoRA)" if config.get("use_rslora") else ""
    lines = [
        "# DoRA adapter" if config.get("use_dora") else "# LoRA adapter",
        "",
        f"Rank {config['r']}, alpha {config['lora_alpha']:g}{scale}. Its base is {base}.",
        "",
    ]
    if in_4_bits:
        lines += [
            "It was trained on that model in 4 bits (nf4, QLoRA). Merge it into the full-precision one: merged in 4 "
            "bits it would be rounded away. How far the two models are apart is in the summary of `manifest.json`, in "
            "the folder above.",
            "",
        ]
    if n_below:
        others = "another adapter" if n_below == 1 else f"{n_below} other adapters"
        lines += [
            f"It was trained on top of {others}, merged into that base first, in the order of `model.json` in the "
            "folder above. On the base alone it would give another model, which is why its config is called "
            f"`{STACKED_CONFIG}`: PEFT does not load it.",
            "",
        ]
    else:
        lines += ["PEFT loads it as any other: `PeftModel.from_pretrained(base_model, FOLDER)`.", ""]
    lines += [
        "`qwen_align.load_model(FOLDER)` with the folder above this one gives the model with everything merged, and "
        "its tokenizer; `save_pretrained` writes it as one model.",
        "",
    ]
    return "\n".join(lines)
