"""What can be wrong with a row alone, one kind of fault a function."""

import re
from typing import Literal, NamedTuple

from qwen_align.align.errors import DataError
from qwen_align.align.rows import Chat, Labelled, Message, Pair, Problem, Row, Steps, Text, Trace
from qwen_align.data_builders.row_texts import all_texts, replies, turns_of
from qwen_align.reward.settings import make_default_reward
from qwen_align.reward.thinking import CLOSE, OPEN

LONGEST_DETAIL = 200  # characters of a gold or of a shared text that are quoted


class Fault(NamedTuple):
    """Why a row is dropped: a short, countable reason, and what was found."""

    reason: str
    detail: str


def emptiness_fault(row: Row) -> Fault | None:
    """A row that nothing can be learnt from: it asks nothing somewhere, holds no text, or prefers a text to itself."""
    if isinstance(row, Text):
        return None if row.text.strip() else Fault("blank text", "")
    blank = next((n for n, turn in enumerate(turns_of(row), 1) if turn.role == "user" and not turn.content.strip()), 0)
    if blank:
        return Fault("blank user turn", f"turn {blank}")
    if isinstance(row, Pair) and _said(row.chosen) == _said(row.rejected):
        return Fault("chosen equals rejected", "so nothing is preferred")
    return None


def _said(turn: Message) -> tuple[str, str, object]:
    return turn.content.strip(), (turn.thinking or "").strip(), turn.tool_calls or None


def length_fault(n_characters: int, fewest: int, most: int | None) -> Fault | None:
    """`most` None: no bound."""
    if n_characters < fewest:
        return Fault("too short", f"{n_characters} characters")
    if most is not None and n_characters > most:
        return Fault("too long", f"{n_characters} characters")
    return None


def language_fault(row: Row, language: Literal["en", "zh"], min_script_share: float) -> Fault | None:
    """A row without letters is of any language."""
    share = script_share(" ".join(all_texts(row)), language)
    if share is None or share >= min_script_share:
        return None
    return Fault(f"not {language}", f"{share:.2f} of the letters")


def thinking_fault(row: Row) -> Fault | None:
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


def control_token_fault(row: Row) -> Fault | None:
    """A token of the template or tokenizer in any text."""
    found = next((one for text in all_texts(row) if (one := _CONTROL_TOKEN.search(text))), None)
    return Fault("control token in the text", found[0]) if found else None


def gold_fault(row: Row) -> Fault | None:
    """A gold that does not pass its own reward; raises DataError if nobody knows the reward here."""
    if not isinstance(row, Problem | Trace) or (isinstance(row, Trace) and row.gold is None):
        return None  # a trace may be trained without anyone judging it
    try:
        reward = make_default_reward(row.reward)
    except ValueError as error:
        said = "so nobody can tell whether its gold is usable; set sieve.gold_is_usable: false"
        raise DataError(f"row '{row.id}': reward: {error}, {said}") from None
    verdict = reward.judge_gold(row.gold)
    if verdict.value is None:
        return Fault(verdict.reason, f"{row.gold!r}"[:LONGEST_DETAIL])
    if verdict.value < 1.0:
        return Fault("gold fails its own reward", f"{verdict.reason}: {row.gold!r}"[:LONGEST_DETAIL])
    return None


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
