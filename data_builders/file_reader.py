"""Reads the rows of a JSON Lines, JSON, CSV, TSV or Parquet file, whose type its name tells."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwen_align.data_builders import json_reader
from qwen_align.data_builders.bad_row_errors import Reject, raise_bad_row
from qwen_align.data_builders.csv_parquet_reader import (
    PARQUET_SUFFIXES,
    TEXT_SUFFIXES,
    read_csv_rows,
    read_parquet_rows,
)

SUFFIXES = (*json_reader.SUFFIXES, *TEXT_SUFFIXES, *PARQUET_SUFFIXES)


def check_file_suffix(path: str) -> None:
    """Raises ValueError for a path whose suffix is of no supported file type."""
    if not path.endswith(SUFFIXES):
        raise ValueError(f"path: {path}: is none of {', '.join(SUFFIXES)}; convert the file")


def read_source_rows(path: Path, reject: Reject = raise_bad_row) -> Iterator[tuple[str, Any]]:
    """Yields every row of a JSON Lines, JSON, CSV, TSV or Parquet file with its location, in order.

    A row that cannot be read goes to `reject`. Raises DataError if there is no such file or nothing we can read in it.
    """
    if path.name.endswith(TEXT_SUFFIXES):
        return read_csv_rows(path, reject)
    if path.name.endswith(PARQUET_SUFFIXES):
        return read_parquet_rows(path, reject)
    json_reader.check_source_path(path, SUFFIXES)
    return json_reader.read_json_values(path, reject)
