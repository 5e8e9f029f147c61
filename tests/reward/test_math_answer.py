"""MathAnswer by table, by property, against hostile texts, and on the shared cases."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_align.align.rows import Completion, Message
from qwen_align.reward.math.unit_table import MEASUREMENT_UNITS
from qwen_align.reward.math_answer import MathAnswer
from tests.clock import cpu_limit

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("QWEN_ALIGN_TEST_DATA", ROOT.parent / "shared" / "data"))
CASES = [json.loads(line) for line in (ROOT / "tests/cases/math_answer.jsonl").read_text("utf-8").splitlines()]
REWARD = MathAnswer()


def box_answer(answer: str) -> str:
    """Returns a completion with the answer in a box."""
    return rf"The final answer is $\boxed{{{answer}}}$."


@pytest.mark.parametrize(
    "case", CASES, ids=lambda case: f"{case['why']}: {case.get('answer', case.get('completion'))!r}"
)
def test_case(case: dict[str, Any]) -> None:
    verdict = REWARD.judge(case.get("completion", box_answer(case.get("answer", ""))), case["gold"])
    assert verdict.value == case["value"]
    assert verdict.reason == case.get("reason", verdict.reason)


@pytest.mark.parametrize(
    "case",
    [case for case in CASES if "answer" in case and not case.get("one_way")],
    ids=lambda case: repr(case["answer"]),
)
def test_gold_and_answer_may_change_places(case: dict[str, Any]) -> None:
    backwards = REWARD.judge(box_answer(case["gold"]), case["answer"]).value
    assert backwards == case["value"] or (case["value"] == 0.0 and backwards is None)


def build_completion(text: str, **fields: Any) -> Completion:
    """Builds a completion of a toy prompt."""
    return Completion(
        prompt_id="p",
        sample=0,
        prompt=[Message(role="user", content="1+1?")],
        text=text,
        finish_reason=fields.pop("finish_reason", "stop"),
        n_tokens=9,
        **fields,
    )


def test_completion_brings_its_own_gold() -> None:
    assert REWARD.judge(build_completion(r"\boxed{2}", gold="2")).value == 1.0
    assert REWARD.judge(build_completion(r"\boxed{2}", gold="2"), gold="3").value == 0.0
    assert REWARD.judge(build_completion(r"\boxed{2}")).value is None


@pytest.mark.parametrize("no_completion", [None, 5, b"5", [r"\boxed{5}"]])
def test_what_is_no_completion_is_refused(no_completion: Any) -> None:
    with pytest.raises(TypeError, match="a text or a Completion, not"):
        REWARD.judge(no_completion, "5")


def test_a_list_of_thousands_of_boxes_is_too_large() -> None:
    many = ", ".join(rf"\boxed{{{n}}}" for n in range(1_500))
    assert REWARD.judge(many, "5").reason == "too large"
    assert REWARD.judge(many, many).value is None


def test_completion_cut_at_the_limit_is_judged_by_its_text() -> None:
    assert REWARD.judge(build_completion(r"\boxed{2} and so", gold="2", finish_reason="length")).value == 1.0


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{0.50}", "1/2"),
        (r"\boxed{\frac{2}{4}}", "1/2"),
        (r"\boxed{x = 3\text{ cm}}", "3"),
        (r"\boxed{ ( 1 ,2 ) }", "(1,2)"),
        ("<think>\n\\boxed{1}", None),
        ("one", "1"),
        ("nobody knows\nnobody cares", None),
        (r"\boxed{2} or \boxed{1}", "{1,2}"),
        (r"\boxed{\sqrt{16}}", "4"),
        (r"\boxed{x > 3}", r"(3,\infty)"),
        (r"\boxed{\text{(C)}}", "C"),
        (r"\boxed{101_2}", "101_2"),
    ],
)
def test_answer_is_one_form_for_all_ways_to_say_it(text: str, answer: str | None) -> None:
    assert REWARD.answer(text) == answer
    assert REWARD.answer(build_completion(text)) == answer


@given(st.text())
def test_any_text_is_judged(text: str) -> None:
    assert REWARD.judge(text, "5").value in (0.0, 1.0)
    assert REWARD.judge(box_answer(text), text).value in (None, 0.0, 1.0)


MARKS = (
    r"\boxed{ \boxed{5} \fbox } { \ \\ \frac \text{ \left( ) ^ _ \, {,} $ % <think> </think> 1 2, / - . = x cm or ½ ² √"
)
marks = st.sampled_from([" ", "\n", *MARKS.split()])


@given(st.lists(marks, max_size=60).map("".join), st.lists(marks, max_size=12).map("".join))
def test_any_heap_of_marks_is_judged(text: str, gold: str) -> None:
    verdict = REWARD.judge(text, gold)
    assert verdict.value in (None, 0.0, 1.0)
    assert len(verdict.reason) < 40


@given(st.text(st.characters(exclude_characters="{}\\<", codec="utf-8")))
def test_a_gold_without_braces_passes_its_own_reward(gold: str) -> None:
    assert REWARD.judge_gold(gold).value in (None, 1.0)


numbers = st.fractions(max_denominator=10**6)


def spell_number(number: Fraction) -> list[str]:
    """Returns some ways to write a number."""
    numerator, denominator = number.numerator, number.denominator
    spellings = [
        f"{numerator}/{denominator}",
        rf"\frac{{{numerator}}}{{{denominator}}}",
        rf"$\dfrac{{{numerator}}}{{{denominator}}}$",
        f"x = {numerator}/{denominator}",
    ]
    if denominator == 1:
        spellings += [
            str(numerator),
            f"{numerator}.0",
            f"{numerator:,}",
            f"{numerator} cm",
            rf"{numerator}\%",
            rf"\({numerator}\)",
            f"{numerator}.",
        ]
    integer_part, rest = divmod(abs(numerator), denominator)
    if integer_part and rest:
        spellings.append(rf"{'-' if numerator < 0 else ''}{integer_part}\frac{{{rest}}}{{{denominator}}}")
    return spellings


@given(numbers, numbers)
def test_numbers_are_right_exactly_when_equal(answer_number: Fraction, gold_number: Fraction) -> None:
    golds = spell_number(gold_number)
    for index, answer in enumerate(spell_number(answer_number)):
        gold = golds[index % len(golds)]
        assert REWARD.judge(box_answer(answer), gold).value == float(answer_number == gold_number)
        assert REWARD.judge_gold(answer).value == 1.0


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6), st.integers(0, 5))
def test_decimals_are_exact(decimal: Any, zeros: int) -> None:
    written = format(decimal, "f")
    assert REWARD.judge(box_answer(written + "0" * zeros), written).value == 1.0
    assert REWARD.judge(box_answer(written + "0" * zeros + "1"), written).value == 0.0


@given(st.integers() | st.floats(allow_nan=False, allow_infinity=False))
def test_every_finite_number_is_a_usable_gold(gold: float) -> None:
    assert REWARD.judge_gold(gold).value == 1.0


@pytest.mark.parametrize("gold", [float("nan"), float("inf"), {"a": 1}, 10**2000, b"5"])
def test_unusable_gold_has_no_verdict(gold: Any) -> None:
    assert REWARD.judge(r"\boxed{5}", gold).value is None
    assert REWARD.judge_gold(gold).value is None


HOSTILE = {
    "boxes never closed": r"\boxed{" * 3_000,
    "boxes in boxes": r"\boxed{" * 30_000 + "5" + "}" * 30_000,
    "boxes in a row": r"\boxed{5}," * 20_000,
    "different boxes in a row": "".join(rf"\boxed{{{n}}}, " for n in range(20_000)),
    "boxes far apart": (r"\boxed{5}" + " " * 500) * 200,
    "open braces": "{" * 100_000 + r"\boxed{5}",
    "close braces": "}" * 100_000 + r"\boxed{5}",
    "backslashes": "\\" * 100_001 + "boxed{5}",
    "spaces before a brace": r"\boxed" + " " * 100_000,
    "tags": "<think>" * 20_000 + "</think>" * 20_000,
    "many digits": box_answer("7" * 5_000),
    "very many digits": box_answer("7" * 1_000_000),
    "digits in a fraction": box_answer(rf"\frac{{{'7' * 900}}}{{{'3' * 90}}}"),
    "nested fractions": box_answer(r"\frac{1}{" * 300 + "1" + "}" * 300),
    "nested brackets": box_answer("(" * 950 + "1" + ")" * 950),
    "nested texts": box_answer(r"\text{" * 300 + "1" + "}" * 300),
    "letters": box_answer("1" + " a" * 990 + "!"),
    "spaces in an answer": box_answer("1" + " " * 1_900 + "!"),
    "commas": box_answer("1" + ",111" * 480 + ","),
    "powers": box_answer("9^" * 900 + "9"),
    "dollars": "$" * 100_000,
    "superscripts": box_answer("²₂" * 900),
    "ligatures that grow": box_answer("\ufdfa" * 1_900),
    "fraction signs": box_answer("½⅟" * 900),
    "joined by spaces": r"\boxed{4}" + " \n" * 50_000 + r"\boxed{5}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_is_judged_soon(name: str) -> None:
    with cpu_limit(1.0):  # 0.1 s at most on two slow cores; quadratic work would take minutes
        first = REWARD.judge(HOSTILE[name], "5")
        REWARD.judge(HOSTILE[name], HOSTILE[name])
    assert first.value in (0.0, 1.0)


def test_verdicts_do_not_depend_on_what_came_before() -> None:
    judged = [
        (case, REWARD.judge(case.get("completion", box_answer(case.get("answer", ""))), case["gold"])) for case in CASES
    ]
    for case, verdict in reversed(judged):
        again = MathAnswer().judge(case.get("completion", box_answer(case.get("answer", ""))), case["gold"])
        assert again == verdict


def test_import_is_light() -> None:
    code = "import sys; import qwen_align.reward.settings; print({'torch', 'sympy', 'numpy'} & sys.modules.keys())"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "set()"


def test_labels_of_the_shared_cases() -> None:
    path = DATA.parent / "cases" / "math_cases.jsonl"
    if not path.is_file():
        pytest.skip(f"the shared math cases are not at {path}")
    cases = [json.loads(line) for line in path.read_text("utf-8").splitlines()]

    def list_wrong_ids(boxing: Callable[[str], str]) -> list[int]:
        """Returns the ids of the cases whose verdict is not the label."""
        texts = [(case, case["pred"] if case["mode"] == "response" else boxing(case["pred"])) for case in cases]
        return [c["id"] for c, text in texts if (REWARD.judge(text, c["gold"]).value == 1.0) != c["should_match"]]

    assert list_wrong_ids(box_answer) == []
    assert list_wrong_ids(str) == []  # the answer alone, without a box


def test_no_unit_is_listed_twice() -> None:
    words = [name for line in MEASUREMENT_UNITS.strip().splitlines() for name in set(line.split()[2:])]
    assert sorted(words) == sorted(set(words))


def test_probes_are_paid_as_they_say() -> None:
    for probe in REWARD.probes():
        value = REWARD.judge(probe.completion, probe.gold).value
        assert (value is not None and value > 0) == probe.pays, probe.name


def test_a_box_can_be_required() -> None:
    strict = MathAnswer(box="required")
    assert (REWARD.judge("The answer is 5.", "5").value, strict.judge("The answer is 5.", "5").value) == (1.0, 0.0)
    assert strict.judge("The answer is 5.", "5").reason == "no boxed answer"
    assert strict.judge(r"\boxed{5}", "5").value == 1.0


def test_many_are_judged_as_one_by_one() -> None:
    texts = [r"\boxed{2}", r"\boxed{\int_0^2 1\,dx}", "The answer is 3.", r"\boxed{\lim_{x\to 0} 2\cos x}", r"\boxed{"]
    rows = [build_completion(text, gold="2") for text in texts] + [build_completion(r"\boxed{2}")]
    assert REWARD.judge_many(rows) == [REWARD.judge(row) for row in rows]
    assert [verdict.reason for verdict in REWARD.judge_many(rows)] == [
        "correct", "fallback", "wrong", "fallback", "unterminated box", "unusable gold",
    ]  # fmt: skip


def test_a_batch_past_its_deadline_is_not_judged() -> None:
    rows = [build_completion(r"\boxed{2}", gold="2")]
    assert [verdict.value for verdict in REWARD.judge_many(rows, deadline=time.monotonic() - 1)] == [None]


def test_golds_of_real_data_sets_pass() -> None:
    path = DATA / "gsm8k" / "test.jsonl"
    if not path.is_file():
        pytest.skip(f"GSM8K is not at {path}")
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    golds = [row["answer"].rpartition("####")[2].strip() for row in rows]
    assert all(REWARD.judge_gold(gold).value == 1.0 for gold in golds)
    assert all(REWARD.answer(box_answer(gold)) == str(int(gold.replace(",", ""))) for gold in golds)


def test_agrees_with_the_labels_of_real_model_solutions() -> None:
    path = DATA / "gsm8k" / "model_solutions.jsonl"
    if not path.is_file():
        pytest.skip(f"GSM8K's model solutions are not at {path}")
    disagreed, n_correct = [], 0
    for row in map(json.loads, path.read_text("utf-8").splitlines()):
        gold = row["ground_truth"].rpartition("A:")[2]
        for model in ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification"):
            work, _, answer = row[model]["solution"].rpartition("A:")
            is_correct = REWARD.judge(f"{work}{box_answer(answer)}", gold).value == 1.0
            n_correct += is_correct
            if is_correct != row[model]["is_correct"]:
                disagreed.append((answer, gold))
    assert disagreed == []
    assert n_correct == 2001  # of 5,276
