"""Reads the rows of a CSV, TSV or Parquet file as mappings, each with its location for error messages."""

import csv
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from qwen_align.align.errors import DataError
from qwen_align.data_builders.bad_row_errors import (
    MAX_ROW_BYTES,
    MAX_ROW_MIB,
    BadRow,
    BadValue,
    Reject,
    raise_bad_row,
    reject_rows_with_nul,
)
from qwen_align.data_builders.json_reader import check_source_path, open_unpacked

_MAX_CELL_CHARACTERS = (
    64 * MAX_ROW_BYTES
)  # longer ones end the reading, or a quote left open would take any file into memory
TEXT_SUFFIXES = (".csv", ".tsv", ".csv.gz", ".tsv.gz")
PARQUET_SUFFIXES = (".parquet",)
_N_ROWS_PER_BATCH = 256  # our choice: a batch of long traces stays at some tens of MiB


def read_csv_rows(path: Path, reject: Reject = raise_bad_row) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each row of a CSV or TSV file below the header, with its location `path:line`.

    Cells are texts, an empty cell is None. Separated by commas, in a .tsv by tabs; quoted as in RFC 4180, so that a
    cell may hold line breaks. A row that has more or fewer cells than the header goes to `reject`. Raises RowError
    where the rest of the file cannot be read.
    """
    check_source_path(path, TEXT_SUFFIXES)
    csv.field_size_limit(max(csv.field_size_limit(), _MAX_CELL_CHARACTERS))
    with open_unpacked(path) as raw:
        # What is not UTF-8 comes out as surrogates, which `_parse_row` refuses for the row they are in.
        lines = (line.decode("utf-8", "surrogateescape") for line in raw)
        # The byte order mark goes before the quotes of the first name are read.
        first = (line.removeprefix("\ufeff") for line in islice(lines, 1))
        table = csv.reader(chain(first, lines), strict=True, delimiter="\t" if ".tsv" in path.suffixes[-2:] else ",")
        header: list[str] | None = None
        first_line = 1
        try:
            for cells in table:
                location, first_line = f"{path}:{first_line}", table.line_num + 1
                if header is None:
                    header = _parse_header(cells, location) if cells else None
                elif cells:
                    try:
                        row = _parse_row(cells, header)
                    except BadValue as error:
                        reject(BadRow(location, error.reason, str(error)))
                        continue
                    yield location, row
        except csv.Error as error:
            message = f"is no CSV: {error}; the row begins here: is a quote left open?"
            raise BadRow(f"{path}:{first_line}", "not CSV", message) from None


def _parse_header(cells: list[str], location: str) -> list[str]:
    """Returns the column names of a CSV header. Raises BadRow for repeated or unreadable names."""
    names = [cell.strip() for cell in cells]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise BadRow(location, "not CSV", f"the header names {', '.join(map(repr, repeated))} twice")
    if any("\0" in name or "\udc80" <= character <= "\udcff" for name in names for character in name):
        raise BadRow(location, "not UTF-8", "the header is not UTF-8 text; convert the file")
    return names


def _parse_row(cells: list[str], header: list[str]) -> dict[str, Any]:
    """Returns a CSV row as a dict from column name to cell.

    Raises BadValue if it does not have as many cells as the header.
    """
    if len(cells) != len(header):
        raise BadValue("ragged row", f"has {len(cells)} cells, the header {len(header)}")
    joined_cells = "".join(cells)
    if len(joined_cells) > MAX_ROW_BYTES:
        raise BadValue("row too large", f"is over {MAX_ROW_MIB} MiB in one row")
    try:
        joined_cells.encode()
    except UnicodeEncodeError:
        raise BadValue("not UTF-8", "is not UTF-8; convert the file") from None
    if "\0" in joined_cells:
        raise BadValue("NUL character", "holds a NUL character")
    return {name: cell or None for name, cell in zip(header, cells, strict=True)}


def read_parquet_rows(path: Path, reject: Reject = raise_bad_row) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each row of a Parquet file as a dict, with its location `path: row n`.

    Nested values are lists and dicts, without fields that are null; the file is read in batches. Raises DataError if
    it is no Parquet file, RowError where the rest of it cannot be read.
    """
    check_source_path(path, PARQUET_SUFFIXES)
    # Imported late: it takes half a second, and only Parquet files need it.
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise DataError(f"{path}: is no Parquet file, or a damaged one: {_get_first_line(error)}") from None
    number = 0
    with file:
        batches = file.iter_batches(batch_size=_N_ROWS_PER_BATCH)
        while True:
            try:
                batch = next(batches, None)
                rows = [] if batch is None else batch.to_pylist()
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
                raise BadRow(f"{path}: after row {number}", "damaged Parquet", _get_first_line(error)) from None
            if batch is None:
                return
            yield from reject_rows_with_nul(
                map(remove_null_padding, rows), lambda number: f"{path}: row {number}", reject, first_number=number + 1
            )
            number += len(rows)


def remove_null_padding(row: dict[str, Any]) -> dict[str, Any]:
    """Returns a row of an Arrow table without the null fields inside its nested values.

    All structs of a column have the same fields there, so a tool's call has the arguments of all other tools as nulls;
    as JSON it would have its own alone. Columns that are null stay.
    """
    return {key: _remove_nulls(value) for key, value in row.items()}


def _remove_nulls(value: Any) -> Any:
    """Returns a nested value without the null fields of its structs. Arrow's maps, lists of pairs, become dicts."""
    if isinstance(value, list) and value and all(isinstance(item, tuple) for item in value):
        return {key: _remove_nulls(item) for key, item in value}
    if isinstance(value, dict):
        return {key: _remove_nulls(item) for key, item in value.items() if item is not None}
    return [_remove_nulls(item) for item in value] if isinstance(value, list) else value


def _get_first_line(error: Exception) -> str:
    """Returns the first line of an exception's message."""
    return str(error).partition("\n")[0] or type(error).__name__
