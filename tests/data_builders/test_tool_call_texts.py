"""Calls and results of tools that stand in tags in the text are calls and results, as in Hermes' data."""

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.rows import Chat, Message, RowError
from qwen_align.data_builders.conversion_report import Report
from qwen_align.data_builders.local_file import LocalFile
from qwen_align.data_builders.sieve import Drops, Sieve, sieve

USER = {"from": "human", "value": "Add 1 and 1, and 2 and 2."}
CALLS = '<tool_call>\n{"name": "add", "arguments": {"b": 1, "a": 1}}\n</tool_call>\n<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>\n'  # noqa: E501
RESULTS = '<tool_response>\n{"sum": 2}\n</tool_response>\n<tool_response>\n4\n</tool_response>'
END = {"from": "gpt", "value": "2 and 4."}


def build(folder: Path, conversations: list[dict[str, Any]], drops: Drops, report: Report | None = None) -> list[Chat]:
    path = folder / "x.jsonl"
    path.write_text(json.dumps({"conversations": conversations}), encoding="utf-8")
    rows = LocalFile(path=str(path)).build_with_report(report or Report(), drops)
    return [row for row in sieve(rows, Sieve(), drops) if isinstance(row, Chat)]


@pytest.mark.parametrize("speaker", ["tool", "human", "tool_response"])
def test_calls_and_results_in_tags_are_read(tmp_path: Path, speaker: str) -> None:
    drops, report = Drops(), Report()
    calling = {"from": "gpt", "value": f"Two sums.\n{CALLS}"}
    (row,) = build(tmp_path, [USER, calling, {"from": speaker, "value": RESULTS}, END], drops, report)
    assert drops.counts == {}
    assert row.messages[1:4] == [
        Message(
            role="assistant",
            content="Two sums.",
            tool_calls=[
                {"type": "function", "function": {"name": "add", "arguments": {"b": 1, "a": 1}}},
                {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}},
            ],
        ),
        Message(role="tool", content='{"sum": 2}'),
        Message(role="tool", content="4"),
    ]
    assert report.n_converted == {
        "<tool_call> blocks read as tool calls": 1,
        "turns of <tool_response> blocks read as results of tools": 1,
    }


def test_calls_after_thinking_are_read(tmp_path: Path) -> None:
    (row,) = build(tmp_path, [USER, {"from": "gpt", "value": f"<think>\nEasy.\n</think>\n\n{CALLS}"}], Drops())
    assert (row.messages[1].thinking, row.messages[1].content, len(row.messages[1].tool_calls or [])) == (
        "Easy.",
        "",
        2,
    )


def test_a_call_that_is_not_json_is_a_bad_row(tmp_path: Path) -> None:
    with pytest.raises(RowError, match=r"conversations: 1: a <tool_call> block is not JSON"):
        build(tmp_path, [USER, {"from": "gpt", "value": "<tool_call>\n{'name': 'add'}\n</tool_call>"}], Drops())


@pytest.mark.parametrize(
    "text", ["Qwen writes <tool_call>{...}</tool_call> around a call.", "`<tool_call>`", "<tool_call> opens a call"]
)
def test_tags_that_a_text_speaks_of_are_left(tmp_path: Path, text: str) -> None:
    (row,) = build(tmp_path, [USER, {"from": "gpt", "value": text}], Drops())
    assert row.messages[1] == Message(role="assistant", content=text)


@pytest.mark.parametrize(("speaker", "role"), [("prompter", "user"), ("developer", "system")])
def test_other_names_of_speakers(tmp_path: Path, speaker: str, role: str) -> None:
    turns = [
        {"from": speaker, "value": "Be kind."},
        *([USER] if role == "system" else []),
        {"from": "bot", "value": "a"},
    ]
    (row,) = build(tmp_path, turns, Drops())
    assert [turn.role for turn in row.messages] == [role, *(["user"] if role == "system" else []), "assistant"]


def test_ms_swifts_roles_are_calls_and_results(tmp_path: Path) -> None:
    call = {"from": "tool_call", "value": '{"name": "add", "arguments": {"a": 1}}'}
    (row,) = build(tmp_path, [USER, call, {"from": "tool_response", "value": "2"}, END], Drops())
    assert [turn.role for turn in row.messages] == ["user", "assistant", "tool", "assistant"]


XLAM = {
    "query": "Add 1 and 1.",
    "answers": '[{"name": "add", "arguments": {"a": 1, "b": 1}}]',
    "tools": '[{"name": "add"}]',
}


def build_xlam(folder: Path, **changed: str) -> Message:
    path = folder / "x.json"
    path.write_text(json.dumps([XLAM | changed]), encoding="utf-8")
    columns = {"prompt": "query", "answer": "answers"}
    builder = LocalFile.model_validate({"path": str(path), "rows": "chat", "columns": columns})
    (row,) = builder.build_with_report(Report(), Drops())
    assert isinstance(row, Chat)
    return row.messages[-1]


def test_answers_that_are_calls_of_the_rows_tools_call_them(tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 1}}}
    assert build_xlam(tmp_path) == Message(role="assistant", content="", tool_calls=[call])


@pytest.mark.parametrize("tools", ["[]", '[{"name": "subtract"}]'])
def test_json_that_calls_no_tool_of_the_row_is_an_answer(tmp_path: Path, tools: str) -> None:
    assert build_xlam(tmp_path, tools=tools) == Message(role="assistant", content=XLAM["answers"])


def test_schemas_of_the_responses_api_are_those_of_chat_completions(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    tool = {"type": "function", "name": "add", "parameters": {}}
    path.write_text(json.dumps([{"messages": turns, "tools": [tool]}]), encoding="utf-8")
    (row,) = LocalFile(path=str(path)).build_with_report(Report(), Drops())
    assert isinstance(row, Chat)
    assert row.tools == [{"type": "function", "function": {"name": "add", "parameters": {}}}]
