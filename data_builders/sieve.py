"""What may not pass into a data folder: duplicates, benchmark questions, unusable golds, malformed thinking."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from pydantic import Field

from qwen_align.align.errors import DataError
from qwen_align.align.rows import Chat, Completion, Labelled, Message, Pair, Problem, Row, Steps, Text, Trace
from qwen_align.align.strict import Strict
from qwen_align.data_builders.contamination import Benchmark, Contamination, contamination, read_benchmarks
from qwen_align.data_builders.near_duplicates import NearDuplicateFinder, NearDuplicates
from qwen_align.data_builders.row_texts import all_texts, part_of, replies
from qwen_align.data_builders.turn_order import disorder
from qwen_align.reward.settings import reward_of_kind
from qwen_align.reward.thinking import CLOSE, OPEN

Sources = Mapping[str, Callable[[], Iterator[Row]]]
"""A reader of the rows of every stage that a builder's settings refer to, by the stage's name."""


class Drop(NamedTuple):
    """One row that did not get through."""

    reason: str
    id: str
    detail: str


class Drops:
    """Everything a builder and the sieve left out, in order."""

    def __init__(self) -> None:
        self.rows: list[Drop] = []

    def add(self, reason: str, row_id: str, detail: str = "") -> None:
        self.rows.append(Drop(reason, row_id, detail))

    @property
    def counts(self) -> dict[str, int]:
        """How many for each reason, the most frequent first."""
        return dict(Counter(drop.reason for drop in self.rows).most_common())


class Sieve(Strict):
    """Which rows are dropped; each is a statement that holds for every row that is kept."""

    is_unique: bool = Field(default=True, description="no earlier row says the same but for white space")
    gold_is_usable: bool = Field(default=True, description="saying the gold passes the row's own reward")
    thinking_is_clean: bool = Field(default=True, description="no thinking tags in texts, no blank thinking or answer")
    has_no_control_tokens: bool = Field(default=True, description="no text holds a token such as <|im_end|>")
    turns_are_in_order: bool = Field(
        default=True, description="a system turn comes first, user and assistant in turn, tools' results after calls"
    )
    language: Literal["en", "zh"] | None = Field(default=None, description="most letters are of its script")
    min_script_share: float = Field(
        default=0.5,  # our choice: names, quotes and units in the other script stay far below it
        ge=0,
        le=1,
        description="share of letters in the language's script, formulas, code and links left out",
    )
    min_characters: int = Field(default=0, ge=0, description="of everything a row says, prompt included")
    max_characters: int | None = Field(default=None, ge=1, description="of everything a row says; tokens: max_tokens")
    contamination: list[Contamination] = Field(
        default_factory=list, description="no row repeats a question of these benchmarks"
    )
    near_duplicates: NearDuplicates | None = Field(
        default=None, description="no earlier row of the same kind and mode says nearly the same"
    )


def sieve(rows: Iterable[Row], settings: Sieve, drops: Drops, sources: Sources | None = None) -> Iterator[Row]:
    """The rows that hold what `settings` says, in order; the others go to `drops`.

    `sources` holds the stages that the settings name as benchmarks. Raises DataError for a row whose reward is unknown.
    """
    benchmarks = read_benchmarks(settings.contamination, sources or {})
    earlier = _Earlier(settings)
    for row in rows:
        fault = _fault(row, settings) or _contamination_fault(row, benchmarks)
        if fault is None:  # last, so that a dropped row does not shadow a good one
            fault = earlier.fault(row)
        if fault is None:
            yield row
        else:
            drops.add(fault.reason, row.id, fault.detail)


class Fault(NamedTuple):
    reason: str
    detail: str


class _Earlier:
    """The rows kept so far, as far as later ones have to differ from them."""

    def __init__(self, settings: Sieve) -> None:
        self._same: dict[bytes, str] | None = {} if settings.is_unique else None
        self._near: tuple[NearDuplicates, NearDuplicateFinder] | None = None
        if settings.near_duplicates is not None:
            self._near = settings.near_duplicates, settings.near_duplicates.finder()

    def fault(self, row: Row) -> Fault | None:
        """What an earlier row has in common with this one; without a fault the row counts as kept."""
        key = _key(row) if self._same is not None else b""
        if self._same is not None and key in self._same:
            return Fault("duplicate", f"of {self._same[key]}")
        if self._near is not None and not isinstance(row, Completion):  # alike answers of a model are no duplicates
            settings, finder = self._near
            near = finder.find_or_keep(row.id, part_of(row, settings.part), _group(row))
            if near is not None:
                return Fault("near duplicate", f"of {near.id}: {near.jaccard:.2f} of the shingles are common")
        if self._same is not None:
            self._same[key] = row.id
        return None


def _group(row: Row) -> str:
    """Equal for rows that may be near duplicates: all but what they say is the same, system messages included."""
    if isinstance(row, Text | Completion):
        return row.row
    system = [turn.content for turn in row.messages if turn.role == "system"]
    calls = [turn.tool_calls for turn in (*row.messages, *replies(row)) if turn.tool_calls]
    return hashlib.sha256(repr([row.row, *_labels(row), system, calls]).encode()).hexdigest()


def _labels(row: Row) -> list[object]:
    """What a row says of itself beside its texts: mode and flag, and whether it is good."""
    if isinstance(row, Steps):
        return [row.labels]
    labels: list[object] = [] if isinstance(row, Text) else [row.mode, row.flag]
    return [*labels, row.label] if isinstance(row, Labelled) else labels


def _contamination_fault(row: Row, benchmarks: list[Benchmark]) -> Fault | None:
    found = contamination(row, benchmarks)
    if found is None:
        return None
    reason, overlap = found
    return Fault(reason, f"{overlap.question}: {overlap.shared}"[:_LONGEST_DETAIL])


def _fault(row: Row, settings: Sieve) -> Fault | None:
    fault = _thinking_fault(row) if settings.thinking_is_clean else None
    if fault is None and settings.has_no_control_tokens:
        fault = _control_token_fault(row)
    if fault is None and settings.turns_are_in_order and (said := disorder(row)):
        fault = Fault("turns out of order", said)
    if fault is None and settings.gold_is_usable:
        fault = _gold_fault(row)
    if fault is None and (settings.min_characters or settings.max_characters is not None):
        fault = _length_fault(sum(map(len, all_texts(row))), settings)
    if fault is None and settings.language is not None:
        share = script_share(" ".join(all_texts(row)), settings.language)
        if share is not None and share < settings.min_script_share:
            fault = Fault(f"not {settings.language}", f"{share:.2f} of the letters")
    return fault


def _length_fault(n_characters: int, settings: Sieve) -> Fault | None:
    if n_characters < settings.min_characters:
        return Fault("too short", f"{n_characters} characters")
    if settings.max_characters is not None and n_characters > settings.max_characters:
        return Fault("too long", f"{n_characters} characters")
    return None


def _thinking_fault(row: Row) -> Fault | None:
    """What is wrong with the assistant's turns; user turns may speak of tags."""
    if isinstance(row, Trace):
        if not row.thinking.strip():
            return Fault("blank thinking", "a Trace row has thinking; without any it is a Chat row")
        turns = [Message(role="assistant", content=row.answer, thinking=row.thinking)]
    elif isinstance(row, Pair | Labelled):
        turns = replies(row)
    elif isinstance(row, Steps):
        turns = [Message(role="assistant", content="\n".join(row.steps))]
    elif isinstance(row, Chat):
        turns = [message for message in row.messages if message.role == "assistant"]
    else:
        return None
    for turn in turns:
        tag = next((tag for tag in (OPEN, CLOSE) if tag in turn.content or tag in (turn.thinking or "")), None)
        if tag:
            return Fault("thinking tags in the text", f"{tag}; thinking goes into a field of its own, without tags")
        if not turn.content.strip() and not turn.tool_calls:
            return Fault("blank answer", "")
    return None


