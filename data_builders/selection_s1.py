"""Selects traces as s1 does, by quality, difficulty and diversity, following its authors' notebook.

There are 1,000 of them in the paper. arXiv:2501.19393, section 2.2; simplescaling/s1 at 77272c6, data/filter.ipynb
cells 4 to 21. What the notebook leaves to chance is settled here: it draws unseeded and orders domains by Python's
string hash; we draw from a seed, with domains by name.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from qwen_align.align.errors import DataError, RecipeError
from qwen_align.align.references import DataRef
from qwen_align.align.rows import Row, RowError, Trace
from qwen_align.align.settings.base import Strict
from qwen_align.data_builders.selection_domains import ByColumn, DomainSettings
from qwen_align.data_builders.selection_inputs import (
    Attempts,
    Selectable,
    add_note_to_meta,
    join_user_turns,
    read_selectable_rows,
)
from qwen_align.data_builders.selection_s1_sampling import (
    Candidate,
    draw_by_domain,
    make_numpy_random,
    rank_within_domains,
)
from qwen_align.data_builders.sieve import Drops, Sources

FormatRule = Literal["asy", "image", "numbered_point", "bold_number"]


class Preselect(Strict):
    """A rule that selects rows before the random draw: correct ones of a source with long enough thinking."""

    source: str | None = Field(default=None, description="the source by its whole name")
    source_has: str | None = Field(default=None, min_length=1, description="text that the source's name contains")
    longer_than: int | None = Field(
        default=None, ge=0, description="length that the thinking must exceed; null: any length"
    )

    @model_validator(mode="after")
    def _check_source(self) -> Self:
        """Raises ValueError unless exactly one of source and source_has is given."""
        if (self.source is None) == (self.source_has is None):
            raise ValueError("say either source or source_has")
        return self

    def is_taken(self, source: str, length: int) -> bool:
        """Returns whether the rule selects a row of the given source and thinking length."""
        is_of_source = source == self.source if self.source is not None else str(self.source_has) in source
        return is_of_source and (self.longer_than is None or length > self.longer_than)


# Cell 14. The hub has since renamed qfq/openaimath to simplescaling/openaimath.
PRESELECT = [
    Preselect(source="Idavidrein/gpqa"),
    Preselect(source="qq8933/AIME_1983_2024"),
    Preselect(source_has="qfq/openaimath", longer_than=5600),
]


class Benchmarks(Strict):
    """Settings that name two benchmark sources, whose domain counts are the weights for drawing the last rows.

    The counts of one are used as they are, those of the other are scaled to `ratio`. Both are counted over the hard
    rows; the scaled counts are cut to whole numbers (cells 17 and 18).
    """

    whole: str = Field(
        default="qq8933/AIME_1983_2024", description="source whose counts by domain are weights as they are"
    )
    scaled: str = Field(default="Idavidrein/gpqa", description="source whose counts by domain are scaled")
    ratio: float = Field(
        default=0.5,
        gt=0,
        description="total of the scaled counts, as a multiple of the other source's total",
    )


class S1(Strict):
    """A builder that selects `n` well-formed rows that small models do not solve, drawn domain by domain.

    Some sources are taken whole. Every feature is a column of the row's `meta`, a rollout stage's verdicts, or, for
    domains, a classifier. Where paper and code differ the defaults are the code's; `uniform_until: null` is the paper's
    Algorithm 1, all domains alike to the end. Rows come in the source's order; meta `s1` says how a row was chosen, and
    its rank by length among the hard rows of its domain, the longest 0.
    """

    kind: Literal["s1"] = "s1"
    from_data: DataRef = Field(description="data stage whose rows are chosen from")
    n: int = Field(default=1000, ge=1, description="number of rows to choose")
    solvers: Annotated[list[Attempts], Field(min_length=1)] = Field(
        description="attempts of the small models; rows that any of them solved are dropped"
    )  # s1: Qwen2.5-7B-Instruct and Qwen2.5-32B-Instruct
    teacher: Attempts = Field(
        description="attempts that say whether the trace itself is right; wrong ones can be drawn, not pre-selected"
    )
    length_column: str | None = Field(
        description="key of meta with the thinking's number of tokens; null: count its characters"
    )
    domain: DomainSettings = Field(default=ByColumn(), description="where a row's domain comes from")
    source_column: str | None = Field(default=None, description="key of meta with the source; null: the row's source")
    refused: list[FormatRule] = Field(
        default=["asy", "image", "numbered_point", "bold_number"], description="formats that a question may not have"
    )
    asy_allowed_in: str | None = Field(
        default="AIME",
        min_length=1,
        description="sources whose name contains this may draw with [asy]; no format is refused in questions that do",
    )
    preselect: list[Preselect] = Field(
        default=PRESELECT, description="rules for rows that are taken before any is drawn"
    )
    uniform_until: int | None = Field(
        default=700,
        ge=0,
        description="number of rows drawn with all domains alike before benchmarks weigh them; null: all rows",
    )
    benchmarks: Benchmarks = Field(default=Benchmarks(), description="sources by whose domains the last rows are drawn")
    seed: int | None = Field(default=None, ge=0, lt=2**32, description="seed of the draws; null: the recipe's")

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Yields the selected rows. Raises DataError if there are not `n`, or more are pre-selected."""
        hard_rows = self.select_hard_rows(sources, drops)
        choice_of = self.choose_rows(hard_rows, seed if self.seed is None else self.seed, drops)
        ranks = rank_within_domains(_make_candidates(hard_rows))
        for features in hard_rows:
            if features.row.id not in choice_of:
                drops.add("not drawn", features.row.id, features.domain)
                continue
            facts = {"chosen": choice_of[features.row.id], "domain": features.domain, "length": features.length}
            yield add_note_to_meta(features.row, "s1", {**facts, "length_rank": ranks[features.row.id]})

    def select_hard_rows(self, sources: Sources, drops: Drops) -> list["RowFeatures"]:
        """Returns the well-formed rows with all features that none of the small models solved.

        Cells 4, 7 and 9 of the notebook.
        """
        solver_readers = [attempts.make_reader(sources) for attempts in self.solvers]
        read_teacher = self.teacher.make_reader(sources)
        rows = read_selectable_rows(sources, self.from_data)
        hard_rows = []
        for row, label in zip(rows, self.domain.label_domains(rows), strict=True):
            tries, teacher, length = [read(row) for read in solver_readers], read_teacher(row), self._read_length(row)
            source = self._read_source(row)
            if teacher is None or length is None or label.domain is None or None in tries:
                missing = [
                    attempts.location
                    for attempts, tries_found in zip(self.solvers, tries, strict=True)
                    if tries_found is None
                ]
                missing += [self.teacher.location] if teacher is None else []
                missing += [self._length_location] if length is None else []
                missing += [f"domain: {label.why}"] if label.domain is None else []
                drops.add("missing feature", row.id, ", ".join(missing))
            elif fault := find_format_fault(join_user_turns(row), source, self.refused, self.asy_allowed_in):
                drops.add("format", row.id, fault)
            elif any(tries_found is not None and tries_found.n_correct for tries_found in tries):
                drops.add("solved by a small model", row.id, "")
            else:
                hard_rows.append(RowFeatures(row, source, label.domain, length, teacher.n_correct > 0))
        return hard_rows

    def choose_rows(self, hard_rows: Sequence["RowFeatures"], seed: int, drops: Drops) -> dict[str, str]:
        """Chooses `n` of the hard rows and returns how each was chosen, by row id.

        The values are `preselected`, `uniform` or `benchmark`; cells 14 to 21. `drops` has the others, for errors.
        """
        if not 0 <= seed < 2**32:
            raise RecipeError(f"s1: seed {seed}: the draws take seeds from 0 to 2**32 - 1; set seed in the builder")
        preselected_ids = [
            features.row.id for features in hard_rows if features.is_right and self._is_preselected(features)
        ]
        if not len(preselected_ids) <= self.n <= len(hard_rows):
            raise DataError(
                f"s1: n is {self.n}, but {len(hard_rows)} hard rows are left, {len(preselected_ids)} of them "
                f"pre-selected; n lies between: change it, bring more rows, or narrow preselect. "
                f"Dropped: {_describe_drops(drops)}"
            )
        domain_weights = {} if self.uniform_until is None else count_benchmark_domains(hard_rows, self.benchmarks)
        if self.uniform_until is not None and self.uniform_until < self.n and not domain_weights:
            raise DataError(
                f"s1: no hard row has source '{self.benchmarks.whole}' or '{self.benchmarks.scaled}', by whose domains "
                f"{self.n - self.uniform_until} rows are to be drawn; name yours in benchmarks, or uniform_until: null"
            )
        return draw_by_domain(
            _make_candidates(hard_rows),
            dict.fromkeys(preselected_ids, "preselected"),
            n=self.n,
            uniform_until=self.uniform_until,
            weights=domain_weights,
            random=make_numpy_random(seed),
        )

    def _is_preselected(self, features: "RowFeatures") -> bool:
        """Returns whether a pre-selection rule selects a row."""
        return any(rule.is_taken(features.source, features.length) for rule in self.preselect)

    def _read_source(self, row: Selectable) -> str:
        """Returns the name of a row's source. Raises RowError if it is no text."""
        source = row.source if self.source_column is None else row.meta.get(self.source_column)
        if not isinstance(source, str):
            raise RowError(f"row '{row.id}': meta '{self.source_column}' is {source!r:.60}; a source is a text")
        return source

    @property
    def _length_location(self) -> str:
        """Returns a description, for an error message, of where the lengths of thinking are read from."""
        return "thinking" if self.length_column is None else f"meta '{self.length_column}'"

    def _read_length(self, row: Selectable) -> int | None:
        """Returns the length of a row's thinking.

        Returns None if it has none. Raises RowError for what is no whole number.
        """
        if self.length_column is None:
            return len(row.thinking) if isinstance(row, Trace) else None
        length = row.meta.get(self.length_column)
        if length is None or (isinstance(length, int) and not isinstance(length, bool)):
            return length
        raise RowError(f"row '{row.id}': meta '{self.length_column}' is {length!r:.60}; a length is a whole number")


