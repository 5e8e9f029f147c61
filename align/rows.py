"""Defines the row types that builders yield, rollouts write and `rows.jsonl` holds, one JSON object per line.

`rows.jsonl` is UTF-8 with sorted keys and without keys whose value is None; digests are over these bytes.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, cast

from pydantic import Field, TypeAdapter, ValidationError, model_validator

from qwen_align.align.errors import DataError
from qwen_align.align.settings.base import Strict
from qwen_align.align.settings.fault_wording import describe_faults
from qwen_align.reward.verdict import Verdict

Mode = Literal["think", "no_think"]
Flag = Literal["/think", "/no_think"]
Role = Literal["system", "user", "assistant", "tool"]


class Message(Strict):
    """A message of a conversation, from a user, assistant, system or tool.

    `thinking` and `tool_calls` belong to assistant turns only.
    """

    role: Role
    content: str
    thinking: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


# A flag stands alone, or where a Chinese text or a sentence's end touches it: paths, words and quoted flags are none.
FLAG_IN_TEXT = re.compile(
    r"(?<![^\s!?\u3000-\u303f\u3400-\u9fff\uff00-\uffef])/(?:no_)?think"
    r"(?=\s|\Z|[\u3000-\u303f\u3400-\u9fff\uff00-\uffef]|[.,;:!?]+(?:\s|\Z))"
)


def find_last_flag(messages: Sequence[Message]) -> Flag | None:
    """Returns the last thinking flag (/think or /no_think) in the user and system turns. The model has to obey it."""
    texts = [turn.content for turn in messages if turn.role in ("user", "system")]
    flags = [flag for text in texts for flag in FLAG_IN_TEXT.findall(text)]
    return cast(Flag, flags[-1]) if flags else None


class Text(Strict):
    """A row of raw text, for pretraining and for measuring forgetting."""

    row: Literal["text"] = "text"
    id: str
    text: str
    language: str | None = None
    source: str = ""


class Problem(Strict):
    """A prompt for rollouts, RL or evaluation, with its gold answer.

    The reward named `reward` judges against `gold`.
    """

    row: Literal["problem"] = "problem"
    id: str
    messages: list[Message]
    gold: Any = None
    reward: str
    mode: Mode | None = None
    flag: Flag | None = None
    source: str = ""
    meta: dict[str, Any] = Field(default_factory=dict)


class Chat(Strict):
    """A conversation whose assistant turns are trained. `flag` is appended to the last user message."""

    row: Literal["chat"] = "chat"
    id: str
    messages: list[Message]
    mode: Mode | None = None
    flag: Flag | None = None
    tools: list[dict[str, Any]] | None = None
    source: str = ""
    meta: dict[str, Any] = Field(default_factory=dict)


class Trace(Strict):
    """A long-CoT example: a Problem with the thinking and the answer that solve it."""

    row: Literal["trace"] = "trace"
    id: str
    messages: list[Message]
    thinking: str
    answer: str
    gold: Any = None
    reward: str
    mode: Mode | None = "think"
    flag: Flag | None = None
    source: str = ""
    meta: dict[str, Any] = Field(default_factory=dict)


class Pair(Strict):
    """A preference pair: `chosen` over `rejected` as the next assistant turn after `messages`."""

    row: Literal["pair"] = "pair"
    id: str
    messages: list[Message]
    chosen: Message
    rejected: Message
    margin: float | None = None
    kind: str = ""
    mode: Mode | None = None
    flag: Flag | None = None
    source: str = ""
    meta: dict[str, Any] = Field(default_factory=dict)


class Labelled(Strict):
    """A completion with a binary label (good or bad) as the next assistant turn after `messages` (KTO)."""

    row: Literal["labelled"] = "labelled"
    id: str
    messages: list[Message]
    completion: Message
    label: bool
    mode: Mode | None = None
    flag: Flag | None = None
    source: str = ""
    meta: dict[str, Any] = Field(default_factory=dict)


class Steps(Strict):
    """A solution split into steps, each labelled as right or wrong or with a probability, for process reward models."""

    row: Literal["steps"] = "steps"
    id: str
    messages: list[Message]
    steps: list[str] = Field(min_length=1)
    labels: list[bool | float]
    gold: Any = None
    source: str = ""
    meta: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_one_label_per_step(self) -> Self:
        """Checks that each step has one label from 0 to 1. Raises ValueError otherwise."""
        if len(self.labels) != len(self.steps):
            raise ValueError(f"{len(self.steps)} steps have {len(self.labels)} labels; each needs one")
        if any(not isinstance(label, bool) and not 0 <= label <= 1 for label in self.labels):
            raise ValueError("a label is true, false, or a probability from 0 to 1")
        return self


class Completion(Strict):
    """A sampled completion of a Problem with the verdicts of its rewards.

    `text` is the model's output, with the part of the thinking block that the prompt supplied put back in
    front and without the end-of-turn token. `token_ids` and `logps` (of the policy at the sampling
    temperature, natural log) are there when the stage was asked to keep them.
    """

    row: Literal["completion"] = "completion"
    prompt_id: str
    sample: int
    prompt: list[Message]
    text: str
    mode: Mode | None = None
    flag: Flag | None = None
    finish_reason: Literal["stop", "length"]
    n_tokens: int
    gold: Any = None
    reward: str = ""
    verdicts: dict[str, Verdict] = Field(default_factory=dict)
    token_ids: list[int] | None = None
    logps: list[float] | None = None
    source: str = ""
    meta: dict[str, Any] = Field(default_factory=dict)

    @property
    def id(self) -> str:
        """Returns the completion's id: the prompt's id and the sample's number."""
        return f"{self.prompt_id}#{self.sample}"


