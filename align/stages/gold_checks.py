"""Checks problems and their golds against the rewards that will judge them. Nothing here imports torch."""

from collections.abc import Iterable, Iterator, Sequence

from qwen_align.align.errors import DataError, RecipeError
from qwen_align.align.rows import Problem, Row, require_row_type
from qwen_align.align.settings.stage import VerdictLimit
from qwen_align.reward.audit import audit_reward
from qwen_align.reward.combine import SHAPING_SHARE, compute_shaping_scale, select_rewards
from qwen_align.reward.math_answer import MathAnswer
from qwen_align.reward.python_file import PythonReward
from qwen_align.reward.settings import Reward, check_rewards, pick_reward, refuse_unused_rewards

N_PROBLEMS_AUDITED = 2  # problems on whose bad completions a reward is audited


def refuse_golds_without_verdict(rewards: Sequence[Reward], prompts: Sequence[Problem]) -> None:
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


def describe_rewards(rewards: Sequence[Reward], prompts: Sequence[Problem]) -> Iterator[str]:
    """Yields the problems of rewards: gold answers they cannot use, bad completions they pay, scaled weights."""
    names = {problem.reward for problem in prompts} or {""}
    scale = min(compute_shaping_scale(select_rewards(rewards, name)) for name in names)
    if scale < 1:
        yield (
            f"shaping weights x {scale:.3g}, so that all shaping together reaches {SHAPING_SHARE:g} of the outcomes' "
            "weight and no wrong answer beats a right one"
        )
    refuse_golds_without_verdict(rewards, prompts)
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


def read_problems(rows: Iterable[Row]) -> list[Problem]:
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


def check_golds(
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
