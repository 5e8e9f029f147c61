"""Names that settings have in other toolkits, with what they are called here or how to get their effect.

The toolkits are TRL and transformers, PEFT, LLaMA-Factory, OpenRLHF and verl.
"""

from collections.abc import Collection, Iterator

_MODEL_NAMES = (
    "model_name_or_path",
    "pretrained_model_name_or_path",
    "model_name",
    "model_id",
    "model_path",
    "model",
    "repo_id",
    "repo",
)
_FILE_NAMES = ("train_file", "data_path", "dataset_path", "data_files", "file_name", "dataset_dir")
_DATASET_NAMES = ("dataset_name", "train_dataset", "dataset", "dataset_id", "datasets", "prompt_data")
# Settings here, as a stage has them (the first that fits the place is said) -> {their names elsewhere: what to know}.
_SAME_SETTING: dict[tuple[str, ...], dict[str, str]] = {
    ("batch", "prompts_per_step"): dict.fromkeys(
        ("batch_size", "train_batch_size", "global_batch_size", "rollout_batch_size", "total_batch_size"),
        "over all devices",
    )
    | {
        "per_device_train_batch_size": "over all devices and accumulation steps; runtime.micro_batch is "
        "that of a device; in RL a step has prompts_per_step x completions_per_prompt completions",
        "generation_batch_size": "the completions of a step are prompts_per_step x completions_per_prompt",
    },
    ("runtime.micro_batch",): dict.fromkeys(
        (
            "micro_batch_size",
            "micro_train_batch_size",
            "train_micro_batch_size_per_gpu",
            "ppo_micro_batch_size_per_gpu",
        ),
        "",
    ),
    ("runtime.generation_batch",): {
        "per_device_eval_batch_size": "",
        "eval_batch_size": "",
        "max_num_seqs": "",
        "vllm_max_num_seqs": "",
    },
    ("epochs",): dict.fromkeys(("num_train_epochs", "num_epochs", "n_epochs", "total_epochs", "max_epochs"), ""),
    ("steps",): {
        "max_steps": "sft, dpo and reward_model have `epochs` instead; `check` says how many steps they are",
        "total_episodes": "in steps of prompts_per_step x completions_per_prompt completions",
        "num_episodes": "in steps of prompts_per_step x completions_per_prompt completions",
        "total_training_steps": "",
    },
    ("sampling.max_tokens", "max_tokens"): dict.fromkeys(
        ("max_completion_length", "max_new_tokens", "response_length", "generate_max_len", "max_response_length"), ""
    ),
    ("max_tokens", "sampling.max_tokens"): dict.fromkeys(
        ("max_seq_length", "max_length", "max_seq_len", "model_max_length", "cutoff_len", "seq_length", "max_len"),
        "longer rows are dropped and counted, never cut",
    ),
    ("completions_per_prompt",): dict.fromkeys(
        ("num_generations", "num_return_sequences", "n_samples_per_prompt", "group_size", "rollout_n"), ""
    ),
    ("updates.epochs",): dict.fromkeys(("num_iterations", "num_ppo_epochs", "ppo_epochs"), ""),
    ("updates.minibatches",): {
        "num_mini_batches": "",
        "steps_per_generation": "optimiser steps on the completions of a step",
        "ppo_mini_batch_size": "a number of minibatches, not their size",
    },
    ("learning_rate",): {"lr": "", "actor_learning_rate": "", "peak_lr": ""},
    ("critic.learning_rate",): {"critic_learning_rate": "", "critic_lr": ""},
    ("schedule",): {"lr_scheduler_type": "", "lr_scheduler": "", "scheduler": ""},
    ("warmup_steps",): {
        "warmup_ratio": "in steps: the ratio times the steps that `check` says",
        "lr_warmup_ratio": "in steps: the ratio times the steps that `check` says",
        "num_warmup_steps": "",
        "lr_warmup_steps": "",
    },
    ("betas",): {"adam_beta1": "a list, [beta1, beta2]", "adam_beta2": "a list, [beta1, beta2]"},
    ("max_grad_norm",): dict.fromkeys(("clip_grad_norm", "gradient_clipping", "grad_clip", "gradient_clip_val"), ""),
    ("precision",): {
        "bf16": "`precision: bf16`",
        "mixed_precision": "fp32 or bf16",
        "torch_dtype": "fp32 or bf16; weights are kept in fp32",
        "dtype": "fp32 or bf16; weights are kept in fp32",
        "fp16": "fp32 or bf16; there is no fp16",
    },
    ("seed",): {"data_seed": "one seed for all random numbers of a stage"},
    ("experts.load_balancing",): dict.fromkeys(
        ("router_aux_loss_coef", "moe_aux_loss_coef", "aux_loss_coef"), "over a whole optimiser step"
    ),
    ("lora.rank",): {"r": "", "lora_r": "", "lora_rank": ""},
    ("lora.alpha",): {"lora_alpha": ""},
    ("lora.dropout",): {"lora_dropout": ""},
    ("lora.target_modules",): {"lora_target": "", "lora_target_modules": "", "target_module": ""},
    ("lora",): {
        "peft_config": "{rank: ..., alpha: ...}",
        "use_peft": "{rank: ..., alpha: ...}",
        "use_lora": "{rank: ..., alpha: ...}",
        "finetuning_type": "{rank: ..., alpha: ...}; left out, all weights are trained",
    },
    ("hub",): dict.fromkeys(_MODEL_NAMES, ""),
    ("from_model",): dict.fromkeys(
        _MODEL_NAMES,
        "a stage names an entry of models: {base: {hub: OWNER/NAME, revision: main}}, or {base: {path: FOLDER}}",
    ),
    ("path",): dict.fromkeys(_FILE_NAMES, ""),
    ("dataset",): dict.fromkeys(_DATASET_NAMES, ""),
    ("from_data",): dict.fromkeys(
        _FILE_NAMES,
        "a stage of kind build_data reads the file (builder: {kind: local_file, path: ...}), and the stages that train "
        "name it in from_data",
    )
    | dict.fromkeys(
        _DATASET_NAMES,
        "a stage of kind build_data reads it (builder: {kind: hub, dataset: OWNER/NAME, revision: main} or {kind: "
        "local_file, path: ...}), and the stages that train name that stage in from_data",
    ),
    ("builder.name", "name"): {"dataset_config": "", "dataset_config_name": "", "subset": ""},
    ("builder.split", "split"): {"dataset_split": "", "dataset_train_split": ""},
    ("builder.columns", "columns"): dict.fromkeys(
        ("dataset_text_field", "column_mapping", "prompt_column", "input_key", "text_column"),
        "{prompt: COLUMN, answer: COLUMN}",
    ),
    ("limit",): {"max_samples": "of a stage of kind build_data", "num_samples": "of a stage of kind build_data"},
    ("runtime.checkpoint_every",): {"save_steps": "", "save_interval": "", "save_freq": ""},
    ("runtime.gradient_checkpointing",): {
        "use_gradient_checkpointing": "",
        "gradient_checkpointing_kwargs": "true or false",
        "activation_checkpointing": "",
    },
    ("runtime.processes",): dict.fromkeys(
        ("nproc_per_node", "num_processes", "num_gpus", "n_gpus", "n_gpus_per_node", "world_size"), ""
    ),
    ("runtime.nodes",): dict.fromkeys(("nnodes", "num_nodes", "num_machines", "n_nodes"), ""),
    ("runtime.device",): {"device_map": "auto, cpu or cuda", "use_cpu": "`device: cpu`", "no_cuda": "`device: cpu`"},
    ("runtime.deepspeed",): {"deepspeed_config": "", "ds_config": ""},
    ("runtime.strategy",): {
        "zero_stage": "`zero1`, `zero2` or `zero3`",
        "fsdp": "`fsdp2`",
        "fsdp_config": "`fsdp2`",
        "distributed_strategy": "",
    },
    ("runtime.offload",): {"offload_optimizer": "`optimizer`", "offload_param": "`parameters`", "cpu_offload": ""},
    ("beta", "kl.coefficient"): {"pref_beta": "", "dpo_beta": ""},
    ("kl.coefficient",): dict.fromkeys(
        ("beta", "init_kl_coef", "kl_coef", "kl_coeff", "kl_loss_coef", "init_kl_coeff"), "without kl: no penalty"
    ),
    ("kl.target",): {"target_kl": "", "kl_target": ""},
    ("kl.horizon",): {"kl_horizon": ""},
    ("kl.estimator",): {"kl_estimator": "", "kl_penalty": "", "kl_loss_type": ""},
    ("kl.reference_sync_steps",): {"ref_model_sync_steps": "", "sync_ref_model": "in steps"},
    ("entropy.coefficient",): dict.fromkeys(("entropy_coef", "entropy_coeff", "ent_coef", "entropy_loss_coef"), ""),
    ("clip_low",): dict.fromkeys(
        ("epsilon", "cliprange", "clip_range", "clip_ratio", "eps_clip", "clip_ratio_low", "epsilon_low"),
        "and clip_high above 1",
    ),
    ("clip_high",): {"epsilon_high": "", "eps_clip_high": "", "clip_ratio_high": ""},
    ("critic.clip",): {"cliprange_value": "", "value_clip": "", "clip_range_vf": ""},
    ("critic.loss_weight",): {"vf_coef": "", "value_loss_coef": ""},
    ("gae_lambda",): {"lam": "", "lambd": "", "gae_lam": ""},
    ("whiten_advantages",): {"normalize_advantage": "", "advantage_normalization": ""},
    ("normalise_rewards",): {"whiten_rewards": "running_mean_std", "normalize_reward": "running_mean_std"},
    ("advantage_scale",): {"scale_rewards": "group, batch or none", "norm_adv_by_std_in_grpo": "group or none"},
    ("advantage",): {"advantage_estimator": "", "adv_estimator": ""},
    ("loss",): {"loss_type": "", "pref_loss": "", "importance_sampling_level": "`loss: gspo` is that of a sequence"},
    ("mask_truncated",): {"mask_truncated_completions": "", "overlong_filtering": ""},
    ("sft_weight",): {"rpo_alpha": "", "pref_ftx": "", "sft_loss_coef": ""},
    ("label_smoothing",): {"label_smoothing_factor": ""},
    ("margins",): {"margin": "", "use_margin": ""},
    ("rewards",): {
        "reward_funcs": "[{kind: math_answer}], or [{kind: python, file: my_reward.py}]",
        "reward_fn": "[{kind: python, file: my_reward.py}]",
        "custom_reward_function": "[{kind: python, file: my_reward.py}]",
        "reward_weights": "each has its weight: [{kind: math_answer, weight: 1.0}]",
        "reward_function": "[{kind: python, file: my_reward.py}]",
        "reward_model_path": "[{kind: learned, from_scorer: NAME}], NAME a reward_model stage or an entry of models",
    },
    ("engine",): {"use_vllm": "vllm", "rollout_engine": "local, or vllm"},
    ("runtime.engine.where",): {"vllm_mode": "beside, own_gpus or server"},
    ("runtime.engine.gpu_memory_utilization",): {"vllm_gpu_memory_utilization": "", "vllm_gpu_memory_util": ""},
    ("runtime.engine.urls",): {"vllm_server_base_url": "", "vllm_server_host": "a list of addresses, http://HOST:PORT"},
    ("runtime.engine.enable_sleep_mode",): {"vllm_enable_sleep_mode": "", "vllm_enable_sleep": ""},
    ("runtime.engine.tensor_parallel",): {"vllm_tensor_parallel_size": ""},
    ("importance_sampling_correction",): {"vllm_importance_sampling_correction": "{}, and {max_weight: ...} caps it"},
    ("sampling.temperature",): {"temperature": "", "do_sample": "0 is greedy"},
    ("sampling.top_p",): {"top_p": ""},
    ("sampling.top_k",): {"top_k": ""},
    ("sampling.min_p",): {"min_p": ""},
    ("held_out.every_steps",): {
        "eval_steps": "of grpo and ppo; other models are measured by a stage of kind evaluate",
        "test_freq": "",
    },
    ("held_out.from_data",): {
        "eval_dataset": "of grpo and ppo; other models are measured by a stage of kind evaluate",
        "val_files": "",
    },
    ("kind",): {
        "stage": "the kind of a stage: sft, dpo, reward_model, grpo, ppo, ...",
        "type": "",
        "algorithm": "the kind of a stage: sft, dpo, reward_model, grpo, ppo, ...",
    },
}
# What no setting is for, and how its effect is had.
_NO_SETTING: dict[str, str] = (
    dict.fromkeys(
        ("gradient_accumulation_steps", "grad_accum_steps", "accumulate_grad_batches"),
        "accumulation follows: the batch (`batch`; in RL prompts_per_step x completions_per_prompt) is that of an "
        "optimiser step, over all devices, and runtime.micro_batch the rows of a device at once",
    )
    | {
        "optim": "the optimiser is AdamW",
        "optimizer": "the optimiser is AdamW; learning_rate, betas and weight_decay stand in the stage",
        "output_dir": "results lie under --home, in store/ and runs/NAME",
        "overwrite_output_dir": "`run --force STAGE` computes a stage again",
        "resume_from_checkpoint": "running the same recipe again goes on where it stopped",
        "save_strategy": "runtime.checkpoint_every says how often; the finished model is always saved",
        "logging_steps": "every step is logged",
        "report_to": "`tracking: {to: [tensorboard]}` stands beside `stages`",
        "run_name": "`name` of the recipe",
        "max_prompt_length": "prompts are never cut; sieve.max_characters of their build_data stage drops long ones",
        "completion_only_loss": "the loss is on the assistant's turns only",
        "assistant_only_loss": "the loss is on the assistant's turns only",
        "train_on_prompt": "the loss is on the assistant's turns only",
        "mask_history": "the loss is on the assistant's turns only",
        "template": "the chat template is the model's own",
        "chat_template": "the chat template is the model's own",
        "trust_remote_code": "no code of a model or data set is run",
        "ref_model": "the reference policy is the model that the stage starts from, from_model",
        "reference_model": "the reference policy is the model that the stage starts from, from_model",
        "evaluation_strategy": "a stage of kind evaluate measures a model; grpo and ppo have held_out",
        "eval_strategy": "a stage of kind evaluate measures a model; grpo and ppo have held_out",
        "do_train": "the stages that are listed are run",
        "do_eval": "a stage of kind evaluate measures a model",
        "val_size": "a build_data stage with builder: {kind: split, ...} keeps rows apart",
        "task_type": "it follows from the kind of the stage",
        "use_rslora": "rank-stabilised LoRA is alpha times the square root of rank",
    }
    | dict.fromkeys(
        ("rope_scaling", "rope_parameters", "enable_yarn", "yarn_factor"),
        "`yarn: {factor: 4.0}` stands beside path or hub of an entry of models, and is that of every stage after it",
    )
    | dict.fromkeys(
        (
            "context_parallel",
            "context_parallel_size",
            "cp_size",
            "sequence_parallel",
            "sequence_parallel_size",
            "sp_size",
            "ulysses_sequence_parallel_size",
            "ring_attn_size",
            "parallelism_config",
        ),
        "each row is trained on one device, for neither accelerate's context parallelism nor DeepSpeed's sequence "
        "parallelism reads packed rows; runtime.gradient_checkpointing, lora and runtime.strategy make long rows fit "
        "(docs/scaling.md, Long context)",
    )
)


