"""Decides in which thinking mode an answer is trained, by the row's mode, the flag in force and the answer's thinking.

Nothing here knows a template: see `align/rendering/thinking_modes.py` for what a template makes of a mode.

    the answer's own thinking    no flag in force     /think in force    /no_think in force
    some                         think                think              contradiction
    an empty block               no_think             contradiction      no_think
    none, no block               plain: no_think      contradiction      no_think
                                 where there are modes

The flag in force is the last one in the user and system messages before the answer. A row's `mode` stands above it: in
mode `no_think` the hard switch wins over `/think`. An answer without the thinking of its conversation, as in a history
from which it was taken out, is no contradiction; it is seen, not trained.
"""

from collections.abc import Sequence
from typing import NamedTuple

from qwen_align.align.rows import Flag, Message, Mode, find_last_flag

MODE_OF_FLAG: dict[Flag, Mode] = {"/think": "think", "/no_think": "no_think"}
LOST_THINKING = "answers without the thinking of their conversation"
OTHER_FLAG = "answers under another flag than the row's"


class AnswerMode(NamedTuple):
    """The thinking mode of an answer that is trained, and the row's flag if it has to be put on the last user message.

    `mode` None: nothing says whether it thinks, so it is a plain answer.
    """

    mode: Mode | None
    flag: Flag | None


class Untrained(NamedTuple):
    """The reason, short and countable, why an answer is seen and not trained."""

    reason: str


class Contradiction(NamedTuple):
    """The reason, short and countable, why a row with such an answer must not be trained."""

    reason: str


def decide_answer_mode(
    messages: Sequence[Message], index: int, mode: Mode | None, flag: Flag | None
) -> AnswerMode | Untrained | Contradiction:
    """Decides in which thinking mode the answer at an index of a conversation is trained.

    `mode`, `flag`: the row's. A user message has one flag: the row's is put on messages that hold none of their own.
    """
    answer, prompt = messages[index], messages[:index]
    own_flag = find_last_flag([turn for turn in prompt if turn.role == "user"][-1:])
    is_hard_switch = mode == "no_think" and flag == "/think"
    if flag is not None and own_flag not in (None, flag) and not is_hard_switch:
        return Untrained(OTHER_FLAG)
    flag_in_force = (own_flag or flag) if flag is not None else find_last_flag(prompt)
    asked_mode = mode or (MODE_OF_FLAG[flag_in_force] if flag_in_force else None)
    asked_by = f"in mode {mode}" if mode else f"under {flag_in_force}"
    appended_flag = flag if own_flag is None else None
    if has_thinking(answer):
        if asked_mode == "no_think" or flag_in_force == "/no_think":
            return Contradiction(f"thinking {asked_by if asked_mode == 'no_think' else 'under /no_think'}")
        return AnswerMode("think", appended_flag)
    if asked_mode == "no_think":
        return AnswerMode("no_think", appended_flag)
    if asked_mode == "think":
        is_lost = _thinks_beside(messages, index) or _is_asked_again(messages, index)
        return Untrained(LOST_THINKING) if is_lost else Contradiction(f"no thinking {asked_by}")
    has_block = answer.thinking is not None
    if _thinks_beside(messages, index) or (not has_block and any(map(has_thinking, messages[index + 1 :]))):
        return Untrained(LOST_THINKING)
    return AnswerMode("no_think" if has_block else None, appended_flag)


def has_thinking(message: Message) -> bool:
    """Returns whether a message has thinking that is not blank."""
    return bool(message.thinking and message.thinking.strip())


class UnfitAnswer(NamedTuple):
    """An answer for which its row must not be trained: the reason, and the turn's number from 1."""

    reason: str
    turn: int


def find_unfit_answer(
    messages: Sequence[Message], indices: Sequence[int], mode: Mode | None, flag: Flag | None
) -> UnfitAnswer | None:
    """Returns the first answer that contradicts what it is asked, or the last one where none can be trained.

    `indices`: where the answers to learn stand. Returns None if there is nothing against training the row.
    """
    decisions = [(index + 1, decide_answer_mode(messages, index, mode, flag)) for index in indices]
    contradictions = [UnfitAnswer(found.reason, turn) for turn, found in decisions if isinstance(found, Contradiction)]
    untrained = [UnfitAnswer(found.reason, turn) for turn, found in decisions if isinstance(found, Untrained)]
    if contradictions:
        return contradictions[0]
    return untrained[-1] if untrained and len(untrained) == len(decisions) else None


def _thinks_beside(messages: Sequence[Message], index: int) -> bool:
    """Returns whether another answer to the same user message thinks, as between calls of tools."""
    start = max((place for place in range(index) if messages[place].role == "user"), default=-1) + 1
    end = next((place for place in range(index, len(messages)) if messages[place].role == "user"), len(messages))
    return any(has_thinking(turn) for turn in messages[start:end])


def _is_asked_again(messages: Sequence[Message], index: int) -> bool:
    """Returns whether a later user message is answered, so that the answer at the index is history."""
    rest = messages[index + 1 :]
    next_question = next((place for place, turn in enumerate(rest) if turn.role == "user"), len(rest))
    return any(turn.role == "assistant" for turn in rest[next_question:])
