"""Reads the values of a JSON Lines file or a JSON list, plain or gzip, each with its location for errors."""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any, BinaryIO, cast

from qwen_align.align.errors import DataError
from qwen_align.data_builders.bad_row_errors import (
    MAX_ROW_BYTES,
    MAX_ROW_MIB,
    BadRow,
    BadValue,
    Reject,
    has_nul_character,
    raise_bad_row,
    shorten_repr,
)

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")

_HEAD_BYTES = 256
_PAGE = "is a web page, not data, as a download without a login saves it; download the file itself"
_OTHER_CONTENTS = {  # what a file begins with that holds something else than its name says
    b"version https://git-lfs": "is a git-lfs pointer, not the data: run `git lfs pull`, or download the file again",
    b"<!doctype": _PAGE,
    b"<html": _PAGE,
    b"PK\x03\x04": "is a zip archive or an Excel workbook; unpack it, or save the sheet as CSV in UTF-8",
    b"PAR1": "is a Parquet file; name it .parquet",
    b"ARROW1": "is an Arrow file; write it as Parquet",
    b"\xff\xff\xff\xff": "is an Arrow stream, as save_to_disk writes it; write it with to_parquet or to_json",
    b"\x28\xb5\x2f\xfd": "is packed with zstd; unpack it (zstd -d), or pack it with gzip",
    b"\xfd7zXZ": "is packed with xz; unpack it, or pack it with gzip",
    b"BZh": "is packed with bzip2; unpack it, or pack it with gzip",
}
_UTF_16_OR_32 = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
_BLANK = " \t\r\n"  # JSON's white space
_NOT_WHITE_SPACE = re.compile(r"[^ \t\r\n]")
_CHUNK_BYTES = 1 << 20


def read_json_values(path: Path, reject: Reject = raise_bad_row) -> Iterator[tuple[str, Any]]:
    """Yields each value of a JSON Lines file or of a JSON list with its location in the file.

    The location is `path:line` for a line, `path: row n` for an element of a list that fills the file. Lines are read
    one at a time, a list is read into memory. A line that is no JSON in UTF-8 goes to `reject`, which raises or lets
    the next be read. Raises DataError if there is no such file, RowError if the rest of the file cannot be read. What
    is packed and what is a list is told by the content, because names lie.
    """
    check_source_path(path, SUFFIXES)
    with open_unpacked(path) as lines:
        yield from _read_lines_or_list(lines, path, reject)


def check_source_path(path: Path, suffixes: tuple[str, ...]) -> None:
    """Raises DataError if a file does not exist or has a suffix of another file type."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder; name one file")
    if not path.is_file():
        raise DataError(f"{path}: there is no such file; a relative path starts at the recipe's folder")
    if not path.name.endswith(suffixes):
        raise DataError(f"{path}: is none of {', '.join(suffixes)}; convert it, or name it for what it holds")
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES).lstrip()
    for mark, content in _OTHER_CONTENTS.items():
        start = head.lower() if mark.startswith(b"<") else head
        if start.startswith(mark) and not (mark == b"PAR1" and path.name.endswith(".parquet")):
            raise DataError(f"{path}: {content}")


@contextmanager
def open_unpacked(path: Path) -> Iterator[BinaryIO]:
    """Opens a plain or gzip file as a binary stream of its uncompressed bytes.

    Raises BadRow where they are damaged or no UTF-8 text at all.
    """
    with path.open("rb") as raw:
        is_packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        lines = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if is_packed else raw
        try:
            head = lines.read(4)
            if head.startswith(_UTF_16_OR_32):
                raise BadRow(str(path), "not UTF-8", "is UTF-16 or UTF-32, not UTF-8; convert the file with iconv")
            lines.seek(0)
            yield lines
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            message = f"the gzip file is damaged or cut short: {error}"
            raise BadRow(str(path), "damaged gzip", message) from None


def parse_json_value(text: str) -> Any:
    """Parses the one JSON value in a text. Raises BadValue for what is no JSON, or could not be written back."""
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        if not text.strip("\0"):
            raise BadValue("not JSON", "is nothing but NUL bytes" if text else "is an empty text, not JSON") from None
        raise BadValue("not JSON", f"is not JSON: {error.msg} at character {error.pos + 1}") from None
    except BadValue:
        raise
    except (ValueError, RecursionError) as error:  # an integer of thousands of digits, thousands of brackets
        raise BadValue("not JSON", f"cannot be read: {error}") from None
    return _check_encodable_texts(value, text)


def _check_encodable_texts(value: Any, text: str) -> Any:
    """Returns a JSON value unchanged, after checking its texts.

    Raises BadValue if one cannot be written in UTF-8 or holds a NUL. Only escapes can bring either in.
    """
    if "\\u" in text:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            message = f"holds half a surrogate pair, '\\u{ord(error.object[error.start]):x}'"
            raise BadValue("half a surrogate pair", message) from None
        if "\\u0000" in text and has_nul_character(value):
            raise BadValue("NUL character", "holds a NUL character, '\\u0000'")
    return value


def _refuse_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds a JSON object from its pairs of key and value.

    Raises BadValue for a key that is there twice. Python would take the last of the two and say nothing.
    """
    value = dict(pairs)
    if len(value) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated_key = next(key for key in keys if keys.count(key) > 1)
        raise BadValue("key twice", f"key {shorten_repr(repeated_key)} is there twice")
    return value


