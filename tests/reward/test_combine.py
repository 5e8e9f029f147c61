"""Rewards together: what is paid, what tips the scales, and that no shaping makes a wrong answer beat a right one."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_align.align.rows import Completion, Message
from qwen_align.reward.base import UNJUDGED, BaseReward, is_right
from qwen_align.reward.combine import compute_shaping_scale, is_task_solved, judge_all, select_rewards
from qwen_align.reward.control_rewards import Constant
from qwen_align.reward.format import Format
from qwen_align.reward.math_answer import MathAnswer
from qwen_align.reward.tool_calls import ToolCalls
from qwen_align.reward.verdict import Verdict

RIGHT, WRONG = "<think>\na\n</think>\n\n\\boxed{2}", "<think>\na\n</think>\n\n\\boxed{3}"


def completion(text: str, gold: Any = "2", **fields: Any) -> Completion:
    prompt = [Message(role="user", content="1+1?")]
    given = {"prompt_id": "p", "sample": 0, "mode": "think", "finish_reason": "stop", "n_tokens": 1, **fields}
    return Completion(prompt=prompt, text=text, gold=gold, **given)


class Says(BaseReward):
    """An outcome or a shaping reward that reads its own value from the completion's `meta`."""

    kind: Literal["says"] = "says"
    of: str
    shapes: bool = False
    reach: float = 1.0

    @property
    def label(self) -> str:
        return self.of

    @property
    def is_outcome(self) -> bool:
        return not self.shapes

    @property
    def bound(self) -> float:
        return self.reach

    def judge(self, completion: str | Completion, gold: Any = None) -> Verdict:
        assert isinstance(completion, Completion)
        return Verdict(value=completion.meta[self.of], reason=self.of)


class LongestOfGroup(BaseReward):
    """1.0 for the longest completion of its prompt; looks at whether it is right, too."""

    role: ClassVar[Literal["outcome", "shaping"]] = "shaping"
    needs_outcome: ClassVar[bool] = True
    kind: Literal["longest"] = "longest"

    def judge(self, completion: str | Completion, gold: Any = None) -> Verdict:
        raise AssertionError("judges groups")

    def judge_group(self, group: Sequence[Completion]) -> list[Verdict]:
        longest = max(one.n_tokens for one in group)
        return [Verdict(value=float(one.n_tokens == longest), reason=str(is_right(one))) for one in group]


def test_sum_with_its_parts() -> None:
    (verdict,) = judge_all([MathAnswer(), Format(weight=0.25)], [completion(RIGHT)])
    assert verdict.value == 1.25
    assert verdict.reason == "correct; well formed"
    assert verdict.parts == {
        "math_answer": Verdict(value=1.0, reason="correct"),
        "format": Verdict(value=1.0, reason="well formed"),
    }


@pytest.mark.parametrize(("text", "value"), [(RIGHT, 1.25), (WRONG, 0.25), ("\\boxed{2}", 1.0), ("<think>", 0.0)])
@pytest.mark.parametrize("weight", [0.25, 1.0, 100.0])
def test_shaping_is_scaled_to_a_quarter_of_the_outcome(text: str, value: float, weight: float) -> None:
    rewards = [MathAnswer(), Format(weight=weight)]
    assert judge_all(rewards, [completion(text)])[0].value == value


def test_shaping_alone_is_not_scaled() -> None:
    assert judge_all([Format(weight=3.0)], [completion(RIGHT)])[0].value == 3.0


def test_one_reward_alone_keeps_its_reason() -> None:
    (verdict,) = judge_all([MathAnswer(weight=2.0)], [completion(RIGHT)])
    assert (verdict.value, verdict.reason) == (2.0, "correct")


def test_no_verdict_of_a_part_is_no_verdict_at_all() -> None:
    (verdict,) = judge_all([Format(), MathAnswer()], [completion(RIGHT, gold=None)])
    assert (verdict.value, verdict.reason) == (None, "unusable gold")
    assert verdict.parts is not None
    assert verdict.parts["format"].value == 1.0


def test_outcomes_alone_are_paid_as_they_are() -> None:
    rewards = [Says(of="a", weight=2.0), Says(of="b")]
    assert judge_all(rewards, [completion("", meta={"a": 3.5, "b": -1.0})])[0].value == 6.0


