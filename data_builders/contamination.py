"""Rows that repeat a benchmark's questions, found by the rules that published recipes used, each with its pair.

find = S1Overlap(against="math500").finder([Question("1", "What is the sum of ...?"), ...])
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
from qwen_align.data_builders.benchmark import Against, Question, Reader
from qwen_align.data_builders.common_subsequence import SubsequenceIndex, lcs_length, share_of_shorter
from qwen_align.data_builders.ngram_index import NgramIndex
from qwen_align.data_builders.row_texts import Part, part_of
from qwen_align.data_builders.text_units import words


class Overlap(NamedTuple):
    """The benchmark's question that a text repeats, and what of it, in words for people."""

    question: str
    shared: str


Finder = Callable[[str], Overlap | None]
Units = Callable[[str], Sequence[str]]


class _Rule(Against):
    """What every rule has: the benchmark, and the part of a row that is held against it."""

    part: Part = Field(
        default="question",  # s1 compares questions; traces that quote a question belong to that question
        description="what of a row is looked at: its user turns, or all turns but the system's",
    )

    method: str
    _help_for_short: ClassVar[str] = "a second rule with method same_words does"

    def finder(self, questions: Sequence[Question]) -> Finder:
        """Says of a text which question it repeats, if any; warns of questions that the rule can never find."""
        units = self._units()
        asked = [units(question.text) for question in questions]
        too_short = sum(len(one) < self._fewest_units for one in asked)
        if too_short:
            warnings.warn(
                f"contamination: {too_short} of {len(asked)} questions of {self.benchmark} are too short for method "
                f"'{self.method}', which finds no copy of them; {self._help_for_short}",
                stacklevel=2,
            )
        return self._finder([question.id for question in questions], asked, units)

    @abstractmethod
    def _units(self) -> Units:
        """What texts are compared by."""

    @property
    @abstractmethod
    def _fewest_units(self) -> int:
        """A question of fewer units is never found."""

    @abstractmethod
    def _finder(self, ids: Sequence[str], asked: Sequence[Sequence[str]], units: Units) -> Finder: ...


class S1Overlap(_Rule):
    """One shared n-gram of white-space words, case folded and signs kept, as s1 and open-r1 do.

    simplescaling/s1 77272c6 data/decontaminate_util.py. Text without spaces, such as Chinese, has no such n-grams.
    """

    method: Literal["s1"] = "s1"
    ngram: int = Field(default=8, ge=1)  # s1 data/collect_data.py: ngram_size=8

    def _units(self) -> Units:
        return lambda text: text.lower().split()

    @property
    def _fewest_units(self) -> int:
        return self.ngram

    def _finder(self, ids: Sequence[str], asked: Sequence[Sequence[str]], units: Units) -> Finder:
        index = NgramIndex(asked, self.ngram)

        def find(text: str) -> Overlap | None:
            for shared in index.shared(units(text)):
                return Overlap(ids[shared.texts[0]], f"{shared.words!r}")
            return None

        return find


class Qwen25MathOverlap(_Rule):
    """A shared n-gram of words without signs, and a longest common subsequence above a share of the shorter text.

    Qwen2.5-Math (arXiv:2409.12122): 13-grams of normalised text, LCS ratio above 0.6. Our choice, as undisclosed there:
    lower case, single CJK characters as words, and the ratio to the shorter text, as in Qwen2.5.
    """

    method: Literal["qwen2.5_math"] = "qwen2.5_math"
    ngram: int = Field(default=13, ge=1)
    above_share: float = Field(default=0.6, ge=0, lt=1)

    def _units(self) -> Units:
        return words

    @property
    def _fewest_units(self) -> int:
        return self.ngram

    def _finder(self, ids: Sequence[str], asked: Sequence[Sequence[str]], units: Units) -> Finder:
        index = NgramIndex(asked, self.ngram)
        above = Fraction(str(self.above_share))  # the decimal that was written, so that 0.6 of 35 is 21

        def find(text: str) -> Overlap | None:
            said = units(text)
            looked_at: set[int] = set()
            for shared in index.shared(said):
                for place in shared.texts:
                    if place in looked_at:
                        continue
                    looked_at.add(place)
                    common = lcs_length(said, asked[place])
                    share = share_of_shorter(common, len(said), len(asked[place]))
                    if share > above:
                        return Overlap(ids[place], f"{_in_common(common, share)}, {shared.words!r}")
            return None

        return find