# What Qwen's tokenizers read as one token of their own: in a row's text it would end turns and open others.
_CONTROL_TOKEN = re.compile(
    r"<\|(?:endoftext|im_start|im_end|fim_(?:prefix|middle|suffix|pad)|repo_name|file_sep|(?:image|video|vision)_pad"
    r"|(?:object_ref|box|quad|vision)_(?:start|end))\|>"
)


def _control_token_fault(row: Row) -> Fault | None:
    found = next((one for text in all_texts(row) if (one := _CONTROL_TOKEN.search(text))), None)
    return Fault("control token in the text", found[0]) if found else None


def _gold_fault(row: Row) -> Fault | None:
    if not isinstance(row, Problem | Trace) or (isinstance(row, Trace) and row.gold is None):
        return None  # a trace may be trained without anyone judging it
    try:
        reward = reward_of_kind(row.reward)
    except ValueError as error:
        said = "so nobody can tell whether its gold is usable; set sieve.gold_is_usable: false"
        raise DataError(f"row '{row.id}': reward: {error}, {said}") from None
    verdict = reward.judge_gold(row.gold)
    if verdict.value is None:
        return Fault(verdict.reason, f"{row.gold!r}"[:_LONGEST_DETAIL])
    if verdict.value < 1.0:
        return Fault("gold fails its own reward", f"{verdict.reason}: {row.gold!r}"[:_LONGEST_DETAIL])
    return None


_LONGEST_DETAIL = 200  # characters of a gold or of a shared text that are quoted


def _key(row: Row) -> bytes:
    """Equal for rows of one kind that say the same in the same mode; white space does not count."""
    if isinstance(row, Completion):
        return row.id.encode()  # equal answers of a model are no duplicates
    parts: list[object] = [row.row, *(" ".join(text.split()) for text in all_texts(row))]
    if not isinstance(row, Text):
        parts += [*_labels(row), [(turn.role, turn.tool_calls) for turn in (*row.messages, *replies(row))]]
    return hashlib.sha256(repr(parts).encode()).digest()


_NOT_PROSE = re.compile(
    r"```.{0,4000}?```|`[^`\n]*`|\$\$.{0,2000}?\$\$|\$[^$\n]*\$|\\\[.{0,2000}?\\\]|\\\(.{0,2000}?\\\)|\\[A-Za-z]+|https?://\S+",
    re.DOTALL,
)
_LATIN = re.compile(r"[A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f]")
_HAN = re.compile(r"[\u3400-\u9fff\U00020000-\U0003ffff]")


def script_share(text: str, language: Literal["en", "zh"]) -> float | None:
    """Share of the letters that are of the language's script, None without letters.

    Formulas between dollar signs or LaTeX brackets, code, commands and links are left out.
    """
    prose = _NOT_PROSE.sub(" ", text)
    n_letters = sum(map(str.isalpha, prose))
    script = _LATIN if language == "en" else _HAN
    return len(script.findall(prose)) / n_letters if n_letters else None
