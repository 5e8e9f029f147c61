"""Runs an online RL stage (grpo or ppo): builds prompts, judge, actor and trainer and trains the policy."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel, set_seed

from qwen_align.align.context import Context
from qwen_align.align.errors import DataError
from qwen_align.align.generation import vllm
from qwen_align.align.generation.local import open_local_engine
from qwen_align.align.generation.requests import RenderedProblem, measure_prompts, render_problem
from qwen_align.align.models import loading, quantized_base, reward_scorer
from qwen_align.align.models.bf16_weights import hold_frozen_in_bf16
from qwen_align.align.models.length_limit import require_length, require_room_for_completions
from qwen_align.align.models.lora import build_lora_config, prepare_adapters
from qwen_align.align.models.packed_attention import choose_attention
from qwen_align.align.models.quantization_error import measure_quantization
from qwen_align.align.models.weight_precision import Precision
from qwen_align.align.models.weight_shards import build_shard_mesh
from qwen_align.align.models.zero3_shards import partition_with_zero3
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rendering.tokenizer_check import require_same_ids
from qwen_align.align.rendering.training_set import render_rows
from qwen_align.align.rl.actor import VALUE_ADAPTER, Actor, Critic, activate_adapter
from qwen_align.align.rl.algorithm import Algorithm
from qwen_align.align.rl.collect import RolloutSetup
from qwen_align.align.rl.judge import Judge
from qwen_align.align.rl.prompt_stream import PromptStream, compute_reward_variances
from qwen_align.align.rl.ptx import RawTexts
from qwen_align.align.rl.rollout_batches import HeldOutQuestions, RolloutSource
from qwen_align.align.rl.trainer import OnlineTrainer
from qwen_align.align.rows import Completion, Problem, Text, read_rows, require_row_type
from qwen_align.align.settings.online_rl import ByVariance, OnlineRl
from qwen_align.align.settings.strategy import SHARDINGS, choose_strategy
from qwen_align.align.training import fit, trl_arguments
from qwen_align.align.training.callbacks import ProgressCallback
from qwen_align.align.training.checkpointing import decide_checkpointing
from qwen_align.align.training.distributed import get_local_world_size
from qwen_align.align.training.expert_load import freeze_routers
from qwen_align.align.training.strategies import start_strategy
from qwen_align.align.training.whole_copy import WholeCopy
from qwen_align.data_builders.rollout_completions import get_verdict_value, read_completions
from qwen_align.reward.base import share_cores
from qwen_align.reward.combine import is_task_solved, judge_all
from qwen_align.reward.settings import check_rewards, pick_reward, refuse_unused_rewards
from qwen_align.reward.verdict import Verdict


def run(algorithm: Algorithm, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    """Trains the stage's policy with the algorithm, whose settings are resolved, and returns the stage's summary."""
    spec = algorithm.settings
    source = inputs[spec.from_model]
    renderer = loading.load_renderer(source)
    prompts = [render_problem(problem, renderer) for problem in _read_problems(spec.from_data, inputs)]
    if not prompts:
        return fit.pass_model_through(spec, source, out, {}, "from_data (no problem)")
    length_limit = loading.find_length_limit(source)
    require_room_for_completions(length_limit, measure_prompts(prompts), spec.sampling.max_tokens)
    held_out = _render_held_out_questions(spec, renderer, inputs, length_limit)
    texts = _read_raw_texts(algorithm, renderer, inputs, context, length_limit)
    share_cores(get_local_world_size())
    check_rewards(spec.rewards)
    reward_scorer.bind_scorers(spec.rewards, inputs, context.runtime)
    scorer = algorithm.critic.from_scorer if algorithm.critic else None
    if scorer is not None:
        require_same_ids(renderer, loading.load_renderer(inputs[scorer]), "critic.from_scorer")
    attention = choose_attention(context.runtime.attention, loading.choose_device(context.runtime).type)
    runtime = decide_checkpointing(spec, context.runtime, loading.read_model_config(source))
    args = trl_arguments.build_online_rl_arguments(
        spec, runtime, out, seed=context.seed, has_unused_parameters=algorithm.n_critic_updates > 0
    )
    start_strategy(args, runtime, out)
    reference = _load_reference(algorithm, source, context, attention)
    actor = _build_actor(algorithm, source, inputs, context, attention)
    trainer = OnlineTrainer(
        actor,
        args,
        algorithm,
        _build_rollout_source(algorithm, actor, prompts, held_out, renderer, inputs, context),
        context,
        reference=reference,
        texts=texts,
        callbacks=[ProgressCallback(context)],
    )
    summary: dict[str, Any] = {"problems": len(prompts), "steps": spec.steps}
    with _use_engine(spec, trainer, actor, renderer, source):
        fit.train_and_save(trainer, spec, source, out, context)
        if spec.held_out:
            figures = trainer.measure_held_out_now()
            summary |= {f"held_out_{name}": value for name, value in figures._asdict().items()}
    summary["skipped_updates"] = trainer.skipped
    if trainer.texts is not None:
        summary |= {"ptx_texts": len(trainer.texts.samples), "dropped": trainer.texts.dropped}
    summary |= measure_quantization(actor.policy, out, prompts[0].prompt.ids, context)
    return {**summary, "counts": dict(sorted(trainer.rollout_source.counts.items()))}


def _read_problems(refs: Any, inputs: Mapping[str, Path]) -> list[Problem]:
    """Reads the problems of the referenced data stages."""
    return list(require_row_type(Problem, chain.from_iterable(read_rows(inputs[ref] / "rows.jsonl") for ref in refs)))


def _build_actor(
    algorithm: Algorithm, source: Path, inputs: Mapping[str, Path], context: Context, attention: str
) -> Actor:
    """Loads the policy as an actor, with new adapters for LoRA and a value model if the algorithm has one."""
    set_seed(context.seed)  # Trainer does so too late: new adapters are random
    spec, settings = algorithm.settings, algorithm.critic
    model = quantized_base.load_for_training(source, spec, context.runtime)
    policy: PreTrainedModel | PeftModel = model
    value_adapter = build_lora_config(spec.lora, model)  # before PEFT puts layers of its own into the model
    if spec.lora:
        policy = get_peft_model(model, build_lora_config(spec.lora, model))
    critic = None
    if settings:
        hidden_size = policy.config.get_text_config().hidden_size
        trunk, head = None, None
        if settings.from_scorer:
            started = reward_scorer.load_scorer_model(inputs[settings.from_scorer], "fp32", mesh=_build_mesh(context))
            trunk, head = partition_with_zero3(started.base_model), started.score.weight
            hidden_size = head.shape[1]
        elif settings.kind == "separate" and isinstance(policy, PeftModel):
            policy.add_adapter(VALUE_ADAPTER, value_adapter)
            activate_adapter(policy, VALUE_ADAPTER)
            activate_adapter(policy, "default")
        elif settings.kind == "separate":
            trunk = partition_with_zero3(loading.load_model(source, "fp32", mesh=_build_mesh(context)).base_model)
        if trunk is not None and spec.experts.train_router is False:
            freeze_routers(trunk)
        critic = Critic(hidden_size, trunk, detached=settings.detached)
        if head is not None:
            critic.head.weight.data.copy_(head)
    prepare_adapters(policy)
    temperature = spec.sampling.resolve_for_policy().temperature
    return Actor(policy, temperature, critic, attention=attention)


def _build_mesh(context: Context) -> DeviceMesh | None:
    """Returns the processes that each load a shard of a model. None where each loads the whole."""
    return build_shard_mesh(context.runtime, loading.choose_device(context.runtime))


def _load_reference(algorithm: Algorithm, source: Path, context: Context, attention: str) -> Actor | None:
    """Loads the reference policy as a separate model.

    Returns None without a KL penalty, or if it is the policy without its adapters.
    """
    spec = algorithm.settings
    if spec.kl is None or spec.lora:
        return None
    model = loading.load_model(source, "fp32", mesh=_build_mesh(context))
    if spec.precision == "bf16" and choose_strategy(context.runtime) == "ddp":  # others cast it as they do the policy
        hold_frozen_in_bf16(model)
    return Actor(partition_with_zero3(model), spec.sampling.resolve_for_policy().temperature, attention=attention)


def _build_rollout_source(
    algorithm: Algorithm,
    actor: Actor,
    prompts: list[RenderedProblem],
    held_out: list[RenderedProblem],
    renderer: Renderer,
    inputs: Mapping[str, Path],
    context: Context,
) -> RolloutSource:
    """Builds the source of judged rollouts from engine, prompt stream, judge and held-out set."""
    spec, in_bf16 = algorithm.settings, algorithm.settings.precision == "bf16"
    whole = None
    if SHARDINGS[choose_strategy(context.runtime)].parameters:
        whole = WholeCopy(actor.causal_lm, loading.choose_device(context.runtime), in_bf16=in_bf16)
    drawn = actor.causal_lm if whole is None else whole.model
    engine = open_local_engine(drawn, renderer, context.runtime, draws_in_bf16=in_bf16 and whole is None)
    sampling, solved_by = spec.sampling.resolve_for_policy(), partial(is_task_solved, spec.rewards)
    setup = RolloutSetup(engine, renderer, sampling, spec.completions_per_prompt, context.seed, solved_by)
    known = _read_reward_variances(spec.prompt_sampler, inputs) if isinstance(spec.prompt_sampler, ByVariance) else {}
    stream = PromptStream(prompts, spec.prompt_sampler, context.seed, variances=known)
    for reward in spec.rewards:
        reward.warm_up()
    judge = Judge(lambda group: judge_all(spec.rewards, group))
    questions = _build_held_out_questions(spec, setup, held_out)
    source = RolloutSource(algorithm, setup, stream, judge, context, questions)
    if whole is not None:
        source.hold_weights = whole.hold
    return source


@contextmanager
def _use_engine(
    spec: OnlineRl, trainer: OnlineTrainer, actor: Actor, renderer: Renderer, source: Path
) -> Iterator[None]:
    """Has the trainer draw with the stage's engine inside a `with` block."""
    if spec.engine == "local":
        yield
        return
    rollouts = trainer.rollout_source
    longest = rollouts.find_longest_sequence()
    probe_ids = vllm.choose_probe([each.prompt.ids for each in rollouts.stream.problems], longest)
    precision: Precision = "bf16" if spec.precision == "bf16" else "fp32"
    request = vllm.EngineRequest(precision, longest, probe_ids, trains=True)
    with vllm.open_vllm_engine(source, renderer, rollouts.context, request) as engine:
        engine.sync_weights(actor.causal_lm, 0)  # what cannot be updated is said before anything is trained
        rollouts.use_engine(engine)
        rollouts.hold_weights = engine.stay_awake
        yield