def _describe_drops(drops: Drops) -> str:
    """Describes the number of dropped rows by reason, each with its first detail.

    What is missing in every row may be a column's name.
    """
    first_detail: dict[str, str] = {}
    for drop in drops.rows:
        first_detail.setdefault(drop.reason, drop.detail)
    reasons = [
        f"{count:,} {reason}{f' ({first_detail[reason]})' * bool(first_detail[reason])}"
        for reason, count in drops.counts.items()
    ]
    return ", ".join(reasons) or "none"


class RowFeatures(NamedTuple):
    """A row with the features that the s1 selection needs. `is_right` is the teacher's verdict."""

    row: Selectable
    source: str
    domain: str
    length: int
    is_right: bool


def _make_candidates(rows: Sequence[RowFeatures]) -> list[Candidate]:
    """Converts rows with features to the candidates that rows are drawn from."""
    return [Candidate(features.row.id, features.domain, features.length) for features in rows]


_NUMBERED_POINT = re.compile(
    r"p[1-9][0-9]{0,2}\."
)  # "p1." to "p999.": several questions in one, and "step1." with them


def find_format_fault(
    question: str, source: str, refused: Sequence[FormatRule], asy_allowed_in: str | None
) -> str | None:
    """Returns the first of the refused formats that a question has. Returns None if it has none; cell 7."""
    if "[asy]" in question and asy_allowed_in is not None and asy_allowed_in in source:
        return None
    broken_rules: dict[FormatRule, bool] = {
        "asy": "[asy]" in question,
        "image": "![Image]" in question,
        "numbered_point": _NUMBERED_POINT.search(question) is not None,
        "bold_number": has_bold_number(question),
    }
    return next((rule for rule in broken_rules if broken_rules[rule] and rule in refused), None)


