"""Checks each kind of stage before anything is trained and reports what it will do. Nothing here imports torch."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from qwen_align.align.errors import DataError, RecipeError
from qwen_align.align.models.length_limit import require_length, require_room_for_completions
from qwen_align.align.pipeline.plan import PlannedStage
from qwen_align.align.pipeline.preview import Preview, RowsUnknown
from qwen_align.align.rendering.samples import compute_length_percentiles
from qwen_align.align.rendering.tokenizer_check import require_same_ids
from qwen_align.align.rendering.training_set import render_pairs, render_rows
from qwen_align.align.reporting.summary_line import format_summary, list_left_out_columns
from qwen_align.align.rows import Pair, Problem, Row, Text, require_row_type
from qwen_align.align.settings.build_data import BuildData
from qwen_align.align.settings.dpo import Dpo
from qwen_align.align.settings.evaluate import Evaluate
from qwen_align.align.settings.online_rl import OnlineRl
from qwen_align.align.settings.ppo import Ppo
from qwen_align.align.settings.pretrain import Pretrain
from qwen_align.align.settings.reward_model import RewardModel
from qwen_align.align.settings.rollout import Rollout, Switch
from qwen_align.align.settings.runtime import split_into_micro_batches
from qwen_align.align.settings.sampling import SamplingSettings
from qwen_align.align.settings.sft import Sft
from qwen_align.align.settings.stage import VerdictLimit
from qwen_align.align.settings.training import Optimizer, count_optimizer_steps
from qwen_align.align.stages.build_data import build_rows
from qwen_align.data_builders.conversion_report import Report, format_left_out_columns
from qwen_align.data_builders.hub import Hub
from qwen_align.data_builders.sieve import Drops, Sources
from qwen_align.reward.audit import audit_reward
from qwen_align.reward.combine import SHAPING_SHARE, compute_shaping_scale, select_rewards
from qwen_align.reward.math_answer import MathAnswer
from qwen_align.reward.python_file import PythonReward
from qwen_align.reward.settings import Reward, check_rewards, pick_reward, refuse_unused_rewards

N_PROBLEMS_AUDITED = 2  # problems on whose bad completions a reward is audited
N_LONGEST_RENDERED = 50  # prompts that are rendered whatever their length, for what the template says of them
TEMPLATE_TOKENS, TURN_TOKENS = 512, 16  # more than templates add to a prompt, and to each of its turns


# --- data


def check_data(stage: PlannedStage, preview: Preview) -> Iterator[str]:
    """Yields the row and drop counts of a data stage. Raises DataError when no row is left and the stage needs some."""
    if stage.is_stored:
        summary = stage.folder.read_manifest()["summary"]
        yield format_summary(summary)
        yield from format_left_out_columns(list_left_out_columns(summary))
        return
    settings = stage.settings
    assert isinstance(settings, BuildData)
    n_kept, dropped = len(preview.list_rows(stage.name)), preview.drops[stage.name].counts
    if not n_kept and settings.on_empty == "fail":
        raise DataError(f"no row is left; dropped: {dropped or 'none, the builder made no row'}. See builder and sieve")
    yield format_summary({"rows": n_kept, "dropped": dropped}) or "no rows"
    yield from format_left_out_columns(preview.reports[stage.name].n_left_out)


def forecast_data(stage: PlannedStage, preview: Preview) -> Iterator[str]:
    """Yields the number of rows a data stage will have, where the recipe says it."""
    n_rows = preview.count_rows(stage.name)
    if n_rows is not None:
        yield f"rows {n_rows:,}, if all are kept"


def list_built_rows(stage: PlannedStage, sources: Sources, drops: Drops, report: Report) -> list[Row]:
    """Builds the rows of a data stage in memory and fills the report of a file's conversion.

    Raises RowsUnknown where that would download something.
    """
    settings = stage.settings
    assert isinstance(settings, BuildData)
    if isinstance(settings.builder, Hub):
        raise RowsUnknown(f"{settings.builder.dataset} is downloaded")
    return list(build_rows(settings, sources, stage.seed, drops, report))


def check_pretraining(stage: PlannedStage, preview: Preview) -> Iterator[str]:
    """Yields the number of documents that a pretraining stage reads."""
    settings = stage.settings
    assert isinstance(settings, Pretrain)
    documents = preview.list_rows(stage.targets[settings.from_data])
    least = settings.batch * (settings.sequence_length + 1)
    # A token is a byte or more, and every document has one that ends it.
    if sum(len(row.text.encode()) + 1 for row in documents if isinstance(row, Text)) < least:
        raise DataError(
            f"{len(documents):,} documents do not fill one batch of {settings.batch} x {settings.sequence_length + 1} "
            "tokens; lower batch or sequence_length, or give more documents"
        )
    yield f"{len(documents):,} documents"


# --- training on rows


def check_supervised_training(stage: PlannedStage, preview: Preview) -> Iterator[str]:
    """Yields the samples, drops, steps and lengths of an SFT stage as lines."""
    settings = stage.settings
    assert isinstance(settings, Sft)
    split_into_micro_batches(settings.batch, stage.runtime)
    rendered = render_rows(
        preview.get_renderer(stage), preview.list_input_rows(stage, settings.from_data), settings.max_tokens
    )
    require_length(preview.find_length_limit(stage), rendered.longest, "a sample")
    yield from _describe_training(settings, rendered.lengths, rendered.dropped, len(rendered.samples))
    if rendered.modes:
        yield "answers by mode: " + ", ".join(f"{count:,} {mode}" for mode, count in rendered.modes.items())


def check_training_on_pairs(stage: PlannedStage, preview: Preview) -> Iterator[str]:
    """Yields the pairs, drops, steps and lengths of a DPO or reward model stage as lines."""
    settings = stage.settings
    assert isinstance(settings, Dpo | RewardModel)
    pairs = list(require_row_type(Pair, preview.list_input_rows(stage, settings.from_data)))
    split_into_micro_batches(settings.batch, stage.runtime)
    needs_margin = isinstance(settings, RewardModel) and settings.margins
    rendered = render_pairs(preview.get_renderer(stage), pairs, settings.max_tokens, needs_margin=needs_margin)
    require_length(preview.find_length_limit(stage), rendered.longest, "a pair's side")
    yield from _describe_training(settings, rendered.lengths, rendered.dropped, len(rendered.pairs))


def forecast_training(stage: PlannedStage, preview: Preview) -> Iterator[str]:
    """Yields the number of steps of a training stage if all rows are kept."""
    settings = stage.settings
    assert isinstance(settings, Sft | Dpo | RewardModel)
    n_rows = _count_all_rows(stage, preview, settings.from_data)
    if n_rows is not None:
        steps = count_optimizer_steps(n_rows, settings.epochs, settings.batch)
        yield (
            f"if all {n_rows:,} rows are kept: steps {steps:,}, {_describe_warmup(settings, steps)}; "
            f"limit {settings.max_tokens}"
        )


def _describe_training(
    settings: Sft | Dpo | RewardModel, lengths: list[int], dropped: Mapping[str, int], n_samples: int
) -> Iterator[str]:
    """Yields the samples, steps and lengths of a training stage as lines.

    Raises DataError when nothing is left to train on.
    """
    if not n_samples and settings.needs_rows:
        raise DataError(
            f"nothing to train on; dropped: {dropped or 'none, there were no rows'}. See max_tokens, from_data"
        )
    steps = count_optimizer_steps(n_samples, settings.epochs, settings.batch)
    line = format_summary({"samples": n_samples, "dropped": dropped, "steps": steps}) or "nothing to train on"
    yield f"{line}, {_describe_warmup(settings, steps)}" if steps else line
    if 0 < n_samples < settings.batch:
        yield f"batch {settings.batch:,} is more than the {n_samples:,} samples: a step takes some several times"
    if lengths:
        yield f"{_describe_lengths(lengths)}, limit {settings.max_tokens}"


def _describe_warmup(settings: Optimizer, steps: int) -> str:
    """Returns the number of warm-up steps of a training stage as text."""
    if settings.warmup_steps >= steps:
        return f"all of warm-up (warmup_steps {settings.warmup_steps})"
    return f"{settings.warmup_steps:,} of warm-up" if settings.warmup_steps else "no warm-up"


# --- sampling from a model


def check_online_rl(stage: PlannedStage, preview: Preview) -> Iterator[str]:
    """Yields the steps, prompt lengths and reward problems of an online RL stage as lines."""
    settings = stage.settings
    assert isinstance(settings, OnlineRl)
    check_rewards(settings.rewards)
    prompts = _read_problems(preview.list_input_rows(stage, settings.from_data))
    split_into_micro_batches(settings.prompts_per_step * settings.completions_per_prompt, stage.runtime)
    lengths = _measure_prompts(stage, preview, prompts, settings.sampling)
    yield from _describe_steps(settings)
    yield f"prompt {_describe_lengths(lengths)}"
    if len(prompts) < settings.prompts_per_step:
        yield (
            f"prompts_per_step {settings.prompts_per_step:,} is more than the {len(prompts):,} problems: a step takes "
            "some several times"
        )
    yield from _describe_rewards(settings.rewards, prompts)
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
    return ", ".join([*parts, _describe_warmup(settings, n_policy) if n_policy else "none of the policy"])


def _check_held_out(stage: PlannedStage, preview: Preview, settings: OnlineRl) -> Iterator[str]:
    """Yields the number of held-out completions of an online RL stage. Raises for questions it cannot measure."""
    held_out = settings.held_out
    if held_out is None:
        return
    questions = _read_problems(preview.list_input_rows(stage, held_out.from_data))
    if not questions:
        raise DataError(f"held_out.from_data: {', '.join(held_out.from_data)}: holds no problem")
    setting = "held_out.sampling" if held_out.sampling else "sampling"
    _measure_prompts(stage, preview, questions, held_out.sampling or settings.sampling, setting=setting)
    yield (
        f"held out: {len(questions):,} questions x {held_out.completions_per_prompt} completions "
        f"every {held_out.every_steps:,} steps"
    )
    yield from _check_golds(questions, held_out.rewards, held_out, "held_out: ")


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
    prompts = _read_problems(preview.list_input_rows(stage, [settings.from_data]))
    switches = [settings.thinking_switch] if settings.thinking_switch else []
    limit = _describe_token_limit(stage, preview, prompts, switches, settings.sampling)
    yield f"{len(prompts):,} prompts x {settings.completions_per_prompt} completions, {limit}"
    yield from _describe_rewards(settings.rewards, prompts)


def forecast_rollout(stage: PlannedStage, preview: Preview) -> Iterator[str]:
    """Yields the number of completions of a rollout stage if all rows are kept."""
    settings = stage.settings
    assert isinstance(settings, Rollout)
    n_rows = _count_all_rows(stage, preview, [settings.from_data])
    if n_rows is not None:
        yield f"if all {n_rows:,} rows are kept: {n_rows:,} prompts x {settings.completions_per_prompt} completions"


def check_evaluation(stage: PlannedStage, preview: Preview) -> Iterator[str]:
    """Yields the number of completions of an evaluation stage.

    Raises DataError for a gold answer that its reward cannot use.
    """
    settings = stage.settings
    assert isinstance(settings, Evaluate)
    check_rewards(settings.rewards)
    questions = _read_problems(preview.list_input_rows(stage, settings.from_data))
    notes = list(_check_golds(questions, settings.rewards, settings))
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
    n_rows = _count_all_rows(stage, preview, settings.from_data)
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


def _refuse_golds_without_verdict(rewards: Sequence[Reward], prompts: Sequence[Problem]) -> None:
    """Raises DataError if the outcome rewards of every row cannot use its gold: nothing gets a verdict."""
    reasons: dict[str, str] = {}  # by the rewards that cannot use a gold
    for problem in prompts:
        judging = [reward for reward in select_rewards(rewards, problem.reward) if reward.is_outcome]
        verdicts = {
            reward.label: reward.judge_gold(problem.gold) for reward in judging if not isinstance(reward, PythonReward)
        }
        found = {label: verdict.reason for label, verdict in verdicts.items() if verdict.value is None}
        if not found:
            return
        reasons = found | reasons
    if reasons:
        raise DataError(
            f"rewards: {', '.join(reasons)} can use none of the {len(prompts):,} golds, so that no completion would "
            f"have a verdict: {next(iter(reasons.values()))}; the first is {prompts[0].gold!r:.60}"
        )


def _describe_rewards(rewards: Sequence[Reward], prompts: Sequence[Problem]) -> Iterator[str]:
    """Yields the problems of rewards: gold answers they cannot use, bad completions they pay, scaled weights."""
    names = {problem.reward for problem in prompts} or {""}
    scale = min(compute_shaping_scale(select_rewards(rewards, name)) for name in names)
    if scale < 1:
        yield (
            f"shaping weights x {scale:.3g}, so that all shaping together reaches {SHAPING_SHARE:g} of the outcomes' "
            "weight and no wrong answer beats a right one"
        )
    _refuse_golds_without_verdict(rewards, prompts)
    for reward in rewards:
        judged = [problem for problem in prompts if reward in select_rewards(rewards, problem.reward)]
        if prompts and not judged:
            yield f"{reward.label} judges no row: they name {', '.join(sorted(names))}"
        unusable = [problem for problem in judged if reward.judge_gold(problem.gold).value != 1.0]
        if unusable:
            first = f"'{unusable[0].id}': {unusable[0].gold!r:.60}"
            yield f"{reward.label}: {len(unusable):,} golds of {len(judged):,} are unusable, the first {first}"
        if reward.is_outcome and not isinstance(reward, PythonReward):  # those are tried by themselves
            paid = dict.fromkeys(
                finding.probe
                for finding in audit_reward(reward, judged[:N_PROBLEMS_AUDITED])
                if finding.pays is None and finding.is_paid
            )
            if paid:
                yield f"{reward.label} pays for what solves nothing: {', '.join(paid)}"


def _read_problems(rows: Iterable[Row]) -> list[Problem]:
    """Returns the rows as problems. Raises DataError where questions and gold answers look exchanged."""
    problems = list(require_row_type(Problem, iter(rows)))
    judged = [row for row in problems if row.reward == MathAnswer().kind and isinstance(row.gold, str)]
    longer = [
        row
        for row in judged
        if len(_extract_solution_answer(row.gold)) > sum(len(turn.content) for turn in row.messages)
    ]
    if 2 * len(longer) > len(judged):
        raise DataError(
            f"{len(longer):,} of {len(judged):,} golds are longer than their questions, the first that of "
            f"'{longer[0].id}': {longer[0].gold!r:.60}; question and gold look exchanged: see the builder's columns"
        )
    return problems


def _extract_solution_answer(gold: str) -> str:
    """Returns the final answer at the end of a gold that holds a whole solution, as GSM8K's do."""
    return "" if "\\boxed" in gold else gold.rpartition("####")[2]


