"""Rewards of a scorer: bound or not, and Qwen2.5-Math's shaping, under which right always beats wrong."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_align.align.rows import Completion, Message
from qwen_align.reward.audit import audit_reward
from qwen_align.reward.combine import is_task_solved, judge_all
from qwen_align.reward.reward_model_score import Learned, Qwen25Math
from qwen_align.reward.settings import RewardName


def completion(text: str, sample: int = 0, gold: str = "2") -> Completion:
    prompt = [Message(role="user", content="1+1?")]
    return Completion(
        prompt_id="p", sample=sample, prompt=prompt, text=text, gold=gold, finish_reason="stop", n_tokens=1
    )


def lengths(group: Sequence[Completion]) -> list[float]:
    return [float(len(one.text)) for one in group]


def bound(kind: type[Learned] = Learned) -> Learned:
    one = kind.model_validate({"kind": kind.model_fields["kind"].default, "from_scorer": "rm"})
    one.bind_scorer(lengths)
    return one


def test_the_score_as_it_is() -> None:
    one = bound()
    said = one.judge_group([completion("ab"), completion("abcd")])
    assert [verdict.value for verdict in said] == [2.0, 4.0]
    assert one.judge(completion("abc")).value == 3.0
    assert one.is_solved(said[0]) is None
    (verdict,) = judge_all([one], [completion("ab")])
    assert is_task_solved([one], verdict) is None


def test_a_scorer_that_is_not_there_is_said() -> None:
    one = Learned.model_validate({"kind": "learned", "from_scorer": "rm"})
    with pytest.raises(RuntimeError, match="reward learned: its scorer is not bound"):
        one.judge(completion("a"))
    with pytest.raises(TypeError, match="judges Completion rows"):
        bound().judge("a")
    assert audit_reward(one) == []


@given(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6))
def test_every_right_answer_beats_every_wrong_one(right: float, wrong: float) -> None:
    one = bound(Qwen25Math)
    one.bind_scorer(lambda group: [right if "2" in each.text else wrong for each in group])
    good, bad = one.judge_group([completion("\\boxed{2}"), completion("\\boxed{3}", 1)])
    assert good.value is not None
    assert bad.value is not None
    assert good.value >= 0.0 >= bad.value
    assert good.value > bad.value or (right < -50 and wrong > 50)  # beyond, both round to 0
    assert (one.is_solved(good), one.is_solved(bad)) == (True, False)


def test_the_formula_of_qwen25_math() -> None:
    one = bound(Qwen25Math)
    one.bind_scorer(lambda group: [2.0] * len(group))
    good, bad = one.judge_group([completion("\\boxed{2}"), completion("\\boxed{3}", 1)])
    assert good.value == pytest.approx(0.7310585786)  # sigmoid(1) + 1 - 1
    assert bad.value == pytest.approx(0.7310585786 - 1)
    assert good.reason == "correct"
    assert good.parts is not None
    assert good.parts["scorer"].value == 2.0
    (none,) = one.judge_group([completion("\\boxed{2}", gold="")])
    assert none.value is None


def test_among_equals_the_better_score_is_worth_more() -> None:
    one = bound(Qwen25Math)
    for answer in ("\\boxed{2}", "\\boxed{3}"):
        short, long = one.judge_group([completion(answer), completion(f"So it is, as one sees, {answer}", 1)])
        assert short.value is not None
        assert long.value is not None
        assert long.value > short.value


def test_rows_cannot_name_it() -> None:
    from pydantic import TypeAdapter, ValidationError

    for kind in ("learned", "qwen2_5_math"):
        with pytest.raises(ValidationError, match="is no reward that rows can name"):
            TypeAdapter(RewardName).validate_python(kind)
