"""What an instruction is: its arguments, as the data set names them, and whether a text follows it."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from qwen_align.align.settings.base import Strict

MAX_PHRASE_CHARS = 1_000  # our choice; the longest phrase in IFEval has 124. Searching takes at most chars x phrase


def _whole(value: Any) -> Any:
    """An integer for 3.0, which is what tables with empty cells make of 3."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _phrase(value: str) -> str:
    said = value.strip()
    if not said or len(said) > MAX_PHRASE_CHARS:
        raise PydanticCustomError("phrase", "a phrase is neither blank nor longer than {n}", {"n": MAX_PHRASE_CHARS})
    return said


Count = Annotated[int, BeforeValidator(_whole), Field(ge=0)]
Positive = Annotated[int, BeforeValidator(_whole), Field(ge=1)]  # of 0, "less than" is impossible, "at least" nothing
Phrase = Annotated[str, AfterValidator(_phrase)]
Phrases = Annotated[list[Phrase], Field(min_length=1)]
Relation = Literal["less than", "at least"]


class Instruction(Strict, ABC):
    """One instruction; its fields are the `kwargs` of the data set."""

    @abstractmethod
    def follows(self, text: str) -> bool:
        """Whether a text that is not blank follows it; linear in the text's length."""

    @property
    def spoken(self) -> str | None:
        """The code of the language the text has to be in, if that is part of the instruction."""
        return None


def holds(found: int, relation: Relation, asked: int) -> bool:
    """Whether a count is as asked."""
    return found < asked if relation == "less than" else found >= asked


def without_empty(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that are given; the hub's table has a column for every argument of every kind, None or NaN."""
    return {
        name: value
        for name, value in kwargs.items()
        if value is not None and not (isinstance(value, float) and math.isnan(value))
    }