_RUN = re.compile(r"[^\s\]]+")
_DIGIT = re.compile(r"\d")


def has_bold_number(question: str) -> bool:
    r"""Returns whether a question has a number in Markdown bold, such as `**12**`.

    The pattern is `\*\*(?=.*\d)[^\s\]]*\*\*`; it is found in linear time, where that takes quadratic on many stars.
    """
    for line in question.split("\n"):
        if "**" in line:
            last_digit = max((match.start() for match in _DIGIT.finditer(line)), default=-1)
            for run in _RUN.finditer(line):
                first_stars = run.group().find("**")
                if (
                    first_stars >= 0
                    and run.group().find("**", first_stars + 2) >= 0
                    and last_digit >= run.start() + first_stars + 2
                ):
                    return True
    return False


def count_benchmark_domains(rows: Sequence[RowFeatures], benchmarks: Benchmarks) -> dict[str, int]:
    """Counts the rows of the two benchmark sources by domain, as whole-number weights of the domains.

    They stand in the notebook's order. Empty if neither source is there.

    Raises DataError if only one is.
    """
    scaled_counts = Counter(features.domain for features in rows if features.source == benchmarks.scaled)
    whole_counts = Counter(features.domain for features in rows if features.source == benchmarks.whole)
    if not scaled_counts and not whole_counts:
        return {}
    if not scaled_counts or not whole_counts:
        absent = benchmarks.whole if scaled_counts else benchmarks.scaled
        raise DataError(f"s1: benchmarks: no hard row has source '{absent}'; name another, or uniform_until: null")
    ratio = benchmarks.ratio * whole_counts.total() / scaled_counts.total()
    counts = Counter({domain: int(count * ratio) for domain, count in scaled_counts.items()})
    return dict(counts + whole_counts)  # which leaves out domains cut to nothing
