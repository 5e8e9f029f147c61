"""Finds data rows that repeat a benchmark's questions, by the rules of published recipes.

find = S1Overlap(against="math500").make_finder([Question("1", "What is the sum of ...?"), ...])
find("Find the sum of ...")  # None, or the question and what is shared
"""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from qwen_align.align.errors import DataError
from qwen_align.align.references import OutsideFile
from qwen_align.align.rows import Row
from qwen_align.data_builders.benchmark_questions import Against, Question, Reader
from qwen_align.data_builders.longest_common_subsequence import (
    SubsequenceIndex,
    compute_lcs_length,
    compute_shorter_share,
)
from qwen_align.data_builders.ngram_index import NgramIndex
from qwen_align.data_builders.row_texts import Part, join_part_texts
from qwen_align.data_builders.text_to_words import split_words


class Overlap(NamedTuple):
    """The benchmark question that a text repeats, with a readable description of what they share."""

    question: str
    shared: str


Finder = Callable[[str], Overlap | None]
Units = Callable[[str], Sequence[str]]


class _Rule(Against):
    """The settings that all contamination rules share: a benchmark and the compared part of a data row."""

    part: Part = Field(
        default="question",  # s1 compares questions; traces that quote a question belong to that question
        description="part of a row that is compared: its user turns, or all turns but the system's",
    )

    method: str
    _help_for_short: ClassVar[str] = "a second rule with method same_words does"

    def make_finder(self, questions: Sequence[Question]) -> Finder:
        """Makes a function that returns the benchmark question that a text repeats.

        The function returns None if the text repeats no question. Warns of questions that the rule can never find.
        """
        split_units = self._choose_unit_splitter()
        question_units = [split_units(question.text) for question in questions]
        n_too_short = sum(len(units_of_question) < self._min_units for units_of_question in question_units)
        if n_too_short:
            warnings.warn(
                f"contamination: {n_too_short} of {len(question_units)} questions of {self.benchmark_name} are too "
                f"short for method '{self.method}', which finds no copy of them; {self._help_for_short}",
                stacklevel=2,
            )
        return self._make_finder([question.id for question in questions], question_units, split_units)

    @abstractmethod
    def _choose_unit_splitter(self) -> Units:
        """Returns the function that splits a text into the units (words or tokens) that are compared."""

    @property
    @abstractmethod
    def _min_units(self) -> int:
        """Returns the number of units (words or tokens) below which a benchmark question is never found."""

    @abstractmethod
    def _make_finder(self, ids: Sequence[str], question_units: Sequence[Sequence[str]], split_units: Units) -> Finder:
        """Makes the function that finds which of the questions, given as lists of units, a text repeats."""


class S1Overlap(_Rule):
    """A contamination rule for one shared n-gram of words, as in s1 and open-r1.

    Words are split at white space and case folded; signs are kept. Text without spaces, such as Chinese, has no such
    n-grams. Source: simplescaling/s1 77272c6 data/decontaminate_util.py.
    """

    method: Literal["s1"] = Field(default="s1", description="rule: one shared n-gram of white-space words, as in s1")
    ngram: int = Field(default=8, ge=1, description="words in the n-gram")  # s1 data/collect_data.py: ngram_size=8

    def _choose_unit_splitter(self) -> Units:
        return lambda text: text.lower().split()

    @property
    def _min_units(self) -> int:
        return self.ngram

    def _make_finder(self, ids: Sequence[str], question_units: Sequence[Sequence[str]], split_units: Units) -> Finder:
        index = NgramIndex(question_units, self.ngram)

        def find(text: str) -> Overlap | None:
            for shared in index.find_shared(split_units(text)):
                return Overlap(ids[shared.texts[0]], f"{shared.words!r}")
            return None

        return find


class Qwen25MathOverlap(_Rule):
    """A contamination rule for a shared n-gram plus a long common subsequence, as in Qwen2.5-Math.

    N-grams are of words without signs; the subsequence has to exceed a share of the shorter text. Qwen2.5-Math
    (arXiv:2409.12122): 13-grams of normalised text, LCS ratio above 0.6. Our choice, as undisclosed there: lower case,
    single CJK characters as words, and the ratio to the shorter text, as in Qwen2.5.
    """

    method: Literal["qwen2.5_math"] = Field(
        default="qwen2.5_math", description="rule: a shared n-gram and a long common subsequence, as in Qwen2.5-Math"
    )
    ngram: int = Field(default=13, ge=1, description="words in the n-gram")
    above_share: float = Field(
        default=0.6, ge=0, lt=1, description="share of the shorter text that the longest common subsequence must exceed"
    )

    def _choose_unit_splitter(self) -> Units:
        return split_words

    @property
    def _min_units(self) -> int:
        return self.ngram

    def _make_finder(self, ids: Sequence[str], question_units: Sequence[Sequence[str]], split_units: Units) -> Finder:
        index = NgramIndex(question_units, self.ngram)
        above = Fraction(str(self.above_share))  # the decimal that was written, so that 0.6 of 35 is 21

        def find(text: str) -> Overlap | None:
            text_units = split_units(text)
            compared: set[int] = set()
            for shared in index.find_shared(text_units):
                for index_of_question in shared.texts:
                    if index_of_question in compared:
                        continue
                    compared.add(index_of_question)
                    common = compute_lcs_length(text_units, question_units[index_of_question])
                    share = compute_shorter_share(common, len(text_units), len(question_units[index_of_question]))
                    if share > above:
                        return Overlap(ids[index_of_question], f"{_describe_overlap(common, share)}, {shared.words!r}")
            return None

        return find


