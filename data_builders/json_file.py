"""The values in a JSON Lines file or JSON list, plain or gzip, each with the place to name in an error."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from qwen_align.align.errors import DataError
from qwen_align.align.rows import RowError

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


def read_values(path: Path) -> Iterator[tuple[str, Any]]:
    """(`path:line`, value) of every line, or (`path: row n`, value) of a list that fills the file.

    Raises DataError if there is no such file, RowError naming the line for what is not JSON in UTF-8. What is
    packed and what is a list is told by the content, because names lie.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; a relative path starts at the recipe's folder")
    if not path.name.endswith(SUFFIXES):
        raise DataError(f"{path}: is none of {', '.join(SUFFIXES)}; convert it, or name it for what it holds")
    with path.open("rb") as raw:
        is_packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        lines = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if is_packed else raw
        try:
            yield from _values(lines, path)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise RowError(f"{path}: the gzip file is damaged or cut short: {error}") from None


def _values(lines: BinaryIO, path: Path) -> Iterator[tuple[str, Any]]:
    is_first = True
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        text = _text(line, where).strip()
        if is_first and text.startswith("["):
            whole = _parsed(text + _text(lines.read(), where), where)
            yield from ((f"{path}: row {place}", value) for place, value in enumerate(whole, start=1))
            return
        if text:
            is_first = False
            yield where, _parsed(text, where)


def _text(line: bytes, where: str) -> str:
    try:
        return line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RowError(f"{where}: is not UTF-8 ({error.reason} at byte {error.start}); convert the file") from None


def _parsed(text: str, where: str) -> Any:
    try:
        value = json.loads(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair could be read but never written
        return value
    except UnicodeEncodeError as error:
        raise RowError(f"{where}: holds half a surrogate pair, '\\u{ord(error.object[error.start]):x}'") from None
    except json.JSONDecodeError as error:
        raise RowError(f"{where}: is not JSON: {error.msg} at character {error.pos + 1}") from None
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, thousands of brackets
        raise RowError(f"{where}: cannot be read: {error}") from None
