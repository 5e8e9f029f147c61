"""Refuses models whose logits are more than their head's output where log-probs are computed from the head alone."""

import torch
from transformers import PreTrainedModel

from qwen_align.align.errors import RecipeError
from qwen_align.align.models.logit_scales import find_logit_scale
from qwen_align.align.models.tensor_table import ARCHITECTURES

TOLERANCE_POWER = 0.5  # of the precision: rounding is some units of it, a scale or cap changes logits by their size


@torch.no_grad()
def require_plain_head(model: PreTrainedModel) -> None:
    """Raises RecipeError for a model whose logits are not its head's output.

    Its tokens would be drawn from other probabilities than those that are trained. An architecture without a table is
    tried with a few tokens.
    """
    config = model.config.get_text_config()
    scale = find_logit_scale(config.to_dict())
    is_plain = scale is None
    if is_plain and config.model_type not in ARCHITECTURES:
        was_training = model.training
        model.eval()
        ids = torch.arange(1, 9, device=model.device).mul(17).remainder(config.vocab_size)[None]
        try:
            logits = model(input_ids=ids, use_cache=False).logits
            states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
            heads_own = model.get_output_embeddings()(states)
        finally:
            model.train(was_training)
        tolerance = torch.finfo(logits.dtype).eps ** TOLERANCE_POWER * logits.abs().max()
        is_plain = bool((logits - heads_own).abs().max() <= tolerance)
    if not is_plain:
        what = scale or "they are not its head's output"
        raise RecipeError(f"online RL does not know this model's logits ({config.model_type}, {what})")
