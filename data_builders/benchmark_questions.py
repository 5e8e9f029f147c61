"""Reads the questions of a benchmark from the data rows of an earlier stage or from a user's file."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import Field, model_validator

from qwen_align.align.errors import DataError
from qwen_align.align.references import DataRef, OutsideFile
from qwen_align.align.rows import Row, RowError
from qwen_align.align.settings.base import Strict, format_suggestion
from qwen_align.data_builders.json_reader import SUFFIXES, read_json_values
from qwen_align.data_builders.row_texts import join_part_texts

Reader = Callable[[], Iterator[Row]]


class Question(NamedTuple):
    """A benchmark question with its id."""

    id: str
    text: str


class Against(Strict):
    """Settings that name a benchmark: a data stage, or a file and the key of its questions."""

    against: DataRef | None = Field(
        default=None, description="data stage whose rows' user turns are the benchmark's questions"
    )
    against_file: OutsideFile | None = Field(
        default=None, description="JSON Lines file or JSON list with the benchmark's questions"
    )
    column: str | None = Field(default=None, min_length=1, description="key of the question in against_file")

    @model_validator(mode="after")
    def _check_benchmark(self) -> "Against":
        """Checks that the settings name exactly one benchmark, and that its file has a known suffix."""
        if (self.against is None) == (self.against_file is None):
            raise ValueError("a benchmark is named by 'against', a data stage, or by 'against_file'; give one of them")
        if (self.against_file is None) != (self.column is None):
            raise ValueError("'column' names the key of the questions in 'against_file'; give both or neither")
        if self.against_file is not None and not self.against_file.endswith(SUFFIXES):
            raise ValueError(f"against_file: {self.against_file}: is none of {', '.join(SUFFIXES)}; convert the file")
        return self

    @property
    def benchmark_name(self) -> str:
        """Returns the benchmark's name: its stage's name, or its file's name with the folder.

        Many files are called `test.jsonl`.
        """
        return self.against or "/".join(Path(self.against_file or "").parts[-2:])

    def read_questions(self, sources: Mapping[str, Reader]) -> list[Question]:
        """Reads all questions of the benchmark.

        Raises DataError where it is empty, RowError naming file and line for a wrong row.
        """
        if self.against is not None:
            if self.against not in sources:
                raise ValueError(f"against: '{self.against}' is none of the sources: {', '.join(sources) or 'none'}")
            questions = [Question(row.id, join_part_texts(row, "question")) for row in sources[self.against]()]
        else:
            questions = list(self._read_file_questions())
        if not questions:
            raise DataError(f"contamination: {self.benchmark_name} holds no question, so nothing would be checked")
        return questions

    def _read_file_questions(self) -> Iterator[Question]:
        """Yields the benchmark questions that are read from the file `against_file`."""
        assert self.against_file is not None
        assert self.column is not None
        for number, (location, value) in enumerate(read_json_values(Path(self.against_file)), start=1):
            if not isinstance(value, dict):
                raise RowError(f"{location}: is {type(value).__name__} {value!r:.40}, not an object with keys")
            text = value.get(self.column)
            if not isinstance(text, str):
                problem = f"is {text!r:.40}, not a text" if self.column in value else "is missing"
                raise RowError(
                    f"{location}: '{self.column}' {problem}{format_suggestion(self.column, map(str, value))}"
                )
            yield Question(f"{self.benchmark_name}:{number}", text)
