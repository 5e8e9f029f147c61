"""s1's selection: the notebook's own result on synthetic rows, its draws against numpy's, and its rules one by one."""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qwen_align.align.errors import DataError, RecipeError
from qwen_align.align.rows import Completion, Message, Problem, Row, RowError, Text, Trace, compute_rows_digest
from qwen_align.data_builders.selection_s1 import (
    S1,
    Benchmarks,
    RowFeatures,
    count_benchmark_domains,
    find_format_fault,
)
from qwen_align.data_builders.selection_s1 import has_bold_number as is_bold
from qwen_align.data_builders.selection_s1_sampling import (
    Candidate,
    compute_length_weights,
    draw_by_domain,
    draw_integer_below,
    find_weighted_index,
    make_numpy_random,
    rank_by_length,
)
from qwen_align.data_builders.sieve import Drops
from qwen_align.reward.verdict import Verdict

DATA = Path(os.environ.get("QWEN_ALIGN_TEST_DATA", Path(__file__).parents[2] / "../shared/data")).resolve()
GOLDEN = DATA.parent / "golden" / "s1_selection_synthetic.json"
needs_golden = pytest.mark.skipif(
    not GOLDEN.is_file(),
    reason=f"no golden selection at {GOLDEN}; QWEN_ALIGN_TEST_DATA names the folder beside the goldens",
)

FEATURES = {
    "from_data": "pool",
    "solvers": [{"column": "isqwen7bcorrect"}, {"column": "isqwen32bcorrect"}],
    "teacher": {"column": "isgeminicorrect"},
    "length_column": "gemini_length",
}


def question_hash(question: str) -> str:
    return hashlib.sha256(question.encode()).hexdigest()[:16]


def from_s1(entry: dict[str, Any]) -> Problem:
    """A row of the golden file as a local file with meta columns would give it."""
    question, source = entry["question"], entry["source_type"]
    meta = {key: value for key, value in entry.items() if value is not None and key not in ("question", "source_type")}
    messages = [Message(role="user", content=question)]
    return Problem(id=question_hash(question), messages=messages, reward="math_answer", source=source, meta=meta)


@cache
def golden() -> tuple[dict[str, Any], list[Problem]]:
    case: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return case, [from_s1(entry) for entry in case["rows"]]


def build_rows(rows: Sequence[Row], recipe_seed: int = 0, **settings: Any) -> tuple[list[Any], Drops]:
    def read() -> Iterator[Row]:
        return iter(rows)

    drops = Drops()
    builder = S1.model_validate({**FEATURES, **settings})
    return list(builder.build({"pool": read}, recipe_seed, drops)), drops


@needs_golden
def test_the_notebooks_own_selection() -> None:
    case, rows = golden()
    kept, drops = build_rows(rows)
    steps = ["missing feature", "format", "solved by a small model"]
    left = [len(rows)]
    for step in steps:
        left.append(left[-1] - drops.counts[step])
    counts = case["counts_after"]
    assert left == [counts[name] for name in ("pool", "drop_na", "weird_strings", "drop_qwen_correct")]
    assert left[-1] - drops.counts["not drawn"] == len(kept) == 1000
    ids = sorted(row.id for row in kept)
    assert ids == case["selected"]
    assert hashlib.sha256("\n".join(ids).encode()).hexdigest() == case["selected_sha256"]
    ways = Counter(row.meta["s1"]["chosen"] for row in kept)
    assert sorted(row.id for row in kept if row.meta["s1"]["chosen"] == "preselected") == case["preselected"]
    assert ways == {
        "preselected": len(case["preselected"]),
        "uniform": 700 - len(case["preselected"]),
        "benchmark": 300,
    }


@needs_golden
def test_the_notebooks_benchmark_weights() -> None:
    case, rows = golden()
    hard = S1.model_validate(FEATURES).select_hard_rows({"pool": lambda: iter(rows)}, Drops())
    counts = count_benchmark_domains(hard, Benchmarks())
    assert list(counts) == case["benchmark_domains"]
    assert [count / sum(counts.values()) for count in counts.values()] == case["benchmark_weights"]


@needs_golden
def test_kept_rows_and_drops_are_all_rows_and_keep_their_order() -> None:
    _, rows = golden()
    kept, drops = build_rows(rows)
    assert sorted([*(row.id for row in kept), *(drop.id for drop in drops.rows)]) == sorted(row.id for row in rows)
    expected = {row.id for row in kept}
    assert [row.id for row in kept] == [row.id for row in rows if row.id in expected]


