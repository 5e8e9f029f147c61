"""Finds answers that begin with thinking in another notation than <think>, which would be learnt as visible answers."""

import re
from collections import Counter

from qwen_align.align.rows import Chat, Labelled, Message, Pair, Row, Trace
from qwen_align.data_builders.bad_row_errors import BadValue
from qwen_align.data_builders.row_texts import list_replies
from qwen_align.reward.thinking import CLOSE, OPEN

# OpenThoughts' and Sky-T1's, prompts' XML tags, Magistral's, Kimi's, Seed-OSS's, gpt-oss's; <think> in other spellings.
_OPENING = re.compile(
    r"\s*(<\|begin_of_thought\|>|<\s*(?:think|thinking|thoughts?|reasoning|scratchpad)\s*>|\[THINK\]|◁think▷"
    r"|<seed:think>|<\|channel\|>\s*analysis)",
    re.IGNORECASE,
)


def refuse_other_notations(row: Row, conversion_counts: Counter[str]) -> None:
    """Raises BadValue for a row with an answer to learn that begins with thinking in another notation.

    One that a system or user turn of the row asks for by name is what the answer should have, and is counted.
    """
    if not isinstance(row, Chat | Trace | Pair | Labelled):
        return
    replies = [turn for turn in row.messages if turn.role == "assistant"] + list_replies(row)
    if isinstance(row, Trace):
        replies.append(Message(role="assistant", content=row.answer))
    asked = [turn.content for turn in row.messages if turn.role in ("system", "user")]
    for reply in replies:
        match = _OPENING.match(reply.content)
        if match is None:
            continue
        mark = match[1]
        if not any(mark in text for text in asked):
            raise BadValue(
                "malformed thinking",
                f"an answer begins with {mark}, thinking in another notation, which would be learnt as what the user "
                f"sees: write it as {OPEN}...{CLOSE} and the answer after it; where the prompt names {mark} it stays",
            )
        conversion_counts[f"answers that begin with {mark}, as their prompt asks"] += 1
