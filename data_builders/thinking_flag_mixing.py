"""Adds harder cases of thinking flags to data rows: flags in system messages, and in several turns.

Qwen3 (arXiv:2505.09388, p. 11): flags stand in user or system messages; in conversations of several turns random
flags are put into user turns, and the answer obeys the last one.
"""

from collections.abc import Sequence
from itertools import cycle
from random import Random

from pydantic import Field

from qwen_align.align.rows import Chat, Flag, Trace
from qwen_align.align.settings.base import Strict
from qwen_align.data_builders.row_questions import add_questions_to_meta
from qwen_align.data_builders.seeded_draws import make_random, shuffle_by_name
from qwen_align.data_builders.thinking_flags import append_flag

Turns = Trace | Chat
_FLAGS: tuple[Flag | None, ...] = (None, "/think", "/no_think")


class MixedFlags(Strict):
    """Settings of the shares of rows that get a history, earlier thinking flags, or a flag in the system message.

    A share of 0 leaves the rows as they are. Each is a share of the rows that can have it.
    """

    history_share: float = Field(
        default=0.0, ge=0, le=1, description="share of the thinking rows that go on after one of the chats"
    )
    earlier_flags_share: float = Field(
        default=0.0, ge=0, le=1, description="share of the rows with several user turns whose earlier turns draw flags"
    )
    system_share: float = Field(
        default=0.0, ge=0, le=1, description="share of the flagged rows with a system message that have the flag there"
    )

    def mix_flags(self, rows: Sequence[Turns], chats: Sequence[Chat], seed: int) -> list[Turns]:
        """Returns the rows in their order with histories and thinking flags added to a random share of them.

        Seed and ids decide which and how.
        """
        mixed = self._add_histories(rows, chats, seed)
        multi_turn_indices = [index for index, row in enumerate(mixed) if _count_user_turns(row) > 1]
        changed_indices = _sample_row_indices(
            mixed, multi_turn_indices, self.earlier_flags_share, "earlier flags", seed
        )
        for index in changed_indices:
            mixed[index] = add_earlier_flags(mixed[index], make_random("flags", seed, mixed[index].id))
        movable_indices = [
            index for index, row in enumerate(mixed) if index not in changed_indices and _can_move_flag(row)
        ]
        for index in _sample_row_indices(mixed, movable_indices, self.system_share, "system", seed):
            mixed[index] = move_flag_to_system(mixed[index])
        return mixed

    def _add_histories(self, rows: Sequence[Turns], chats: Sequence[Chat], seed: int) -> list[Turns]:
        """Puts a chat as history before a share of the thinking rows."""
        mixed = list(rows)
        usable_chats = [chat for chat in chats if not chat.tools and not any(turn.tool_calls for turn in chat.messages)]
        thinking_indices = [index for index, row in enumerate(mixed) if isinstance(row, Trace)]
        if usable_chats:
            chat_cycle = cycle(shuffle_by_name(usable_chats, (chat.id for chat in usable_chats), "history", seed))
            for index in sorted(_sample_row_indices(mixed, thinking_indices, self.history_share, "joined", seed)):
                mixed[index] = append_to_chat(mixed[index], next(chat_cycle))
        return mixed


def append_to_chat(row: Turns, chat: Chat) -> Turns:
    """Returns a row whose turns continue the given chat.

    The chat's system message gives way to the row's own, or to none.
    """
    own_system = [turn for turn in row.messages if turn.role == "system"]
    own_turns = [turn for turn in row.messages if turn.role != "system"]
    history = [turn for turn in chat.messages if turn.role != "system"]
    messages = [*own_system, *history, *own_turns]
    meta = {**add_questions_to_meta(row.meta, row.messages), "history": chat.id}
    return row.model_copy(update={"messages": messages, "meta": meta})


def add_earlier_flags(row: Turns, random: Random) -> Turns:
    """Adds randomly drawn thinking flags to all user turns of a row but the last.

    Each is as often none, `/think` and `/no_think`. Where a thinking row has no flag of its own, the last flag drawn is
    `/think`, since the last one is obeyed.
    """
    user_indices = [index for index, turn in enumerate(row.messages) if turn.role == "user"]
    flag_of = {index: random.choice(_FLAGS) for index in user_indices[:-1]}
    if row.mode == "think" and row.flag is None:
        last_flagged = next((index for index in reversed(flag_of) if flag_of[index] is not None), None)
        if last_flagged is not None:
            flag_of[last_flagged] = "/think"
    messages = [append_flag(turn, flag_of.get(index)) for index, turn in enumerate(row.messages)]
    return row.model_copy(update={"messages": messages})


def move_flag_to_system(row: Turns) -> Turns:
    """Moves a row's thinking flag from its last user message to the end of its system message."""
    system, *other_turns = row.messages
    return row.model_copy(update={"messages": [append_flag(system, row.flag), *other_turns], "flag": None})


def _can_move_flag(row: Turns) -> bool:
    """Returns whether a row has both a thinking flag and a system message."""
    return row.flag is not None and row.messages[0].role == "system"


def _count_user_turns(row: Turns) -> int:
    """Returns the number of user turns in a row."""
    return sum(turn.role == "user" for turn in row.messages)


def _sample_row_indices(rows: Sequence[Turns], indices: list[int], share: float, purpose: str, seed: int) -> set[int]:
    """Draws the given share of the row indices at random, by the ids of their rows."""
    drawn = shuffle_by_name(indices, (rows[index].id for index in indices), purpose, seed)
    return set(drawn[: round(share * len(indices))])
