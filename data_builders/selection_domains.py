"""Labels questions with domains by column, keywords or a user's function, and selects rows evenly over domains."""

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
from qwen_align.align.references import DataRef, PythonFile
from qwen_align.align.rows import Row, RowError
from qwen_align.align.settings.base import Strict
from qwen_align.data_builders.selection_inputs import (
    Selectable,
    add_note_to_meta,
    join_user_turns,
    read_selectable_rows,
)
from qwen_align.data_builders.sieve import Drops, Sources
from qwen_align.reward.base import count_cores
from qwen_align.reward.python_file import load_user_function
from qwen_align.reward.user_code import require_user_code
from qwen_align.reward.worker_pool import Pool, PoolError, StartError


class Label(NamedTuple):
    """A row's domain, or None and the reason why it has none."""

    domain: str | None
    why: str = ""


class ByColumn(Strict):
    """Settings that take a row's domain from a column of its meta, or, without a column, from its source.

    The column holds a text or a whole number.
    """

    by: Literal["column"] = Field(default="column", description="domains from a column")
    column: str | None = Field(
        default="domain",
        min_length=1,
        description="key of meta that holds the domain; null: the row's source is its domain",
    )

    def label_domains(self, rows: Sequence[Selectable]) -> list[Label]:
        """Returns the domain label of each row. Raises RowError for a column that holds no text or whole number."""
        return [self._label_domain(row) for row in rows]

    def _label_domain(self, row: Selectable) -> Label:
        """Returns the domain label of one row."""
        value = row.source if self.column is None else row.meta.get(self.column)
        if isinstance(value, bool) or not isinstance(value, str | int | None):
            raise RowError(f"row '{row.id}': meta '{self.column}' is {value!r:.60}, neither text nor a whole number")
        where = "no source" if self.column is None else f"no meta '{self.column}'"
        return Label(str(value)) if value is not None and str(value).strip() else Label(None, where)


_NO_SPACES = r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]"  # kana and Han: words run into each other


class ByKeywords(Strict):
    """Settings that give a question the domain whose keywords occur most often in it.

    Of equals the first by name wins. Keywords are whole words or phrases, upper and lower case alike; Chinese and
    Japanese ones are found anywhere.
    """

    by: Literal["keywords"] = Field(default="keywords", description="domains from keywords in the question")
    table: dict[str, list[str]] = Field(min_length=1, description="domain: its keywords")

    @field_validator("table")
    @classmethod
    def _check_table(cls, table: dict[str, list[str]]) -> dict[str, list[str]]:
        """Raises ValueError if a domain's name or one of its keywords is blank or missing."""
        for domain, keywords in table.items():
            if not domain.strip() or not keywords or not all(keyword.strip() for keyword in keywords):
                raise ValueError(f"'{domain}': a domain has a name and at least one keyword, none of them blank")
        return table

    def label_domains(self, rows: Sequence[Selectable]) -> list[Label]:
        """Returns the domain label of each row by the keywords in its question."""
        patterns = [(domain, _compile_keywords(self.table[domain])) for domain in sorted(self.table)]
        return [_choose_most_frequent(patterns, join_user_turns(row)) for row in rows]


def _compile_keywords(keywords: Sequence[str]) -> re.Pattern[str]:
    """Compiles a pattern that matches any of the keywords, the longest first."""
    longest_first = sorted(
        {" ".join(keyword.casefold().split()) for keyword in keywords}, key=lambda keyword: (-len(keyword), keyword)
    )
    return re.compile("|".join(map(_make_word_pattern, longest_first)))


def _make_word_pattern(keyword: str) -> str:
    """Returns a regular expression that matches a keyword as a whole word.

    Borders of words count where it begins or ends with a letter of a spaced script.

    It looks back after its first letter, not before: patterns that begin with a letter are searched for at once.
    """
    start = r"(?<!\w\w)" if re.match(rf"(?!{_NO_SPACES})\w", keyword) else ""
    end = r"(?!\w)" if re.match(rf"(?!{_NO_SPACES})\w", keyword[-1]) else ""
    return re.escape(keyword[0]) + start + re.escape(keyword[1:]) + end


def _choose_most_frequent(patterns: Sequence[tuple[str, re.Pattern[str]]], question: str) -> Label:
    """Returns the label of the domain whose pattern matches a question most often."""
    text = " ".join(question.casefold().split())
    counts = {domain: sum(1 for _ in pattern.finditer(text)) for domain, pattern in patterns}
    best = max(counts, key=lambda domain: counts[domain])  # of equals the first, and the patterns stand by name
    return Label(best) if counts[best] else Label(None, "no keyword")


class ByPython(Strict):
    """Settings that take a question's domain from the function `name` in a user's Python file.

    It returns a text, or None for no domain. It runs in worker processes: it may hang, raise or crash without harm to
    the build; such rows have no domain. What the file imports is in the stage's key, as of a reward of your own.
    """

    by: Literal["python"] = Field(default="python", description="domains from a user's Python function")
    file: PythonFile = Field(description="Python file that defines the function")
    name: str = Field(default="domain", pattern=r"^[A-Za-z_][A-Za-z_0-9]*$", description="name of the function")
    time_limit_s: float = Field(default=10.0, gt=0, description="seconds that one call may take")
    memory_gib: float = Field(default=4.0, gt=0, description="memory that a worker process may use, in GiB")

    def label_domains(self, rows: Sequence[Selectable]) -> list[Label]:
        """Returns the domain label of each row by the user's function.

        Raises RecipeError if the file does not provide the function.
        """
        require_user_code(self.file)
        pool = _get_worker_pool(self.file, self.name, self.time_limit_s, self.memory_gib)
        try:
            pool.warm_up()
        except StartError as error:
            raise RecipeError(f"domains: {self.file}: {error}") from error
        with ThreadPoolExecutor(count_cores()) as threads:
            return list(threads.map(lambda row: _request_label(pool, join_user_turns(row)), rows))