def _read_reward_variances(order: ByVariance, inputs: Mapping[str, Path]) -> dict[str, float]:
    """Reads the variance of each prompt's rewards in an earlier rollout."""
    values: dict[str, list[float]] = {}
    for row in read_completions(lambda: read_rows(inputs[order.from_rollout] / "rows.jsonl"), order.from_rollout):
        value = get_verdict_value(row, order.reward)
        if value is not None:
            values.setdefault(row.prompt_id, []).append(value)
    return compute_reward_variances(values)


def _render_held_out_questions(
    spec: OnlineRl, renderer: Renderer, inputs: Mapping[str, Path], length_limit: int | None
) -> list[RenderedProblem]:
    """Renders the held-out questions of an online RL stage, none if it has no held-out set.

    Raises DataError where the set is empty, and RecipeError for a question that is too long or that no reward judges.
    """
    settings = spec.held_out
    if settings is None:
        return []
    prompts = [render_problem(problem, renderer) for problem in _read_problems(settings.from_data, inputs)]
    if not prompts:
        raise DataError(f"held_out.from_data: {', '.join(settings.from_data)}: holds no problem")
    require_room_for_completions(
        length_limit,
        measure_prompts(prompts),
        (settings.sampling or spec.sampling).max_tokens,
        setting="held_out.sampling" if settings.sampling else "sampling",
    )
    kinds = {each.problem.reward: None for each in prompts}
    refuse_unused_rewards(settings.rewards, kinds)
    check_rewards([pick_reward(kind, settings.rewards) for kind in kinds])
    return prompts


