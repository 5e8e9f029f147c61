"""Our settings as TRL's arguments: the one place that knows their names."""

from pathlib import Path
from typing import Any

from transformers import TrainingArguments
from trl import DPOConfig, GRPOConfig, RewardConfig, SFTConfig

from qwen_align.align.models.loading import device_of
from qwen_align.align.settings.dpo import Dpo
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.online_rl import OnlineRl
from qwen_align.align.settings.ppo import Ppo
from qwen_align.align.settings.reward_model import RewardModel
from qwen_align.align.settings.runtime import Runtime, split_into_micro_batches
from qwen_align.align.settings.sampling import Sampling
from qwen_align.align.settings.sft import Sft
from qwen_align.align.settings.training import Lora, Optimizer
from qwen_align.align.training.distributed import get_world_size


def sft(settings: Sft, runtime: Runtime, out: Path, *, steps: int, seed: int) -> SFTConfig:
    rows, accumulation = split_into_micro_batches(settings.batch, runtime)
    return SFTConfig(
        **_common(settings, runtime, out, steps=steps, seed=seed),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulation,
        max_length=None,  # render has dropped what is too long
        train_sampling_strategy="sequential",
    )


def dpo(settings: Dpo, runtime: Runtime, out: Path, *, steps: int, seed: int) -> DPOConfig:
    rows, accumulation = split_into_micro_batches(settings.batch, runtime)
    with_sft = settings.sft_weight > 0
    return DPOConfig(
        **_common(settings, runtime, out, steps=steps, seed=seed),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulation,
        max_length=None,  # render has dropped what is too long
        beta=settings.beta,
        loss_type=[settings.loss, "sft"] if with_sft else [settings.loss],
        loss_weights=[1.0, settings.sft_weight] if with_sft else None,
        label_smoothing=settings.label_smoothing,
        train_sampling_strategy="sequential",
    )


def online_rl(settings: OnlineRl, runtime: Runtime, out: Path, *, seed: int) -> TrainingArguments:
    """For our own loop, which cuts its batches itself."""
    return TrainingArguments(
        **_common(settings, runtime, out, steps=settings.optimizer_steps, seed=seed),
        per_device_train_batch_size=1,
        gradient_accumulation_steps=1,
        remove_unused_columns=False,
        # A critic's warm-up leaves the policy's parameters unused.
        ddp_find_unused_parameters=isinstance(settings, Ppo) and settings.critic.warmup_steps > 0,
    )


def grpo(settings: Grpo, sampling: Sampling, runtime: Runtime, out: Path, *, seed: int) -> GRPOConfig:
    rows, accumulation = split_into_micro_batches(settings.prompts_per_step * settings.completions_per_prompt, runtime)
    return GRPOConfig(
        **_common(settings, runtime, out, steps=settings.steps, seed=seed),
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
        scale_rewards=settings.advantage_scale,
        epsilon=settings.clip_low,
        # TRL's bound for cispo is that of the ratio itself.
        epsilon_high=1 + settings.clip_high if settings.loss == "cispo" else settings.clip_high,
        beta=settings.kl.coefficient if settings.kl else 0.0,
        use_bias_correction_kl=settings.kl.importance_weighted if settings.kl else False,
        entropy_coef=settings.entropy.coefficient if settings.entropy else 0.0,
        mask_truncated_completions=settings.mask_truncated,
        remove_unused_columns=False,
        shuffle_dataset=False,
        disable_dropout=True,
    )


def reward_model(settings: RewardModel, runtime: Runtime, out: Path, *, steps: int, seed: int) -> RewardConfig:
    rows, accumulation = split_into_micro_batches(settings.batch, runtime)
    return RewardConfig(
        **_common(settings, runtime, out, steps=steps, seed=seed),
        per_device_train_batch_size=rows,
        gradient_accumulation_steps=accumulation,
        max_length=None,  # render has dropped what is too long
        train_sampling_strategy="sequential",
        center_rewards_coefficient=settings.center_rewards_coefficient or None,
        disable_dropout=True,
    )


def lora(settings: Lora | None, *, head: str | None = None) -> Any:
    """peft's settings; `head` names a new head that is trained whole beside the adapters."""
    if settings is None:
        return None
    from peft import LoraConfig

    return LoraConfig(
        task_type="SEQ_CLS" if head else "CAUSAL_LM",
        modules_to_save=[head] if head else None,
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
    )


def _common(settings: Optimizer, runtime: Runtime, out: Path, *, steps: int, seed: int) -> dict[str, Any]:
    on_cpu = device_of(runtime).type == "cpu"
    return {
        "output_dir": str(out / "checkpoints"),
        "learning_rate": settings.learning_rate,
        "lr_scheduler_type": settings.schedule,
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
        "gradient_checkpointing": runtime.gradient_checkpointing,
        "deepspeed": runtime.deepspeed,
        "ddp_backend": "gloo" if on_cpu and get_world_size() > 1 else None,
        "ddp_broadcast_buffers": False,  # rotary tables, which are alike in all processes
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,  # a mean over more would begin anew when a stage is resumed
        "logging_nan_inf_filter": False,  # a loss that is no number must be seen
        "dataloader_pin_memory": not on_cpu,
    }
