"""Reads data rows from a user's file in a published format, in our own format, or with mapped columns."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from qwen_align.align.references import OutsideFile
from qwen_align.align.rows import Row
from qwen_align.data_builders.conversion_report import Report
from qwen_align.data_builders.file_reader import check_file_suffix, read_source_rows
from qwen_align.data_builders.row_conversion import Conversion
from qwen_align.data_builders.sieve import Drops, Sources


class LocalFile(Conversion):
    """A builder that reads a local JSON Lines, JSON, CSV, TSV or Parquet file, plain or gzip.

    See Conversion for what rows become. It is read a row at a time, or a batch of a Parquet file, so that no more is in
    memory; a JSON list is held as text.
    """

    kind: Literal["local_file"] = "local_file"
    path: OutsideFile = Field(description="file to read: JSON Lines, JSON list, CSV, TSV or Parquet")

    @model_validator(mode="after")
    def _check_suffix(self) -> Self:
        check_file_suffix(self.path)
        return self

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Yields the converted rows of the file in order.

        Raises DataError if there is no such file or its format is unclear, RowError naming file and line for the
        first row that is wrong, unless `on_bad_row` is drop.
        """
        return self.build_with_report(Report(), drops)

    def build_with_report(self, report: Report, drops: Drops) -> Iterator[Row]:
        """Yields the rows as `build` does, and fills the conversion report as they are read."""
        path = Path(self.path)
        return self.convert_rows(partial(read_source_rows, path), str(path), drops, report)