def test_a_gate_that_is_not_passed_pays_no_outcome() -> None:
    rewards = [MathAnswer(), Format(weight=0.1, gate=True)]
    values = [judge_all(rewards, [completion(text)])[0].value for text in (RIGHT, "\\boxed{2}", WRONG)]
    assert values == [1.1, 0.0, 0.1]


weights = st.floats(1e-3, 1e6)
signed = st.floats(-1e6, 1e6)
shares = st.floats(0.0, 1.0)


@given(st.data())
def test_right_beats_wrong_whatever_the_weights(data: st.DataObject) -> None:
    outcomes = [Says(of=f"o{n}", weight=data.draw(weights)) for n in range(data.draw(st.integers(1, 3)))]
    shaping = [
        Says(of=f"s{n}", weight=data.draw(signed), shapes=True, reach=data.draw(st.floats(0.1, 10.0)))
        for n in range(data.draw(st.integers(1, 3)))
    ]
    gated = data.draw(st.booleans())
    rewards = [*outcomes, *shaping, *([Says(of="gate", shapes=True, weight=0.0, gate=True)] if gated else [])]

    def drawn(value: st.SearchStrategy[float]) -> dict[str, float]:
        return {one.of: data.draw(value if one.is_outcome else signed) for one in rewards} | {"gate": 1.0}

    right = completion("", meta=drawn(st.floats(1.0, 1e6)))
    short = {data.draw(st.sampled_from(outcomes)).of: data.draw(st.floats(-1e6, 0.999))}
    wrong = completion("", meta={**drawn(signed), **short})
    unpassed = completion("", meta={**drawn(st.just(1.0)), "gate": 0.0})
    best, *others = (verdict.value for verdict in judge_all(rewards, [right, wrong, *[unpassed] * gated]))
    assert best is not None
    assert all(value is not None and value < best for value in others)


@given(st.tuples(shares, shares), weights, st.floats(0.0, 1.0))
def test_the_better_of_two_wrong_answers_gets_more(values: tuple[float, float], weight: float, shaped: float) -> None:
    rewards = [Says(of="o"), Says(of="s", weight=weight, shapes=True)]
    low, high = sorted(values)
    worse, better = judge_all(rewards, [completion("", meta={"o": value, "s": shaped}) for value in (low, high)])
    assert worse.value is not None
    assert better.value is not None
    assert worse.value <= better.value


@given(st.lists(st.tuples(signed, st.floats(0.0, 10.0)), max_size=4), st.lists(weights, min_size=1, max_size=3))
def test_shaping_stays_within_a_quarter(shaping: list[tuple[float, float]], outcomes: list[float]) -> None:
    rewards = [Says(of=f"s{n}", weight=weight, reach=reach, shapes=True) for n, (weight, reach) in enumerate(shaping)]
    scale = compute_shaping_scale([*rewards, *(Says(of=f"o{n}", weight=weight) for n, weight in enumerate(outcomes))])
    assert 0 <= scale <= 1
    assert scale * sum(abs(weight) * reach for weight, reach in shaping) <= 0.25 * sum(outcomes) * (1 + 1e-9)


def test_groups_are_the_completions_of_a_prompt_in_a_mode() -> None:
    rows = [
        completion(RIGHT, prompt_id="a", n_tokens=5),
        completion(WRONG, prompt_id="b", n_tokens=9),
        completion(WRONG, prompt_id="a", n_tokens=7),
        completion(RIGHT, prompt_id="a", n_tokens=3, mode="no_think"),
    ]
    verdicts = judge_all([LongestOfGroup(), MathAnswer()], rows)
    said = [verdict.parts["longest"] for verdict in verdicts if verdict.parts]
    assert [(one.value, one.reason) for one in said] == [(0.0, "True"), (1.0, "False"), (1.0, "False"), (1.0, "True")]


@given(st.permutations([RIGHT, WRONG, "\\boxed{2}", "<think>", ""]))
def test_a_batch_is_judged_as_one_by_one(texts: list[str]) -> None:
    rewards = [MathAnswer(), Format()]
    rows = [completion(text, prompt_id=str(n)) for n, text in enumerate(texts)]
    assert judge_all(rewards, rows) == [judge_all(rewards, [row])[0] for row in rows]


