"""Wraps the functions of TRL that we use besides its trainers.

Contract tests fail when a new version moves them.
"""

from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from trl.kernels.chunked_logprob import ChunkedLogProbFunction
from trl.trainer.utils import maybe_gather_lm_head_ctx

from qwen_align.align.errors import RecipeError
from qwen_align.align.settings.online_rl import VLLM_NOT_INSTALLED, Vllm

MAX_TILE_COLUMNS = 32_768  # of the vocabulary in one tile, as TRL's fused head has it


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


def gather_head(weight: Tensor, bias: Tensor | None) -> AbstractContextManager[Any]:
    """Returns a context manager in which a head that DeepSpeed has spread over devices is whole."""
    return maybe_gather_lm_head_ctx(weight, bias)  # type: ignore[no-any-return]


def score_tokens_in_kernel(
    hidden: Tensor, head: nn.Linear, tokens: Tensor, temperature: float, outputs: tuple[str, ...]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Computes scores of each of N tokens from hidden states (N, H) by TRL's Triton kernel.

    They are the log-prob and what of "entropy", "mean_logits" and "is_top1" is in `outputs`, in this order.
    """
    weight, width = head.weight, min(MAX_TILE_COLUMNS, head.weight.shape[0])
    logps, entropies, _, mean_logits, is_top1 = ChunkedLogProbFunction.apply(
        hidden, weight, head.bias, tokens, temperature, width, None, 1.0, outputs
    )
    return logps, entropies, mean_logits, is_top1
