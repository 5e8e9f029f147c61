"""Splits data into parts that share no question, by a hash of each row's question."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Literal

from pydantic import Field, model_validator

from qwen_align.align.references import DataRef
from qwen_align.align.rows import Row
from qwen_align.align.settings.base import Strict, format_suggestion
from qwen_align.data_builders.row_questions import list_all_questions, list_own_questions
from qwen_align.data_builders.seeded_draws import hash_to_number
from qwen_align.data_builders.sieve import Drops, Sources
from qwen_align.data_builders.text_to_words import split_words_and_signs
from qwen_align.data_builders.thinking_flags import remove_flags

Asked = Literal["first", "last", "all"]


class QuestionPart(Strict):
    """Settings of one part, such as train or test, of a split by the hash of each question's normal form.

    The normal form is in lower case, without flags, white space apart.

    Two stages whose `shares`, `salt`, `asked` and `without` are equal never share a question between parts of two
    names: not a problem and its traces, pairs, completions or chats, not two files or generators that hold the same
    question. The recipe's seed changes nothing. A raw text is a question as a whole. Prefixes and critiques of a
    solution ask the solution's question, and what goes on after a chat asks its own.
    """

    part: str = Field(min_length=1, description="name of the part that is kept, one of shares")
    shares: dict[str, float] = Field(min_length=2, description="each part's share of all questions, together 1")
    salt: str = Field(default="", description="text that goes into the hash; another text makes other parts")
    asked: Asked = Field(
        default="first",  # the one that two conversations have in common if the shorter begins the longer
        description="which user turn is the question; last where the first ones are examples",
    )
    without: list[str] = Field(
        default_factory=list, description="texts around questions that are left out, such as an instruction"
    )

    @model_validator(mode="after")
    def _check_shares(self) -> "QuestionPart":
        """Raises ValueError if the part has no share or the shares do not add up to 1."""
        if self.part not in self.shares:
            raise ValueError(f"part: '{self.part}' is none of the shares{format_suggestion(self.part, self.shares)}")
        if wrong := [name for name, share in self.shares.items() if not 0 < share < 1]:
            raise ValueError(f"shares: '{wrong[0]}' is {self.shares[wrong[0]]}; a share is above 0 and below 1")
        total = sum(map(_to_exact_fraction, self.shares.values()))
        if total != 1:
            raise ValueError(f"shares: they are {float(total)} together, not 1")
        return self

    def find_part(self, row: Row) -> str | None:
        """Returns the name of the part of the split to which a row's question belongs.

        Returns None if the row asks nothing.
        """
        question = normalize_question(row, self.asked, self.without)
        if not question:
            return None
        hash_share, upper_bound = Fraction(hash_to_number("part", self.salt, question), 2**64), Fraction(0)
        for name in sorted(self.shares):  # a recipe may list them in any order
            upper_bound += _to_exact_fraction(self.shares[name])
            if hash_share < upper_bound:
                return name
        raise AssertionError("shares add up to 1")


class Split(QuestionPart):
    """A builder that keeps the rows of one part of a split by question, in order. Rows of other parts are dropped."""

    kind: Literal["split"] = "split"
    from_data: DataRef = Field(description="data stage whose rows are split")

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Yields the rows whose questions belong to the part.

        The seed is not used, or stages with seeds of their own would cut differently.
        """
        for row in sources[self.from_data]():
            part = self.find_part(row)
            if part is None:
                drops.add("no question", row.id)
            elif part != self.part:
                drops.add(f"in part '{part}'", row.id)
            else:
                yield row


class Unused(Strict):
    """A builder that keeps the rows whose questions do not occur in the rows of other stages, in order.

    Qwen3's RL queries are likewise unused in the cold start.
    """

    kind: Literal["unused"] = "unused"
    from_data: DataRef = Field(description="data stage whose rows are filtered")
    unused_in: list[DataRef] = Field(min_length=1, description="data stages whose rows may not ask the same questions")
    asked: Asked = Field(default="all", description="which questions of a row must be unused")
    without: list[str] = Field(
        default_factory=list, description="texts around questions that are left out, such as an instruction"
    )

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Yields the rows whose questions do not occur in the rows of other stages.

        A row counts as used if any question of another stage's row is one of its own.
        """
        used: dict[str, str] = {}
        for stage in self.unused_in:
            for row in sources[stage]():
                for question in _normalize_texts(list_all_questions(row), self.without):
                    used.setdefault(question, f"in '{row.id}' of stage '{stage}'")
        for row in sources[self.from_data]():
            texts = list_all_questions(row) if self.asked == "all" else list_own_questions(row)
            own_questions = _pick_questions(_normalize_texts(texts, self.without), self.asked)
            first_use = next((used[question] for question in own_questions if question in used), None)
            if first_use is None:
                yield row
            else:
                drops.add("question used", row.id, first_use)


def normalize_question(row: Row, asked: Asked = "first", without: list[str] | None = None) -> str:
    """Returns a row's question in a normal form that ignores case, thinking flags and white space.

    It is equal for questions that differ in case, flags and white space alone.
    """
    return "\n".join(_pick_questions(list_normalized_questions(row, without or []), asked))


def list_normalized_questions(row: Row, without: list[str]) -> list[str]:
    """Lists the normal form of each of a row's own questions that is not blank, in order."""
    return _normalize_texts(list_own_questions(row), without)


def _normalize_texts(texts: list[str], without: list[str]) -> list[str]:
    """Returns the normal forms of the texts, without blank ones."""
    return [normalized for text in texts if (normalized := _normalize_text(text, without))]


def _normalize_text(text: str, without: list[str]) -> str:
    """Returns a text in lower case, without thinking flags and the given substrings.

    Its words and signs stand apart.
    """
    for part in without:
        text = text.replace(part, " ")
    return " ".join(split_words_and_signs(remove_flags(text)))


def _pick_questions(questions: list[str], asked: Asked) -> list[str]:
    """Returns the first question, the last question or all questions of a list, as `asked` says."""
    return questions if asked == "all" else questions[:1] if asked == "first" else questions[-1:]


def _to_exact_fraction(share: float) -> Fraction:
    """Converts a share such as 0.1 to the exact fraction of its decimal notation."""
    return Fraction(str(share))  # the decimal that was written, so that 0.1 and 0.2 and 0.7 make 1
