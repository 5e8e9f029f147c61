"""Checks the stages that sample from a model: online RL, rollouts and evaluations. Nothing here imports torch."""

import math
from collections.abc import Iterator, Sequence

from qwen_align.align.errors import DataError
from qwen_align.align.models.length_limit import require_length, require_room_for_completions
from qwen_align.align.pipeline.plan import PlannedStage
from qwen_align.align.pipeline.preview import Preview, RowsUnknown
from qwen_align.align.rendering.samples import format_length_percentiles
from qwen_align.align.rendering.tokenizer_check import require_same_ids
from qwen_align.align.rendering.training_set import render_rows
from qwen_align.align.reporting.summary_line import format_summary
from qwen_align.align.rows import Problem, Text, require_row_type
from qwen_align.align.settings.evaluate import Evaluate
from qwen_align.align.settings.online_rl import OnlineRl
from qwen_align.align.settings.ppo import Ppo
from qwen_align.align.settings.rollout import Rollout, Switch
from qwen_align.align.settings.runtime import split_into_micro_batches
from qwen_align.align.settings.sampling import SamplingSettings
from qwen_align.align.stages.checks import describe_warmup
from qwen_align.align.stages.gold_checks import check_golds, describe_rewards, read_problems
from qwen_align.reward.settings import check_rewards

N_LONGEST_RENDERED = 50  # prompts that are rendered whatever their length, for what the template says of them
TEMPLATE_TOKENS, TURN_TOKENS = 512, 16  # more than templates add to a prompt, and to each of its turns


def check_online_rl(stage: PlannedStage, preview: Preview) -> Iterator[str]:
    """Yields the steps, prompt lengths and reward problems of an online RL stage as lines."""
    settings = stage.settings
    assert isinstance(settings, OnlineRl)
    check_rewards(settings.rewards)
    prompts = read_problems(preview.list_input_rows(stage, settings.from_data))
    split_into_micro_batches(settings.prompts_per_step * settings.completions_per_prompt, stage.runtime)
    lengths = _measure_prompts(stage, preview, prompts, settings.sampling)
    yield from _describe_steps(settings)
    yield f"prompt {format_length_percentiles(lengths)}"
    if len(prompts) < settings.prompts_per_step:
        yield (
            f"prompts_per_step {settings.prompts_per_step:,} is more than the {len(prompts):,} problems: a step takes "
            "some several times"
        )
    yield from describe_rewards(settings.rewards, prompts)
    try:
        yield from _check_held_out(stage, preview, settings)
        yield from _check_raw_texts(stage, preview, settings)
        _check_critic(stage, preview, settings)
    except RowsUnknown as unknown:
        yield f"the rest is unknown until {unknown}"


def forecast_online_rl(stage: PlannedStage, preview: Preview) -> Iterator[str]:
    """Yields the steps of an online RL stage, and what of its loss is not its paper's."""
    settings = stage.settings
    assert isinstance(settings, OnlineRl)
    check_rewards(settings.rewards)
    yield from _describe_steps(settings)


def _describe_steps(settings: OnlineRl) -> Iterator[str]:
    """Yields the steps and updates of an online RL stage, and what of its loss is not its paper's."""
    yield (
        f"{settings.steps:,} steps of {settings.prompts_per_step} prompts x {settings.completions_per_prompt} "
        f"completions, {_describe_updates(settings)}"
    )
    if departures := settings.describe_departures():
        yield f"loss {settings.loss_name}, set otherwise than in its paper: {'; '.join(departures)}"


def _describe_updates(settings: OnlineRl) -> str:
    """Returns the number of updates of an online RL stage as text, with those of the critic alone and of warm-up."""
    n_critic = settings.critic.warmup_steps * settings.updates.count if isinstance(settings, Ppo) else 0
    n_policy = max(0, settings.optimizer_steps - n_critic)
    parts = [f"{settings.optimizer_steps:,} updates"]
    if n_critic:
        parts.append(f"{min(n_critic, settings.optimizer_steps):,} of them of the critic alone")
    return ", ".join([*parts, describe_warmup(settings, n_policy) if n_policy else "none of the policy"])


def _check_held_out(stage: PlannedStage, preview: Preview, settings: OnlineRl) -> Iterator[str]:
    """Yields the number of held-out completions of an online RL stage. Raises for questions it cannot measure."""
    held_out = settings.held_out
    if held_out is None:
        return
    questions = read_problems(preview.list_input_rows(stage, held_out.from_data))
    if not questions:
        raise DataError(f"held_out.from_data: {', '.join(held_out.from_data)}: holds no problem")
    setting = "held_out.sampling" if held_out.sampling else "sampling"
    _measure_prompts(stage, preview, questions, held_out.sampling or settings.sampling, setting=setting)
    yield (
        f"held out: {len(questions):,} questions x {held_out.completions_per_prompt} completions "
        f"every {held_out.every_steps:,} steps"
    )
    yield from check_golds(questions, held_out.rewards, held_out, "held_out: ")


def _check_critic(stage: PlannedStage, preview: Preview, settings: OnlineRl) -> None:
    """Raises RecipeError where the critic starts as a reward model that reads other token ids than the policy's."""
    scorer = settings.critic.from_scorer if isinstance(settings, Ppo) else None
    if scorer is not None:
        require_same_ids(preview.get_renderer(stage), preview.get_scorer_renderer(stage, scorer), "critic.from_scorer")


