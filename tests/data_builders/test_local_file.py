"""Local files: every kind of row, every way to be wrong, and real data where it is there."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from qwen_align.align.errors import DataError
from qwen_align.align.rows import (
    Chat,
    Completion,
    Labelled,
    Message,
    Pair,
    Problem,
    Row,
    RowError,
    Text,
    Trace,
    to_json_line,
)
from qwen_align.data_builders import Drops, LocalFile, Sieve, sieve

DATA = Path(os.environ.get("QWEN_ALIGN_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))

user = Message(role="user", content="1+1?")
assistant = Message(role="assistant", content="2")


def build_rows(path: Path, **settings: Any) -> list[Row]:
    return list(LocalFile.model_validate({"path": str(path), **settings}).build({}, 0, Drops()))


def write_file(folder: Path, *values: Any, name: str = "x.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("rows", "value", "expected"),
    [
        (
            "problem",
            {"prompt": "1+1?", "gold": "2"},
            Problem(id="x:1", messages=[user], gold="2", reward="math_answer"),
        ),
        ("problem", {"prompt": "1+1?", "gold": 2}, Problem(id="x:1", messages=[user], gold=2, reward="math_answer")),
        (
            "trace",
            {"prompt": "1+1?", "thinking": "1+1=2", "answer": "2"},
            Trace(id="x:1", messages=[user], thinking="1+1=2", answer="2", reward="math_answer"),
        ),
        (
            "trace",
            {"prompt": "1+1?", "thinking": "1+1=2", "answer": "2", "gold": "2"},
            Trace(id="x:1", messages=[user], thinking="1+1=2", answer="2", gold="2", reward="math_answer"),
        ),
        ("chat", {"prompt": "1+1?", "answer": "2"}, Chat(id="x:1", messages=[user, assistant])),
        (
            "chat",
            {"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2", "thinking": "a"}]},
            Chat(id="x:1", messages=[user, Message(role="assistant", content="2", thinking="a")]),
        ),
        (
            "chat",
            {"messages": [{"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}]},
            Chat(id="x:1", messages=[user, assistant]),
        ),
        (
            "pair",
            {"prompt": "1+1?", "chosen": "2", "rejected": {"role": "assistant", "content": "3"}},
            Pair(id="x:1", messages=[user], chosen=assistant, rejected=Message(role="assistant", content="3")),
        ),
        (
            "pair",
            {
                "prompt": [{"role": "user", "content": "1+1?"}],
                "chosen": [{"role": "assistant", "content": "2"}],
                "rejected": {"from": "gpt", "value": "3"},
            },
            Pair(id="x:1", messages=[user], chosen=assistant, rejected=Message(role="assistant", content="3")),
        ),
        ("text", {"text": "1+1=2"}, Text(id="x:1", text="1+1=2")),
        ("text", {"text": "1+1=2", "language": "en"}, Text(id="x:1", text="1+1=2", language="en")),
    ],
)
def test_rows_of_each_kind(tmp_path: Path, rows: str, value: dict[str, Any], expected: Row) -> None:
    assert build_rows(write_file(tmp_path, {**value, "other": [1]}), rows=rows) == [expected]


def test_typed_rows_come_back_as_they_were(tmp_path: Path) -> None:
    rows = [
        Problem(id="a", messages=[user], gold="2", reward="math_answer", flag="/think", meta={"steps": 2}),
        Text(id="b", text="größe 苹果"),
        Pair(id="c", messages=[user], chosen=assistant, rejected=assistant, margin=1.0),
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(to_json_line(row) + "\n" for row in rows), encoding="utf-8")
    assert build_rows(path, rows="typed") == rows


def test_columns_name_the_files_keys(tmp_path: Path) -> None:
    path = write_file(tmp_path, {"no": 7, "question": "1+1?", "answer": "1+1=<<1+1=2>>2\n#### not\n#### 1,002"})
    columns = {"id": "no", "prompt": "question", "gold": "answer"}
    row = build_rows(path, rows="problem", columns=columns, gold_after="####", mode="think", source="gsm8k")
    assert row == [
        Problem(id="7", messages=[user], gold="1,002", reward="math_answer", mode="think", source="gsm8k"),
    ]


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.jsonl.gz", "x.json.gz"])
@pytest.mark.parametrize("layout", ["lines", "one list", "a list over lines", "with a byte order mark"])
def test_lists_and_lines_packed_or_not(tmp_path: Path, name: str, layout: str) -> None:
    values = [{"text": "a\nb"}, {"text": "苹果"}, {"text": "c"}]
    text = {
        "lines": "\n" + "\n\n".join(json.dumps(value, ensure_ascii=False) for value in values),
        "one list": json.dumps(values),
        "a list over lines": "\n " + json.dumps(values, indent=2),
        "with a byte order mark": "\ufeff" + "\r\n".join(json.dumps(value) for value in values),
    }[layout].encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    rows = build_rows(path, rows="text")
    assert [(row.id, row.text) for row in rows if isinstance(row, Text)] == [
        ("x:1", "a\nb"),
        ("x:2", "苹果"),
        ("x:3", "c"),
    ]


GOOD = json.dumps({"prompt": "1+1?", "gold": "2"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": "1+1?", "answer": "2"}', "x.jsonl:2: 'gold' is missing; a problem row has prompt and gold; "),
        ('{"gold": "2"}', "x.jsonl:2: 'prompt' is missing; "),
        ('{"prompt": null, "gold": "2"}', "x.jsonl:2: 'prompt' is missing; "),
        ("{}", "the row's keys: none"),
        ("[1]", "x.jsonl:2: is list "),
        ("3", "x.jsonl:2: is int 3, not an object with keys"),
        ('{"prompt": "1+1?", "gold": "2"', "x.jsonl:2: is not JSON: Expecting ',' delimiter at character"),
        ('{"prompt": 3, "gold": "2"}', "x.jsonl:2: prompt: is 3, neither a text nor a list of turns"),
        ('{"prompt": [], "gold": "2"}', "x.jsonl:2: prompt: is \\[\\], neither a text nor a list of turns"),
        ('{"prompt": ["a"], "gold": "2"}', "x.jsonl:2: prompt: 0: must be a turn, {role"),
        (
            '{"prompt": [{"role": "usr", "content": "a"}], "gold": "2"}',
            "x.jsonl:2: prompt: 0.role: must be 'system'",
        ),
        ('{"prompt": [{"role": "user"}], "gold": "2"}', "x.jsonl:2: prompt: 0.content: is missing"),
        ('{"prompt": "\\ud800", "gold": "2"}', r"x.jsonl:2: holds half a surrogate pair, '\\ud800'"),
        ('{"prompt": "1+1?", "gold": ' + "1" * 5000 + "}", "x.jsonl:2: cannot be read: "),
        ("[" * 100_000, "x.jsonl:2: cannot be read: "),
    ],
)
def test_a_wrong_row_is_named_by_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(f"{GOOD}\n{line}\n", encoding="utf-8")
    with pytest.raises(RowError, match=message) as error:
        build_rows(path, rows="problem")
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    ("rows", "value", "message"),
    [
        (
            "trace",
            {"prompt": "a", "answer": "b"},
            "'thinking' is missing; a trace row has prompt and thinking and answer",
        ),
        ("trace", {"prompt": "a", "answer": "b", "thinking": 3}, "thinking: must be a text"),
        ("chat", {"prompt": "a"}, "'answer' is missing; a chat row has messages, or prompt and answer"),
        ("chat", {"prompt": "a", "answer": 3}, "answer: 0: must be a turn, {role"),
        ("chat", {"messages": "a b"}, None),
        ("pair", {"prompt": "a", "chosen": "b"}, "'rejected' is missing"),
        (
            "pair",
            {"prompt": "a", "chosen": "b", "rejected": {"from": "human", "value": "c"}},
            "rejected: has roles user",
        ),
        ("text", {"txt": "a"}, "'text' is missing; a text row has text; the row's keys: txt"),
        ("text", {"text": 3}, "text: must be a text"),
        ("typed", {"row": "text", "id": "a"}, "text.text: is missing"),
        ("typed", {"row": "texts", "id": "a"}, "row 'texts' is unknown. Did you mean 'text'"),
    ],
)
def test_wrong_rows_of_other_kinds(tmp_path: Path, rows: str, value: Any, message: str | None) -> None:
    path = write_file(tmp_path, value)
    if message is None:
        assert build_rows(path, rows=rows) == [Chat(id="x:1", messages=[Message(role="user", content="a b")])]
    else:
        with pytest.raises(RowError, match=f"x.jsonl:1: .*{message}"):
            build_rows(path, rows=rows)


def test_columns_of_system_tools_and_margin_are_read(tmp_path: Path) -> None:
    system, tool = Message(role="system", content="Be kind."), {"type": "function", "function": {"name": "add"}}
    fields = {"prompt": "1+1?", "answer": "2", "completion": "2", "label": True, "gold": "2", "thinking": "hm"}
    path = write_file(tmp_path, {**fields, "system": "Be kind.", "chosen": "2", "rejected": "3"})
    for kind in ("problem", "trace", "chat", "pair", "labelled"):
        [row] = build_rows(path, rows=kind)
        assert not isinstance(row, Text)
        assert not isinstance(row, Completion)
        assert row.messages[:2] == [system, user]
    path = write_file(tmp_path, {**fields, "first": "Be kind.", "may_call": [{"name": "add"}]})
    expected = Chat(id="x:1", messages=[system, user, assistant], tools=[tool])
    assert build_rows(path, rows="chat", columns={"system": "first", "tools": "may_call"}) == [expected]
    path = write_file(tmp_path, {"messages": "1+1?", "tools": json.dumps([tool])})
    assert build_rows(path, rows="chat") == [Chat(id="x:1", messages=[user], tools=[tool])]
    three = Message(role="assistant", content="3")
    path = write_file(tmp_path, {"prompt": "1+1?", "chosen": "2", "rejected": "3", "by": 0.5})
    expected_pair = Pair(id="x:1", messages=[user], chosen=assistant, rejected=three, margin=0.5)
    assert build_rows(path, rows="pair", columns={"margin": "by"}) == [expected_pair]
    with pytest.raises(RowError, match=r"x\.jsonl:1: margin: is 'much', not a number"):
        build_rows(
            write_file(tmp_path, {"prompt": "1+1?", "chosen": "2", "rejected": "3", "margin": "much"}), rows="pair"
        )


def test_texts_have_a_source_and_nothing_of_a_conversation(tmp_path: Path) -> None:
    path = write_file(tmp_path, {"text": "a"})
    expected = [Text(id="x:1", text="a", source="books")]
    assert build_rows(path, source="books") == build_rows(path, rows="text", source="books") == expected
    assert build_rows(path, format="text", source="books") == expected
    for settings in ({"mode": "think"}, {"system": "Be kind."}):
        (name,) = settings
        for how in ({"rows": "text"}, {"format": "text"}):
            with pytest.raises(ValidationError, match=f"{name}: a text is no conversation; leave it out"):
                build_rows(path, **how, **settings)
        with pytest.raises(DataError, match=rf"x\.jsonl: recognised as text: {name}: a text is no conversation"):
            build_rows(path, **settings)


def test_settings_that_typed_rows_say_themselves_are_refused_where_they_are_recognised(tmp_path: Path) -> None:
    path = write_file(tmp_path, {"row": "text", "id": "a", "text": "b"})
    assert build_rows(path, format="auto", expect_rows=1) == build_rows(path) == [Text(id="a", text="b")]
    with pytest.raises(DataError, match=r"x\.jsonl: recognised as typed: mode, source: typed rows say everything"):
        build_rows(path, mode="think", source="books")


@pytest.mark.parametrize(
    ("cell", "label"), [("true", True), ("False", False), (" TRUE ", True), ("1", True), ("0.0", False)]
)
def test_labels_of_a_table_are_words(tmp_path: Path, cell: str, label: bool) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f"prompt,completion,label\n1+1?,2,{cell}\n")
    expected = [Labelled(id="x:1", messages=[user], completion=assistant, label=label)]
    assert build_rows(path, rows="labelled") == build_rows(path, format="kto") == expected


def test_a_label_that_is_none_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("prompt,completion,label\n1+1?,2,2\n")
    with pytest.raises(RowError, match=r"x\.csv:2: label: is '2'; a label is true or false, 1 or 0"):
        build_rows(path, rows="labelled")


def test_margins_of_a_table_are_texts_that_write_numbers(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("prompt,chosen,rejected,margin\n1+1?,2,3,0.5\n")
    three = Message(role="assistant", content="3")
    assert build_rows(path) == [Pair(id="x:1", messages=[user], chosen=assistant, rejected=three, margin=0.5)]
    path.write_text("prompt,chosen,rejected,score_chosen,score_rejected\n1+1?,2,3,1e0,-2\n")
    assert build_rows(path) == [Pair(id="x:1", messages=[user], chosen=assistant, rejected=three, margin=3.0)]


def test_the_place_in_a_list_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"text": "a"}, {"text": 2}]))
    with pytest.raises(RowError, match=r"x\.json: row 2: text: must be a text"):
        build_rows(path, rows="text")


def test_a_gold_without_its_mark_is_wrong(tmp_path: Path) -> None:
    path = write_file(tmp_path, {"prompt": "1+1?", "gold": "2"})
    with pytest.raises(RowError, match=r"x\.jsonl:1: gold: no '####' in '2'"):
        build_rows(path, rows="problem", gold_after="####")


def test_ids_are_unique(tmp_path: Path) -> None:
    path = write_file(tmp_path, {"id": 1, "text": "a"}, {"id": "1", "text": "b"})
    with pytest.raises(RowError, match=r"x\.jsonl:2: id '1' is that of .*x\.jsonl:1 too"):
        build_rows(path, rows="text", columns={"id": "id"})


def test_an_id_is_read_where_the_file_has_one(tmp_path: Path) -> None:
    assert [
        row.id for row in build_rows(write_file(tmp_path, {"id": "a", "text": "a"}, {"text": "b"}), rows="text")
    ] == [
        "a",
        "x:2",
    ]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    packed = gzip.compress(b'{"text": "a"}\n' * 1000)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(RowError, match=r"cut\.jsonl\.gz: the gzip file is damaged or cut short"):
        build_rows(cut, rows="text")
    broken = tmp_path / "broken.jsonl.gz"
    broken.write_bytes(packed[:12] + b"\xff" * 8 + packed[20:])
    with pytest.raises(RowError, match=r"broken\.jsonl\.gz: the gzip file is damaged or cut short"):
        build_rows(broken, rows="text")
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes('{"text": "größe"}'.encode("latin-1"))
    with pytest.raises(RowError, match=r"latin\.jsonl:1: is not UTF-8"):
        build_rows(latin, rows="text")


def test_a_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.jsonl: there is no such file; a relative path starts at the recipe"):
        build_rows(tmp_path / "none.jsonl", rows="text")
    (tmp_path / "x.xlsx").write_text("a")
    with pytest.raises(ValueError, match=r"x\.xlsx: is none of \.jsonl, \.json"):
        build_rows(tmp_path / "x.xlsx", rows="text")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"rows": "problem", "columns": {"promt": "q"}},
            "'promt' is no field of a problem row. Did you mean 'prompt'?",
        ),
        ({"rows": "text", "columns": {"gold": "a"}}, "'gold' is no field of a text row; known: id, language, text"),
        ({"rows": "text", "gold_after": "####"}, "gold_after: a text row has no gold"),
        ({"rows": "typed", "columns": {"prompt": "q"}, "mode": "think"}, "columns, mode: typed rows say everything"),
        ({"rows": "problem", "reward": "maths"}, "'maths' is no reward"),
        ({"rows": "problems"}, "Input should be 'auto', 'typed'"),
        ({"columns": {"prompt": "q"}}, "columns: a format is recognised by its own keys; name the format too"),
        ({"format": "gsm8k", "rows": "pair"}, "rows: gsm8k makes problem or chat or trace rows, no pair rows"),
        ({"format": "alpaca", "columns": {"promt": "q"}}, "'promt' is no field of format alpaca"),
        ({"format": "gsm8k", "gold_after": "####"}, "gold_after: format gsm8k has no gold to look for it in"),
        ({"format": "alpaca", "calculator_marks": "remove"}, "calculator_marks: is for format: gsm8k"),
        ({"format": "alpacas"}, "Input should be 'auto'"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as error:
        LocalFile.model_validate({"path": "x.jsonl", **settings})
    assert message in str(error.value)


REAL = [
    (
        "gsm8k/test.jsonl",
        {"rows": "problem", "columns": {"prompt": "question", "gold": "answer"}, "gold_after": "####"},
        1319,
    ),
    ("limr/math_8k.json", {"rows": "problem", "columns": {"gold": "answer"}}, 8519),
    ("math500/test.jsonl", {"rows": "problem", "columns": {"prompt": "problem", "gold": "answer"}}, 500),
    ("amc23/test.jsonl", {"rows": "problem", "columns": {"prompt": "question", "gold": "answer"}}, 40),
    ("mawps/addsub.jsonl", {"rows": "problem", "columns": {"prompt": "input", "gold": "target"}}, None),
    ("preference/dpo_zh_demo.json", {"rows": "pair", "columns": {"prompt": "conversations"}}, 300),
    ("humaneval/HumanEval.jsonl.gz", {"rows": "text", "columns": {"text": "prompt"}}, 164),
]


@pytest.mark.parametrize(("name", "settings", "n_usable"), REAL, ids=[name for name, _, _ in REAL])
def test_real_files(name: str, settings: dict[str, Any], n_usable: int | None) -> None:
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"the real data is not at {DATA}")
    drops = Drops()
    rows = list(sieve(build_rows(path, **settings), Sieve(is_unique=False), drops))
    assert len(rows) == (n_usable or len(rows)) > 0
    assert set(drops.counts) <= {"unusable gold", "blank answer"}
