"""The tables of generated pairs: for each kind of answer a strategy of equal and one of unequal pairs."""

from collections.abc import Callable
from typing import Any, NamedTuple

from hypothesis import strategies as st


class Pair(NamedTuple):
    """An answer and a gold of one kind."""

    kind: str
    answer: str
    gold: str


EQUAL: dict[str, st.SearchStrategy[Pair]] = {}
UNEQUAL: dict[str, st.SearchStrategy[Pair]] = {}
Maker = Callable[[Any, bool], tuple[str, str]]


def register_kind(make: Maker) -> Maker:
    """Registers a maker of (answer, gold) in both tables; its second argument says whether they are to be equal."""
    name = make.__name__.removeprefix("make_")

    @st.composite
    def pairs(draw: Any, is_equal: bool) -> Pair:
        """Draws a pair from the maker."""
        return Pair(name, *make(draw, is_equal))

    EQUAL[name], UNEQUAL[name] = pairs(True), pairs(False)
    return make