@needs_golden
def test_one_seed_gives_one_selection_and_another_gives_another() -> None:
    _, rows = golden()
    assert compute_rows_digest(build_rows(rows, 7)[0]) == compute_rows_digest(build_rows(rows, 3, seed=7)[0])
    assert {row.id for row in build_rows(rows, 7)[0]} != {row.id for row in build_rows(rows, 8)[0]}


SOLVED = {"isqwen7bcorrect": False, "isqwen32bcorrect": False, "isgeminicorrect": True}


def trace(row_id: str, question: str = "?", source: str = "s", **meta: Any) -> Trace:
    features = {**SOLVED, "gemini_length": 10, "domain": "d", **meta}
    return Trace(
        id=row_id,
        messages=[Message(role="user", content=question)],
        thinking="so " * 5,
        answer="1",
        reward="math_answer",
        source=source,
        meta={key: value for key, value in features.items() if value is not None},
    )


PLAIN = {"uniform_until": None, "n": 1}


@pytest.mark.parametrize(
    ("meta", "reason", "detail"),
    [
        ({"gemini_length": None}, "missing feature", "meta 'gemini_length'"),
        ({"domain": None}, "missing feature", "domain: no meta 'domain'"),
        ({"isqwen7bcorrect": None, "isgeminicorrect": None}, "missing feature", None),
        ({"question": "see step1."}, "format", "numbered_point"),
        ({"isqwen7bcorrect": True}, "solved by a small model", ""),
        ({"isqwen32bcorrect": True}, "solved by a small model", ""),
        ({"gemini_length": None, "isqwen7bcorrect": True}, "missing feature", "meta 'gemini_length'"),
    ],
)
def test_why_a_row_is_dropped(meta: dict[str, Any], reason: str, detail: str | None) -> None:
    kept, drops = build_rows([trace("bad", **meta), trace("good")], **PLAIN)
    assert [row.id for row in kept] == ["good"]
    [drop] = drops.rows
    assert (drop.id, drop.reason) == ("bad", reason)
    assert drop.detail == (detail if detail is not None else "meta 'isqwen7bcorrect', meta 'isgeminicorrect'")


def test_a_kept_row_keeps_everything_and_says_how_it_was_chosen() -> None:
    row = trace("a", gemini_length=4, own=1)
    kept, _ = build_rows([row, trace("b", gemini_length=9, isgeminicorrect=False)], **{**PLAIN, "n": 2})
    facts = {"chosen": "uniform", "domain": "d", "length": 4, "length_rank": 1}
    assert kept[0] == row.model_copy(update={"meta": {**row.meta, "s1": facts}})


@pytest.mark.parametrize(
    ("source", "meta", "is_preselected"),
    [
        ("Idavidrein/gpqa", {}, True),
        ("Idavidrein/gpqa", {"isgeminicorrect": False}, False),
        ("Idavidrein/gpqa/more", {}, False),
        ("qq8933/AIME_1983_2024", {}, True),
        ("qfq/openaimath/Algebra", {"gemini_length": 5601}, True),
        ("qfq/openaimath/Algebra", {"gemini_length": 5600}, False),
        ("elsewhere", {"gemini_length": 9000}, False),
    ],
)
def test_what_is_preselected(source: str, meta: dict[str, Any], is_preselected: bool) -> None:
    kept, _ = build_rows([trace("a", source=source, **meta)], **PLAIN)
    assert (kept[0].meta["s1"]["chosen"] == "preselected") is is_preselected


def test_sources_can_be_renamed() -> None:
    rule = {"source_has": "simplescaling/openaimath", "longer_than": 5}
    kept, _ = build_rows([trace("a", source="simplescaling/openaimath/Algebra")], **PLAIN, preselect=[rule])
    assert kept[0].meta["s1"]["chosen"] == "preselected"


def completion(prompt_id: str, sample: int, value: float | None) -> Completion:
    return Completion(
        prompt_id=prompt_id,
        sample=sample,
        prompt=[Message(role="user", content="?")],
        text="1",
        finish_reason="stop",
        n_tokens=1,
        verdicts={"math_answer": Verdict(value=value, reason="toy")},
    )


def test_features_from_rollouts() -> None:
    """A trace made of completion `p#1` is looked up as prompt `p`; without a verdict there is no feature."""
    weak = [completion("solved", 0, 0.0), completion("solved", 1, 1.0), completion("hard", 0, 0.0)]
    weak += [completion("unjudged", 0, None)]
    rows = [trace(f"{name}#1") for name in ("solved", "hard", "unjudged", "unseen")]
    sources = {"pool": lambda: iter(rows), "weak": lambda: iter(weak)}
    drops = Drops()
    settings = {**FEATURES, **PLAIN, "solvers": [{"from_rollout": "weak"}], "length_column": None}
    kept = list(S1.model_validate(settings).build(sources, 0, drops))
    assert [row.id for row in kept] == ["hard#1"]
    assert [(drop.id, drop.reason, drop.detail) for drop in drops.rows] == [
        ("solved#1", "solved by a small model", ""),
        ("unjudged#1", "missing feature", "stage 'weak'"),
        ("unseen#1", "missing feature", "stage 'weak'"),
    ]


