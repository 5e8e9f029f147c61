"""The tables of generated pairs: one strategy of equal and one of unequal pairs a kind of answer."""

from collections.abc import Callable
from typing import Any, NamedTuple

from hypothesis import strategies as st


class Pair(NamedTuple):
    kind: str
    answer: str
    gold: str


EQUAL: dict[str, st.SearchStrategy[Pair]] = {}
UNEQUAL: dict[str, st.SearchStrategy[Pair]] = {}
Maker = Callable[[Any, bool], tuple[str, str]]


def kind(make: Maker) -> Maker:
    """Puts a maker of (answer, gold) into both tables; its second argument says whether they are to be equal."""
    name = make.__name__

    @st.composite
    def pairs(draw: Any, is_equal: bool) -> Pair:
        return Pair(name, *make(draw, is_equal))

    EQUAL[name], UNEQUAL[name] = pairs(True), pairs(False)
    return make
