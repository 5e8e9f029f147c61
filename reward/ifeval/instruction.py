"""The base class of IFEval instructions, with their arguments and the check whether a text follows them."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from qwen_align.align.settings.base import Strict

MAX_PHRASE_CHARS = 1_000  # our choice; the longest phrase in IFEval has 124. Searching takes at most chars x phrase


def _to_integer(value: Any) -> Any:
    """Converts a float such as 3.0, which data tables with empty cells contain, to an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _check_phrase(value: str) -> str:
    """Strips white space around a phrase. Raises if the phrase is blank or too long."""
    phrase = value.strip()
    if not phrase or len(phrase) > MAX_PHRASE_CHARS:
        raise PydanticCustomError("phrase", "a phrase is neither blank nor longer than {n}", {"n": MAX_PHRASE_CHARS})
    return phrase


Count = Annotated[int, BeforeValidator(_to_integer), Field(ge=0)]
Positive = Annotated[
    int, BeforeValidator(_to_integer), Field(ge=1)
]  # of 0, "less than" is impossible, "at least" nothing
Phrase = Annotated[str, AfterValidator(_check_phrase)]
Phrases = Annotated[list[Phrase], Field(min_length=1)]
Relation = Literal["less than", "at least"]


class Instruction(Strict, ABC):
    """The base class of IFEval instructions, whose fields are the `kwargs` of the data set."""

    @abstractmethod
    def follows(self, text: str) -> bool:
        """Returns whether a non-blank text follows the instruction. Linear in the text's length."""

    @property
    def required_language(self) -> str | None:
        """Returns the code of the language that the instruction requires. Returns None if it requires none."""
        return None


def satisfies_relation(count: int, relation: Relation, bound: int) -> bool:
    """Returns whether a count is "less than" or "at least" a bound."""
    return count < bound if relation == "less than" else count >= bound


def drop_empty_arguments(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the instruction arguments that are neither None nor NaN.

    The data set's table has a column for every argument.
    """
    return {
        name: value
        for name, value in kwargs.items()
        if value is not None and not (isinstance(value, float) and math.isnan(value))
    }
