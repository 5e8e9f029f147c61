"""The controls: a fair toss that is the same wherever it is made, and a constant."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qwen_align.align.rows import Completion, Message
from qwen_align.reward.control_rewards import Constant, Random


def completion(text: str, *, prompt_id: str = "p", sample: int = 0) -> Completion:
    prompt = [Message(role="user", content="1+1?")]
    return Completion(prompt_id=prompt_id, sample=sample, prompt=prompt, text=text, finish_reason="stop", n_tokens=1)


@given(st.text(), st.integers(0, 5), st.integers(-3, 3))
def test_a_toss_is_the_same_each_time_and_in_any_batch(text: str, sample: int, seed: int) -> None:
    reward = Random(seed=seed)
    one = completion(text, sample=sample)
    assert reward.judge(one) == reward.judge(one, gold="7") == reward.judge_many([completion("other"), one])[1]


def test_a_toss_is_the_same_in_another_process() -> None:
    texts = [f"answer {number}" for number in range(20)]
    program = (
        "from qwen_align.reward.control_rewards import Random\n"
        f"print([Random(seed=3).judge(text).value for text in {texts!r}])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == str([Random(seed=3).judge(text).value for text in texts])


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_the_share_of_heads_is_p(p: float) -> None:
    values = [Random(p=p).judge(completion("2", prompt_id=str(i), sample=i % 8)).value or 0.0 for i in range(4000)]
    assert sum(values) / len(values) == pytest.approx(p, abs=0.03)  # four standard deviations at p = 0.5


def test_every_part_moves_the_toss() -> None:
    def tosses(**change: object) -> list[float | None]:
        seed = int(str(change.pop("seed", 0)))
        return [
            Random(seed=seed).judge(completion(**{"text": f"{i}", **change})).value  # type: ignore[arg-type]
            for i in range(64)
        ]

    plain = tosses()
    assert plain != tosses(seed=1)
    assert plain != tosses(sample=1)
    assert plain != tosses(prompt_id="q")
    assert len(set(plain)) == 2


def test_the_constant_is_constant() -> None:
    assert {Constant().judge(text).value for text in ("", "7", "<think>")} == {1.0}
    assert Constant(value=0.25).judge(completion("7"), gold="8").value == 0.25


@pytest.mark.parametrize("settings", [{"p": 1.5}, {"p": -0.1}])
def test_p_is_a_probability(settings: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        Random(**settings)  # type: ignore[arg-type]