@pytest.mark.parametrize(
    ("rows", "settings", "error", "message"),
    [
        ([trace("a")], {"n": 2}, DataError, "n is 2, but 1 hard rows are left"),
        ([trace("a")], {"n": 2}, DataError, "narrow preselect. Dropped: none"),
        (
            [trace("a"), trace("b")],
            {"length_column": "lenght"},
            DataError,
            "or narrow preselect. Dropped: 2 missing feature (meta 'lenght')",
        ),
        ([trace(i, source="Idavidrein/gpqa") for i in "ab"], {}, DataError, "2 of them pre-selected"),
        ([trace("a")], {"uniform_until": 0}, DataError, "name yours in benchmarks, or uniform_until: null"),
        ([trace("a", source="Idavidrein/gpqa")], {"uniform_until": 0}, DataError, "'qq8933/AIME_1983_2024'"),
        ([trace("a", gemini_length="long")], {}, RowError, "'a': meta 'gemini_length' is 'long'"),
        ([trace("a", isqwen7bcorrect="no")], {}, RowError, "'a': meta 'isqwen7bcorrect' is 'no', not true or false"),
        ([trace("a", domain=["x"])], {}, RowError, "'a': meta 'domain'"),
        ([trace("a")], {"source_column": "origin"}, RowError, "'a': meta 'origin' is None"),
        ([trace("a"), trace("a")], {}, RowError, "id 'a' occurs twice"),
        ([Text(id="a", text="t")], {}, RowError, "row 'a' is a text row"),
        ([trace("a", s1=1)], {}, RowError, "meta has 's1' already"),
        ([trace("a")], {"recipe_seed": 2**32}, RecipeError, "0 to 2"),
    ],
)
def test_what_cannot_be_selected_from(
    rows: list[Row], settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    settings = {**PLAIN, **settings}
    with pytest.raises(error, match=re.escape(message)):
        build_rows(rows, settings.pop("recipe_seed", 0), **settings)


def test_benchmark_domains_that_are_used_up_are_an_error() -> None:
    rows = [trace("a", source="Idavidrein/gpqa", domain="x"), trace("b", source="qq8933/AIME_1983_2024", domain="y")]
    rows += [trace(f"c{number}") for number in range(3)]
    with pytest.raises(DataError, match="benchmarks' domains are used up at 1 of 4 rows"):
        build_rows(rows, n=4, uniform_until=0, preselect=[])


@pytest.mark.parametrize(
    "wrong",
    [
        {"solvers": []},
        {"preselect": [{"longer_than": 4}]},
        {"preselect": [{"source": "a", "source_has": "a"}]},
        {"refused": ["ascii"]},
        {"teacher": {}},
        {"seed": -1},
        {"n": 0},
    ],
)
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        S1.model_validate({**FEATURES, **wrong})


# Question, source, what s1 refuses in it.
FORMATS = [
    ("What is 1+1?", "s", None),
    ("[asy] draw(a); [/asy]", "s", "asy"),
    ("[asy] draw(a); [/asy]", "qq8933/AIME_1983_2024", None),
    ("[asy] ![Image] p1. **2**", "qq8933/AIME_1983_2024", None),  # of those no other test is asked
    ("![Image](x.png)", "qq8933/AIME_1983_2024", "image"),
    ("p1. one p2. two", "s", "numbered_point"),
    ("step999.", "s", "numbered_point"),
    ("p0. p1000. p01. P1.", "s", None),
    ("**12**", "s", "bold_number"),
    ("**a** is 3", "s", "bold_number"),  # the digit may stand after the bold text
    ("3 is **a**", "s", None),
    ("**a**\n3", "s", None),
    ("**a b** 3", "s", None),
    ("a ** b ** 3", "s", None),
    ("**a]** 3", "s", None),
    ("**** 1", "s", "bold_number"),
    ("*** 1", "s", None),
]


@pytest.mark.parametrize(("question", "source", "fault"), FORMATS)
def test_format(question: str, source: str, fault: str | None) -> None:
    rules: Any = ["asy", "image", "numbered_point", "bold_number"]
    assert find_format_fault(question, source, rules, "AIME") == fault


def test_rules_can_be_left_out() -> None:
    everything = "[asy] ![Image] p1. **2**"
    rules: Any = ["asy", "image", "numbered_point", "bold_number"]
    found = [find_format_fault(everything, "AIME", rules[index:], None) for index in range(5)]
    assert found == [*rules, None]


@given(st.text(alphabet="*1a] \n٣", max_size=40))
def test_bold_numbers_are_what_the_notebooks_pattern_finds(question: str) -> None:
    assert is_bold(question) == bool(re.search(r"\*\*(?=.*\d)[^\s\]]*\*\*", question))


def test_a_megabyte_of_stars_takes_no_time() -> None:
    """The pattern itself would look at 10^12 places."""
    assert not is_bold("*" * 1_000_000)
    assert not is_bold("**]" * 300_000)
    assert is_bold("*" * 1_000_000 + "1")


@given(seed=st.integers(0, 2**32 - 1), bounds=st.lists(st.integers(1, 70_000), min_size=1, max_size=30))
def test_draws_are_numpys(seed: int, bounds: list[int]) -> None:
    judged_index, ours = np.random.RandomState(seed), make_numpy_random(seed)
    for bound in bounds:
        assert judged_index.choice(bound, size=1)[0] == draw_integer_below(bound, ours)
        weights = [1.0 / (1 + index) for index in range(bound % 50 + 1)]
        probabilities = np.array(weights) / np.sum(weights)
        assert judged_index.choice(len(weights), p=probabilities) == find_weighted_index(weights, ours.random())


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=50, unique=True))
def test_length_weights_are_the_notebooks(lengths: list[int]) -> None:
    ranks = len(lengths) - 1 - np.argsort(np.argsort(np.array(lengths)))
    assert rank_by_length(lengths) == ranks.tolist()
    assert compute_length_weights(lengths) == np.power(2.0, -ranks).tolist()


