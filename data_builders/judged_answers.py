"""Files of questions with several answers that somebody judged: right or wrong, or by a score."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import Field, model_validator

from qwen_align.align.references import OutsideFile
from qwen_align.align.rows import Message, Mode, RowError
from qwen_align.align.settings.base import did_you_mean
from qwen_align.data_builders.calculator_marks import without_marks
from qwen_align.data_builders.pair_matching import Candidate, Match, Matching
from qwen_align.data_builders.source_file import check_suffix, read_source
from qwen_align.reward.repetition import split_words
from qwen_align.reward.thinking import split_turn


class Group(NamedTuple):
    """One question and its answers; `malformed` has the others: id and why they are none."""

    id: str
    messages: list[Message]
    answers: list[Candidate]
    malformed: list[tuple[str, str]]


class JudgedFile(Matching):
    """What builders from files of judged answers have in common."""

    path: OutsideFile
    question: str = Field(default="question", min_length=1, description="the file's key of the question")
    system: str | None = Field(default=None, min_length=1, description="a system message before every question")
    strip_marks: bool = Field(default=False, description="take GSM8K's calculator marks, <<2+3=5>>, out of answers")
    mode: Mode | None = None
    source: str = ""
    max_length_difference: int | None = Field(default=None, ge=0, description="words, as nobody has tokenized a file")

    @model_validator(mode="after")
    def _check_path(self) -> "JudgedFile":
        check_suffix(self.path)
        return self

    def objects(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """(place, id, object) of every row; raises RowError for one that is no object."""
        path = Path(self.path)
        for number, (where, row) in enumerate(read_source(path), start=1):
            if not isinstance(row, dict):
                raise RowError(f"{where}: is {type(row).__name__} {row!r:.40}, not an object with keys")
            yield where, f"{path.name.partition('.')[0]}:{number}", row

    def asked(self, row: dict[str, Any], where: str) -> list[Message]:
        """The prompt of a row."""
        question = text_at(row, self.question, where)
        system = [Message(role="system", content=self.system)] if self.system is not None else []
        return [*system, Message(role="user", content=question)]

    def group(self, row_id: str, messages: list[Message], judged: list[tuple[str, str, float]]) -> Group:
        """The question with its answers, given as (name, text, value)."""
        answers: list[Candidate] = []
        malformed: list[tuple[str, str]] = []
        for name, text, worth in judged:
            said = without_marks(text) if self.strip_marks else text
            turn = "unclosed calculator mark" if self.strip_marks and "<<" in said else split_turn(said)
            if isinstance(turn, str):
                malformed.append((f"{row_id}#{name}", turn))
            else:
                message = Message(role="assistant", content=turn.answer, thinking=turn.thinking)
                answers.append(Candidate(name, said, worth, len(split_words(said)), message))
        return Group(row_id, messages, answers, malformed)


def pair_fields(group: Group, match: Match) -> dict[str, Any]:
    """The fields of a Pair row that a match decides."""
    return {
        "id": f"{group.id}#{match.chosen.name}>{match.rejected.name}",
        "messages": group.messages,
        "chosen": match.chosen.message,
        "rejected": match.rejected.message,
        "margin": match.margin,
        "meta": {"common_prefix": match.prefix},
    }


def text_at(row: dict[str, Any], key: str, where: str) -> str:
    """The text under a key; raises RowError naming the place."""
    found = at(row, key, where)
    if not isinstance(found, str):
        raise RowError(f"{where}: '{key}' is {found!r:.40}, not a text")
    return found


def at(row: dict[str, Any], key: str, where: str) -> Any:
    """What is under a key; raises RowError naming the place."""
    if row.get(key) is None:
        raise RowError(f"{where}: '{key}' is missing{did_you_mean(key, map(str, row))}")
    return row[key]
