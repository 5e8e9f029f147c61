"""What may not pass into a data folder: duplicates, golds that fail their own reward, malformed thinking."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from pydantic import Field

from qwen_align.align.rows import Chat, Completion, Message, Pair, Problem, Row, Text, Trace
from qwen_align.align.strict import Strict
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
    language: Literal["en", "zh"] | None = Field(default=None, description="most letters are of its script")
    min_script_share: float = Field(
        default=0.5,  # our choice: names, quotes and units in the other script stay far below it
        ge=0,
        le=1,
        description="share of letters in the language's script, formulas, code and links left out",
    )


def sieve(rows: Iterable[Row], settings: Sieve, drops: Drops) -> Iterator[Row]:
    """The rows that hold what `settings` says, in order; the others go to `drops`."""
    seen: dict[bytes, str] = {}
    for row in rows:
        fault = _fault(row, settings)
        if fault is None and settings.is_unique:  # last, so that a dropped row does not shadow a good one
            key = _key(row)
            if key in seen:
                fault = Fault("duplicate", f"of {seen[key]}")
            else:
                seen[key] = row.id
        if fault is None:
            yield row
        else:
            drops.add(fault.reason, row.id, fault.detail)


class Fault(NamedTuple):
    reason: str
    detail: str


def _fault(row: Row, settings: Sieve) -> Fault | None:
    fault = _thinking_fault(row) if settings.thinking_is_clean else None
    if fault is None and settings.gold_is_usable:
        fault = _gold_fault(row)
    if fault is None and settings.language is not None:
        share = script_share(" ".join(_texts(row)), settings.language)
        if share is not None and share < settings.min_script_share:
            fault = Fault(f"not {settings.language}", f"{share:.2f} of the letters")
    return fault


def _thinking_fault(row: Row) -> Fault | None:
    """What is wrong with the assistant's turns; user turns may speak of tags."""
    if isinstance(row, Trace):
        if not row.thinking.strip():
            return Fault("blank thinking", "a Trace row has thinking; without any it is a Chat row")
        turns = [Message(role="assistant", content=row.answer, thinking=row.thinking)]
    elif isinstance(row, Pair):
        turns = [row.chosen, row.rejected]
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


def _gold_fault(row: Row) -> Fault | None:
    if not isinstance(row, Problem | Trace) or (isinstance(row, Trace) and row.gold is None):
        return None  # a trace may be trained without anyone judging it
    verdict = reward_of_kind(row.reward).judge_gold(row.gold)
    if verdict.value is None:
        return Fault(verdict.reason, f"{row.gold!r}"[:_LONGEST_DETAIL])
    if verdict.value < 1.0:
        return Fault("gold fails its own reward", f"{verdict.reason}: {row.gold!r}"[:_LONGEST_DETAIL])
    return None


_LONGEST_DETAIL = 200  # characters of a gold that are quoted


def _texts(row: Row) -> list[str]:
    """Everything that is said in the row, in order."""
    if isinstance(row, Text):
        return [row.text]
    messages = row.prompt if isinstance(row, Completion) else row.messages
    texts = [text for message in messages for text in (message.thinking or "", message.content)]
    if isinstance(row, Completion):
        texts.append(row.text)
    elif isinstance(row, Trace):
        texts += [row.thinking, row.answer]
    elif isinstance(row, Pair):
        texts += [part for side in (row.chosen, row.rejected) for part in (side.thinking or "", side.content)]
    return texts


def _key(row: Row) -> bytes:
    """Equal for rows of one kind that say the same in the same mode; white space does not count."""
    if isinstance(row, Completion):
        return row.id.encode()  # equal answers of a model are no duplicates
    parts: list[object] = [row.row, *(" ".join(text.split()) for text in _texts(row))]
    if not isinstance(row, Text):
        parts += [row.mode, row.flag, [(turn.role, turn.tool_calls) for turn in row.messages]]
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