class Qwen25Overlap(_Rule):
    """A contamination rule for a long common subsequence of tokens or words, as in Qwen2.5.

    It has to reach a number of units and a share of the shorter text. Qwen2.5 (arXiv:2412.15115): 13 tokens and 0.6.
    Tokens are those of `tokenizer`; without one, words and CJK characters in lower case without signs (our choice:
    needs no tokenizer's file, and case does not hide a copy). For questions: of a trace of thousands of tokens, nearly
    any question's words are a subsequence by chance.
    """

    method: Literal["qwen2.5"] = Field(
        default="qwen2.5", description="rule: a long common subsequence of tokens, as in Qwen2.5"
    )
    min_common: int = Field(default=13, ge=1, description="fewest tokens in the longest common subsequence")
    min_share: float = Field(
        default=0.6,
        gt=0,
        le=1,
        description="smallest share of the shorter text that the longest common subsequence has",
    )
    tokenizer: OutsideFile | None = Field(
        default=None, description="a tokenizer.json, such as Qwen3's; null: words and CJK characters are the tokens"
    )

    def _choose_unit_splitter(self) -> Units:
        if self.tokenizer is None:
            return split_words
        tokenizer = _load_tokenizer(Path(self.tokenizer))
        return lambda text: list(map(str, tokenizer.encode(text, add_special_tokens=False).ids))

    @property
    def _min_units(self) -> int:
        return self.min_common

    def _make_finder(self, ids: Sequence[str], question_units: Sequence[Sequence[str]], split_units: Units) -> Finder:
        share = Fraction(str(self.min_share))
        index = SubsequenceIndex(question_units, min_common=self.min_common, min_share=share)

        def find(text: str) -> Overlap | None:
            alike = index.find_first_alike(split_units(text))
            return None if alike is None else Overlap(ids[alike.text], _describe_overlap(alike.common, alike.share))

        return find


def _load_tokenizer(path: Path) -> Any:
    """Loads a tokenizer from its tokenizer.json file. Raises DataError if the file cannot be read."""
    from tokenizers import Tokenizer

    if not path.is_file():
        problem = "is a folder" if path.is_dir() else "there is no such file"
        raise DataError(f"tokenizer: {path}: {problem}; a model's tokenizer.json is meant")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no narrower class for a file it cannot read
        if type(error) is not Exception:
            raise
        raise DataError(f"tokenizer: {path}: is no tokenizer.json: {error}; a model's is meant") from None


class SameWords(_Rule):
    """A contamination rule for texts with the same words in the same order, apart from case and signs.

    It is our own, for questions too short for the other rules.
    """

    method: Literal["same_words"] = Field(default="same_words", description="rule: the same words in the same order")
    _help_for_short: ClassVar[str] = "they hold no word"

    def _choose_unit_splitter(self) -> Units:
        return split_words

    @property
    def _min_units(self) -> int:
        return 1

    def _make_finder(self, ids: Sequence[str], question_units: Sequence[Sequence[str]], split_units: Units) -> Finder:
        first: dict[tuple[str, ...], str] = {}
        for question, text_units in zip(ids, question_units, strict=True):
            first.setdefault(tuple(text_units), question)

        def find(text: str) -> Overlap | None:
            text_units = tuple(split_units(text))
            return Overlap(first[text_units], "the same words") if text_units and text_units in first else None

        return find


def _describe_overlap(common: int, share: Fraction) -> str:
    """Describes in words how many units (words or tokens) two texts have in common."""
    return f"{common} in common, {float(share):.2f} of the shorter"


Contamination = Annotated[S1Overlap | Qwen25MathOverlap | Qwen25Overlap | SameWords, Field(discriminator="method")]


class Benchmark(NamedTuple):
    """A contamination rule together with the finder made from its benchmark's questions."""

    reason: str
    part: Part
    find: Finder


def read_benchmarks(rules: Iterable[Contamination], sources: Mapping[str, Reader]) -> list[Benchmark]:
    """Reads the benchmark of each contamination rule and returns the rules ready to be applied, in order."""
    return [
        Benchmark(
            f"contaminated: {rule.benchmark_name}, {rule.method}",
            rule.part,
            rule.make_finder(rule.read_questions(sources)),
        )
        for rule in rules
    ]


def find_contamination(row: Row, benchmarks: Iterable[Benchmark]) -> tuple[str, Overlap] | None:
    """Returns the reason and the overlap of the first rule that finds a data row contaminated.

    Returns None if no rule does.
    """
    for benchmark in benchmarks:
        overlap = benchmark.find(join_part_texts(row, benchmark.part))
        if overlap is not None:
            return benchmark.reason, overlap
    return None
