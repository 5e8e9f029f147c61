"""Builds the arguments of TRL, transformers and PEFT from our settings.

It is the one place that knows their names.
"""

from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from transformers.utils import is_torch_tf32_available
from trl import DPOConfig, GRPOConfig, RewardConfig, SFTConfig

from qwen_align.align.errors import RecipeError
from qwen_align.align.models.loading import FROM_PRETRAINED_ARGUMENTS, choose_device
from qwen_align.align.settings.dpo import Dpo
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.online_rl import OnlineRl
from qwen_align.align.settings.reward_model import RewardModel
from qwen_align.align.settings.runtime import Runtime, split_among_processes, split_into_micro_batches
from qwen_align.align.settings.sampling import Sampling
from qwen_align.align.settings.sft import Sft
from qwen_align.align.settings.training import Optimizer
from qwen_align.align.training.distributed import TIMEOUT, get_world_size
from qwen_align.align.training.preference_losses import PREFERENCE_LOSSES
from qwen_align.align.training.strategies import build_strategy_arguments

# Our names of the schedules, each of which follows the warm-up. transformers' own "constant" ignores `warmup_steps`.
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}

# transformers' names of the optimisers. Without one its own is taken, PyTorch's fused AdamW.
OPTIMIZERS = {
    "adamw": {},
    "adamw_8bit": {"optim": "adamw_bnb_8bit"},
    "paged_adamw": {"optim": "paged_adamw_32bit"},
    "paged_adamw_8bit": {"optim": "paged_adamw_8bit"},
}


def build_sft_arguments(settings: Sft, runtime: Runtime, out: Path, *, steps: int, seed: int) -> SFTConfig:
    """Builds the arguments of TRL's SFTTrainer."""
    return SFTConfig(
        **_build_common_arguments(settings, runtime, out, steps=steps, seed=seed),
        per_device_train_batch_size=split_among_processes(settings.batch, runtime),
        max_length=None,  # render has dropped what is too long
        train_sampling_strategy="sequential",
        router_aux_loss_coef=0.0,  # the load of experts is balanced by WholeSteps
    )


def build_dpo_arguments(settings: Dpo, runtime: Runtime, out: Path, *, steps: int, seed: int) -> DPOConfig:
    """Builds the arguments of TRL's DPOTrainer."""
    loss = PREFERENCE_LOSSES[settings.loss]
    return DPOConfig(
        **_build_common_arguments(settings, runtime, out, steps=steps, seed=seed),
        per_device_train_batch_size=split_among_processes(settings.batch, runtime),
        precompute_ref_batch_size=min(runtime.micro_batch, split_among_processes(settings.batch, runtime)),
        max_length=None,  # render has dropped what is too long
        beta=settings.beta,
        loss_type=[loss.trl_type or "sigmoid"],  # of a loss of our own TRL's type is not used
        label_smoothing=settings.label_smoothing,
        # Else TRL would load a reference by the model's name. With adapters it is the policy without them.
        precompute_ref_log_probs=not loss.needs_reference or not settings.lora,
        train_sampling_strategy="sequential",
        router_aux_loss_coef=0.0,
    )


def build_online_rl_arguments(
    settings: OnlineRl, runtime: Runtime, out: Path, *, seed: int, has_unused_parameters: bool
) -> TrainingArguments:
    """Builds the arguments of our own online RL trainer.

    It cuts its batches itself.
    """
    return TrainingArguments(
        **_build_common_arguments(settings, runtime, out, steps=settings.optimizer_steps, seed=seed),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        remove_unused_columns=False,
        ddp_find_unused_parameters=has_unused_parameters,  # a critic's warm-up leaves the policy's unused
    )