def _build_held_out_questions(
    spec: OnlineRl, setup: RolloutSetup, prompts: list[RenderedProblem]
) -> HeldOutQuestions | None:
    """Builds the held-out questions of an online RL stage from their prompts. Returns None if the stage has none."""
    settings = spec.held_out
    if settings is None:
        return None
    sampling = settings.sampling.resolve_for_policy() if settings.sampling else setup.sampling

    def judge_own(group: list[Completion]) -> list[Verdict]:
        return pick_reward(group[0].reward, settings.rewards).judge_group(group)

    held_out_setup = setup._replace(sampling=sampling, n_samples=settings.completions_per_prompt)
    return HeldOutQuestions(held_out_setup, prompts, Judge(judge_own), settings.max_no_verdict_share)


def _read_raw_texts(
    algorithm: Algorithm, renderer: Renderer, inputs: Mapping[str, Path], context: Context, length_limit: int | None
) -> RawTexts | None:
    """Reads and renders the raw texts of PPO-ptx.

    Returns None if the stage has none. Raises DataError when no text is left.
    """
    ptx = algorithm.ptx
    if ptx is None:
        return None
    rows = require_row_type(Text, chain.from_iterable(read_rows(inputs[ref] / "rows.jsonl") for ref in ptx.from_data))
    rendered = render_rows(renderer, rows, max_tokens=ptx.max_tokens)
    samples = [sample for sample in rendered.samples if len(sample.ids) > 1]
    if not samples:
        raise DataError(f"ptx: nothing to train on; dropped: {rendered.dropped or 'nothing'}. See max_tokens")
    require_length(length_limit, rendered.longest, "ptx: a text")
    return RawTexts(samples, ptx.batch, context.seed, dropped=rendered.dropped)