def test_what_is_not_judged_by_the_deadline_has_no_verdict() -> None:
    class Slow(Format):
        def judge(self, completion: str | Completion, gold: Any = None) -> Verdict:
            time.sleep(0.02)
            return super().judge(completion)

    rows = [completion(RIGHT, prompt_id=str(n)) for n in range(100)]
    started = time.monotonic()
    verdicts = judge_all([Slow()], rows, deadline_s=0.2)
    assert time.monotonic() - started < 1.0
    assert verdicts[0].value == 1.0
    assert verdicts[-1].value is None
    assert verdicts[-1].parts == {"format": UNJUDGED}


def test_from_asyncio() -> None:
    async def judged() -> list[Verdict]:
        both = (asyncio.to_thread(judge_all, [MathAnswer()], [completion(text)]) for text in (RIGHT, WRONG))
        return [verdict for (verdict,) in await asyncio.gather(*both)]

    assert [verdict.value for verdict in asyncio.run(judged())] == [1.0, 0.0]


def test_a_sum_beyond_any_number_is_no_verdict() -> None:
    rewards = [Says(of=name, weight=1e6) for name in ("a", "b")]
    (verdict,) = judge_all(rewards, [completion("", meta={"a": 1e308, "b": 1e308})])
    assert (verdict.value, verdict.reason) == (None, "rewards beyond any number")


@pytest.mark.parametrize(
    ("values", "expected"), [((1.0, 1.0), True), ((1.0, 0.5), False), ((1.0, None), None), ((0.0, 0.0), False)]
)
def test_solved_is_what_every_outcome_says(values: tuple[float | None, float | None], expected: bool | None) -> None:
    rewards = [Says(of="a"), Says(of="b"), Says(of="c", shapes=True)]
    (verdict,) = judge_all(rewards, [completion("", meta={"a": values[0], "b": values[1], "c": 0.0})])
    assert is_task_solved(rewards, verdict) == expected


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
CALL_GOLD = {"calls": [{"name": "add", "arguments": {"a": 1}}]}


def test_a_row_is_judged_by_the_reward_it_names() -> None:
    rewards = [MathAnswer(), ToolCalls(weight=2.0), Format(weight=0.1)]
    rows = [
        completion(RIGHT, prompt_id="m", reward="math_answer"),
        completion(f"<think>\na\n</think>\n\n{CALL}", CALL_GOLD, prompt_id="t", reward="tool_calls"),
        completion(WRONG, prompt_id="n", reward="math_answer"),
    ]
    verdicts = judge_all(rewards, rows)
    assert [verdict.value for verdict in verdicts] == [1.1, 2.1, 0.1]
    assert [list(verdict.parts or {}) for verdict in verdicts] == [
        ["math_answer", "format"],
        ["tool_calls", "format"],
        ["math_answer", "format"],
    ]
    assert [is_task_solved(rewards, verdict) for verdict in verdicts] == [True, True, False]
    assert verdicts == [judge_all(rewards, [row])[0] for row in rows]


def test_shaping_is_scaled_by_the_outcome_of_the_row() -> None:
    rewards = [MathAnswer(), ToolCalls(weight=3.0), Format(weight=1.0)]
    (verdict,) = judge_all(rewards, [completion(RIGHT, reward="math_answer")])
    assert verdict.value == 1.25  # a quarter of the one outcome's weight, not of both


@pytest.mark.parametrize(
    ("named", "kinds"),
    [
        ("math_answer", ["math_answer", "constant", "format"]),
        ("tool_calls", ["tool_calls", "constant", "format"]),
        ("constant", ["math_answer", "tool_calls", "constant", "format"]),
        ("code_tests", ["math_answer", "tool_calls", "constant", "format"]),
        ("", ["math_answer", "tool_calls", "constant", "format"]),
    ],
)
def test_only_rewards_that_judge_golds_are_chosen_by_row(named: str, kinds: list[str]) -> None:
    rewards = [MathAnswer(), ToolCalls(), Constant(), Format()]
    assert [reward.kind for reward in select_rewards(rewards, named)] == kinds