def build_grpo_arguments(settings: Grpo, sampling: Sampling, runtime: Runtime, out: Path, *, seed: int) -> GRPOConfig:
    """Builds the arguments of TRL's GRPOTrainer."""
    rows, accumulation = split_into_micro_batches(settings.prompts_per_step * settings.completions_per_prompt, runtime)
    loss = settings.loss_settings
    return GRPOConfig(
        **_build_common_arguments(settings, runtime, out, steps=settings.steps, seed=seed),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=accumulation,
        num_generations=settings.completions_per_prompt,
        max_completion_length=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p or None,
        loss_type="grpo" if settings.loss == "gspo" else settings.loss,
        importance_sampling_level="sequence" if settings.loss == "gspo" else "token",
        scale_rewards=loss.advantage_scale,
        epsilon=loss.clip_low,
        # TRL's bound for cispo is that of the ratio itself.
        epsilon_high=1 + loss.clip_high if settings.loss == "cispo" else loss.clip_high,
        beta=settings.kl.coefficient if settings.kl else 0.0,
        use_bias_correction_kl=settings.kl.importance_weighted if settings.kl else False,
        entropy_coef=settings.entropy.coefficient if settings.entropy else 0.0,
        mask_truncated_completions=settings.mask_truncated,
        remove_unused_columns=False,
        shuffle_dataset=False,
        disable_dropout=True,
        model_init_kwargs=FROM_PRETRAINED_ARGUMENTS,  # TRL loads the reference by the model's name
        router_aux_loss_coef=0.0,  # another is refused with trainer: trl
    )


def build_reward_model_arguments(
    settings: RewardModel, runtime: Runtime, out: Path, *, steps: int, seed: int
) -> RewardConfig:
    """Builds the arguments of TRL's RewardTrainer."""
    return RewardConfig(
        **_build_common_arguments(settings, runtime, out, steps=steps, seed=seed),
        per_device_train_batch_size=split_among_processes(settings.batch, runtime),
        max_length=None,  # render has dropped what is too long
        train_sampling_strategy="sequential",
        center_rewards_coefficient=settings.center_rewards_coefficient or None,
        disable_dropout=True,
    )


def _build_common_arguments(
    settings: Optimizer, runtime: Runtime, out: Path, *, steps: int, seed: int
) -> dict[str, Any]:
    """Builds the arguments that all trainers have in common."""
    on_cpu = choose_device(runtime).type == "cpu"
    return {
        **OPTIMIZERS[settings.optimizer],
        "tf32": _choose_tf32(settings, on_cpu=on_cpu),
        "output_dir": str(out / "checkpoints"),
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": SCHEDULES[settings.schedule],
        "warmup_steps": settings.warmup_steps,
        "weight_decay": settings.weight_decay,
        "adam_beta1": settings.betas[0],
        "adam_beta2": settings.betas[1],
        "max_grad_norm": settings.max_grad_norm,
        "bf16": settings.precision == "bf16",
        "use_cpu": on_cpu,
        "max_steps": steps,
        "seed": seed,
        "save_steps": runtime.checkpoint_every,
        "save_strategy": "steps",
        "gradient_checkpointing": runtime.gradient_checkpointing is True,
        **build_strategy_arguments(runtime, in_bf16=settings.precision == "bf16"),
        "ddp_backend": "gloo" if on_cpu and get_world_size() > 1 else None,
        "ddp_timeout": int(TIMEOUT.total_seconds()),
        "ddp_broadcast_buffers": False,  # rotary tables, which are alike in all processes
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,  # a mean over more would begin anew when a stage is resumed
        "logging_nan_inf_filter": False,  # a NaN loss must be seen
        "dataloader_pin_memory": not on_cpu,
    }


def _choose_tf32(settings: Optimizer, *, on_cpu: bool) -> bool | None:
    """Returns transformers' argument tf32: whether GPUs multiply fp32 matrices in TF32, or None on a CPU.

    transformers sets it for the whole process, so it holds for drawing and scoring too. Raises RecipeError for a GPU
    that has no TF32.
    """
    if on_cpu:
        return None
    if settings.tf32 and not is_torch_tf32_available():
        raise RecipeError("tf32: this GPU has no TF32, which came with Ampere; leave it out")
    return settings.tf32
