"""Labelled completions from rollouts: what is labelled how, and what is left out."""

from typing import Any

from qwen_align.align.rows import Completion, Labelled, Message
from qwen_align.data_builders.rollout_labels import Labels
from qwen_align.data_builders.sieve import Drops
from qwen_align.reward.verdict import Verdict

ASKED = [Message(role="user", content="1+1?")]


def completion(prompt_id: str, sample: int, text: str, value: float | None, **fields: Any) -> Completion:
    defaults: dict[str, Any] = {"finish_reason": "stop", "n_tokens": 1, "mode": "think", "flag": "/think"}
    verdicts = {"rm": Verdict(value=value, reason="judged")}
    return Completion(
        prompt_id=prompt_id, sample=sample, prompt=ASKED, text=text, verdicts=verdicts, **defaults | fields
    )


ROWS = [
    completion("p", 0, "<think>\na\n</think>\n\n2", 0.7, source="toy", meta={"n": 1}),
    completion("p", 1, "3", 0.2),
    completion("p", 2, "3", 0.2),
    completion("p", 3, "4", 0.9, finish_reason="length"),
    completion("p", 4, "<think>5", 0.9),
    completion("p", 5, "6", None),
    completion("q", 0, "2", 0.8),
]


def build_rows(**settings: Any) -> tuple[list[Any], list[tuple[str, str]]]:
    drops = Drops()
    given = {"from_data": "own", "reward": "rm", "correct_from": 0.5, "both_sides_only": False, **settings}
    rows = list(Labels.model_validate(given).build({"own": lambda: iter(ROWS)}, 0, drops))
    return rows, [(drop.reason, drop.id) for drop in drops.rows]


def test_labels() -> None:
    rows, dropped = build_rows()
    assert rows[0] == Labelled(
        id="p#0",
        messages=ASKED,
        completion=Message(role="assistant", content="2", thinking="a"),
        label=True,
        mode="think",
        flag="/think",
        source="toy",
        meta={"n": 1},
    )
    assert [(row.id, row.label) for row in rows] == [("p#0", True), ("p#1", False), ("q#0", True)]
    assert dropped == [
        ("duplicate", "p#2"),
        ("cut at the length limit", "p#3"),
        ("malformed turn", "p#4"),
        ("no verdict", "p#5"),
    ]


def test_prompts_with_one_side_only() -> None:
    rows, dropped = build_rows(both_sides_only=True)
    assert [row.id for row in rows] == ["p#0", "p#1"]
    assert dropped[-1] == ("all correct", "q#0")
    rows, dropped = build_rows(both_sides_only=True, correct_from=0.95)
    assert rows == []
    assert dropped[-1] == ("all wrong", "q#0")
