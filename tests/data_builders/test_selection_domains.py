"""Domains by column, keywords and a user's function, and how evenly rows are spread over them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qwen_align.align.errors import DataError, RecipeError
from qwen_align.align.references import find_outside_files
from qwen_align.align.rows import Message, Pair, Problem, Row, RowError, compute_rows_digest
from qwen_align.data_builders.selection_domains import ByKeywords, Domains, choose_evenly
from qwen_align.data_builders.sieve import Drop, Drops


def problem(row_id: str, question: str = "?", source: str = "", **meta: Any) -> Problem:
    messages = [Message(role="system", content="algebra"), Message(role="user", content=question)]
    return Problem(id=row_id, messages=messages, reward="math_answer", source=source, meta=meta)


def build_rows(rows: Sequence[Row], seed: int = 0, **settings: Any) -> tuple[list[Any], list[Drop]]:
    def read() -> Iterator[Row]:
        return iter(rows)

    drops = Drops()
    builder = Domains.model_validate({"from_data": "rows", **settings})
    return list(builder.build({"rows": read}, seed, drops)), drops.rows


def test_by_column() -> None:
    rows = [problem("a", domain="algebra"), problem("b"), problem("c", domain=11), problem("d", domain=" ")]
    kept, drops = build_rows(rows)
    assert [(row.id, row.meta) for row in kept] == [("a", {"domain": "algebra"}), ("c", {"domain": 11})]
    assert drops == [Drop("no domain", "b", "no meta 'domain'"), Drop("no domain", "d", "no meta 'domain'")]


def test_by_source_and_unknown() -> None:
    rows = [problem("a", source="gsm8k"), problem("b")]
    kept, drops = build_rows(rows, domain={"by": "column", "column": None}, unknown="other", note_as="field")
    assert [row.meta for row in kept] == [{"field": "gsm8k"}, {"field": "other"}]
    assert drops == []


def test_a_row_of_another_column_is_not_overwritten() -> None:
    with pytest.raises(RowError, match="'a': meta has 'domain' already"):
        build_rows([problem("a", domain="x", subject="y")], domain={"by": "column", "column": "subject"})


TABLE = {"geometry": ["triangle", "circle"], "algebra": ["solve for", "equation"], "几何": ["三角形", "圆"]}
KEYWORDS = [
    ("The triangle in a circle solves the equation", "geometry"),
    ("Solve   for\nx: an Equation of a circle", "algebra"),
    ("one circle, one equation", "algebra"),  # as often: the first by name
    ("triangles, encircle, equations", None),  # whole words only
    ("CIRCLE!", "geometry"),
    ("求三角形的面积", "几何"),
    ("x圆x", "几何"),
    ("circle", "geometry"),
    ("a-circle_", None),
    ("", None),
]


@pytest.mark.parametrize(("question", "domain"), KEYWORDS)
def test_by_keywords(question: str, domain: str | None) -> None:
    [label] = ByKeywords(table=TABLE).label_domains([problem("a", question)])
    assert label == (domain, "" if domain else "no keyword")


def test_the_order_of_the_table_settles_nothing() -> None:
    """The key of a stage is the same for both."""
    turned = dict(reversed(TABLE.items()))
    for question, domain in KEYWORDS:
        assert ByKeywords(table=turned).label_domains([problem("a", question)])[0].domain == domain


def test_keywords_are_texts_not_patterns() -> None:
    rows = [problem("a", "c++ or (x"), problem("b", "cccc")]
    labels = ByKeywords(table={"code": ["C++"], "brackets": ["(x", "(x"]}).label_domains(rows)
    assert [label.domain for label in labels] == ["brackets", None]


def test_pairs_have_questions_too() -> None:
    message = Message(role="assistant", content="equation")
    row = Pair(id="a", messages=[Message(role="user", content="a circle")], chosen=message, rejected=message)
    kept, _ = build_rows([row], domain={"by": "keywords", "table": TABLE})
    assert kept[0].meta == {"domain": "geometry"}


USERS = """
import time

def domain(question):
    if question == "hang":
        time.sleep(60)
    if question == "raise":
        raise KeyError("lost")
    return {"number": 7, "none": None, "blank": " "}.get(question, question.upper())
