"""Turns that a file holds in one text, keys of turns, replies that repeat their prompt, and nulls that a table pads."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qwen_align.align.errors import DataError
from qwen_align.align.rows import Chat, Labelled, Message, Pair, Row, RowError, Text
from qwen_align.data_builders.conversion_report import Report
from qwen_align.data_builders.csv_parquet_reader import remove_null_padding
from qwen_align.data_builders.local_file import LocalFile
from qwen_align.data_builders.sieve import Drops
from tests.data_builders.test_column_meanings import (
    ASK,
    GPT,
    HUMAN,
    NO,
    REPLY,
    SAY,
    SYSTEM,
    USER,
    WRONG,
    build_rows,
    chat,
    pair,
)

TURNS = json.dumps([ASK, SAY])


def read(path: Path, **settings: Any) -> list[Row]:
    return list(LocalFile.model_validate({"path": str(path), **settings}).build({}, 0, Drops()))


AS_TEXT: list[tuple[str, dict[str, Any], dict[str, Any], Row]] = [
    ("messages", {"messages": TURNS}, {}, chat(USER, REPLY)),
    ("over lines", {"messages": json.dumps([ASK, SAY], indent=2)}, {}, chat(USER, REPLY)),
    ("JSON in JSON", {"messages": json.dumps(TURNS)}, {}, chat(USER, REPLY)),
    ("a text a turn", {"messages": [json.dumps(ASK), json.dumps(SAY)]}, {}, chat(USER, REPLY)),
    ("ShareGPT", {"conversations": json.dumps([HUMAN, GPT])}, {}, chat(USER, REPLY)),
    ("a prompt and an answer", {"prompt": json.dumps([ASK]), "completion": json.dumps([SAY])}, {}, chat(USER, REPLY)),
    ("single turns", {"prompt": json.dumps(ASK), "response": json.dumps(SAY)}, {}, chat(USER, REPLY)),
    ("sides", {"prompt": "1+1?", "chosen": json.dumps([SAY]), "rejected": json.dumps(NO)}, {}, pair(USER)),
    ("whole sides", {"chosen": TURNS, "rejected": json.dumps([ASK, NO])}, {}, pair(USER)),
    ("a column of one's own", {"talk": TURNS}, {"rows": "chat", "columns": {"messages": "talk"}}, chat(USER, REPLY)),
    (
        "HH-RLHF",
        {"chosen": "\n\nHuman: 1+1?\n\nAssistant: 2", "rejected": "\n\nHuman: 1+1?\n\nAssistant: 3"},
        {},
        pair(USER),
    ),
    (
        "a transcript as the prompt",
        {"prompt": "\n\nHuman: 1+1?\n\nAssistant: 3\n\nHuman: 1+1?\n\nAssistant:", "chosen": "2", "rejected": "3"},
        {},
        pair(USER, WRONG, USER),
    ),
    ("asked for as it is", {"text": TURNS}, {"rows": "text"}, Text(id="x:1", text=TURNS)),
]


@pytest.mark.parametrize(("what", "value", "settings", "expected"), AS_TEXT, ids=[what for what, *_ in AS_TEXT])
def test_turns_in_one_text_are_turns(
    tmp_path: Path, what: str, value: dict[str, Any], settings: dict[str, Any], expected: Row
) -> None:
    report = Report()
    assert build_rows(tmp_path, value, report=report, **settings) == [expected]
    counted = [n for conversion, n in report.n_converted.items() if conversion.endswith(" as turns")]
    assert bool(counted) is not isinstance(expected, Text)


def test_a_table_of_turns_equals_the_lines_it_was_made_of(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('messages\n"' + TURNS.replace('"', '""') + '"\n')
    assert read(tmp_path / "x.csv") == build_rows(tmp_path, {"messages": [ASK, SAY]})


@pytest.mark.parametrize(
    "text",
    [
        str([ASK, SAY]),
        f"array([{ASK},\n       {SAY}], dtype=object)",
        f"[{ASK}\n {SAY}]",
        TURNS.replace("}, {", "} {"),
        TURNS.replace("}]", "]"),
    ],
)
def test_turns_in_a_notation_that_is_not_read_are_refused(tmp_path: Path, text: str) -> None:
    for value in ({"prompt": text, "completion": "2"}, {"prompt": "1+1?", "chosen": "2", "rejected": text}):
        with pytest.raises(RowError, match=r"x\.jsonl:1: \w+: holds turns as a text that is not JSON"):
            build_rows(tmp_path, value)


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "f", "arguments": {"role": "user"}}',
        'What is wrong with [{"role": "user", "content": "a"}]?',
        '{"value": 3}',
        "[1, 2]",
        "[see above]",
        "{'a': 1}",
        "Human: hi\n\nAssistant: hello\n\nSum this up.",
    ],
)
def test_other_texts_stay_texts(tmp_path: Path, text: str) -> None:
    expected = chat(Message(role="user", content=text), Message(role="assistant", content="2"))
    assert build_rows(tmp_path, {"prompt": text, "completion": "2"}) == [expected]


def test_a_text_of_turns_is_no_raw_text_unless_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="in no format we know; their keys: text"):
        build_rows(tmp_path, {"text": TURNS})


# --- keys of turns

NOTHING_MORE: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"annotations": [], "refusal": None, "audio": {}, "function_call": "", "images": [None]}),
    ({}, {"weight": 1, "loss": True, "train": "true", "mask": 0}),
    ({"weight": 0.0, "train": False, "masked": True}, {}),
]


@pytest.mark.parametrize(("user", "assistant"), NOTHING_MORE)
def test_keys_of_turns_that_say_nothing_more_are_left_out_and_counted(
    tmp_path: Path, user: dict[str, Any], assistant: dict[str, Any]
) -> None:
    report = Report()
    value = {"messages": [{**ASK, **user}, {**SAY, **assistant}]}
    assert build_rows(tmp_path, value, report=report) == [chat(USER, REPLY)]
    expected = {f"turns' '{key}' left out": 1 for key, item in {**user, **assistant}.items() if item is not None}
    assert report.n_converted == expected


@pytest.mark.parametrize(
    ("user", "assistant", "message"),
    [
        ({}, {"weight": 0}, "1: has 'weight' 0 in assistant's turn"),
        ({}, {"weight": 0.5}, "1: has 'weight' 0.5"),
        ({}, {"loss": False}, "1: has 'loss' False"),
        ({}, {"mask": True}, "1: has 'mask' True"),
        ({"train": True}, {}, "0: has 'train' True in user's turn"),
        ({"mask": False}, {}, "0: has 'mask' False"),
        ({}, {"annotations": [{"url": "a"}]}, "1: has 'annotations', which no turn has"),
        ({}, {"images": ["a.png"]}, "1: has 'images'"),
    ],
)
def test_keys_of_turns_that_change_what_is_trained_are_refused(
    tmp_path: Path, user: dict[str, Any], assistant: dict[str, Any], message: str
) -> None:
    with pytest.raises(RowError, match=rf"x\.jsonl:1: messages: {message}"):
        build_rows(tmp_path, {"messages": [{**ASK, **user}, {**SAY, **assistant}]})


@pytest.mark.parametrize("arguments", ["", "  ", "{}", {}])
def test_a_call_without_arguments_may_say_so_in_an_empty_text(tmp_path: Path, arguments: Any) -> None:
    call = {"type": "function", "function": {"name": "now", "arguments": arguments}}
    turns = [ASK, {"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": "2"}, SAY]
    [row] = build_rows(tmp_path, {"messages": turns})
    assert isinstance(row, Chat)
    assert row.messages[1].tool_calls == [{"type": "function", "function": {"name": "now", "arguments": {}}}]


def test_openais_former_calls_are_read(tmp_path: Path) -> None:
    call = {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 1}'}}
    [row] = build_rows(tmp_path, {"messages": [ASK, call, {"role": "function", "name": "add", "content": "2"}, SAY]})
    calls = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    called = Message(role="assistant", content="", tool_calls=calls)
    assert row == chat(USER, called, Message(role="tool", content="2"), REPLY)


def test_an_empty_text_is_not_called_nul_bytes(tmp_path: Path) -> None:
    with pytest.raises(RowError, match="messages: 1: is an empty text, not JSON"):
        build_rows(tmp_path, {"messages": [ASK, {"role": "function_call", "content": ""}]})


# --- replies that begin with their prompt

LONG = "What do one and one make?"
REPEATING: list[tuple[dict[str, Any], dict[str, Any], Row]] = [
    ({"prompt": "1+1?", "chosen": "1+1? 2", "rejected": "1+1?\n\n3"}, {}, pair(USER)),
    ({"prompt": [ASK], "chosen": {**SAY, "content": " 1+1? 2"}, "rejected": "1+1? 3"}, {}, pair(USER)),
    (
        {"q": "1+1?", "a": "1+1? 2", "b": "1+1? 3"},
        {"rows": "pair", "columns": {"prompt": "q", "chosen": "a", "rejected": "b"}},
        pair(USER),
    ),
    (
        {"conversations": [HUMAN], "chosen": {"from": "gpt", "value": "1+1? 2"}, "rejected": "1+1? 3"},
        {"format": "sharegpt_preference"},
        pair(USER),
    ),
    ({"prompt": LONG, "completion": f"{LONG} 2"}, {}, chat(Message(role="user", content=LONG), REPLY)),
    (
        {"prompt": LONG, "completion": f"{LONG} 3", "label": 0},
        {},
        Labelled(id="x:1", messages=[Message(role="user", content=LONG)], completion=WRONG, label=False),
    ),
]


@pytest.mark.parametrize(("value", "settings", "expected"), REPEATING)
def test_answers_that_repeat_their_prompt_are_refused_cut_or_kept_as_the_recipe_says(
    tmp_path: Path, value: dict[str, Any], settings: dict[str, Any], expected: Row
) -> None:
    with pytest.raises(RowError, match=r"x\.jsonl:1: .* with the whole prompt, .*say repeated_prompt: cut where"):
        build_rows(tmp_path, value, **settings)
    report = Report()
    assert build_rows(tmp_path, value, **settings, repeated_prompt="cut", report=report) == [expected]
    assert report.n_converted["prompts cut off before their answers"] == 1
    [kept] = build_rows(tmp_path, value, **settings, repeated_prompt="keep")
    assert kept != expected


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "Hello", "completion": "Hello! How are you?"},
        {"prompt": "1+1?", "chosen": "1+1? 2", "rejected": "3"},
        {"instruction": LONG, "output": f"{LONG} is a question."},
        {"messages": [{"role": "user", "content": LONG}, {"role": "assistant", "content": f"{LONG} you say."}]},
    ],
)
def test_an_answer_may_begin_with_words_of_its_prompt(tmp_path: Path, value: dict[str, Any]) -> None:
    [row] = build_rows(tmp_path, value)
    assert build_rows(tmp_path, value, repeated_prompt="cut") == [row]


def test_nothing_but_the_prompt_is_no_answer(tmp_path: Path) -> None:
    with pytest.raises(RowError, match="an answer is nothing but its prompt"):
        build_rows(tmp_path, {"prompt": LONG, "completion": LONG}, repeated_prompt="cut")


def test_whole_conversations_as_sides_are_not_doubled(tmp_path: Path) -> None:
    value = {"prompt": "1+1?", "system": "Be brief.", "chosen": [ASK, SAY], "rejected": [ASK, NO]}
    assert build_rows(tmp_path, value) == [Pair(id="x:1", messages=[SYSTEM, USER], chosen=REPLY, rejected=WRONG)]


# --- nulls of tables


def tool(name: str, **properties: Any) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": sorted(properties)}
    return {"type": "function", "function": {"name": name, "description": f"{name}s", "parameters": parameters}}


def calling(name: str, arguments: dict[str, Any], *tools: dict[str, Any]) -> dict[str, Any]:
    call = {"id": "c", "type": "function", "function": {"name": name, "arguments": arguments}}
    turns = [ASK, {"role": "assistant", "content": "", "tool_calls": [call]}, {"role": "tool", "content": "2"}, SAY]
    return {"messages": turns, "tools": list(tools)}


CALLS = [
    calling("book", {"train_no": "G1", "seat": {"row": 2}}, tool("book", train_no={"type": "string"}, seat={"a": 1})),
    calling("add", {"a": 1, "b": [2, 3]}, tool("add", a={"type": "integer", "enum": [1]}, b={"type": "array"})),
    calling("now", {}, tool("now")),
    {"messages": [ASK, {**SAY, "reasoning_content": "1 and 1"}], "tools": []},
    {"messages": [ASK, SAY], "tools": None},
]


def test_rows_with_different_tools_are_the_same_from_parquet_and_from_json_lines(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(CALLS), tmp_path / "x.parquet")
    assert b"train_no" in (tmp_path / "x.parquet").read_bytes()
    assert read(tmp_path / "x.parquet") == build_rows(tmp_path, *CALLS)


def test_nulls_inside_a_tables_structs_go_and_columns_and_items_stay() -> None:
    row = {"a": None, "b": {"c": None, "d": [None, {"e": None, "f": 0}]}, "m": [("x", 1), ("y", None)]}
    assert remove_null_padding(row) == {"a": None, "b": {"d": [None, {"f": 0}]}, "m": {"x": 1, "y": None}}


def test_a_quoted_header_after_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes('\ufeff"prompt","completion"\r\n"1+1?","2"\r\n'.encode())
    assert read(path) == [chat(USER, REPLY)]