def _parse_finite_float(digits: str) -> float:
    """Parses a JSON number with decimals or exponent. Raises BadValue if a float cannot hold it."""
    number = float(digits)
    if not isfinite(number):
        raise BadValue("not JSON", f"cannot be read: {digits} is too large a number")
    return number


def _refuse_nan_and_infinity(name: str) -> Any:
    """Raises BadValue for the constants NaN and Infinity, which are not valid JSON."""
    raise BadValue("not JSON", f"is not JSON: {name} is no number of JSON's; write null, or leave the key out")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_refuse_repeated_keys, parse_float=_parse_finite_float, parse_constant=_refuse_nan_and_infinity
)


_LENIENT_DECODER = json.JSONDecoder(parse_int=str)  # finds where a bad row ends


def _read_lines_or_list(lines: BinaryIO, path: Path, reject: Reject) -> Iterator[tuple[str, Any]]:
    """Yields each value of a JSON Lines file or of a JSON list with its location."""
    is_first, number = True, 0
    while line := lines.readline(MAX_ROW_BYTES + 1):
        number += 1
        location = f"{path}:{number}"
        if is_first and line.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
            yield from _read_list(line + lines.read(), number, path, reject)
            return
        try:
            if len(line) > MAX_ROW_BYTES:
                _skip_rest_of_line(lines, line)
                raise BadValue("row too large", f"is over {MAX_ROW_MIB} MiB in one row; is a line break missing?")
            text = decode_line(line).strip(_BLANK)
            if not text:
                continue
            is_first = False
            value = parse_json_value(text)
        except BadValue as error:
            is_first = False
            hint = "; an object over many lines? Wanted is a list of objects, or one a line"
            reject(BadRow(location, error.reason, f"{error}{hint if line.strip() == b'{' else ''}"))
            continue
        yield location, value


def _skip_rest_of_line(lines: BinaryIO, line: bytes) -> None:
    """Reads and discards the rest of a line that is too long to keep in memory."""
    while line and not line.endswith(b"\n"):
        line = lines.readline(_CHUNK_BYTES)


def decode_line(line: bytes) -> str:
    """Decodes a line of bytes as UTF-8 text, without a byte order mark.

    Raises BadValue if it is not UTF-8 or holds NUL bytes.
    """
    try:
        text = line.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        message = f"is not UTF-8 ({error.reason} at byte {error.start}); convert the file"
        raise BadValue("not UTF-8", message) from None
    if "\0" in text:
        raise BadValue("NUL character", "holds NUL bytes; was the file cut by a crash, or is it UTF-16?")
    return text


def _read_list(raw: bytes, line: int, path: Path, reject: Reject) -> Iterator[tuple[str, Any]]:
    """Yields each element of a JSON list with its location, decoding one at a time.

    Damage that hides what follows is raised.
    """
    try:
        text = decode_line(raw)
    except BadValue as error:
        raise BadRow(str(path), error.reason, str(error)) from None
    position, row = _skip_white_space(text, text.index("[") + 1), 0
    is_at_end = text.startswith("]", position)
    while not is_at_end:
        row += 1
        where = f"{path}: row {row}"
        try:
            value, end = _decode_element(text, position)
        except BadValue as error:
            reject(BadRow(where, error.reason, str(error)))
            end = _find_element_end(text, position, where)
        except (ValueError, RecursionError) as error:
            raise _make_broken_list_error(text, position, where, line, error) from None
        else:
            yield where, value
        position = _skip_white_space(text, end)
        is_at_end = text.startswith("]", position)
        if text.startswith(",", position):
            position = _skip_white_space(text, position + 1)
        elif not is_at_end:
            raise _make_broken_list_error(
                text, position, f"{path}: after row {row}", line, ValueError("neither ',' nor ']' follows")
            )
    if text[position + 1 :].strip(_BLANK):
        raise BadRow(str(path), "not JSON", "something follows the list's end; one list, or one object a line, is read")


def _decode_element(text: str, position: int) -> tuple[Any, int]:
    """Decodes the JSON list element at a position of a text, and returns it with its end position."""
    value, end = _DECODER.raw_decode(text, position)
    if end - position > MAX_ROW_BYTES:
        raise BadValue("row too large", f"is over {MAX_ROW_MIB} MiB in one row")
    return _check_encodable_texts(value, text[position:end]), end


def _find_element_end(text: str, position: int, location: str) -> int:
    """Returns the end position of a JSON list element whose value was refused."""
    try:
        return _LENIENT_DECODER.raw_decode(text, position)[1]
    except (ValueError, RecursionError) as error:
        raise BadRow(location, "not JSON", f"cannot be read: {error}") from None


def _make_broken_list_error(text: str, position: int, location: str, line: int, error: Exception) -> BadRow:
    """Makes the error for a JSON list that is broken at a position, naming row and line."""
    if isinstance(error, json.JSONDecodeError):
        position, message = error.pos, f"is not JSON: {error.msg}"
    else:
        message = f"cannot be read: {error}"
    if not text[position:].strip(_BLANK):
        message += ", where the file ends; was it cut short?"
    return BadRow(location, "not JSON", f"{message} (line {line + text.count(chr(10), 0, position)})")


def _skip_white_space(text: str, position: int) -> int:
    """Returns the position of the next character that is not white space."""
    match = _NOT_WHITE_SPACE.search(text, position)
    return match.start() if match else len(text)
