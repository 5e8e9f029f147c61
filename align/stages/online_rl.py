"""What grpo and ppo share: the prompts, the judge, the actor and its trainer, put together and run."""

from collections.abc import Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model
from transformers import PreTrainedModel

from qwen_align.align.context import Context
from qwen_align.align.errors import DataError
from qwen_align.align.generation.local import LocalEngine
from qwen_align.align.generation.requests import Asked, put
from qwen_align.align.generation.vllm import VllmEngine
from qwen_align.align.models import loading, reward_scorer
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rendering.training_set import render_rows
from qwen_align.align.rl.actor import VALUE_ADAPTER, Actor, Critic, use_adapter
from qwen_align.align.rl.collect import Player
from qwen_align.align.rl.judge import Judge
from qwen_align.align.rl.prompt_stream import PromptStream, variances
from qwen_align.align.rl.ptx import Texts
from qwen_align.align.rl.rollout_batches import Experience, Questions
from qwen_align.align.rl.trainer import OnlineTrainer
from qwen_align.align.rows import Completion, Problem, Text, read_rows, require_row_type
from qwen_align.align.settings.grpo import Grpo
from qwen_align.align.settings.online_rl import ByVariance, Vllm
from qwen_align.align.settings.ppo import Ppo
from qwen_align.align.training import fit, trl_arguments, trl_compat
from qwen_align.align.training.callbacks import ProgressCallback
from qwen_align.data_builders.rollout_completions import get_verdict_value, read_completions
from qwen_align.reward.combine import is_task_solved, judge_all
from qwen_align.reward.settings import check_rewards, pick_reward
from qwen_align.reward.verdict import Verdict


def run(spec: Grpo | Ppo, inputs: Mapping[str, Path], out: Path, context: Context) -> dict[str, Any]:
    source = inputs[spec.from_model]
    renderer = loading.load_renderer(source)
    asked = [put(problem, renderer) for problem in _problems(spec.from_data, inputs)]
    if not asked:
        return fit.pass_model_through(spec, source, out, {}, "from_data (no problem)")
    check_rewards(spec.rewards)
    reward_scorer.bind_scorers(
        spec.rewards, inputs, device=loading.choose_device(context.runtime), max_rows=context.runtime.micro_batch
    )
    actor = _actor(spec, source, inputs, context)
    trainer = OnlineTrainer(
        actor,
        trl_arguments.build_online_rl_arguments(spec, context.runtime, out, seed=context.seed),
        spec,
        _experience(spec, actor, asked, renderer, inputs, context),
        context,
        reference=_reference(spec, source),
        texts=_texts(spec, renderer, inputs, context),
        callbacks=[ProgressCallback(context)],
    )
    if isinstance(spec.engine, Vllm):
        trainer.experience.use(_vllm(spec.engine, trainer, actor, asked, renderer, source))
    fit.run_trainer(trainer, out, context)
    fit.save_trained_model(
        source, out, context, is_adapter=isinstance(actor.policy, PeftModel), save=trainer.save_policy
    )
    found: dict[str, Any] = {"problems": len(asked), "steps": spec.steps, "skipped_updates": trainer.skipped}
    if spec.held_out:
        found |= dict(zip(("held_out_accuracy", "held_out_stderr"), trainer.held_out_now(), strict=True))
    if trainer.texts is not None:
        found |= {"ptx_texts": len(trainer.texts.samples), "dropped": trainer.texts.dropped}
    return {**found, "counts": dict(sorted(trainer.experience.counts.items()))}


def _problems(refs: Any, inputs: Mapping[str, Path]) -> list[Problem]:
    return list(require_row_type(Problem, chain.from_iterable(read_rows(inputs[ref] / "rows.jsonl") for ref in refs)))


def _actor(spec: Grpo | Ppo, source: Path, inputs: Mapping[str, Path], context: Context) -> Actor:
    """The policy, with new adapters if LoRA is asked for, and for PPO a critic."""
    policy: PreTrainedModel | PeftModel = loading.load_model(source)
    if spec.lora:
        policy = get_peft_model(policy, trl_arguments.build_lora_config(spec.lora))
    critic = None
    if isinstance(spec, Ppo):
        hidden_size = policy.config.get_text_config().hidden_size
        trunk, head = None, None
        if spec.critic.from_scorer:
            started = reward_scorer.load_scorer_model(inputs[spec.critic.from_scorer])
            trunk, head = started.base_model, started.score.weight
            hidden_size = head.shape[1]
        elif spec.critic.kind == "separate" and isinstance(policy, PeftModel):
            policy.add_adapter(VALUE_ADAPTER, trl_arguments.build_lora_config(spec.lora))
            use_adapter(policy, VALUE_ADAPTER)
            use_adapter(policy, "default")
        elif spec.critic.kind == "separate":
            trunk = loading.load_model(source).base_model
        critic = Critic(hidden_size, trunk, detached=spec.critic.detached)
        if head is not None:
            critic.head.weight.data.copy_(head)
    temperature = spec.sampling.for_policy().temperature
    actor = Actor(policy, temperature, critic)
    if context.runtime.gradient_checkpointing and actor.has_value_adapter:
        raise DataError("gradient_checkpointing with critic: separate and lora would recompute under the wrong adapter")
    return actor