@cache
def _get_worker_pool(file: str, name: str, time_limit_s: float, memory_gib: float) -> Pool:
    """Returns the pool of worker processes for a user's function, one pool for each set of limits."""
    argument = {"file": str(Path(file).resolve()), "name": name}
    entry = "qwen_align.data_builders.selection_domains:load_domain_function"
    return Pool(entry, argument, workers=count_cores(), limit_s=time_limit_s, memory_gib=memory_gib)


def load_domain_function(argument: dict[str, Any]) -> Callable[[str], str | None]:
    """Imports a user's Python file in a worker process and returns a function that labels questions."""
    function = load_user_function(Path(argument["file"]), argument["name"])

    def label_question(question: str) -> str | None:
        domain = function(question)
        if domain is not None and not isinstance(domain, str):
            raise TypeError(f"{domain!r:.60} returned; a domain is a text, or None")
        return domain

    return label_question


def _request_label(pool: Pool, question: str) -> Label:
    """Asks a pool of worker processes for a question's domain label.

    A failed request gives a label without a domain.
    """
    try:
        domain = pool.ask(question)
    except PoolError as error:
        return Label(None, str(error))
    return Label(domain) if domain and domain.strip() else Label(None, "the function returned none")


DomainSettings = Annotated[ByColumn | ByKeywords | ByPython, Field(discriminator="by")]


class Domains(Strict):
    """A builder that notes each row's domain and selects rows evenly over domains.

    Without `n` all rows are kept, in order. A domain with fewer rows than its even part gives all it has. Which rows of
    a domain are taken depends on the seed and their ids alone. The domain stands in the row's meta under `note_as`,
    where other selections read it; if that is the column it was read from, it stays as it is.
    """

    kind: Literal["domains"] = "domains"
    from_data: DataRef = Field(description="data stage whose rows are chosen from")
    domain: DomainSettings = Field(default=ByColumn(), description="where a row's domain comes from")
    unknown: str | None = Field(
        default=None, min_length=1, description="domain of rows without one; null: they are dropped"
    )
    n: int | None = Field(default=None, ge=1, description="number of rows in all; null: no limit")
    per_domain: int | None = Field(default=None, ge=1, description="most rows of one domain; null: no limit")
    note_as: str = Field(default="domain", min_length=1, description="key of meta that the domain is noted under")

    def build(self, sources: Sources, seed: int, drops: Drops) -> Iterator[Row]:
        """Yields the chosen rows with their domains. Raises DataError if there are fewer than `n`."""
        rows = read_selectable_rows(sources, self.from_data)
        domain_of: dict[str, str] = {}
        for row, label in zip(rows, self.domain.label_domains(rows), strict=True):
            domain = self.unknown if label.domain is None else label.domain
            if domain is None:
                drops.add("no domain", row.id, label.why)
            else:
                domain_of[row.id] = domain
        chosen = choose_evenly(domain_of, n=self.n, per_domain=self.per_domain, seed=seed)
        for row in rows:
            if row.id in chosen:
                yield self._note_domain(row, domain_of[row.id])
            elif row.id in domain_of:
                drops.add("over its domain's part", row.id, domain_of[row.id])

    def _note_domain(self, row: Selectable, domain: str) -> Selectable:
        """Returns a row with its domain noted in meta."""
        is_from_same_column = isinstance(self.domain, ByColumn) and self.domain.column == self.note_as
        return row if is_from_same_column and self.note_as in row.meta else add_note_to_meta(row, self.note_as, domain)


def choose_evenly(domain_of: dict[str, str], *, n: int | None, per_domain: int | None, seed: int) -> set[str]:
    """Chooses row ids by taking one of each domain in turn. Raises DataError if there are fewer than `n`."""
    domains: dict[str, list[str]] = {}
    for row_id in sorted(domain_of, key=lambda row_id: _compute_draw_key(seed, row_id)):
        domains.setdefault(domain_of[row_id], []).append(row_id)
    domain_order = sorted(domains)
    Random(f"domains {seed}").shuffle(domain_order)  # so that a last, unfinished turn favours no name
    largest_domain = max(map(len, domains.values()), default=0)
    depth = largest_domain if per_domain is None else min(largest_domain, per_domain)
    chosen = [
        domains[domain][index] for index in range(depth) for domain in domain_order if index < len(domains[domain])
    ]
    if n is not None and len(chosen) < n:
        capped = "" if per_domain is None else f" at {per_domain} a domain"
        raise DataError(f"domains: {len(chosen)} rows of {len(domains)} domains{capped} are fewer than n: {n}; lower n")
    return set(chosen[:n])


def _compute_draw_key(seed: int, row_id: str) -> bytes:
    """Hashes a seed and a row id to the key by which the rows of a domain are ordered."""
    return hashlib.sha256(f"domains {seed} {row_id}".encode()).digest()
