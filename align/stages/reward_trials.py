"""Tries the rewards of a user's own on two problems before anything is trained. Nothing here imports torch.

They run in worker processes as in a run, all calls of a reward within one short time limit.
"""

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from qwen_align.align.errors import RecipeError
from qwen_align.align.pipeline.plan import PlannedStage
from qwen_align.align.pipeline.preview import Preview, RowsUnknown
from qwen_align.align.rows import Problem, Row
from qwen_align.align.settings.evaluate import Evaluate
from qwen_align.align.settings.online_rl import OnlineRl
from qwen_align.align.settings.rollout import Rollout
from qwen_align.reward.audit import make_bad_completions, make_right_completions
from qwen_align.reward.python_file import PythonReward
from qwen_align.reward.settings import OWN_REWARD, Reward
from qwen_align.reward.user_code import runs_user_code
from qwen_align.reward.verdict import Verdict
from qwen_align.reward.worker_pool import LateError, PoolError, UnservedError

N_PROBLEMS = 2
TIME_LIMIT_S = 10.0  # for all calls of one reward together; its own limit holds for a call besides


class JudgedProblems(NamedTuple):
    """Rewards and the data whose problems they judge, `group_size` completions of each.

    `only_own`: only problems that name a reward of the user's own.
    """

    rewards: Sequence[Reward]
    refs: Sequence[str]
    group_size: int
    only_own: bool = False


class RewardTrials:
    """Trials of users' rewards on the problems of a plan, each made and told once."""

    def __init__(self, preview: Preview) -> None:
        self._preview = preview
        self._tried: set[str] = set()
        self._said: set[str] = set()

    def describe_stage(self, stage: PlannedStage) -> Iterator[str]:
        """Yields what a trial of each of a stage's own rewards shows. RecipeError: one without any verdict."""
        for judged in () if stage.is_stored else _list_judged_problems(stage):
            for reward in judged.rewards:
                lines = self._describe_reward(reward, stage, judged) if isinstance(reward, PythonReward) else []
                yield from (line for line in lines if line not in self._said)
                self._said.update(lines)

    def _describe_reward(self, reward: PythonReward, stage: PlannedStage, judged: JudgedProblems) -> list[str]:
        """Returns what the trial of a reward shows; nothing if it has been tried on the same problems."""
        if not runs_user_code():
            return [f"{reward.label} was not tried (--no-code): {reward.file}"]
        try:
            rows = self._preview.list_input_rows(stage, judged.refs)
            problems = list(islice(_pick_problems(rows, only_own=judged.only_own), N_PROBLEMS))
        except RowsUnknown as unknown:
            return [f"{reward.label} was not tried: its problems are unknown until {unknown}"]
        trial = repr((reward, problems, judged.group_size if reward.group else 1))
        if trial in self._tried or not problems:
            return []
        self._tried.add(trial)
        return list(_describe_trial(reward, problems, judged.group_size))


def _list_judged_problems(stage: PlannedStage) -> list[JudgedProblems]:
    """Lists the rewards of a stage with the data that they judge."""
    settings = stage.settings
    if isinstance(settings, Rollout):
        return [JudgedProblems(settings.rewards, [settings.from_data], settings.completions_per_prompt)]
    if isinstance(settings, Evaluate):
        return [JudgedProblems(settings.rewards, settings.from_data, settings.completions_per_prompt, only_own=True)]
    if not isinstance(settings, OnlineRl):
        return []
    trained = JudgedProblems(settings.rewards, settings.from_data, settings.completions_per_prompt)
    if (held_out := settings.held_out) is None:
        return [trained]
    group_size = held_out.completions_per_prompt
    return [trained, JudgedProblems(held_out.rewards, held_out.from_data, group_size, only_own=True)]


def _pick_problems(rows: Iterator[Row], *, only_own: bool) -> Iterator[Problem]:
    """Yields the problems among rows. `only_own`: those that name a reward of the user's own."""
    return (row for row in rows if isinstance(row, Problem) and (not only_own or row.reward == OWN_REWARD))


def _describe_trial(reward: PythonReward, problems: Sequence[Problem], group_size: int) -> Iterator[str]:
    """Yields what a reward made of right and wrong completions of some problems.

    Raises RecipeError if it raised on all of them, or had no verdict on any.
    """
    deadline = time.monotonic() + TIME_LIMIT_S
    outcomes: list[tuple[str, bool, Verdict | PoolError]] = []
    for problem in problems:
        named = [
            *((name, completion, False) for name, completion in make_bad_completions(problem)),
            *((name, completion, True) for name, completion in make_right_completions(problem)),
        ]
        judged = reward.try_on([completion for _, completion, _ in named], group_size, deadline=deadline)
        outcomes += [(name, is_right, outcome) for (name, _, is_right), outcome in zip(named, judged, strict=True)]
    errors = [outcome for _, _, outcome in outcomes if isinstance(outcome, PoolError)]
    raised = [error for error in errors if not isinstance(error, LateError | UnservedError)]
    if raised and len(errors) == len(outcomes):
        raise RecipeError(_describe_failure(reward, f"raises on each of {len(raised)}", str(raised[0])))
    verdicts = [outcome for _, _, outcome in outcomes if isinstance(outcome, Verdict)]
    if verdicts and len(verdicts) + len(raised) == len(outcomes) and all(one.value is None for one in verdicts):
        reason = str(raised[0]) if raised else verdicts[0].reason
        raise RecipeError(_describe_failure(reward, f"raises on, or returns None for, each of {len(outcomes)}", reason))
    yield from _describe_partial_failure(reward, outcomes, raised, len(errors) - len(raised))
    paid = [
        name
        for name, is_right, outcome in outcomes
        if not is_right and isinstance(outcome, Verdict) and (outcome.value or 0.0) > 0
    ]
    if paid and reward.is_outcome:
        yield f"{reward.label} pays for what solves nothing: {', '.join(dict.fromkeys(paid))}"


def _describe_failure(reward: PythonReward, what_it_did: str, reason: str) -> str:
    """Returns the message of a reward that had a verdict on no completion."""
    return (
        f"rewards: {reward.label} of {reward.file} {what_it_did} completions that it was tried on, so it has no "
        f"verdict: {reason}. It is called with a completion (its text is completion.text) and the row's gold; what it "
        "cannot judge it may give None, or 0"
    )


def _describe_partial_failure(
    reward: PythonReward,
    outcomes: Sequence[tuple[str, bool, Verdict | PoolError]],
    raised: Sequence[PoolError],
    n_late: int,
) -> Iterator[str]:
    """Yields how many of the completions a reward raised on or was too slow for."""
    tried = f"of {len(outcomes)} completions that it was tried on"
    if raised:
        name = next(name for name, _, outcome in outcomes if outcome is raised[0])
        yield f"{reward.label} raises on {len(raised)} {tried}, such as '{name}': {raised[0]}"
    if n_late:
        yield (
            f"{reward.label} judged {len(outcomes) - n_late} {tried} in {TIME_LIMIT_S:g} s; in a run a call that takes "
            f"longer than its time_limit_s, {reward.time_limit_s:g} s, is paid 0"
        )
