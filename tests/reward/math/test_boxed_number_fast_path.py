"""The fast path decides as parsing the whole text does, or not at all."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from qwen_align.reward import math_answer
from qwen_align.reward.math.boxed_number_fast_path import parse_plain_box, parse_plain_gold
from qwen_align.reward.math_answer import MathAnswer

NUMBERS = st.sampled_from(
    ["5", "-5", "6", "05", "5.0", "1,000", "1{,}000", "1000", r"\frac{5}{1}", r"\dfrac{6}{2}", "3", "10/2", "0"]
)
PIECES = st.one_of(
    NUMBERS.map(lambda number: rf"\boxed{{{number}}}"),
    NUMBERS.map(lambda number: rf"\boxed{{ {number} }}"),
    NUMBERS.map(lambda number: rf"Final Answer: The final answer is ${number}$. I hope it is correct."),
    NUMBERS.map(lambda number: f"The answer is {number}."),
    st.sampled_from(
        ["<think>", "</think>", r"\boxed{5", r"\fbox{6}", "boxed", "\\", " or ", ", ", "so ", "{", "}", "$", "\n", "x="]
    ),
)


@pytest.mark.slow(seconds=2)
@settings(max_examples=max(1500, settings().max_examples))
@given(st.lists(PIECES, max_size=6).map("".join), NUMBERS, st.sampled_from(["preferred", "required"]))
@example(r"\boxed{5}. Final Answer: The final answer is $6$. I hope it is correct.", "5", "preferred")
@example(r"\boxed{5}. Final Answer: The final answer is $6$. I hope it is correct.", "6", "preferred")
def test_it_decides_as_the_whole_text_does(text: str, gold: str, box: str) -> None:
    reward = MathAnswer.model_validate({"box": box})
    fast = reward.judge(text, gold)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(math_answer, "parse_plain_box", lambda text: None)
        slow = reward.judge(text, gold)
    assert fast.value == slow.value


def test_it_is_the_way_of_usual_answers() -> None:
    assert parse_plain_gold("1,234.5") is not None
    for text in (r"So $\boxed{12}$.", "<think>\n3 or 4\n</think>\n\nIt is \\boxed{-3/4}.", r"\boxed{\frac{1}{2}}"):
        assert parse_plain_box(text) is not None
