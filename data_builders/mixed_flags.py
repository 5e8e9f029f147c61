"""Qwen3's harder cases of thinking flags: after a system message, and in several turns of which the last one wins.

Qwen3 (arXiv:2505.09388, p. 11): flags stand in user or system messages; in conversations of several turns random
flags are put into user turns, and the answer obeys the last one.
"""

from collections.abc import Sequence
from itertools import cycle
from random import Random

from pydantic import Field

from qwen_align.align.rows import Chat, Flag, Trace
from qwen_align.align.settings.base import Strict
from qwen_align.data_builders.asked_questions import with_questions
from qwen_align.data_builders.prompt_flags import append_flag
from qwen_align.data_builders.seeded_draws import drawn_order, random_for

Turns = Trace | Chat
_FLAGS: tuple[Flag | None, ...] = (None, "/think", "/no_think")


class MixedFlags(Strict):
    """Shares of the rows that can have each; 0 everywhere leaves the rows as they are."""

    history_share: float = Field(
        default=0.0, ge=0, le=1, description="of thinking rows: those that go on after one of the chats"
    )
    earlier_flags_share: float = Field(
        default=0.0, ge=0, le=1, description="of rows with several user turns: those whose earlier ones draw flags"
    )
    system_share: float = Field(
        default=0.0, ge=0, le=1, description="of flagged rows with a system message: those with the flag there"
    )

    def apply(self, rows: Sequence[Turns], chats: Sequence[Chat], seed: int) -> list[Turns]:
        """The rows in their order; which are changed, and how, depends on the seed and their ids."""
        found = self._with_history(rows, chats, seed)
        several = [place for place, row in enumerate(found) if _n_asked(row) > 1]
        chosen = _chosen(found, several, self.earlier_flags_share, "earlier flags", seed)
        for place in chosen:
            found[place] = with_earlier_flags(found[place], random_for("flags", seed, found[place].id))
        can = [place for place, row in enumerate(found) if place not in chosen and _can_move(row)]
        for place in _chosen(found, can, self.system_share, "system", seed):
            found[place] = with_flag_in_system(found[place])
        return found

    def _with_history(self, rows: Sequence[Turns], chats: Sequence[Chat], seed: int) -> list[Turns]:
        found = list(rows)
        earlier = [chat for chat in chats if not chat.tools and not any(turn.tool_calls for turn in chat.messages)]
        thinking = [place for place, row in enumerate(found) if isinstance(row, Trace)]
        if earlier:
            before = cycle(drawn_order(earlier, (chat.id for chat in earlier), "history", seed))
            for place in sorted(_chosen(found, thinking, self.history_share, "joined", seed)):
                found[place] = after_chat(found[place], next(before))
        return found


def after_chat(row: Turns, chat: Chat) -> Turns:
    """The row as what is asked next in the chat, whose system message gives way to the row's own, or to none."""
    own_system = [turn for turn in row.messages if turn.role == "system"]
    own = [turn for turn in row.messages if turn.role != "system"]
    history = [turn for turn in chat.messages if turn.role != "system"]
    messages = [*own_system, *history, *own]
    meta = {**with_questions(row.meta, row.messages), "history": chat.id}
    return row.model_copy(update={"messages": messages, "meta": meta})


def with_earlier_flags(row: Turns, random: Random) -> Turns:
    """The row with a flag drawn for every user turn but the last, each as often none, `/think` and `/no_think`.

    Where a thinking row has no flag of its own, the last flag drawn is `/think`, since the last one is obeyed.
    """
    asked = [place for place, turn in enumerate(row.messages) if turn.role == "user"]
    drawn = {place: random.choice(_FLAGS) for place in asked[:-1]}
    if row.mode == "think" and row.flag is None:
        last = next((place for place in reversed(drawn) if drawn[place] is not None), None)
        if last is not None:
            drawn[last] = "/think"
    messages = [append_flag(turn, drawn.get(place)) for place, turn in enumerate(row.messages)]
    return row.model_copy(update={"messages": messages})


def with_flag_in_system(row: Turns) -> Turns:
    """The row with its flag at the end of its system message rather than of its last user message."""
    system, *others = row.messages
    return row.model_copy(update={"messages": [append_flag(system, row.flag), *others], "flag": None})


def _can_move(row: Turns) -> bool:
    return row.flag is not None and row.messages[0].role == "system"


def _n_asked(row: Turns) -> int:
    return sum(turn.role == "user" for turn in row.messages)


def _chosen(rows: Sequence[Turns], places: list[int], share: float, what: str, seed: int) -> set[int]:
    """As many of the places as the share says, drawn by the ids of their rows."""
    drawn = drawn_order(places, (rows[place].id for place in places), what, seed)
    return set(drawn[: round(share * len(places))])
