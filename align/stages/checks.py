"""Checks each kind of stage before anything is trained and reports what it will do. Nothing here imports torch."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from heapq import nlargest

from qwen_align.align.errors import DataError
from qwen_align.align.pipeline.plan import PlannedStage
from qwen_align.align.pipeline.preview import Preview, RowsUnknown
from qwen_align.align.rendering.samples import compute_length_percentiles
from qwen_align.align.rendering.training_set import render_pairs, render_rows
from qwen_align.align.reporting.summary_line import format_summary
from qwen_align.align.rows import Pair, Problem, Row, require_row_type
from qwen_align.align.settings.build_data import BuildData
from qwen_align.align.settings.dpo import Dpo
from qwen_align.align.settings.evaluate import Evaluate
from qwen_align.align.settings.online_rl import OnlineRl
from qwen_align.align.settings.pretrain import Pretrain
from qwen_align.align.settings.reward_model import RewardModel
from qwen_align.align.settings.rollout import Rollout, Switch
from qwen_align.align.settings.runtime import split_into_micro_batches
from qwen_align.align.settings.sampling import SamplingSettings
from qwen_align.align.settings.sft import Sft
from qwen_align.align.settings.training import count_optimizer_steps
from qwen_align.align.stages.build_data import build_rows
from qwen_align.data_builders.hub import Hub
from qwen_align.data_builders.sieve import Drops, Sources
from qwen_align.reward.audit import audit_reward
from qwen_align.reward.combine import SHAPING_SHARE, compute_shaping_scale, select_rewards
from qwen_align.reward.math_answer import MathAnswer
from qwen_align.reward.settings import Reward, check_rewards, pick_reward

N_PROBLEMS_AUDITED = 2  # problems on whose bad completions a reward is audited
N_LONGEST_RENDERED = 50  # prompts with most characters; that with most tokens is among them, or close to it


# --- data


def check_data(stage: PlannedStage, preview: Preview) -> Iterator[str]:
    """Yields the row and drop counts of a data stage. Raises DataError when no row is left and the stage needs some."""
    if stage.is_stored:
        yield format_summary(stage.folder.read_manifest()["summary"])
        return
    settings = stage.settings
    assert isinstance(settings, BuildData)
    n_kept, dropped = len(preview.list_rows(stage.name)), preview.drops[stage.name].counts
    if not n_kept and settings.on_empty == "fail":
        raise DataError(f"no row is left; dropped: {dropped or 'none, the builder made no row'}. See builder and sieve")
    yield format_summary({"rows": n_kept, "dropped": dropped}) or "no rows"


def forecast_data(stage: PlannedStage, preview: Preview) -> Iterator[str]:
    """Yields the number of rows a data stage will have, where the recipe says it."""
    n_rows = preview.count_rows(stage.name)
    if n_rows is not None:
        yield f"rows {n_rows:,}, if all are kept"


def list_built_rows(stage: PlannedStage, sources: Sources, drops: Drops) -> list[Row]:
    """Builds the rows of a data stage in memory. Raises RowsUnknown where that would download something."""
    settings = stage.settings
    assert isinstance(settings, BuildData)
    if isinstance(settings.builder, Hub):
        raise RowsUnknown(f"{settings.builder.dataset} is downloaded")
    return list(build_rows(settings, sources, stage.seed, drops))


def check_pretraining(stage: PlannedStage, preview: Preview) -> Iterator[str]:
    """Yields the number of documents that a pretraining stage reads."""
    settings = stage.settings
    assert isinstance(settings, Pretrain)
    yield f"{len(preview.list_rows(stage.targets[settings.from_data])):,} documents"


# --- training on rows


def check_supervised_training(stage: PlannedStage, preview: Preview) -> Iterator[str]:
    """Yields the samples, drops, steps and lengths of an SFT stage as lines."""
    settings = stage.settings
    assert isinstance(settings, Sft)
    split_into_micro_batches(settings.batch, stage.runtime)
    rendered = render_rows(
        preview.get_renderer(stage), preview.list_input_rows(stage, settings.from_data), settings.max_tokens
    )
    longest = max((len(sample.ids) for sample in rendered.samples), default=0)
    preview.check_context_length(stage, longest, "a sample")
    yield from _describe_training(settings, rendered.lengths, rendered.dropped, len(rendered.samples))


def check_training_on_pairs(stage: PlannedStage, preview: Preview) -> Iterator[str]:
    """Yields the pairs, drops, steps and lengths of a DPO or reward model stage as lines."""
    settings = stage.settings
    assert isinstance(settings, Dpo | RewardModel)
    pairs = list(require_row_type(Pair, preview.list_input_rows(stage, settings.from_data)))
    split_into_micro_batches(settings.batch, stage.runtime)
    needs_margin = isinstance(settings, RewardModel) and settings.margins
    rendered = render_pairs(preview.get_renderer(stage), pairs, settings.max_tokens, needs_margin=needs_margin)
    longest = max((length for length in rendered.lengths if length <= settings.max_tokens), default=0)
    preview.check_context_length(stage, longest, "a pair's side")
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
    if lengths:
        yield f"{_describe_lengths(lengths)}, limit {settings.max_tokens}"


def _describe_warmup(settings: Sft | Dpo | RewardModel, steps: int) -> str:
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
    lengths = [preview.measure_prompt(stage, problem, None) for problem in prompts]
    longest = max(lengths, default=0) + settings.sampling.max_tokens
    preview.check_context_length(stage, longest, "a prompt and sampling.max_tokens")
    yield (
        f"{settings.steps:,} steps of {settings.prompts_per_step} prompts x {settings.completions_per_prompt} "
        f"completions, {settings.optimizer_steps:,} updates"
    )
    yield f"prompt {_describe_lengths(lengths)}"
    yield from _describe_rewards(settings.rewards, prompts)


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
    _check_golds(questions, settings.rewards)
    limit = _describe_token_limit(stage, preview, questions, settings.thinking_switches, settings.sampling)
    yield (
        f"{len(questions):,} questions x {len(settings.thinking_switches)} switches x "
        f"{settings.completions_per_prompt} completions, {limit}"
    )


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
    """Returns the token limit of completions as text, after rendering the longest prompts as the stage will."""
    renderer = preview.get_renderer(stage)
    longest = 0
    by_length = nlargest(N_LONGEST_RENDERED, prompts, key=lambda row: sum(len(turn.content) for turn in row.messages))
    for problem in by_length if not switches else ():
        sampling.resolve_for_mode(problem.mode or renderer.traits.default_mode)
        longest = max(longest, preview.measure_prompt(stage, problem, None))
    for switch in switches:
        sampling.resolve_for_mode(switch.mode or renderer.traits.default_mode)
        for problem in by_length:
            longest = max(longest, preview.measure_prompt(stage, problem, switch))
    preview.check_context_length(stage, longest + sampling.max_tokens, "a prompt and sampling.max_tokens")
    return f"at most {sampling.max_tokens} tokens each"


def _describe_rewards(rewards: Sequence[Reward], prompts: Sequence[Problem]) -> Iterator[str]:
    """Yields the problems of rewards: gold answers they cannot use, bad completions they pay, scaled weights."""
    names = {problem.reward for problem in prompts} or {""}
    scale = min(compute_shaping_scale(select_rewards(rewards, name)) for name in names)
    if scale < 1:
        yield (
            f"shaping weights x {scale:.3g}, so that all shaping together reaches {SHAPING_SHARE:g} of the outcomes' "
            "weight and no wrong answer beats a right one"
        )
    unjudged: set[str] = set()
    for reward in rewards:
        judged = [problem for problem in prompts if reward in select_rewards(rewards, problem.reward)]
        unusable = [problem for problem in judged if reward.judge_gold(problem.gold).value != 1.0]
        unjudged |= {problem.id for problem in unusable}
        if unusable:
            first = f"'{unusable[0].id}': {unusable[0].gold!r:.60}"
            if len(unjudged) == len({problem.id for problem in prompts}):
                raise DataError(f"no row gets a verdict: {reward.label} cannot use its gold, the first {first}")
            yield f"{reward.label}: {len(unusable):,} golds of {len(judged):,} are unusable, the first {first}"
        if reward.is_outcome:
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


def _check_golds(questions: Sequence[Problem], rewards: list[Reward]) -> None:
    """Raises DataError for the first question whose reward cannot use its gold answer."""
    for question in questions:
        verdict = pick_reward(question.reward, rewards).judge_gold(question.gold)
        if verdict.value != 1.0:
            raise DataError(f"question '{question.id}': {verdict.reason}; its gold is {question.gold!r:.60}")


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
