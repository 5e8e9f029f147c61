"""Every gold of seven public data sets is right for itself, and not for another problem's gold."""

import json
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest

from qwen_align.reward.math_answer import MathAnswer

DATA = Path(os.environ.get("QWEN_ALIGN_TEST_DATA", Path(__file__).parents[4] / "shared" / "data"))
REWARD = MathAnswer()

FIELDS = {
    "gsm8k/train.jsonl": "answer",
    "gsm8k/test.jsonl": "answer",
    "limr/math_8k.json": "answer",
    "math500/test.jsonl": "answer",
    "aime24/test.jsonl": "answer",
    "amc23/test.jsonl": "answer",
    "svamp/svamp.json": "Answer",
    "mawps/addsub.jsonl": "target",
    "mawps/multiarith.jsonl": "target",
    "mawps/singleeq.jsonl": "target",
    "mawps/singleop.jsonl": "target",
}

UNUSABLE = {
    "": "two rows of MATH came to the data set without an answer",
    "None": "two rows of MATH hold what a failed extraction left; their answers are 9 and 2",
}
"""Golds that cannot be judged, each with the reason."""

EQUAL_BY_CHANCE = {frozenset({"x = 12", r"12\text{ square units}"})}
"""Golds of two problems that are written differently and mean the same."""


def golds_of(name: str) -> list[Any]:
    """The different golds of a data set, in the order of the file; skips where the file is absent."""
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"no real data at {path}; set QWEN_ALIGN_TEST_DATA to the folder that holds gsm8k and limr")
    text = path.read_text("utf-8")
    rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    golds = [row[FIELDS[name]] for row in rows]
    if name.startswith("gsm8k"):
        golds = [gold.rpartition("####")[2].strip() for gold in golds]
    return list(dict.fromkeys(golds))


def plain(gold: Any) -> str:
    """The gold without what says nothing, so that golds that differ here are worth comparing."""
    text = re.sub(
        r"\\(left|right|!|,|;|\$|%|text|mbox|textbf|mathrm|dfrac|tfrac|frac|circ)|[\s{}$%^(),]", "", str(gold)
    )
    return re.sub(r"\.0+$", "", text).removeprefix("x=").removeprefix(r"x\in").lower()


@pytest.mark.parametrize("name", FIELDS)
def test_every_gold_is_right_for_itself(name: str) -> None:
    golds = [gold for gold in golds_of(name) if str(gold) not in UNUSABLE]
    failed = [gold for gold in golds if REWARD.judge_gold(gold).value != 1.0]
    unpaid = [gold for gold in golds if REWARD.judge(rf"Hence $\boxed{{{gold}}}$.", gold).value != 1.0]
    print(f"{name}: {len(golds)} different golds", *failed, *unpaid, sep="\n")
    assert failed == []
    assert unpaid == []


@pytest.mark.parametrize("name", FIELDS)
def test_a_gold_is_wrong_for_another_problem(name: str) -> None:
    golds = [gold for gold in golds_of(name) if str(gold) not in UNUSABLE]
    drawn = random.Random(0)
    pairs = [(one, drawn.choice(golds)) for one in golds for _ in range(2)]
    pairs = [
        (one, other)
        for one, other in pairs
        if plain(one) != plain(other) and frozenset({str(one), str(other)}) not in EQUAL_BY_CHANCE
    ]
    paid = [(one, other) for one, other in pairs if REWARD.judge(rf"Hence $\boxed{{{one}}}$.", other).value == 1.0]
    print(f"{name}: {len(pairs)} pairs of different golds", *paid, sep="\n")
    assert paid == []