def _check_raw_texts(stage: PlannedStage, preview: Preview, settings: OnlineRl) -> Iterator[str]:
    """Yields the number of raw texts of PPO-ptx. Raises DataError when none is left."""
    ptx = settings.ptx if isinstance(settings, Ppo) else None
    if ptx is None:
        return
    rows = require_row_type(Text, preview.list_input_rows(stage, ptx.from_data))
    rendered = render_rows(preview.get_renderer(stage), rows, max_tokens=ptx.max_tokens)
    n_texts = sum(len(sample.ids) > 1 for sample in rendered.samples)
    if not n_texts:
        raise DataError(f"ptx: nothing to train on; dropped: {rendered.dropped or 'nothing'}. See max_tokens")
    require_length(preview.find_length_limit(stage), rendered.longest, "ptx: a text")
    yield f"ptx: {format_summary({'texts': n_texts, 'dropped': rendered.dropped})}"


def check_rollout(stage: PlannedStage, preview: Preview) -> Iterator[str]:
    """Yields the number of completions of a rollout stage, and problems with its rewards."""
    settings = stage.settings
    assert isinstance(settings, Rollout)
    check_rewards(settings.rewards)
    prompts = read_problems(preview.list_input_rows(stage, [settings.from_data]))
    switches = [settings.thinking_switch] if settings.thinking_switch else []
    limit = _describe_token_limit(stage, preview, prompts, switches, settings.sampling)
    yield f"{len(prompts):,} prompts x {settings.completions_per_prompt} completions, {limit}"
    yield from describe_rewards(settings.rewards, prompts)


def forecast_rollout(stage: PlannedStage, preview: Preview) -> Iterator[str]:
    """Yields the number of completions of a rollout stage if all rows are kept."""
    settings = stage.settings
    assert isinstance(settings, Rollout)
    n_rows = preview.count_all_rows(stage, [settings.from_data])
    if n_rows is not None:
        yield f"if all {n_rows:,} rows are kept: {n_rows:,} prompts x {settings.completions_per_prompt} completions"


def check_evaluation(stage: PlannedStage, preview: Preview) -> Iterator[str]:
    """Yields the number of completions of an evaluation stage.

    Raises DataError for a gold answer that its reward cannot use.
    """
    settings = stage.settings
    assert isinstance(settings, Evaluate)
    check_rewards(settings.rewards)
    questions = read_problems(preview.list_input_rows(stage, settings.from_data))
    notes = list(check_golds(questions, settings.rewards, settings))
    limit = _describe_token_limit(stage, preview, questions, settings.thinking_switches, settings.sampling)
    yield (
        f"{len(questions):,} questions x {len(settings.thinking_switches)} switches x "
        f"{settings.completions_per_prompt} completions, {limit}"
    )
    yield from notes


def forecast_evaluation(stage: PlannedStage, preview: Preview) -> Iterator[str]:
    """Yields the number of completions of an evaluation stage if all rows are kept."""
    settings = stage.settings
    assert isinstance(settings, Evaluate)
    n_rows = preview.count_all_rows(stage, settings.from_data)
    if n_rows is not None:
        yield (
            f"if all {n_rows:,} rows are kept: "
            f"{n_rows:,} questions x {len(settings.thinking_switches)} switches x "
            f"{settings.completions_per_prompt} completions"
        )


def _describe_token_limit(
    stage: PlannedStage,
    preview: Preview,
    prompts: Sequence[Problem],
    switches: Sequence[Switch],
    sampling: SamplingSettings,
) -> str:
    """Returns the token limit of completions as text, after rendering the prompts as the stage will."""
    default_mode = preview.get_renderer(stage).traits.default_mode
    asked: Sequence[Switch | Problem] = switches or prompts
    for mode in dict.fromkeys(each.mode or default_mode for each in asked):
        sampling.resolve_for_mode(mode)  # which warns of what the mode does not stand
    long_prompts = _select_long_prompts(prompts, sampling.max_tokens, preview.find_length_limit(stage))
    asked_by: Sequence[Switch | None] = switches or [None]
    for switch in asked_by:
        _measure_prompts(stage, preview, long_prompts, sampling, switch=switch)
    return f"at most {sampling.max_tokens} tokens each"


def _select_long_prompts(prompts: Sequence[Problem], max_tokens: int, limit: int | None) -> list[Problem]:
    """Returns the longest prompts, and every other that may leave no room for a completion.

    A token is at least a byte of text, so that the others need not be rendered to be known to fit.
    """
    sizes = [sum(len(turn.content.encode()) + TURN_TOKENS for turn in problem.messages) for problem in prompts]
    by_size = sorted(range(len(prompts)), key=lambda index: -sizes[index])
    room = math.inf if limit is None else limit - max_tokens - TEMPLATE_TOKENS
    return [prompts[index] for rank, index in enumerate(by_size) if rank < N_LONGEST_RENDERED or sizes[index] > room]


def _measure_prompts(
    stage: PlannedStage,
    preview: Preview,
    prompts: Sequence[Problem],
    sampling: SamplingSettings,
    *,
    switch: Switch | None = None,
    setting: str = "sampling",
) -> list[int]:
    """Returns the number of tokens of each prompt.

    Raises RecipeError where the model cannot read one with the completion that may follow it.
    """
    lengths = [(problem.id, preview.measure_prompt(stage, problem, switch)) for problem in prompts]
    require_room_for_completions(preview.find_length_limit(stage), lengths, sampling.max_tokens, setting=setting)
    return [n_tokens for _, n_tokens in lengths]
