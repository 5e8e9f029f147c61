"""LIMO's selection: who is dropped by which model, what the rule measures, which chain and which questions are kept."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qwen_align.align.errors import DataError
from qwen_align.align.rows import Completion, Message, Problem, Row, RowError, Trace, compute_rows_digest
from qwen_align.data_builders.selection_limo import ChainScore, Limo, Measures
from qwen_align.data_builders.sieve import Drop, Drops
from qwen_align.reward.verdict import Verdict

QUESTION = [Message(role="user", content="?")]
PLAIN = {"from_data": ["chains"], "weak": None, "strong": None, "n": None}


def trace(row_id: str, thinking: str, **meta: Any) -> Trace:
    return Trace(
        id=row_id,
        messages=QUESTION,
        thinking=thinking,
        answer="1",
        gold="1",
        reward="math_answer",
        source="toy",
        meta=meta,
    )


def completion(prompt_id: str, sample: int, value: float | None, thinking: str = "hm", **fields: Any) -> Completion:
    defaults: dict[str, Any] = {
        "text": f"<think>\n{thinking}\n</think>\n\n1",
        "prompt": QUESTION,
        "finish_reason": "stop",
        "n_tokens": 1,
        "gold": "1",
        "source": "toy",
        "verdicts": {"math_answer": Verdict(value=value, reason="toy")},
    }
    return Completion(prompt_id=prompt_id, sample=sample, **defaults | fields)


def build_rows(stages: Mapping[str, Sequence[Row]], **settings: Any) -> tuple[list[Any], list[Drop]]:
    def reader(rows: Sequence[Row]) -> Any:
        def read() -> Iterator[Row]:
            return iter(rows)

        return read

    drops = Drops()
    sources = {name: reader(rows) for name, rows in stages.items()}
    kept = list(Limo.model_validate({**PLAIN, **settings}).build(sources, 0, drops))
    return kept, drops.rows


def test_the_funnel() -> None:
    """LIMO's own bands on prompts that need each of the two models."""
    weak = {name: [0.0] * 4 for name in ("easy", "never", "learnable", "often", "few")} | {"easy": [0.0, 1.0, 0.0, 0.0]}
    strong = {"never": 0, "learnable": 3, "often": 4}
    stages: dict[str, list[Row]] = {
        "weak": [completion(name, index, value) for name, values in weak.items() for index, value in enumerate(values)],
        "strong": [
            completion(name, index, float(index < count)) for name, count in strong.items() for index in range(32)
        ],
        "chains": [trace(f"{name}#0", "so") for name in [*weak, "unseen"]],
    }
    stages["strong"].append(completion("few", 0, 1.0))
    settings = {"weak": {"from_rollout": "weak"}, "strong": {"from_rollout": "strong"}}
    kept, drops = build_rows(stages, **settings)
    assert [row.id for row in kept] == ["learnable#0"]
    assert [(drop.id, drop.reason, drop.detail) for drop in drops] == [
        ("easy#0", "weak model: too easy", "1 of 4 correct, mean 0.25"),
        ("never#0", "strong model: too hard", "0 of 32 correct, mean 0"),
        ("often#0", "strong model: too easy", "4 of 32 correct, mean 0.125"),
        ("few#0", "strong model: not 32 judged answers", "1 of 1 correct, mean 1"),
        ("unseen#0", "weak model: no judged answer", ""),
    ]


def test_the_best_chain_of_each_question_by_rank() -> None:
    stages = {
        "chains": [
            trace("p#0", "a b"),
            trace("p#1", "perhaps check since it might verify"),
            trace("q#0", "a b c d e f g h perhaps check therefore"),
        ]
    }
    kept, drops = build_rows(stages)
    assert [(row.id, row.meta["limo"]["rank"]) for row in kept] == [("p#1", 1), ("q#0", 2)]
    assert kept[0].meta["limo"]["score"] > kept[1].meta["limo"]["score"]
    assert [(drop.id, drop.reason) for drop in drops] == [("p#0", "not its question's best chain")]
    kept, drops = build_rows(stages, n=1)
    assert [row.id for row in kept] == ["p#1"]
    assert [(drop.id, drop.reason) for drop in drops] == [
        ("p#0", "not its question's best chain"),
        ("q#0", "ranked below n"),
    ]
    with pytest.raises(DataError, match="2 questions are left, fewer than n: 3"):
        build_rows(stages, n=3)


