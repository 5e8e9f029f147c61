"""Domains of questions, by column, keywords or a user's function, and as even a spread over them as the rows allow."""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from random import Random
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator

from qwen_align.align.errors import DataError, RecipeError
from qwen_align.align.references import DataRef, OutsideFile
from qwen_align.align.rows import Row, RowError
from qwen_align.align.settings.base import Strict
from qwen_align.data_builders.selection_features import Selectable, noted, question_of, selectable
from qwen_align.data_builders.sieve import Drops, Sources
from qwen_align.reward.base import count_cores
from qwen_align.reward.python_file import load_user_function
from qwen_align.reward.worker_pool import Pool, PoolError, StartError


class Label(NamedTuple):
    """A row's domain, or None and why it has none."""

    domain: str | None
    why: str = ""


class ByColumn(Strict):
    """The domain is a text or whole number in the row's meta, or, with no column, the row's source."""

    by: Literal["column"] = "column"
    column: str | None = Field(default="domain", min_length=1, description="null: the row's source")

    def label(self, rows: Sequence[Selectable]) -> list[Label]:
        """A label for each row; raises RowError for a column that holds something else."""
        return [self._label(row) for row in rows]

    def _label(self, row: Selectable) -> Label:
        value = row.source if self.column is None else row.meta.get(self.column)
        if isinstance(value, bool) or not isinstance(value, str | int | None):
            raise RowError(f"row '{row.id}': meta '{self.column}' is {value!r:.60}, neither text nor a whole number")
        where = "no source" if self.column is None else f"no meta '{self.column}'"
        return Label(str(value)) if value is not None and str(value).strip() else Label(None, where)


_NO_SPACES = r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"  # kana and Han: words run into each other


class ByKeywords(Strict):
    """The domain whose keywords stand in the question most often; of equals, the first by name.

    Keywords are whole words or phrases, upper and lower case alike; Chinese and Japanese ones are found anywhere.
    """

    by: Literal["keywords"] = "keywords"
    table: dict[str, list[str]] = Field(min_length=1, description="domain: its keywords")

    @field_validator("table")
    @classmethod
    def _check_table(cls, table: dict[str, list[str]]) -> dict[str, list[str]]:
        for domain, keywords in table.items():
            if not domain.strip() or not keywords or not all(one.strip() for one in keywords):
                raise ValueError(f"'{domain}': a domain has a name and at least one keyword, none of them blank")
        return table

    def label(self, rows: Sequence[Selectable]) -> list[Label]:
        """A label for each row."""
        patterns = [(domain, _any_of(self.table[domain])) for domain in sorted(self.table)]
        return [_most_frequent(patterns, question_of(row)) for row in rows]


