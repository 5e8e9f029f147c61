"""The `reasoning_gym` reward, which judges an answer by the scorer of its reasoning_gym task."""

import contextlib
import importlib.util
import json
import math
import os
from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from qwen_align.align.errors import RecipeError
from qwen_align.align.rows import Completion
from qwen_align.reward.base import UNJUDGED, BaseReward, Probe, count_cores, judge_in_threads
from qwen_align.reward.math.final_answer import extract_boxed_answers
from qwen_align.reward.reasoning_gym_guards import REFUSED_TASKS, passes_task_guard, restore_tuples
from qwen_align.reward.thinking import cut_at_turn_end, strip_thinking
from qwen_align.reward.verdict import Verdict
from qwen_align.reward.worker_pool import Pool, PoolError, StartError, UnservedError, WorkError

KEY_PACKAGES = ("reasoning-gym",)  # whose items and scorers change with its version
NOT_INSTALLED = "reasoning_gym is not installed; pip install 'qwen-align[reasoning-gym]'"
_MAX_ANSWER_CHARACTERS = 10_000  # characters; the largest gold, an ARC board, has under 2,000
_OPEN, _CLOSE = "<answer>", "</answer>"
_EXAMPLES = ("possible_answer", "example_correct_answer")  # of an entry's metadata, where there are many answers


class ReasoningGym(BaseReward):
    """A reward of 1.0 for an answer that gets full marks from its reasoning_gym scorer and passes the guards, else 0.0.

    Gold: `{"dataset": name, "entry": {...}}` with an item of reasoning_gym (github.com/open-thought/reasoning-gym) as
    the builder of the same name writes it, and `settings`, the data set's configuration, where it is not the default.
    The answer is what the last `<answer>` tags after the thinking hold, else the last box, else all of the text.

    Some scorers `eval` the answer, hand it to sympy or loop over it, so they run in worker processes, and some pay
    in full for wrong answers: `reasoning_gym_guards` says which, and what is asked besides. Their marks between 0 and
    1 are often for form alone (0.05 for anything that parses), so only `partial_credit` passes them on. Some scorers
    evaluate the item too: take golds from the builder, not from strangers' files.
    """

    role: ClassVar[Literal["outcome", "shaping"]] = "outcome"
    judges_gold: ClassVar[bool] = True
    key_packages = KEY_PACKAGES

    kind: Literal["reasoning_gym"] = "reasoning_gym"
    partial_credit: bool = Field(default=False, description="pay the scorer's marks between 0 and 1 as they are")
    time_limit_s: float = Field(default=5.0, gt=0, allow_inf_nan=False, description="seconds to score one answer")
    memory_gib: float = Field(
        default=4.0, gt=0, allow_inf_nan=False, description="memory of one worker process, in GiB of address space"
    )

    def judge(self, completion: str | Completion, gold: Any = None) -> Verdict:
        """Scores one completion's answer against a gold, by default its own, and returns the verdict."""
        text = completion if isinstance(completion, str) else completion.text
        if gold is None and not isinstance(completion, str):
            gold = completion.gold
        task = parse_task_gold(gold)
        if task is None:
            return Verdict(value=None, reason="unusable gold")
        answer, fault = extract_answer(text)
        if fault:
            return Verdict(value=0.0, reason=fault)
        self.warm_up()
        try:
            reply = self._get_pool().ask(task._asdict() | {"answer": answer})
        except UnservedError:
            return UNJUDGED
        except WorkError:  # settings or metadata that the data set cannot be made of
            return Verdict(value=None, reason="unusable gold")
        except PoolError as error:  # late, or dead of memory: the answer's doing
            return Verdict(value=0.0, reason=str(error))
        return self._to_verdict(reply)

    def _to_verdict(self, reply: dict[str, Any]) -> Verdict:
        """Converts a worker's reply to a verdict."""
        score, reason = reply["score"], reply["reason"]
        if score is None or reason:
            return Verdict(value=score, reason=reason)
        if score == 1.0:
            return Verdict(value=1.0, reason="correct")
        if not 0.0 <= score < 1.0:
            return Verdict(value=0.0, reason="score out of range")
        return Verdict(value=score if self.partial_credit else 0.0, reason="partly" if score else "wrong")

    def judge_many(self, completions: Sequence[Completion], *, deadline: float | None = None) -> list[Verdict]:
        """Scores completions in parallel, one for each processor core, and returns the verdicts in order."""
        return judge_in_threads(self.judge, completions, deadline)

    def judge_gold(self, gold: Any) -> Verdict:
        """Judges a completion that states the task's known answer. The verdict is 1.0 for a task without one."""
        task = parse_task_gold(gold)
        if task is None:
            return Verdict(value=None, reason="unusable gold")
        known = find_known_answer(task.entry)
        if known is None:
            return Verdict(value=1.0, reason="no answer known")
        return self.judge(f"{_OPEN}\n{known}\n{_CLOSE}", gold)

    def warm_up(self) -> None:
        """Starts the server process of the scorer workers. Raises RecipeError if reasoning_gym is not installed."""
        if importlib.util.find_spec("reasoning_gym") is None:
            raise RecipeError(NOT_INSTALLED)
        try:
            self._get_pool().warm_up()
        except StartError as error:
            raise RecipeError(f"reward reasoning_gym: {error}") from error

    def _get_pool(self) -> Pool:
        """Returns the worker pool for these reward settings."""
        return _make_pool(self.time_limit_s, self.memory_gib)

    def probes(self) -> list[Probe]:
        """Returns probe answers to three reasoning_gym tasks, including one whose scorer accepts anything."""
        entries = {
            "leg_counting": ("How many legs are there in total if you have 3 dogs, 2 ducks?", "16", {}),
            "game_of_life_halting": ("Will this Game of Life halt within 5 steps?", "True", {}),
            "simple_integration": (
                "Find the indefinite integral: ∫ 2*x dx",
                "x**2 + C",
                {"variable": "x", "integrand": "2*x", "expected_expression": "x**2 + C"},
            ),
        }
        golds = {
            name: {"dataset": name, "entry": {"question": question, "answer": answer, "metadata": metadata}}
            for name, (question, answer, metadata) in entries.items()
        }
        legs, halting, integral = golds.values()
        code = "__import__('os').getpid()"
        return [
            Probe("the answer in tags", "<think>\n12+4\n</think>\n\n<answer>16</answer>", legs, True),
            Probe("the answer in a box", r"It is \boxed{16}.", legs, True),
            Probe("the bare answer", "16", legs, True),
            Probe("an equal integral", "<answer>x*x + 7</answer>", integral, True),
            Probe("empty", "", legs, False),
            Probe("wrong", "<answer>17</answer>", legs, False),
            Probe("hedged", "<answer>16 or 17</answer>", legs, False),
            Probe("only in the thinking", "<think>\n<answer>16</answer>\n</think>\n\nDone.", legs, False),
            Probe("thinking never ends", "<think>\n<answer>16</answer>", legs, False),
            Probe("corrected afterwards", "<answer>16</answer> No: <answer>17</answer>", legs, False),
            Probe("any text where the scorer pays any", "<answer>False</answer>", halting, False),
            Probe("the question's own integral", "<answer>Integral(2*x, x)</answer>", integral, False),
            Probe("code", f"<answer>{code}</answer>", integral, False),
            Probe("a power that never ends", "<answer>9**9**9**9*x</answer>", integral, False),
            Probe("unusable gold", "<answer>16</answer>", {"dataset": "no_such_task", "entry": legs["entry"]}, False),
        ]