def test_equal_chains_keep_their_order() -> None:
    kept, _ = build_rows({"chains": [trace(f"{name}#{index}", "same") for name in "ba" for index in (1, 0)]})
    assert [row.id for row in kept] == ["b#1", "a#1"]


def test_chains_from_rollouts() -> None:
    rows: list[Row] = [
        completion("right", 0, 1.0, "therefore", mode="think", meta={"level": 5}),
        completion("wrong", 0, 0.0),
        completion("unjudged", 0, None),
        completion("cut", 0, 1.0, finish_reason="length"),
        completion("malformed", 0, 1.0, text="<think>\nhm"),
        completion("short", 0, 1.0, text="1"),
    ]
    kept, drops = build_rows({"chains": rows, "more": [trace("right#0", "")]}, from_data=["chains", "more"])
    facts = kept[0].meta.pop("limo")
    assert facts == {"score": 1.0 - 0.5 * (0.20 + 0.25), "rank": 1, "stage": "chains"}
    assert kept == [trace("right#0", "therefore", level=5)]
    assert [(drop.id, drop.reason) for drop in drops] == [
        ("wrong#0", "wrong"),
        ("unjudged#0", "no verdict"),
        ("cut#0", "cut at the length limit"),
        ("malformed#0", "malformed turn"),
        ("short#0", "no thinking"),
        ("right#0", "not its question's best chain"),
    ]


MEASURES = [
    ("", Measures(0, 0.0, 0.0, 0.0)),
    ("12 + 3 = 15", Measures(0, 0.0, 0.0, 0.0)),
    ("Let me check. CHECKING it", Measures(5, 0.4, 0.0, 0.0)),
    ("checkmate recheck", Measures(2, 0.0, 0.0, 0.0)),
    ("Perhaps it might, since x", Measures(5, 0.0, 0.4, 0.2)),
    ("so so so so", Measures(4, 0.0, 0.0, 1.0)),
]


@pytest.mark.parametrize(("chain", "measures"), MEASURES)
def test_measures(chain: str, measures: Measures) -> None:
    assert ChainScore().measure_chain(chain) == measures


def test_weights_are_limos() -> None:
    assert ChainScore().weights == Measures(length=0.30, verification=0.20, tentative=0.25, connectives=0.25)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ("we add and add and add", "we add"),
        ("check it", "add it"),
        ("maybe it", "add it"),
        ("hence it", "add it"),
        ("check it maybe", "check it check"),  # tentative weighs more than verification
        ("one two three", "check it"),  # and length most
    ],
)
def test_what_raises_the_score(better: str, worse: str) -> None:
    high, low = ChainScore().score_chains([better, worse])
    assert 1 >= high > low >= 0


@given(st.lists(st.text(alphabet="check so maybe ", max_size=60), max_size=8), st.randoms(use_true_random=False))
def test_scores_do_not_depend_on_order(chains: list[str], random: Any) -> None:
    order = random.sample(range(len(chains)), len(chains))
    scores = ChainScore().score_chains(chains)
    assert ChainScore().score_chains([chains[index] for index in order]) == [scores[index] for index in order]
    assert all(0 <= score <= 1 for score in scores)


def test_own_words() -> None:
    score = ChainScore(length=0, verification=1, tentative=0, connectives=0, verification_words=["prüfe"])
    assert score.score_chains(["Prüfe es", "check it"]) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score": {"length": 0.5}}, "1.2 in all, not 1"),
        ({"score": {"tentative_words": ["let me"]}}, "'let me': is not one word"),
        ({"score": {"tentative_words": ["Maybe"]}}, "'Maybe': is not one word of small letters"),
        ({"from_data": []}, "at least 1 item"),
        ({"band": "none"}, "band"),
        ({"n": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Limo.model_validate({**PLAIN, **settings})


def test_both_models_must_be_named_or_left_out_in_words() -> None:
    with pytest.raises(ValidationError, match=r"weak\n  Field required"):
        Limo.model_validate({"from_data": ["chains"], "strong": None})


def test_other_rows_are_refused() -> None:
    with pytest.raises(RowError, match="stage 'chains': row 'a' is a problem row"):
        build_rows({"chains": [Problem(id="a", messages=QUESTION, reward="math_answer")]})


def test_the_same_rows_give_the_same_bytes() -> None:
    rows = [trace(f"{index % 7}#{index}", "so check maybe since " * (index % 5 + 1)) for index in range(40)]
    assert compute_rows_digest(build_rows({"chains": rows})[0]) == compute_rows_digest(build_rows({"chains": rows})[0])
    assert len(build_rows({"chains": rows})[0]) == 7