def _any_of(keywords: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted({" ".join(one.casefold().split()) for one in keywords}, key=lambda one: (-len(one), one))
    return re.compile("|".join(map(_whole, longest_first)))


def _whole(keyword: str) -> str:
    """A pattern for the keyword, at the borders of words where it begins or ends with a letter of a spaced script.

    It looks back after its first letter, not before: patterns that begin with a letter are searched for at once.
    """
    start = r"(?<!\w\w)" if re.match(rf"(?!{_NO_SPACES})\w", keyword) else ""
    end = r"(?!\w)" if re.match(rf"(?!{_NO_SPACES})\w", keyword[-1]) else ""
    return re.escape(keyword[0]) + start + re.escape(keyword[1:]) + end


def _most_frequent(patterns: Sequence[tuple[str, re.Pattern[str]]], question: str) -> Label:
    text = " ".join(question.casefold().split())
    counts = {domain: sum(1 for _ in pattern.finditer(text)) for domain, pattern in patterns}
    best = max(counts, key=lambda domain: counts[domain])  # of equals the first, and the patterns stand by name
    return Label(best) if counts[best] else Label(None, "no keyword")


class ByPython(Strict):
    """The domain is the text that `name(question)` of a user's file returns; None for no domain.

    It runs in worker processes: it may hang, raise or crash without harm to the build; such rows have no domain. The
    file's sha256 is in the stage's key, not that of files it imports.
    """

    by: Literal["python"] = "python"
    file: OutsideFile
    name: str = Field(default="domain", pattern=r"^[A-Za-z_][A-Za-z_0-9]*$")
    time_limit_s: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    memory_gib: float = Field(default=4.0, gt=0, allow_inf_nan=False)

    def label(self, rows: Sequence[Selectable]) -> list[Label]:
        """A label for each row; raises RecipeError if the file cannot be imported or lacks the function."""
        pool = _pool(self.file, self.name, self.time_limit_s, self.memory_gib)
        try:
            pool.warm_up()
        except StartError as error:
            raise RecipeError(f"domains: {self.file}: {error}") from error
        with ThreadPoolExecutor(count_cores()) as threads:
            return list(threads.map(lambda row: _ask(pool, question_of(row)), rows))


@cache
def _pool(file: str, name: str, time_limit_s: float, memory_gib: float) -> Pool:
    argument = {"file": str(Path(file).resolve()), "name": name}
    entry = "qwen_align.data_builders.domains:serve"
    return Pool(entry, argument, workers=count_cores(), limit_s=time_limit_s, memory_gib=memory_gib)


def serve(argument: dict[str, Any]) -> Callable[[str], str | None]:
    """In the workers' server: imports the user's file and returns what answers requests."""
    function = load_user_function(Path(argument["file"]), argument["name"])

    def handle(question: str) -> str | None:
        found = function(question)
        if found is not None and not isinstance(found, str):
            raise TypeError(f"{found!r:.60} returned; a domain is a text, or None")
        return found

    return handle


def _ask(pool: Pool, question: str) -> Label:
    try:
        found = pool.ask(question)
    except PoolError as error:
        return Label(None, str(error))
    return Label(found) if found and found.strip() else Label(None, "the function returned none")


DomainSettings = Annotated[ByColumn | ByKeywords | ByPython, Field(discriminator="by")]


class Domains(Strict):
    """Rows with their domain, in order; with `n`, that many, spread over the domains as evenly as they allow.

    A domain with fewer rows than its even part gives all it has. Which rows of a domain are taken depends on the seed
    and their ids alone. The domain stands in the row's meta under `note_as`, where other selections read it; if that
    is the column it was read from, it stays as it is.
    """

    kind: Literal["domains"] = "domains"
    from_data: DataRef
    domain: DomainSettings = ByColumn()
    unknown: str | None = Field(default=None, min_length=1, description="domain of rows without one; null: dropped")
    n: int | None = Field(default=None, ge=1, description="rows in all; null: no bound")
    per_domain: int | None = Field(default=None, ge=1, description="rows of one domain at most; null: no bound")
    note_as: str = Field(default="domain", min_length=1)

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """The chosen rows; raises DataError if there are fewer than `n`."""
        rows = selectable(sources, self.from_data)
        domain_of: dict[str, str] = {}
        for row, label in zip(rows, self.domain.label(rows), strict=True):
            found = self.unknown if label.domain is None else label.domain
            if found is None:
                drops.add("no domain", row.id, label.why)
            else:
                domain_of[row.id] = found
        chosen = spread(domain_of, n=self.n, per_domain=self.per_domain, seed=seed)
        for row in rows:
            if row.id in chosen:
                yield self._noted(row, domain_of[row.id])
            elif row.id in domain_of:
                drops.add("over its domain's part", row.id, domain_of[row.id])

    def _noted(self, row: Selectable, domain: str) -> Selectable:
        is_there = isinstance(self.domain, ByColumn) and self.domain.column == self.note_as
        return row if is_there and self.note_as in row.meta else noted(row, self.note_as, domain)


def spread(domain_of: dict[str, str], *, n: int | None, per_domain: int | None, seed: int) -> set[str]:
    """The ids chosen by taking one of each domain in turn; raises DataError if there are fewer than `n`."""
    domains: dict[str, list[str]] = {}
    for row_id in sorted(domain_of, key=lambda row_id: _lot(seed, row_id)):
        domains.setdefault(domain_of[row_id], []).append(row_id)
    turns = sorted(domains)
    Random(f"domains {seed}").shuffle(turns)  # so that a last, unfinished turn favours no name
    longest = max(map(len, domains.values()), default=0)
    depth = longest if per_domain is None else min(longest, per_domain)
    taken = [domains[domain][place] for place in range(depth) for domain in turns if place < len(domains[domain])]
    if n is not None and len(taken) < n:
        capped = "" if per_domain is None else f" at {per_domain} a domain"
        raise DataError(f"domains: {len(taken)} rows of {len(domains)} domains{capped} are fewer than n: {n}; lower n")
    return set(taken[:n])


def _lot(seed: int, row_id: str) -> bytes:
    return hashlib.sha256(f"domains {seed} {row_id}".encode()).digest()
