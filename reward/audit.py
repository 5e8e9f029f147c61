"""Audits a reward by comparing its verdicts on right and adversarial completions with those of a sound reward."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from qwen_align.align.rows import Completion, Message, Problem
from qwen_align.reward.base import BaseReward, Probe
from qwen_align.reward.reward_model_score import Learned
from qwen_align.reward.verdict import Verdict

# What a reward without probes of its own is audited on, where the user gives no problems.
_SUM = Problem(id="sum", messages=[Message(role="user", content="What is 17 + 25?")], gold="42", reward="math_answer")
_PADDING = 20_000  # characters; far beyond an answer, quick to judge


class AuditRow(NamedTuple):
    """A probe completion with the reward's verdict on it.

    `pays` says whether a sound reward gives a value above 0, None where only the user can say.
    """

    probe: str
    verdict: Verdict
    pays: bool | None

    @property
    def is_paid(self) -> bool:
        """Returns whether the verdict's value is above 0."""
        return self.verdict.value is not None and self.verdict.value > 0

    @property
    def is_wrong(self) -> bool:
        """Returns whether the reward rewarded a probe that it should not, or failed to reward one that it should."""
        return self.pays is not None and self.pays != self.is_paid


def audit_reward(reward: BaseReward, problems: Sequence[Problem] = ()) -> list[AuditRow]:
    """Judges a reward's own probes and eight bad completions of every problem, and returns one audit row for each.

    Returns nothing for a reward whose scorer is not loaded.
    """
    if isinstance(reward, Learned) and not reward.is_bound:
        return []
    rows = [AuditRow(probe.name, _judge_probe(reward, probe), probe.pays) for probe in reward.probes()]
    for problem in problems or ([] if rows else [_SUM]):
        rows += [AuditRow(name, reward.judge(completion), None) for name, completion in make_bad_completions(problem)]
    return rows


def _judge_probe(reward: BaseReward, probe: Probe) -> Verdict:
    """Returns the reward's verdict on one probe completion."""
    if isinstance(probe.completion, Completion) and probe.gold is None:
        return reward.judge(probe.completion)
    return reward.judge(probe.completion, probe.gold)


def make_bad_completions(problem: Problem) -> Iterator[tuple[str, Completion]]:
    """Yields names and texts of completions that do not solve a problem, such as an empty one."""
    gold = problem.gold if isinstance(problem.gold, str | int | float) else ""
    prompt = problem.messages[-1].content
    for name, text in (
        ("empty", ""),
        ("white space", " \n\n "),
        ("the prompt copied", prompt),
        ("the gold in the thinking only", f"<think>\nIt is \\boxed{{{gold}}}.\n</think>\n\n"),
        ("the gold in thinking without end", f"<think>\nIt is \\boxed{{{gold}}}."),
        ("many boxes", " or ".join(f"\\boxed{{{answer}}}" for answer in (gold, "0", "1", "x", "A"))),
        ("repeated tags", "<think>\n</think>\n" * 20),
        ("padding", "wait, " * (_PADDING // 6)),
    ):
        yield name, _make_completion(problem, text)


def make_right_completions(problem: Problem) -> Iterator[tuple[str, Completion]]:
    """Yields names and texts of completions that state a problem's gold in the forms that rewards commonly look for."""
    gold = problem.gold if isinstance(problem.gold, str) else json.dumps(problem.gold, ensure_ascii=False, default=str)
    thought = "<think>\nLet me see.\n</think>\n\n"
    for name, text in (
        ("the gold alone", gold),
        ("the gold after thinking", thought + gold),
        ("the gold in a box", f"{thought}The answer is \\boxed{{{gold}}}."),
        ("the gold in answer tags", f"{thought}<answer>{gold}</answer>"),
        ("the gold in a code block", f"{thought}```\n{gold}\n```"),
    ):
        yield name, _make_completion(problem, text)


def _make_completion(problem: Problem, text: str) -> Completion:
    """Wraps a text as a completion row of a problem."""
    shared: dict[str, Any] = {"mode": problem.mode, "flag": problem.flag, "meta": problem.meta}
    return Completion(
        prompt_id=problem.id,
        sample=0,
        prompt=problem.messages,
        text=text,
        finish_reason="stop",
        n_tokens=len(text.split()),
        gold=problem.gold,
        reward=problem.reward,
        source=problem.source,
        **shared,
    )
