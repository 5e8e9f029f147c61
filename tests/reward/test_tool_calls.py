"""Tool calls by table, by property, against hostile blocks, and on the calls of a real data set."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_align.reward.strict_json import MAX_CHARACTERS, MAX_DEPTH, JsonError, parse_json, to_comparable
from qwen_align.reward.tool_call_gold import ToolCall
from qwen_align.reward.tool_calls import ToolCalls, render_call
from tests.clock import cpu_limit

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("QWEN_ALIGN_TEST_DATA", ROOT.parent / "shared" / "data"))
CASES = [json.loads(line) for line in (ROOT / "tests/cases/tool_calls.jsonl").read_text("utf-8").splitlines()]

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-9, 9).map(lambda x: round(x, 2)) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.sampled_from("abc"), VALUES, max_size=3)
CALLS = st.lists(st.builds(ToolCall, st.sampled_from(["f", "g"]), ARGUMENTS), min_size=1, max_size=4)


def says(calls: list[ToolCall]) -> str:
    return "\n".join(map(render_call, calls))


def wants(calls: list[ToolCall]) -> dict[str, Any]:
    return {"calls": [call._asdict() for call in calls]}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["why"])
def test_case(case: dict[str, Any]) -> None:
    chosen = {key: case[key] for key in ("order_matters", "partial_credit") if key in case}
    verdict = ToolCalls(**chosen).judge(case["text"], case["gold"])
    assert (verdict.value, verdict.reason) == (case["value"], case["reason"])


@given(CALLS, st.randoms(use_true_random=False))
def test_calls_are_right_against_themselves_in_any_order(calls: list[ToolCall], random: Any) -> None:
    shuffled = list(calls)
    random.shuffle(shuffled)
    assert ToolCalls().judge(says(shuffled), wants(calls)).value == 1.0
    assert ToolCalls(order_matters=True).judge(says(calls), wants(calls)).value == 1.0
    assert ToolCalls().judge_gold(wants(calls)).value == 1.0


@given(CALLS, CALLS)
def test_right_is_symmetric_and_means_the_same_calls(one: list[ToolCall], other: list[ToolCall]) -> None:
    there = ToolCalls().judge(says(one), wants(other)).value
    assert there == ToolCalls().judge(says(other), wants(one)).value
    texts = [sorted(json.dumps(_plain(call), sort_keys=True) for call in calls) for calls in (one, other)]
    assert there == float(texts[0] == texts[1])


def _plain(value: Any) -> Any:
    """The value with whole floats as integers, so that equal ones are written alike."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


@given(CALLS, CALLS)
def test_partial_credit_is_full_only_for_the_right_calls(one: list[ToolCall], other: list[ToolCall]) -> None:
    whole, partly = (ToolCalls(partial_credit=flag).judge(says(one), wants(other)).value for flag in (False, True))
    assert partly is not None
    assert 0.0 <= partly <= 1.0
    assert (partly == 1.0) == (whole == 1.0)


@given(CALLS, st.builds(ToolCall, st.just("h"), ARGUMENTS))
def test_a_guess_beside_the_right_calls_is_not_paid(calls: list[ToolCall], guess: ToolCall) -> None:
    assert ToolCalls().judge(says([*calls, guess]), wants(calls)).value == 0.0


@given(VALUES)
def test_strict_json_reads_what_json_writes(value: Any) -> None:
    assert parse_json(json.dumps(value)) == value
    assert to_comparable(parse_json(json.dumps(value))) == to_comparable(value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * (MAX_DEPTH + 1), "JSON too deep"),
        ("[" * MAX_DEPTH, "invalid JSON"),
        ('"' + "[" * 200 + '"', ""),
        ('"\\"' + "[" * 200 + '"', ""),
        ('"' + "x" * MAX_CHARACTERS + '"', "JSON too long"),
        ("9" * 400, ""),
        ("9" * 401, "JSON number too long"),
        ("-1e400", "JSON number too large"),
        ("Infinity", "invalid JSON"),
        ('{"a": 1, "a": 1}', "JSON key twice"),
        ('"\n"', "invalid JSON"),
        ("1 2", "invalid JSON"),
        ("", "invalid JSON"),
    ],
)
def test_strict_json_refuses_by_reason(text: str, reason: str) -> None:
    if reason:
        with pytest.raises(JsonError, match=f"^{reason}$"):
            parse_json(text)
    else:
        assert parse_json(text) is not None


HOSTILE = [
    '{"name": "f", "arguments": {"a": ' + "[" * 40_000,
    '{"name": "f", "arguments": {"a": ' + "9" * 40_000 + "}}",
    '"\\' * 20_000,
    '"' * 40_000,
    "<tool_call>" * 20_000,
    "</tool_call>" * 20_000,
    '{"name": "f", "arguments": {"a": [' + "[1, {}], " * 4_000 + "0]}}",
]


@pytest.mark.parametrize("block", HOSTILE, ids=lambda block: repr(block[:32]))
def test_hostile_blocks_end_soon(block: str) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True, "pattern": "^(x+)+$"}}}
    gold = {"calls": [{"name": "f", "arguments": {"a": [1]}}], "tools": [{"name": "f", "parameters": schema}]}
    with cpu_limit(1.0, block):
        assert ToolCalls().judge(f"<tool_call>{block}</tool_call>", gold).value == 0.0


@pytest.mark.skipif(
    not (DATA / "chat").is_dir(),
    reason=f"no real data at {DATA}; set QWEN_ALIGN_TEST_DATA to the folder that holds chat",
)
def test_real_calls_are_right_against_themselves_and_only_there() -> None:
    rows = json.loads((DATA / "chat" / "glaive_toolcall_en_demo.json").read_text("utf-8"))
    golds, texts = [], []
    for row in rows:
        tools = json.loads(row["tools"]) if row["tools"] else []
        for turn in row["conversations"]:
            if turn["from"] == "function_call":
                golds.append({"calls": [json.loads(turn["value"])], "tools": tools})
                texts.append(f"<tool_call>\n{turn['value']}\n</tool_call>")
    verdicts = [ToolCalls().judge(text, gold) for text, gold in zip(texts, golds, strict=True)]
    # One of the 211 calls gives a list where its own schema says number.
    assert [verdict.reason for verdict in verdicts if verdict.value != 1.0] == ["gold breaks its schema"]
    assert len(verdicts) == 211
    shifted = [*texts[1:], texts[0]]
    for text, other, gold in zip(texts, shifted, golds, strict=True):
        same = json.loads(text[12:-13]) == json.loads(other[12:-13])
        assert same or ToolCalls().judge(other, gold).value != 1.0
