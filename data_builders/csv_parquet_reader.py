"""The rows of a CSV, TSV or Parquet file as mappings from column to value, each with the place to name in an error."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwen_align.align.errors import DataError
from qwen_align.data_builders.bad_row_errors import (
    MOST_BYTES_A_ROW,
    MOST_MIB_A_ROW,
    BadRow,
    BadValue,
    Reject,
    refuse,
    without_nul,
)
from qwen_align.data_builders.json_reader import check_path, opened

_LONGEST_CELL = (
    64 * MOST_BYTES_A_ROW
)  # longer ones end the reading, or a quote left open would take any file into memory
TEXT_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
PARQUET_SUFFIXES = (".parquet",)
_ROWS_A_BATCH = 256  # our choice: a batch of long traces stays at some tens of MiB


def read_csv(path: Path, reject: Reject = refuse) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`path:line`, row) for every row below the header; cells are texts, an empty cell is None.

    Separated by commas, in a .tsv by tabs; quoted as in RFC 4180, so that a cell may hold line breaks. A row that has
    more or fewer cells than the header goes to `reject`. Raises RowError where the rest of the file cannot be read.
    """
    check_path(path, TEXT_SUFFIXES)
    csv.field_size_limit(max(csv.field_size_limit(), _LONGEST_CELL))
    with opened(path) as raw:
        # What is not UTF-8 comes out as surrogates, which `_row` refuses for the row they are in.
        lines = (line.decode("utf-8", "surrogateescape") for line in raw)
        table = csv.reader(lines, strict=True, delimiter="\t" if ".tsv" in path.suffixes[-2:] else ",")
        header: list[str] | None = None
        begins = 1
        try:
            for cells in table:
                where, begins = f"{path}:{begins}", table.line_num + 1
                if header is None:
                    header = _header(cells, where) if cells else None
                elif cells:
                    try:
                        row = _row(cells, header)
                    except BadValue as error:
                        reject(BadRow(where, error.reason, str(error)))
                        continue
                    yield where, row
        except csv.Error as error:
            said = f"is no CSV: {error}; the row begins here: is a quote left open?"
            raise BadRow(f"{path}:{begins}", "not CSV", said) from None


def _header(cells: list[str], where: str) -> list[str]:
    names = [cell.removeprefix("\ufeff").strip() for cell in cells]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise BadRow(where, "not CSV", f"the header names {', '.join(map(repr, twice))} twice")
    if any("\0" in name or "\udc80" <= character <= "\udcff" for name in names for character in name):
        raise BadRow(where, "not UTF-8", "the header is not UTF-8 text; convert the file")
    return names


def _row(cells: list[str], header: list[str]) -> dict[str, Any]:
    if len(cells) != len(header):
        raise BadValue("ragged row", f"has {len(cells)} cells, the header {len(header)}")
    whole = "".join(cells)
    if len(whole) > MOST_BYTES_A_ROW:
        raise BadValue("row too large", f"is over {MOST_MIB_A_ROW} MiB in one row")
    try:
        whole.encode()
    except UnicodeEncodeError:
        raise BadValue("not UTF-8", "is not UTF-8; convert the file") from None
    if "\0" in whole:
        raise BadValue("NUL character", "holds a NUL character")
    return {name: cell or None for name, cell in zip(header, cells, strict=True)}


def read_parquet(path: Path, reject: Reject = refuse) -> Iterator[tuple[str, dict[str, Any]]]:
    """(`path: row n`, row) for every row, nested ones as lists and dicts; read in batches.

    Raises DataError if it is no Parquet file, RowError where the rest of it cannot be read.
    """
    check_path(path, PARQUET_SUFFIXES)
    # Takes half a second, and only who reads Parquet needs it.
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise DataError(f"{path}: is no Parquet file, or a damaged one: {_first_line(error)}") from None
    number = 0
    with file:
        batches = file.iter_batches(batch_size=_ROWS_A_BATCH)
        while True:
            try:
                batch = next(batches, None)
                rows = [] if batch is None else batch.to_pylist()
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise BadRow(f"{path}: after row {number}", "damaged Parquet", _first_line(error)) from None
            if batch is None:
                return
            yield from without_nul(rows, lambda number: f"{path}: row {number}", reject, first=number + 1)
            number += len(rows)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