def explain_foreign_name(name: str, group: str, known: Collection[str]) -> str | None:
    """Returns what a setting of another toolkit is called here, as a sentence. Returns None for any other name.

    `group`: the class of settings that the name was found in; `known`: the settings that it has.
    """
    name_elsewhere = name.replace("-", "_")
    if name_elsewhere in _NO_SETTING:
        return f"'{name}' is no setting: {_NO_SETTING[name_elsewhere]}"
    meant = _FOREIGN_NAMES.get(name_elsewhere, [])
    for setting, note in meant:
        for form in _list_forms(setting, group):
            if form[0] in known:
                return f"'{name}' is called '{'.'.join(form)}' here{_format_note(note)}"
    if not meant:
        return None
    setting, note = next((each for each in meant if each[1]), meant[0])
    return f"'{name}' is called '{setting}' here, and stands in a stage{_format_note(note)}"


def list_foreign_names() -> Iterator[tuple[str, str]]:
    """Yields (name elsewhere, setting here) for every name that is known of another toolkit and has one."""
    yield from ((name, setting) for name, meant in _FOREIGN_NAMES.items() for setting, _ in meant)


def _list_meant_settings() -> dict[str, list[tuple[str, str]]]:
    """Returns {name elsewhere: [(setting here, what to know)]}, in the order of the table."""
    meant: dict[str, list[tuple[str, str]]] = {}
    for settings, names in _SAME_SETTING.items():
        for name, note in names.items():
            meant.setdefault(name, []).extend((setting, note) for setting in settings)
    return meant


_FOREIGN_NAMES = _list_meant_settings()


def _format_note(note: str) -> str:
    return f" ({note})" if note else ""


def _list_forms(setting: str, group: str) -> Iterator[list[str]]:
    """Yields a dotted setting of a stage as its groups have it: whole, and from inside the group it lies in."""
    parts = setting.split(".")
    yield parts
    if len(parts) > 1 and group.lower().startswith(parts[0].replace("_", "")):
        yield parts[1:]