class TaskItem(NamedTuple):
    """An item of a reasoning_gym task, with the name and settings of its data set."""

    dataset: str
    entry: dict[str, Any]
    settings: dict[str, Any]


def parse_task_gold(gold: Any) -> TaskItem | None:
    """Parses a gold into a reasoning_gym task item.

    Returns None if it is unusable; the worker checks that the data set exists.
    """
    if not isinstance(gold, dict) or not {"dataset", "entry"} <= set(gold) <= {"dataset", "entry", "settings"}:
        return None
    task = TaskItem(gold["dataset"], gold["entry"], gold.get("settings", {}))
    if not (isinstance(task.dataset, str) and isinstance(task.entry, dict) and isinstance(task.settings, dict)):
        return None
    entry = task.entry
    is_complete = (
        isinstance(entry.get("question"), str) and isinstance(entry.get("metadata"), dict) and "answer" in entry
    )
    return (
        task if is_complete and isinstance(entry["answer"], str | None) and task.dataset not in REFUSED_TASKS else None
    )


def find_known_answer(entry: dict[str, Any]) -> str | None:
    """Returns the gold answer of a reasoning_gym entry, or its metadata's example answer, as a model would write it."""
    for answer in (entry["answer"], *(entry["metadata"].get(name) for name in _EXAMPLES)):
        if answer is not None:
            return answer if isinstance(answer, str) else json.dumps(answer)
    return None


def extract_answer(text: str) -> tuple[str, str]:
    """Extracts the answer from a completion and returns it with an empty reason.

    Without an answer, returns "" and the reason.
    """
    visible = strip_thinking(cut_at_turn_end(text))
    if visible is None:
        return "", "unfinished thinking"
    if _OPEN in visible:
        answer, closed, _ = visible.rpartition(_OPEN)[2].partition(_CLOSE)
        if not closed:
            return "", "unfinished answer"
    else:
        boxes = extract_boxed_answers(visible)
        if isinstance(boxes, str):
            return "", boxes
        if boxes is not None and len(boxes) > 1:
            return "", "several answers"
        answer = visible if boxes is None else boxes[0]
    answer = answer.strip()
    if len(answer) > _MAX_ANSWER_CHARACTERS:
        return "", "answer too long"
    return (answer, "") if answer else ("", "no answer")


@cache
def _make_pool(time_limit_s: float, memory_gib: float) -> Pool:
    """Returns the worker pool that runs the reasoning_gym scorers. The same settings share one pool."""
    entry = "qwen_align.reward.reasoning_gym_task:make_handler"
    return Pool(entry, workers=count_cores(), limit_s=time_limit_s, memory_gib=memory_gib)


def make_handler(argument: None) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Imports reasoning_gym in the workers' server process and returns a function that scores one answer."""
    from reasoning_gym.factory import DATASETS, create_dataset

    @lru_cache(maxsize=64)
    def get_dataset(name: str, settings: str) -> Any:
        """Returns the reasoning_gym data set of a name and of settings written as JSON."""
        return create_dataset(name, **json.loads(settings))

    def score_request(request: dict[str, Any]) -> dict[str, Any]:
        """Scores the answer of a request and returns the score with a reason, which is empty for a plain score."""
        name, entry = request["dataset"], request["entry"]
        if name not in DATASETS:
            return {"score": None, "reason": "unusable gold"}
        if not passes_task_guard(name, request["answer"], entry):
            return {"score": 0.0, "reason": "not admitted"}
        scorer = get_dataset(name, json.dumps(request["settings"], sort_keys=True))
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):  # some scorers print
            try:
                score = float(scorer.score_answer(request["answer"], restore_tuples(name, entry)))
            except Exception:  # noqa: BLE001  # a library's code on a model's text may raise anything
                return {"score": 0.0, "reason": "scorer raised"}
        return {"score": score, "reason": ""} if math.isfinite(score) else {"score": 0.0, "reason": "score not finite"}

    return score_request
