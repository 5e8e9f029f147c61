"""Reads files of questions with several answers each that are judged right or wrong, or scored."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, model_validator

from qwen_align.align.errors import DataError
from qwen_align.align.references import OutsideFile
from qwen_align.align.rows import Message, Mode, Row, RowError
from qwen_align.align.settings.base import format_suggestion
from qwen_align.data_builders.bad_row_errors import BadValue
from qwen_align.data_builders.column_meanings import refuse_lost_meaning
from qwen_align.data_builders.conversion_report import ReadValues, Report
from qwen_align.data_builders.file_reader import check_file_suffix, read_source_rows
from qwen_align.data_builders.gsm8k_calculator_marks import remove_calculator_marks
from qwen_align.data_builders.pair_matching import Candidate, Match, Matching
from qwen_align.data_builders.repeated_prompts import PROMPTS_CUT, RepeatedPrompt, settle_repeated_prompt
from qwen_align.data_builders.sieve import Drops, Sources
from qwen_align.data_builders.turn_texts import parse_turn_texts
from qwen_align.reward.repetition import split_words
from qwen_align.reward.thinking import split_turn


class Group(NamedTuple):
    """A question with its judged answers.

    `malformed` has the id and fault of each malformed answer.
    """

    id: str
    messages: list[Message]
    answers: list[Candidate]
    malformed: list[tuple[str, str]]


class JudgedFile(Matching):
    """Settings shared by the builders that read files of judged answers."""

    path: OutsideFile = Field(description="file with the questions and their answers")
    question: str = Field(default="question", min_length=1, description="key of the question in the file")
    system: str | None = Field(
        default=None, min_length=1, description="system message put before every question; null: none"
    )
    ignore_columns: list[str] = Field(
        default_factory=list, description="columns that are left out as if the file did not have them"
    )
    repeated_prompt: RepeatedPrompt = Field(
        default="refuse",
        description="what is done with an answer, or two sides of a pair, that begin with the whole prompt: an error; "
        "cut it off; or keep it",
    )
    strip_marks: bool = Field(default=False, description="remove GSM8K's calculator marks, <<2+3=5>>, from answers")
    mode: Mode | None = Field(default=None, description="thinking mode of the rows; null: the row's default")
    source: str = Field(default="", description="source that the rows name")
    max_length_difference: int | None = Field(
        default=None, ge=0, description="most words that the sides of a pair may differ by in length; null: any"
    )

    @model_validator(mode="after")
    def _check_path(self) -> "JudgedFile":
        """Checks that the path has the suffix of a supported file type."""
        check_file_suffix(self.path)
        return self

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Yields the rows that are made of the judged answers, in the file's order."""
        return self.build_with_report(Report(), drops)

    def build_with_report(self, report: Report, drops: Drops) -> Iterator[Row]:
        """Yields the rows as `build` does, and fills the report of columns that are left out as they are read.

        Raises RowError for answers that begin with their whole prompt, unless `repeated_prompt` says what to do.
        """
        for row in self.make_rows(report, drops):
            try:
                settled = settle_repeated_prompt(row, self.repeated_prompt, has_text_prompt=True)
            except BadValue as error:
                raise RowError(f"{self.path}: row '{row.id}': {error}") from None
            report.n_made[row.row] += 1
            if settled is not row:
                report.n_converted[PROMPTS_CUT] += 1
            yield settled

    def make_rows(self, report: Report, drops: Drops) -> Iterator[Row]:
        """Yields the rows with their answers as the file has them."""
        raise NotImplementedError

    def read_objects(self, report: Report, kind: str) -> Iterator[tuple[str, str, ReadValues]]:
        """Yields the location, the id and the JSON object of every row, which tells what is read of it.

        What is not read is left out, and reported. Raises RowError for a row that is no object, and for a column that
        changes what rows of the kind mean, unless `ignore_columns` names it.
        """
        path = Path(self.path)
        report.source, report.format = str(path), "judged answers"
        for number, (where, row) in enumerate(read_source_rows(path), start=1):
            if not isinstance(row, dict):
                raise RowError(f"{where}: is {type(row).__name__} {row!r:.40}, not an object with keys")
            try:
                given = {key: value for key, value in row.items() if key not in self.ignore_columns}
                values = ReadValues(parse_turn_texts(given, report.n_converted))
                yield where, f"{path.name.partition('.')[0]}:{number}", values
                left_out = [key for key in row if key not in values.read]
                unnamed = [key for key in left_out if key not in self.ignore_columns]
                # `question` names the prompt's key, whatever others the file has.
                refuse_lost_meaning(row, unnamed, kind, [str(row[self.question])], ["question"])
            except BadValue as error:
                raise RowError(f"{where}: {error}") from None
            report.n_left_out.update(left_out)
            report.met_keys.update(row)
        for key in self.ignore_columns:
            if key not in report.met_keys:
                suggestion = format_suggestion(key, report.met_keys)
                raise DataError(f"{path}: no row has '{key}', which the recipe names{suggestion}")

    def make_prompt(self, row: dict[str, Any], where: str) -> list[Message]:
        """Makes the prompt turns of a row: the question, after the system message if one is set."""
        question = read_text_field(row, self.question, where)
        system = [Message(role="system", content=self.system)] if self.system is not None else []
        return [*system, Message(role="user", content=question)]

    def group_answers(self, row_id: str, messages: list[Message], judged: list[tuple[str, str, float]]) -> Group:
        """Groups a question with its answers, which are given as tuples (name, text, value)."""
        answers: list[Candidate] = []
        malformed: list[tuple[str, str]] = []
        for name, text, value in judged:
            answer_text = remove_calculator_marks(text) if self.strip_marks else text
            turn = "unclosed calculator mark" if self.strip_marks and "<<" in answer_text else split_turn(answer_text)
            if isinstance(turn, str):
                malformed.append((f"{row_id}#{name}", turn))
            else:
                message = Message(role="assistant", content=turn.answer, thinking=turn.thinking)
                answers.append(Candidate(name, answer_text, value, len(split_words(answer_text)), message))
        return Group(row_id, messages, answers, malformed)


def make_pair_fields(group: Group, match: Match) -> dict[str, Any]:
    """Returns the fields of a preference pair row for a matched chosen and rejected answer."""
    return {
        "id": f"{group.id}#{match.chosen.name}>{match.rejected.name}",
        "messages": group.messages,
        "chosen": match.chosen.message,
        "rejected": match.rejected.message,
        "margin": match.margin,
        "meta": {"common_prefix": match.prefix},
    }


def read_text_field(row: dict[str, Any], key: str, where: str) -> str:
    """Returns the text under a key of a row. Raises RowError naming the location if it is missing or no text."""
    value = read_field(row, key, where)
    if not isinstance(value, str):
        raise RowError(f"{where}: '{key}' is {value!r:.40}, not a text")
    return value


def read_field(row: dict[str, Any], key: str, where: str) -> Any:
    """Returns the value under a key of a row. Raises RowError naming the location if it is missing."""
    if row.get(key) is None:
        raise RowError(f"{where}: '{key}' is missing{format_suggestion(key, map(str, row))}")
    return row[key]