Row = Text | Problem | Chat | Trace | Pair | Labelled | Steps | Completion
_Kind = TypeVar("_Kind", Pair, Problem, Text)
_ROW: TypeAdapter[Row] = TypeAdapter(Annotated[Row, Field(discriminator="row")])


class RowError(DataError):
    """The error for a row that cannot be read. The message names file and line."""


def to_json_line(row: Row) -> str:
    """Returns a row as one canonical JSON line, without the newline."""
    return json.dumps(row.model_dump(exclude_none=True), ensure_ascii=False, sort_keys=True)


def read_rows(path: Path) -> Iterator[Row]:
    """Reads the typed rows of a `rows.jsonl`. Raises RowError naming file and line."""
    with path.open("rb") as lines:  # what is no UTF-8 is an error of its line
        for number, line in enumerate(lines, start=1):
            yield parse_row(line, where=f"{path}:{number}")


def require_row_type(wanted: type[_Kind], rows: Iterable[Row]) -> Iterator[_Kind]:
    """Yields the rows after checking that each is of the wanted type. Raises DataError naming the first that is not."""
    for row in rows:
        if not isinstance(row, wanted):
            raise DataError(f"row '{row.id}' is a {row.row}; {wanted.__name__.lower()} rows are wanted: see from_data")
        yield row


def parse_row(line: str | bytes, *, where: str) -> Row:
    """Parses one JSON line to a typed row. `where` opens the error message."""
    try:
        return _ROW.validate_json(line)
    except ValidationError as error:
        raise RowError(f"{where}: {format_first_error(error)}") from None


def format_first_error(error: ValidationError) -> str:
    """Formats the first validation error as `field: message`, with the number of further errors."""
    details = error.errors(include_url=False)
    field = ".".join(str(part) for part in details[0]["loc"])
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return f"{field + ': ' if field else ''}{describe_faults(details[:1])}{more}"


def compute_rows_digest(rows: Iterable[Row]) -> str:
    """Returns the sha256 over the canonical JSON lines of the rows."""
    sha = hashlib.sha256()
    for row in rows:
        sha.update(to_json_line(row).encode())
        sha.update(b"\n")
    return sha.hexdigest()
