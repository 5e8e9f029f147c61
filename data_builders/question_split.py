"""Splits data into parts that share no question: a question's words alone decide its part, in every kind of row."""

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
    """Settings of one part of all questions, chosen by a hash of their normal form.

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
        """Checks that the part has a share and that the shares add up to 1."""
        if self.part not in self.shares:
            raise ValueError(f"part: '{self.part}' is none of the shares{format_suggestion(self.part, self.shares)}")
        if wrong := [name for name, share in self.shares.items() if not 0 < share < 1]:
            raise ValueError(f"shares: '{wrong[0]}' is {self.shares[wrong[0]]}; a share is above 0 and below 1")
        total = sum(map(_to_exact_fraction, self.shares.values()))
        if total != 1:
            raise ValueError(f"shares: they are {float(total)} together, not 1")
        return self

    def is_in_part(self, row: Row) -> bool | None:
        """Tells whether the row's question is in this part, None if it asks nothing."""
        part = self.find_part(row)
        return None if part is None else part == self.part

    def find_part(self, row: Row) -> str | None:
        """Returns the name of the part that the row's question is in, None if it asks nothing."""
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
    """Keeps the rows of one part, in order; the others are dropped as belonging to another."""

    kind: Literal["split"] = "split"
    from_data: DataRef = Field(description="data stage whose rows are split")

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Yields the part's rows.

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
    """Keeps the rows whose questions no other stage's rows ask, in order.

    As Qwen3's RL queries, which are unused in the cold start.
    """

    kind: Literal["unused"] = "unused"
    from_data: DataRef = Field(description="data stage whose rows are filtered")
    unused_in: list[DataRef] = Field(min_length=1, description="data stages whose rows may not ask the same questions")
    asked: Asked = Field(default="all", description="which questions of a row must be unused")
    without: list[str] = Field(
        default_factory=list, description="texts around questions that are left out, such as an instruction"
    )

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Yields the rows whose questions are unused.

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
    """Returns the row's question in its normal form.

    It is equal for questions that differ in case, flags and white space alone.
    """
    return "\n".join(_pick_questions(list_normalized_questions(row, without or []), asked))


def list_normalized_questions(row: Row, without: list[str]) -> list[str]:
    """Lists the normal form of every question that the row asks in its own right and that is not blank, in order."""
    return _normalize_texts(list_own_questions(row), without)


def _normalize_texts(texts: list[str], without: list[str]) -> list[str]:
    """Returns the normal forms of the texts, blank ones left out."""
    return [normalized for text in texts if (normalized := _normalize_text(text, without))]


def _normalize_text(text: str, without: list[str]) -> str:
    """Returns a text in lower case, without flags and the given parts, its words and signs apart."""
    for part in without:
        text = text.replace(part, " ")
    return " ".join(split_words_and_signs(remove_flags(text)))


def _pick_questions(questions: list[str], asked: Asked) -> list[str]:
    """Returns the first, the last or all questions."""
    return questions if asked == "all" else questions[:1] if asked == "first" else questions[-1:]


def _to_exact_fraction(share: float) -> Fraction:
    """Returns the decimal that was written as a fraction."""
    return Fraction(str(share))  # the decimal that was written, so that 0.1 and 0.2 and 0.7 make 1