def test_equal_lengths_have_an_order_of_their_own() -> None:
    assert rank_by_length([5, 5, 9, 5]) == [3, 2, 0, 1]


def test_the_longest_of_a_domain_is_drawn_in_half_of_the_draws() -> None:
    pool = [Candidate(f"{index}", "d", 100 - index) for index in range(6)]
    seeds = range(2000)
    counts = Counter(
        next(iter(draw_by_domain(pool, {}, n=1, uniform_until=None, weights={}, random=make_numpy_random(seed))))
        for seed in seeds
    )
    assert 0.46 < counts["0"] / len(seeds) < 0.55  # 32/63, within 4 standard deviations
    assert 0.22 < counts["1"] / len(seeds) < 0.29


def test_rows_chosen_before_are_drawn_in_vain_once() -> None:
    pool = [Candidate("long", "d", 100), Candidate("short", "d", 1)]
    for seed in range(20):
        chosen = draw_by_domain(
            pool, {"long": "preselected"}, n=2, uniform_until=None, weights={}, random=make_numpy_random(seed)
        )
        assert chosen == {"long": "preselected", "short": "uniform"}


def test_the_paper_draws_all_domains_alike_and_the_code_ends_with_the_benchmarks() -> None:
    sources = ["Idavidrein/gpqa", "qq8933/AIME_1983_2024"]
    rows = [trace(f"b{index}", source=sources[index % 2], domain="exams", gemini_length=index) for index in range(40)]
    rows += [trace(f"{index}", domain=f"d{index % 4}", gemini_length=index) for index in range(160)]

    def domains(**settings: Any) -> Counter[str]:
        return Counter(row.meta["domain"] for row in build_rows(rows, n=30, preselect=[], **settings)[0])

    assert domains(uniform_until=0) == {"exams": 30}
    assert domains(uniform_until=20)["exams"] >= 10
    paper = domains(uniform_until=None)
    assert paper.keys() == {"exams", "d0", "d1", "d2", "d3"}
    assert max(paper.values()) < 15


def test_domains_cut_to_nothing_have_no_weight() -> None:
    def of(source: str, domain: str, count: int) -> list[RowFeatures]:
        return [RowFeatures(trace("x"), source, domain, 1, True)] * count

    rows = of("gpqa", "rare", 1) + of("gpqa", "physics", 9) + of("aime", "algebra", 8) + of("aime", "physics", 2)
    counts = count_benchmark_domains(rows, Benchmarks(whole="aime", scaled="gpqa"))
    assert counts == {"physics": 4 + 2, "algebra": 8}  # half of 10 rows over 10: 1 -> 0.5 -> 0, 9 -> 4.5 -> 4