class Qwen25Overlap(_Rule):
    """A longest common subsequence of at least so many tokens and of at least a share of the shorter text.

    Qwen2.5 (arXiv:2412.15115): 13 tokens and 0.6. Tokens are those of `tokenizer`; without one, words and CJK
    characters in lower case without signs (our choice: needs no tokenizer's file, and case does not hide a copy).
    For questions: of a trace of thousands of tokens, nearly any question's words are a subsequence by chance.
    """

    method: Literal["qwen2.5"] = "qwen2.5"
    min_common: int = Field(default=13, ge=1)
    min_share: float = Field(default=0.6, gt=0, le=1)
    tokenizer: OutsideFile | None = Field(default=None, description="a tokenizer.json, such as Qwen3's")

    def _units(self) -> Units:
        if self.tokenizer is None:
            return words
        tokenizer = _read_tokenizer_file(Path(self.tokenizer))
        return lambda text: list(map(str, tokenizer.encode(text, add_special_tokens=False).ids))

    @property
    def _fewest_units(self) -> int:
        return self.min_common

    def _finder(self, ids: Sequence[str], asked: Sequence[Sequence[str]], units: Units) -> Finder:
        share = Fraction(str(self.min_share))
        index = SubsequenceIndex(asked, min_common=self.min_common, min_share=share)

        def find(text: str) -> Overlap | None:
            alike = index.first_alike(units(text))
            return None if alike is None else Overlap(ids[alike.text], _in_common(alike.common, alike.share))

        return find


def _read_tokenizer_file(path: Path) -> Any:
    from tokenizers import Tokenizer

    if not path.is_file():
        what = "is a folder" if path.is_dir() else "there is no such file"
        raise DataError(f"tokenizer: {path}: {what}; a model's tokenizer.json is meant")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no narrower class for a file it cannot read
        if type(error) is not Exception:
            raise
        raise DataError(f"tokenizer: {path}: is no tokenizer.json: {error}; a model's is meant") from None


class SameWords(_Rule):
    """The same words in the same order, case and signs apart: ours, for questions too short for the other rules."""

    method: Literal["same_words"] = "same_words"
    _help_for_short: ClassVar[str] = "they hold no word"

    def _units(self) -> Units:
        return words

    @property
    def _fewest_units(self) -> int:
        return 1

    def _finder(self, ids: Sequence[str], asked: Sequence[Sequence[str]], units: Units) -> Finder:
        first: dict[tuple[str, ...], str] = {}
        for question, said in zip(ids, asked, strict=True):
            first.setdefault(tuple(said), question)

        def find(text: str) -> Overlap | None:
            said = tuple(units(text))
            return Overlap(first[said], "the same words") if said and said in first else None

        return find


def _in_common(common: int, share: Fraction) -> str:
    return f"{common} in common, {float(share):.2f} of the shorter"


Contamination = Annotated[S1Overlap | Qwen25MathOverlap | Qwen25Overlap | SameWords, Field(discriminator="method")]


class Benchmark(NamedTuple):
    """A rule with its benchmark read."""

    reason: str
    part: Part
    find: Finder


def read_benchmarks(rules: Iterable[Contamination], sources: Mapping[str, Reader]) -> list[Benchmark]:
    """The rules, ready to be asked about rows, in order."""
    return [
        Benchmark(f"contaminated: {rule.benchmark}, {rule.method}", rule.part, rule.finder(rule.questions(sources)))
        for rule in rules
    ]


def contamination(row: Row, benchmarks: Iterable[Benchmark]) -> tuple[str, Overlap] | None:
    """The reason and the overlap of the first rule that finds the row contaminated."""
    for benchmark in benchmarks:
        overlap = benchmark.find(part_of(row, benchmark.part))
        if overlap is not None:
            return benchmark.reason, overlap
    return None
