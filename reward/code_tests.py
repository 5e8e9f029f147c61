"""The `code_tests` reward, which judges whether a completion's code passes the gold's tests.

It runs in a sandbox that knows no expected value, and is judged outside of it.
"""

import contextlib
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from qwen_align.align.errors import RecipeError
from qwen_align.align.rows import Completion
from qwen_align.reward.base import BaseReward, Probe, judge_in_threads
from qwen_align.reward.code.extract_code import extract_code
from qwen_align.reward.code.judge_outcomes import PASSED
from qwen_align.reward.code.judging_cells import JudgeEndedError
from qwen_align.reward.code.plan_from_gold import Plan, plan_from_gold
from qwen_align.reward.code.run_candidate import Score, run_candidate
from qwen_align.reward.code.run_dataset_tests import UNUSABLE
from qwen_align.reward.code.sandbox import Limits, SandboxError, get_sandbox
from qwen_align.reward.thinking import cut_at_turn_end, strip_thinking
from qwen_align.reward.verdict import Verdict


class CodeTests(BaseReward):
    """A reward of 1.0 for code that passes all tests of its gold, else 0.0.

    There is no verdict if the gold is unusable.

    The code is the last block of Python fenced after the thinking that defines what is asked for, or all that is said
    after it. Golds:
    `{"tests": [assert lines]}` with `imports`, `setup` (before the code too) or `test_setup_code` (after it);
    these may be pytest's or unittest's tests without fixtures, which import the code from `solution`;
    `{"prompt", "test", "entry_point"}` with a `check(candidate)`, where the completion is the function or its body;
    `{"inputs", "outputs"}` of a program, or with `fn_name` of a function or a method of `Solution`.
    """

    judges_gold: ClassVar[bool] = True
    kind: Literal["code_tests"] = "code_tests"
    time_limit_s: float = Field(
        default=Limits().time_limit_s,
        gt=0,
        le=600,
        description="seconds for all tests of one completion; wall clock, so other work on the machine counts in it",
    )
    memory_mib: int = Field(
        default=Limits().memory_mib, ge=128, description="address space of one candidate process, in MiB"
    )
    isolation: Literal["full", "process"] = Field(
        default="full",
        description="full: namespaces, system call filter, limits. process: protects the verdict and not the machine",
    )
    partial: bool = Field(default=False, description="pay the share of tests passed, so wrong code earns something")

    def judge(self, completion: str | Completion, gold: Any = None) -> Verdict:
        """Runs one completion's code against the tests of a gold, by default its own, and returns the verdict.

        Raises SandboxError where the machine does not give the isolation asked for.
        """
        text = completion if isinstance(completion, str) else completion.text
        if gold is None and not isinstance(completion, str):
            gold = completion.gold
        plan = plan_from_gold(gold)
        if plan is None:
            return Verdict(value=None, reason=UNUSABLE)
        answer = strip_thinking(cut_at_turn_end(text))
        if answer is None:
            return Verdict(value=0.0, reason="unfinished thinking")
        code = extract_code(answer)
        if code is None:
            return Verdict(value=0.0, reason="no code")
        score = self._run_twice_if_needed(plan, code.texts)
        if score.reason == UNUSABLE:
            return Verdict(value=None, reason=UNUSABLE)
        if score.reason == PASSED:
            return Verdict(value=1.0, reason=PASSED)
        reason = "no code" if score.reason == "syntax error" and not code.fenced else score.reason
        return Verdict(value=score.n_passed / score.n_tests if self.partial else 0.0, reason=reason)

    def _run_twice_if_needed(self, plan: Plan, texts: list[str]) -> Score:
        """Runs a candidate and returns its score. Runs it again if what judges it was ended from outside.

        Raises SandboxError where the machine does not give the isolation asked for.
        """
        sandbox, limits = get_sandbox(self.isolation), Limits(self.time_limit_s, self.memory_mib)
        with contextlib.suppress(SandboxError):
            return run_candidate(plan, texts, sandbox, limits, partial=self.partial)
        try:
            return run_candidate(plan, texts, sandbox, limits, partial=self.partial)
        except JudgeEndedError:  # twice by the same candidate
            return Score(0, 1, "crashed")

    def judge_many(self, completions: Sequence[Completion], *, deadline: float | None = None) -> list[Verdict]:
        """Judges completions in parallel, one for each processor core, and returns the verdicts in order."""
        self.warm_up()
        return judge_in_threads(self.judge, completions, deadline)

    def judge_gold(self, gold: Any) -> Verdict:
        """Runs a gold's reference solution against its tests and returns the verdict.

        Without a solution, only the form of the tests is checked.
        """
        if plan_from_gold(gold) is None:
            return Verdict(value=None, reason=UNUSABLE)
        solution = next((gold[key] for key in ("canonical_solution", "code") if isinstance(gold.get(key), str)), None)
        return Verdict(value=1.0, reason="usable") if solution is None else self.judge(solution, gold)

    def check_machine(self) -> None:
        """Raises RecipeError if this machine cannot give the sandbox isolation that the settings ask for."""
        try:
            self.warm_up()
        except SandboxError as error:
            raise RecipeError(f"reward code_tests: {error}") from error

    def warm_up(self) -> None:
        """Starts the sandbox's server process.

        Raises SandboxError if this machine cannot give the isolation asked for.
        """
        get_sandbox(self.isolation).warm_up()

    def probes(self) -> list[Probe]:
        """Returns right solutions in each gold format, and cheating ones that attack a test harness."""
        gold = {"tests": ["assert add(1, 2) == 3", "assert add(5, 7) == 12"]}
        right, wrong = "def add(a, b):\n    return a + b\n", "def add(a, b):\n    return -1\n"
        equal = "class Equal(int):\n    def __eq__(self, other):\n        return True\n"
        program = {"inputs": ["1 2\n"], "outputs": ["3\n"]}
        cases = {
            "right": (right, gold, True),
            "right, fenced": (f"<think>\nAdd.\n</think>\n\nHere:\n```python\n{right}```\n", gold, True),
            "right program": ("print(sum(map(int, input().split())))", program, True),
            "empty": ("", gold, False),
            "copied tests": (gold["tests"][0], gold, False),
            "only in thinking": (f"<think>\n```python\n{right}```\n</think>\n\nDone.", gold, False),
            "unfinished block": (f"```python\n{right}", gold, False),
            "wrong": (wrong, gold, False),
            "exits with 0": ("import os\nos._exit(0)", gold, False),
            "equal to all": (f"{equal}def add(a, b):\n    return Equal(99)\n", gold, False),
            "prints the expected": (f"print(3)\nprint('passed')\n{wrong}", gold, False),
            "prints more than asked": ("print(3)\nprint(4)", program, False),
            "no tests": (right, {"tests": []}, False),
        }
        return [Probe(name, *case) for name, case in cases.items()]