def _reference(spec: Grpo | Ppo, source: Path) -> Actor | None:
    """A copy of the model the stage starts from, where the policy's own trunk is not one."""
    if spec.kl is None or spec.lora:
        return None
    return Actor(loading.load_model(source), spec.sampling.for_policy().temperature)


def _experience(
    spec: Grpo | Ppo,
    actor: Actor,
    asked: list[Asked],
    renderer: Renderer,
    inputs: Mapping[str, Path],
    context: Context,
) -> Experience:
    engine = LocalEngine(actor.causal_lm, stop_ids=renderer.stop_ids, max_rows=context.runtime.generation_batch)
    sampling, solved_by = spec.sampling.for_policy(), partial(is_task_solved, spec.rewards)
    player = Player(engine, renderer, sampling, spec.completions_per_prompt, context.seed, solved_by)
    known = _reward_variances(spec.prompt_sampler, inputs) if isinstance(spec.prompt_sampler, ByVariance) else {}
    stream = PromptStream(asked, spec.prompt_sampler, context.seed, variances=known)
    for reward in spec.rewards:
        reward.warm_up()
    judge = Judge(lambda group: judge_all(spec.rewards, group))
    return Experience(spec, player, stream, judge, context, _questions(spec, player, renderer, inputs))


def _vllm(
    settings: Vllm, trainer: OnlineTrainer, actor: Actor, asked: list[Asked], renderer: Renderer, source: Path
) -> VllmEngine:
    longest = max(len(one.prompt.ids) for one in asked) + trainer.experience.player.sampling.max_tokens
    tokenizer = fit.load_padding_tokenizer(source)
    generation = trl_compat.open_vllm_generation(
        actor.policy, trainer.accelerator, tokenizer, settings, max_tokens=longest
    )
    config = actor.causal_lm.config
    return VllmEngine(
        generation,
        stop_ids=renderer.stop_ids,
        vocab_size=config.vocab_size,
        max_positions=config.max_position_embeddings,
    )


def _reward_variances(order: ByVariance, inputs: Mapping[str, Path]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for row in read_completions(lambda: read_rows(inputs[order.from_rollout] / "rows.jsonl"), order.from_rollout):
        value = get_verdict_value(row, order.reward)
        if value is not None:
            values.setdefault(row.prompt_id, []).append(value)
    return variances(values)


def _questions(spec: Grpo | Ppo, player: Player, renderer: Renderer, inputs: Mapping[str, Path]) -> Questions | None:
    settings = spec.held_out
    if settings is None:
        return None
    asked = [put(problem, renderer) for problem in _problems(settings.from_data, inputs)]
    if not asked:
        raise DataError(f"held_out.from_data: {', '.join(settings.from_data)}: holds no problem")
    sampling = settings.sampling.for_policy() if settings.sampling else player.sampling

    def own_reward(group: list[Completion]) -> list[Verdict]:
        return pick_reward(group[0].reward, settings.rewards).judge_group(group)

    def is_right(verdict: Verdict) -> bool | None:
        return None if verdict.value is None else verdict.value >= 1

    asker = player._replace(sampling=sampling, samples=settings.completions_per_prompt, solved=is_right)
    return Questions(asker, asked, Judge(own_reward))


def _texts(spec: Grpo | Ppo, renderer: Renderer, inputs: Mapping[str, Path], context: Context) -> Texts | None:
    if not isinstance(spec, Ppo) or spec.ptx is None:
        return None
    rows = require_row_type(
        Text, chain.from_iterable(read_rows(inputs[ref] / "rows.jsonl") for ref in spec.ptx.from_data)
    )
    rendered = render_rows(renderer, rows, max_tokens=spec.ptx.max_tokens)
    samples = [sample for sample in rendered.samples if len(sample.ids) > 1]
    if not samples:
        raise DataError(f"ptx: nothing to train on; dropped: {rendered.dropped or 'nothing'}. See max_tokens")
    return Texts(samples, spec.ptx.batch, context.seed, dropped=rendered.dropped)
