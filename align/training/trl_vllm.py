"""Opens TRL's bridge to vLLM, which contract tests hold to what is used of it."""

from typing import Any

from qwen_align.align.errors import RecipeError
from qwen_align.align.settings.online_rl import VLLM_NOT_INSTALLED, Vllm


def open_vllm_generation(model: Any, accelerator: Any, tokenizer: Any, settings: Vllm, *, max_tokens: int) -> Any:
    """Opens TRL's vLLM generation for a model.

    Raises RecipeError where vLLM is not installed.
    """
    from trl.generation.vllm_generation import VLLMGeneration
    from trl.import_utils import is_vllm_available

    if not is_vllm_available():
        raise RecipeError(VLLM_NOT_INSTALLED)
    return VLLMGeneration(
        model=model,
        accelerator=accelerator,
        processing_class=tokenizer,
        mode=settings.mode,
        server_base_url=settings.base_url,
        server_timeout=settings.server_timeout_s,
        group_port=settings.group_port,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        max_model_length=max_tokens,
        enable_sleep_mode=settings.enable_sleep_mode,
        logprobs=0,  # of the token drawn alone
    )