def _check_golds(
    questions: Sequence[Problem], rewards: Sequence[Reward], limit: VerdictLimit, prefix: str = ""
) -> Iterator[str]:
    """Yields the number of questions whose reward cannot use their gold, which will have no verdict.

    Raises DataError where they are more than the stage allows. `prefix` opens the message.
    """
    kinds = {question.reward: None for question in questions}
    try:
        refuse_unused_rewards(rewards, kinds)
    except RecipeError as error:
        raise RecipeError(f"{prefix}{error}") from None
    check_rewards([pick_reward(kind, rewards) for kind in kinds])
    verdicts = [(each, pick_reward(each.reward, rewards).judge_gold(each.gold)) for each in questions]
    unusable = [(question, verdict) for question, verdict in verdicts if verdict.value != 1.0]
    if not unusable:
        return
    (question, verdict), *_ = unusable
    found = (
        f"{prefix}{len(unusable):,} golds of {len(questions):,} are unusable and will have no verdict, the first that "
        f"of question '{question.id}': {verdict.reason}; its gold is {question.gold!r:.60}"
    )
    if len(unusable) > limit.max_no_verdict_share * len(questions) or len(unusable) == len(questions):
        raise DataError(f"{found}; max_no_verdict_share is {limit.max_no_verdict_share:g}")
    yield found


# --- shared


def _count_all_rows(stage: PlannedStage, preview: Preview, refs: Iterable[str]) -> int | None:
    """Returns the total number of rows of the referenced data stages. Returns None if one of them is unknown."""
    counts = [preview.count_rows(stage.targets[ref]) for ref in refs]
    known = [count for count in counts if count is not None]
    return sum(known) if known and len(known) == len(counts) else None


def _describe_lengths(lengths: list[int]) -> str:
    """Formats percentiles of token lengths as text."""
    percentiles = compute_length_percentiles(lengths)
    return "tokens: " + (", ".join(f"p{percent} {tokens}" for percent, tokens in percentiles.items()) or "none")
