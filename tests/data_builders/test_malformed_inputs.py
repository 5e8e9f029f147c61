"""What real files are spoilt by: each is refused with a message that says where, or counted with a reason."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from qwen_align.align.errors import DataError
from qwen_align.align.rows import Row
from qwen_align.data_builders.conversion_report import Report
from qwen_align.data_builders.local_file import LocalFile
from qwen_align.data_builders.sieve import Drops, Sieve, sieve

GOOD = {"prompt": "1+1?", "gold": "2"}
LINE = json.dumps(GOOD).encode() + b"\n"
CHAT = {"messages": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}]}


def lines(*values: Any) -> bytes:
    """A good row, then these, then a good row."""
    encoded = [value if isinstance(value, bytes) else json.dumps(value).encode() for value in values]
    return LINE + b"\n".join(encoded) + b"\n" + LINE


def assistant(content: Any, **more: Any) -> bytes:
    return json.dumps({"messages": [CHAT["messages"][0], {"role": "assistant", "content": content, **more}]}).encode()


def chats(line: bytes) -> bytes:
    good = json.dumps(CHAT).encode() + b"\n"
    return good + line + b"\n" + good


HUGE = int("9" * 400)
PAIR = {"prompt": "1+1?", "chosen": "2", "rejected": "3"}


def typed(row_id: str, **fields: Any) -> dict[str, Any]:
    sides = {side: {"role": "assistant", "content": PAIR[side]} for side in ("chosen", "rejected")}
    return {"row": "pair", "id": row_id, "messages": [{"role": "user", "content": "1+1?"}], **sides, **fields}


def pairs(row: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in (PAIR, row, PAIR))


def parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return bytes(sink.getvalue().to_pybytes())


class Fatal(NamedTuple):
    """A file that cannot be read to its end: an error whatever `on_bad_row` says, as a count would be a guess."""

    name: str
    what: str
    content: Callable[[], bytes]
    message: str
    settings: dict[str, Any] = {}  # noqa: RUF012


class Bad(NamedTuple):
    """A file with one bad row among two good ones: an error that names its place, or a drop with the reason."""

    name: str
    what: str
    content: Callable[[], bytes]
    message: str
    reason: str
    settings: dict[str, Any] = {}  # noqa: RUF012


AUTO: dict[str, Any] = {"rows": "auto"}
LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n"
FATAL = [
    Fatal("x.jsonl.gz", "gzip cut short", lambda: gzip.compress(LINE * 999)[:-30], "gzip file is damaged or cut short"),
    Fatal(
        "x.jsonl.gz",
        "gzip with a wrong byte",
        lambda: gzip.compress(LINE * 9)[:12] + b"\xff" * 8,
        "gzip file is damaged or cut short",
    ),
    Fatal("x.jsonl", "a pointer", lambda: LFS_POINTER, "is a git-lfs pointer, not the data: run `git lfs pull`"),
    Fatal("x.csv", "a pointer for a table", lambda: LFS_POINTER, "is a git-lfs pointer"),
    Fatal("x.parquet", "a pointer for Parquet", lambda: LFS_POINTER, "is a git-lfs pointer"),
    Fatal("x.json", "a web page", lambda: b"\n<!DOCTYPE HTML><html>Log in</html>", "is a web page, not data"),
    Fatal("x.jsonl", "Parquet by another name", lambda: parquet([GOOD]), "is a Parquet file; name it .parquet"),
    Fatal("x.csv", "an Excel workbook", lambda: b"PK\x03\x04\x14\0", "is a zip archive or an Excel workbook"),
    Fatal("x.jsonl", "packed with zstd", lambda: b"\x28\xb5\x2f\xfd\0", "is packed with zstd"),
    Fatal(
        "x.json",
        "rows beside a version",
        lambda: b'{"version": 1, "data": [{"a": 1}]}',
        "under 'data': .*that list",
        AUTO,
    ),
    Fatal("x.jsonl", "UTF-16 with a mark", lambda: LINE.decode().encode("utf-16"), "is UTF-16 or UTF-32, not UTF-8"),
    Fatal("x.csv", "CSV in UTF-16", lambda: "prompt,gold\na,b\n".encode("utf-16"), "is UTF-16 or UTF-32, not UTF-8"),
    Fatal(
        "x.json",
        "list cut after a row",
        lambda: b"[" + LINE + b",",
        r"row 2: is not JSON: .*was it cut short\? \(line 2\)",
    ),
    Fatal(
        "x.json",
        "list cut inside a row",
        lambda: b"[" + LINE + b',{"prompt": "a',
        r"row 2: is not JSON: Unterminated string",
    ),
    Fatal(
        "x.json",
        "list without a comma",
        lambda: b"[" + LINE + LINE + b"]",
        r"after row 1: .*neither ',' nor '\]' follows",
    ),
    Fatal(
        "x.json",
        "list with a comma too many",
        lambda: b"[" + LINE + b",]",
        r"row 2: is not JSON: Expecting value .*line 2",
    ),
    Fatal("x.json", "text after the list", lambda: b"[" + LINE + b"] x", "something follows the list's end"),
    Fatal("x.json", "two lists", lambda: b"[" + LINE + b"]\n[" + LINE + b"]", "something follows the list's end"),
    Fatal("x.json", "list in Latin-1", lambda: '[{"prompt": "größe"}]'.encode("latin-1"), "is not UTF-8"),
    Fatal("x.json", "list with NUL bytes", lambda: b"[" + LINE + b"\0\0\0", "holds NUL bytes"),
    Fatal("x.json", "thousands of brackets", lambda: b"[" * 100_000, "row 1: cannot be read"),
    Fatal("x.parquet", "no Parquet", lambda: LINE * 20, "is no Parquet file"),
    Fatal("x.parquet", "empty Parquet", lambda: b"", "is no Parquet file"),
    Fatal("x.parquet", "Parquet cut short", lambda: parquet([GOOD] * 9)[:-20], "is no Parquet file, or a damaged one"),
    Fatal(
        "x.csv", "open quote", lambda: b'prompt,gold\na,b\n"c,d\ne,f\n', r"x\.csv:3: is no CSV: .*is a quote left open"
    ),
    Fatal(
        "x.csv", "column named twice", lambda: b"prompt,gold,gold\na,b,c\n", r"x\.csv:1: the header names 'gold' twice"
    ),
    Fatal(
        "x.csv",
        "header in Latin-1",
        lambda: "größe,gold\na,b\n".encode("latin-1"),
        r"x\.csv:1: the header is not UTF-8",
    ),
    Fatal("x.csv", "semicolons", lambda: b"prompt;gold\na;b\n", "their keys: prompt;gold .separated by ';'", AUTO),
    Fatal("x.jsonl", "empty file", lambda: b"", "has no row to recognise a format by", AUTO),
    Fatal("x.json", "empty list", lambda: b"[]", "has no row to recognise a format by", AUTO),
    Fatal("x.csv", "header only", lambda: b"prompt,gold\n", "has no row to recognise a format by", AUTO),
    Fatal("x.jsonl", "unknown columns", lambda: b'{"a": 1}\n', "in no format we know; their keys: a", AUTO),
    Fatal("x.json", "rows under a key", lambda: b'{"data": [{"text": "a"}]}', "their keys: data", AUTO),
    Fatal("x.jsonl", "nothing but numbers", lambda: b"1\n2\n", "their keys: none, they are no objects", AUTO),
]

TEN_MB = 10_000_000
BAD = [
    Bad("x.jsonl", "truncated JSON", lambda: lines(b'{"prompt": "a", "go'), "x.jsonl:2: is not JSON", "not JSON"),
    Bad("x.jsonl", "two rows in a line", lambda: lines(LINE.strip() * 2), "x.jsonl:2: is not JSON: Extra", "not JSON"),
    Bad("x.jsonl", "single quotes", lambda: lines(b"{'prompt': 'a'}"), "x.jsonl:2: is not JSON", "not JSON"),
    Bad(
        "x.jsonl",
        "Latin-1",
        lambda: lines('{"prompt": "größe"}'.encode("latin-1")),
        "x.jsonl:2: is not UTF-8",
        "not UTF-8",
    ),
    Bad(
        "x.jsonl",
        "UTF-16 without a mark",
        lambda: lines(LINE.decode().encode("utf-16-le")[:-2]),
        "x.jsonl:2: holds NUL",
        "NUL character",
    ),
    Bad(
        "x.jsonl",
        "NUL bytes",
        lambda: lines(b"\0" * 512),
        "x.jsonl:2: holds NUL bytes; was the file cut",
        "NUL character",
    ),
    Bad("x.jsonl", "escaped NUL", lambda: lines({**GOOD, "prompt": "a\0b"}), "x.jsonl:2: holds a NUL", "NUL character"),
    Bad(
        "x.jsonl",
        "half a surrogate pair",
        lambda: lines(b'{"prompt": "\\ud83d", "gold": 1}'),
        "x.jsonl:2: holds half",
        "half a surrogate pair",
    ),
    Bad("x.jsonl", "NaN", lambda: lines(b'{"prompt": "a", "gold": NaN}'), "x.jsonl:2: is not JSON: NaN is", "not JSON"),
    Bad(
        "x.jsonl", "infinity", lambda: lines(b'{"prompt": "a", "gold": 1e999}'), "x.jsonl:2: .*1e999 is too", "not JSON"
    ),
    Bad(
        "x.jsonl",
        "5,000 digits",
        lambda: lines(b'{"prompt": "a", "gold": ' + b"1" * 5000 + b"}"),
        "x.jsonl:2: cannot",
        "not JSON",
    ),
    Bad(
        "x.jsonl",
        "key twice",
        lambda: lines(b'{"prompt": "a", "gold": 1, "gold": 2}'),
        "x.jsonl:2: key 'gold' is",
        "key twice",
    ),
    Bad(
        "x.jsonl",
        "10 MB in one row",
        lambda: lines({**GOOD, "prompt": "a" * TEN_MB}),
        "x.jsonl:2: is over 8 MiB",
        "row too large",
    ),
    Bad(
        "x.json",
        "10 MB in a list",
        lambda: json.dumps([GOOD, {**GOOD, "prompt": "a" * TEN_MB}, GOOD]).encode(),
        "x.json: row 2: is over 8 MiB",
        "row too large",
    ),
    Bad(
        "x.csv",
        "10 MB in a cell",
        lambda: b"prompt,gold\na,b\n" + b"a" * 8_000_000 + b"," + b"b" * 2_000_000 + b"\nc,d\n",
        "x.csv:3: is over 8 MiB",
        "row too large",
    ),
    Bad(
        "x.csv",
        "10 MB in one cell",
        lambda: b"prompt,gold\na,b\n" + b"a" * TEN_MB + b",b\nc,d\n",
        "x.csv:3: is over 8 MiB",
        "row too large",
    ),
    Bad(
        "x.csv",
        "10 MB in one cell of many lines",
        lambda: b'prompt,gold\na,b\n"' + b"a,b\n" * (TEN_MB // 4) + b'",b\nc,d\n',
        "x.csv:3: is over 8 MiB",
        "row too large",
    ),
    Bad(
        "x.jsonl",
        "margin of 400 digits",
        lambda: pairs({**PAIR, "margin": HUGE}),
        "x.jsonl:2: margin: is 999.*, not a number that a float can hold",
        "wrong type",
        AUTO,
    ),
    Bad(
        "x.jsonl",
        "score of 400 digits",
        lambda: pairs({**PAIR, "score_chosen": HUGE, "score_rejected": 1}),
        "x.jsonl:2: score_chosen: is 999.*, not a number that a float can hold",
        "wrong type",
        AUTO,
    ),
    Bad(
        "x.jsonl",
        "scores further apart than a float can say",
        lambda: pairs({**PAIR, "score_chosen": 1e308, "score_rejected": -1e308}),
        "x.jsonl:2: score_chosen - score_rejected: is inf",
        "wrong type",
        AUTO,
    ),
    Bad(
        "x.jsonl",
        "typed margin of 400 digits",
        lambda: b"".join(json.dumps(one).encode() + b"\n" for one in (typed("a"), typed("b", margin=HUGE), typed("c"))),
        "x.jsonl:2: pair.margin: must be a number",
        "no row of ours",
        {"rows": "typed"},
    ),
    Bad(
        "x.jsonl",
        "nesting that is not read again",
        lambda: lines({**GOOD, "more": json.loads("[" * 300 + "]" * 300)}),
        "x.jsonl:2: cannot be read again once it is written: .*recursion limit",
        "not JSON",
        {"keep_columns": ["more"]},
    ),
    Bad(
        "x.jsonl",
        "call that is not read again",
        lambda: chats(assistant("", tool_calls=[{"name": "f", "arguments": {"a": json.loads("[" * 300 + "]" * 300)}}])),
        "x.jsonl:2: cannot be read again once it is written: .*recursion limit",
        "not JSON",
        AUTO,
    ),
    Bad(
        "x.jsonl",
        "deep nesting",
        lambda: lines(b'{"prompt": ' + b"[" * 100_000),
        "x.jsonl:2: cannot be read",
        "not JSON",
    ),
    Bad("x.jsonl", "missing field", lambda: lines({"prompt": "a"}), "x.jsonl:2: 'gold' is missing", "missing field"),
    Bad(
        "x.jsonl",
        "null gold",
        lambda: lines({"prompt": "a", "gold": None}),
        "x.jsonl:2: 'gold' is missing",
        "missing field",
    ),
    Bad(
        "x.jsonl",
        "null gold, recognised",
        lambda: lines({"prompt": "a", "gold": None}),
        "x.jsonl:2: gold: is null",
        "no gold",
        AUTO,
    ),
    Bad(
        "x.jsonl",
        "blank gold",
        lambda: lines({"prompt": "a", "gold": " "}),
        "x.jsonl:2: gold: is blank",
        "no gold",
        AUTO,
    ),
    Bad(
        "x.jsonl",
        "blank prompt",
        lambda: lines({"prompt": " ", "gold": 1}),
        "x.jsonl:2: prompt: is blank",
        "blank field",
        AUTO,
    ),
    Bad("x.jsonl", "a list as a row", lambda: lines([GOOD]), "x.jsonl:2: is list", "not an object"),
    Bad(
        "x.json",
        "nested lists",
        lambda: json.dumps([GOOD, [GOOD], GOOD]).encode(),
        "x.json: row 2: is list",
        "not an object",
    ),
    Bad("x.jsonl", "null as a row", lambda: lines(None), "x.jsonl:2: is NoneType None", "not an object"),
    Bad("x.jsonl", "number as a prompt", lambda: lines({**GOOD, "prompt": 3}), "x.jsonl:2: prompt: is 3", "wrong type"),
    Bad("x.jsonl", "texts as turns", lambda: lines({**GOOD, "prompt": ["a"]}), "x.jsonl:2: prompt: 0", "wrong type"),
    Bad("x.jsonl", "id that is a list", lambda: lines({**GOOD, "id": [1]}), r"x.jsonl:2: id: is \[1\]", "wrong type"),
    Bad("x.jsonl", "blank id", lambda: lines({**GOOD, "id": ""}), "x.jsonl:2: id: is ''", "wrong type"),
    Bad(
        "x.jsonl",
        "id twice",
        lambda: b'{"id": 1, "prompt": "a", "gold": 1}\n{"id": "1", "prompt": "b", "gold": 1}\n' + LINE,
        "x.jsonl:2: id '1' is that of .*x.jsonl:1 too",
        "duplicate id",
    ),
    Bad(
        "x.jsonl",
        "CRLF and a bad row",
        lambda: lines(b"{").replace(b"\n", b"\r\n"),
        "x.jsonl:2: is not JSON",
        "not JSON",
    ),
    Bad(
        "x.jsonl",
        "byte order mark and a bad row",
        lambda: b"\xef\xbb\xbf" + lines(b"{"),
        "x.jsonl:2: is not JSON",
        "not JSON",
    ),
    Bad(
        "x.jsonl",
        "a row of something else",
        lambda: lines({"a": 1}),
        "x.jsonl:2: none of prompt, question",
        "missing field",
        AUTO,
    ),
    Bad(
        "x.jsonl",
        "typed row without its kind",
        lambda: b'{"row": "text", "id": "a", "text": "a"}\n{"id": "b"}\n{"row": "text", "id": "c", "text": "c"}\n',
        "x.jsonl:2: 'row' is missing",
        "no row of ours",
        AUTO,
    ),
    Bad(
        "x.jsonl",
        "thinking that never ends",
        lambda: chats(assistant("<think>\na")),
        "x.jsonl:2: messages: 1: has 1 <think> and 0",
        "malformed thinking",
        AUTO,
    ),
    Bad(
        "x.jsonl",
        "a closing tag that is quoted",
        lambda: chats(assistant("End it with `</think>`.")),
        "x.jsonl:2: messages: 1: has </think> inside",
        "malformed thinking",
        AUTO,
    ),
    Bad(
        "x.jsonl",
        "two blocks",
        lambda: chats(assistant("<think>a</think>b<think>c</think>d")),
        "x.jsonl:2: messages: 1: has 2",
        "malformed thinking",
        AUTO,
    ),
    Bad(
        "x.jsonl",
        "tags the wrong way round",
        lambda: chats(assistant("</think>a<think>")),
        "x.jsonl:2: messages: 1: has <think> inside",
        "malformed thinking",
        AUTO,
    ),
    Bad(
        "x.jsonl",
        "text before the block",
        lambda: chats(assistant("a<think>b</think>c")),
        "x.jsonl:2: messages: 1: has <think> inside",
        "malformed thinking",
        AUTO,
    ),
    Bad(
        "x.jsonl",
        "thinking and no answer",
        lambda: chats(assistant("<think>a</think>\n")),
        "x.jsonl:2: messages: 1: has thinking and no",
        "malformed thinking",
        AUTO,
    ),
    Bad(
        "x.jsonl",
        "thinking in two places",
        lambda: chats(assistant("<think>a</think>b", reasoning_content="c")),
        "x.jsonl:2: messages: 1: has reasoning_content and",
        "malformed thinking",
        AUTO,
    ),
    Bad(
        "x.jsonl",
        "unknown role",
        lambda: chats(b'{"messages": [{"role": "narrator", "content": "a"}]}'),
        "x.jsonl:2: messages: 0.role: must be 'system'",
        "wrong type",
        AUTO,
    ),
    Bad(
        "x.jsonl",
        "turn without content",
        lambda: chats(b'{"messages": [{"role": "user"}]}'),
        "x.jsonl:2: messages: 0.content: is missing",
        "missing field",
        AUTO,
    ),
    Bad("x.jsonl", "no turns", lambda: chats(b'{"messages": []}'), r"x.jsonl:2: messages: is \[\]", "wrong type", AUTO),
    Bad(
        "x.jsonl",
        "no assistant",
        lambda: chats(b'{"messages": [{"role": "user", "content": "a"}]}'),
        "x.jsonl:2: has no assistant",
        "no reply",
        AUTO,
    ),
    Bad(
        "x.jsonl",
        "turn not to be trained",
        lambda: chats(assistant("a", weight=0)),
        "x.jsonl:2: messages: 1: has 'weight'",
        "unknown key of a turn",
        AUTO,
    ),
    Bad(
        "x.jsonl",
        "an image",
        lambda: chats(assistant([{"type": "image_url", "image_url": "a"}])),
        "x.jsonl:2: messages: 1.content: holds parts",
        "wrong type",
        AUTO,
    ),
    Bad(
        "x.jsonl",
        "tool call in broken JSON",
        lambda: chats(assistant("", tool_calls=[{"function": {"name": "a", "arguments": "{"}}])),
        r"x.jsonl:2: messages: 1.tool_calls\[0\].arguments: is not JSON",
        "not JSON",
        AUTO,
    ),
    Bad(
        "x.jsonl",
        "tool call without a name",
        lambda: chats(assistant("", tool_calls=[{"function": {"arguments": {}}}])),
        "x.jsonl:2: .*a call has name and arguments",
        "malformed tool call",
        AUTO,
    ),
    Bad(
        "x.csv",
        "row with a cell too many",
        lambda: b"prompt,gold\na,b\nc,d,e\nf,g\n",
        "x.csv:3: has 3 cells, the header 2",
        "ragged row",
    ),
    Bad(
        "x.csv",
        "row with a cell too few",
        lambda: b'prompt,gold\n"a\nb",b\nc\nf,g\n',
        "x.csv:4: has 1 cells, the header 2",
        "ragged row",
    ),
    Bad(
        "x.csv",
        "Latin-1 in a cell",
        lambda: "prompt,gold\na,b\nä,d\nf,g\n".encode("latin-1"),
        "x.csv:3: is not UTF-8",
        "not UTF-8",
    ),
    Bad("x.csv", "NUL in a cell", lambda: b"prompt,gold\na,b\nc\0,d\nf,g\n", "x.csv:3: holds a NUL", "NUL character"),
    Bad("x.csv", "empty cell", lambda: b"prompt,gold\na,b\nc,\nf,g\n", "x.csv:3: 'gold' is missing", "missing field"),
    Bad(
        "x.parquet",
        "null in Parquet",
        lambda: parquet([GOOD, {"prompt": "a"}, GOOD]),
        "x.parquet: row 2: 'gold' is missing",
        "missing field",
    ),
    Bad(
        "x.parquet",
        "NaN in Parquet",
        lambda: parquet([{**GOOD, "gold": 1.0}, {**GOOD, "gold": float("nan")}, {**GOOD, "gold": 2.0}]),
        "x.parquet: row 2: gold: is nan, which JSON cannot hold",
        "not JSON",
    ),
    Bad(
        "x.parquet",
        "NUL in Parquet",
        lambda: parquet([GOOD, {**GOOD, "prompt": "a\0"}, GOOD]),
        "x.parquet: row 2: holds a NUL",
        "NUL character",
    ),
]


def test_there_are_more_than_fifty_and_no_two_alike() -> None:
    cases = [(case.name, case.what) for case in (*FATAL, *BAD)]
    assert len(set(cases)) == len(cases) > 50


def build_rows(path: Path, drops: Drops, **settings: Any) -> list[Row]:
    return list(LocalFile.model_validate({"path": str(path), **settings}).build({}, 0, drops))


@pytest.mark.parametrize("on_bad_row", ["fail", "drop"])
@pytest.mark.parametrize("case", FATAL, ids=lambda case: case.what)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, case: Fatal, on_bad_row: str) -> None:
    path = tmp_path / case.name
    path.write_bytes(case.content())
    with pytest.raises(DataError, match=case.message) as error:
        build_rows(path, Drops(), **{"rows": "problem", **case.settings, "on_bad_row": on_bad_row})
    assert str(error.value).startswith(str(path))
    assert len(str(error.value)) < 1000


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.what)
def test_a_bad_row_is_named_or_counted(tmp_path: Path, case: Bad) -> None:
    path = tmp_path / case.name
    path.write_bytes(case.content())
    settings = {"rows": "problem", **case.settings}
    with pytest.raises(DataError, match=case.message) as error:
        build_rows(path, Drops(), **settings)
    assert str(error.value).startswith(str(path))
    assert len(str(error.value)) < 500
    drops = Drops()
    rows = build_rows(path, drops, **settings, on_bad_row="drop")
    assert len(rows) == 2
    assert drops.counts == {case.reason: 1}
    assert str(tmp_path) not in drops.rows[0].id + drops.rows[0].detail


def test_bad_rows_before_a_format_that_is_not_recognised_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"prompt": "a", "gold": \n{"prompt": \n')
    with pytest.raises(DataError, match="has no row to recognise") as error:
        build_rows(path, Drops(), on_bad_row="drop")
    assert f"Before that 2 bad rows were dropped, the first: {path}:1: " in str(error.value)


def test_a_folder_and_a_missing_file_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").mkdir()
    with pytest.raises(DataError, match=r"x\.jsonl: is a folder; name one file"):
        build_rows(tmp_path / "x.jsonl", Drops())
    for name in ("none.jsonl", "none.csv", "none.parquet"):
        with pytest.raises(DataError, match=f"{name}: there is no such file"):
            build_rows(tmp_path / name, Drops())


GOOD_FILES: list[tuple[str, str, bytes]] = [
    ("x.jsonl", "CRLF", LINE.replace(b"\n", b"\r\n") * 2),
    ("x.jsonl", "byte order mark", b"\xef\xbb\xbf" + LINE * 2),
    ("x.jsonl", "no line break at the end", (LINE * 2).strip()),
    ("x.jsonl", "blank lines", b"\n\n" + LINE + b"  \n" + LINE),
    ("x.csv", "CRLF in CSV", b"prompt,gold\r\n1+1?,2\r\n1+1?,2\r\n"),
    ("x.csv", "byte order mark in CSV", b"\xef\xbb\xbfprompt,gold\n1+1?,2\n1+1?,2\n"),
    ("x.csv", "quotes and blank lines", b'"prompt","gold"\n\n"1+1?","2"\n\n1+1?,2'),
    ("x.tsv", "tabs", b"prompt\tgold\n1+1?\t2\n1+1?\t2\n"),
    ("x.csv.gz", "CSV in gzip", gzip.compress(b"prompt,gold\n1+1?,2\n1+1?,2\n")),
]


@pytest.mark.parametrize(("name", "what", "content"), GOOD_FILES, ids=[what for _, what, _ in GOOD_FILES])
def test_what_only_looks_odd_is_read(tmp_path: Path, name: str, what: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    rows = build_rows(path, Drops(), rows="problem")
    assert [(row.id, row.messages[0].content, row.gold) for row in rows if row.row == "problem"] == [
        ("x:1", "1+1?", "2"),
        ("x:2", "1+1?", "2"),
    ]


def test_every_suffix_holds_the_same_rows(tmp_path: Path) -> None:
    rows = [{**CHAT, "id": f"a{number}"} for number in range(600)]
    contents = {
        "x.jsonl": "".join(json.dumps(row) + "\n" for row in rows).encode(),
        "x.json": json.dumps(rows, indent=1).encode(),
        "x.json.gz": gzip.compress(json.dumps(rows).encode()),
        "x.parquet": parquet(rows),
    }
    made = []
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        made.append(build_rows(path, Drops()))
    assert all(one == made[0] for one in made)
    assert len(made[0]) == 600


def test_numbers_as_texts_are_left_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("prompt,gold,n\na,007,1\n")
    report = Report()
    [row] = LocalFile.model_validate({"path": str(path), "rows": "problem"}).build_with_report(report, Drops())
    assert row.row == "problem"
    assert row.gold == "007"
    assert report.n_left_out == {"n": 1}


def test_ids_count_bad_rows_too(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(lines(b"{", {"a": 1}))
    drops = Drops()
    assert [row.id for row in build_rows(path, drops, rows="problem", on_bad_row="drop")] == ["x:1", "x:4"]
    assert [drop.id for drop in drops.rows] == ["x.jsonl:2", "x.jsonl:3"]


def test_what_a_reader_lets_through_the_sieve_counts(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(lines({"prompt": "2+2?", "gold": ""}))
    drops = Drops()
    kept = list(sieve(build_rows(path, drops, rows="problem"), Sieve(), drops))
    assert (len(kept), drops.counts) == (1, {"unusable gold": 1, "duplicate": 1})