"""


def test_by_python(tmp_path: Path) -> None:
    file = tmp_path / "ours.py"
    file.write_text(USERS)
    rows = [problem(name, name) for name in ("number", "none", "raise", "blank", "hang", "é")]
    by = {"by": "python", "file": str(file), "time_limit_s": 1.0}
    kept, drops = build_rows(rows, domain=by)
    assert [row.meta for row in kept] == [{"domain": "É"}]
    details = {drop.id: drop.detail for drop in drops}
    assert details.pop("number") == "TypeError: 7 returned; a domain is a text, or None"
    assert details.pop("raise") == "KeyError: 'lost' (ours.py, line 8: raise KeyError(\"lost\"))"
    none = "the function returned none"
    assert details == {"none": none, "blank": none, "hang": "time limit"}
    assert {drop.reason for drop in drops} == {"no domain"}


def test_the_users_file_is_in_the_key_and_must_be_there(tmp_path: Path) -> None:
    file = tmp_path / "gone.py"
    settings = {"from_data": "rows", "domain": {"by": "python", "file": str(file)}}
    assert list(find_outside_files(Domains.model_validate(settings))) == [("domain.file", str(file))]
    with pytest.raises(RecipeError, match=r"gone\.py: FileNotFoundError"):
        build_rows([problem("a")], domain=settings["domain"])
    file.write_text("def other(question): return 'x'")
    with pytest.raises(RecipeError, match="no function 'domain'; it has: other"):
        build_rows([problem("a")], domain=settings["domain"])


def of_sizes(**sizes: int) -> list[Row]:
    return [problem(f"{name}{index}", domain=name) for name, size in sizes.items() for index in range(size)]


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        ({}, {"a": 10, "b": 3, "c": 1}),
        ({"n": 9}, {"a": 5, "b": 3, "c": 1}),
        ({"n": 3}, {"a": 1, "b": 1, "c": 1}),
        ({"n": 14}, {"a": 10, "b": 3, "c": 1}),
        ({"per_domain": 2}, {"a": 2, "b": 2, "c": 1}),
        ({"per_domain": 4, "n": 8}, {"a": 4, "b": 3, "c": 1}),
    ],
)
def test_an_even_spread(settings: dict[str, Any], counts: dict[str, int]) -> None:
    rows = of_sizes(a=10, b=3, c=1)
    kept, drops = build_rows(rows, **settings)
    assert Counter(row.meta["domain"] for row in kept) == counts
    assert [row.id for row in rows if row in kept] == [row.id for row in kept]
    assert len(kept) + len(drops) == len(rows)
    assert all(drop == Drop("over its domain's part", drop.id, drop.id[0]) for drop in drops)


@pytest.mark.parametrize(
    ("settings", "message"), [({"n": 15}, "14 rows of 3"), ({"n": 6, "per_domain": 2}, "5 rows of 3")]
)
def test_too_few_rows(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"domains: {message} domains.* fewer than n"):
        build_rows(of_sizes(a=10, b=3, c=1), **settings)


def test_which_rows_depends_on_the_seed_and_not_on_their_order() -> None:
    rows = of_sizes(a=50, b=40)
    shuffled = Random(0).sample(rows, len(rows))
    kept = {row.id for row in build_rows(rows, n=20)[0]}
    assert kept == {row.id for row in build_rows(shuffled, n=20)[0]}
    assert kept != {row.id for row in build_rows(rows, 1, n=20)[0]}
    assert compute_rows_digest(build_rows(rows, n=20)[0]) == compute_rows_digest(build_rows(rows, n=20)[0])


def test_an_unfinished_turn_favours_no_name() -> None:
    counts = Counter(build_rows(of_sizes(a=3, b=3), seed, n=1)[0][0].meta["domain"] for seed in range(40))
    assert min(counts["a"], counts["b"]) >= 8


@given(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.data())
def test_no_domain_has_two_more_than_one_that_has_rows_left(sizes: list[int], data: st.DataObject) -> None:
    domain_of = {f"{domain}.{index}": f"{domain}" for domain, size in enumerate(sizes) for index in range(size)}
    n = data.draw(st.integers(1, len(domain_of)))
    counts = Counter(domain_of[row_id] for row_id in choose_evenly(domain_of, n=n, per_domain=None, seed=3))
    assert counts.total() == n
    for domain, size in enumerate(sizes):
        if counts[str(domain)] < size:
            assert max(counts.values()) - counts[str(domain)] <= 1


@pytest.mark.parametrize(
    "domain",
    [
        {"by": "keywords", "table": {}},
        {"by": "keywords", "table": {"a": []}},
        {"by": "keywords", "table": {"a": [" "]}},
        {"by": "keywords", "table": {" ": ["a"]}},
        {"by": "python", "file": "a.py", "name": "no name"},
        {"by": "model"},
        {"by": "column", "column": ""},
    ],
)
def test_wrong_settings(domain: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Domains.model_validate({"from_data": "a", "domain": domain})


def test_wrong_columns() -> None:
    for value in (["x"], True, 1.5):
        with pytest.raises(RowError, match="row 'a': meta 'domain' is"):
            build_rows([problem("a", domain=value)])
