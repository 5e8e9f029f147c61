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


def load_golds(name: str) -> list[Any]:
    """Loads the different golds of a data set, in the order of the file; skips where the file is absent."""
    path = DATA / name
    if not path.is_file():
        pytest.skip(f"no real data at {path}; set QWEN_ALIGN_TEST_DATA to the folder that holds gsm8k and limr")
    text = path.read_text("utf-8")
    rows = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    golds = [row[FIELDS[name]] for row in rows]
    if name.startswith("gsm8k"):
        golds = [gold.rpartition("####")[2].strip() for gold in golds]
    return list(dict.fromkeys(golds))


def strip_typesetting(gold: Any) -> str:
    """Returns the gold without typesetting, so that golds that differ here are worth comparing."""
    text = re.sub(
        r"\\(left|right|!|,|;|\$|%|text|mbox|textbf|mathrm|dfrac|tfrac|frac|circ)|[\s{}$%^(),]", "", str(gold)
    )
    return re.sub(r"\.0+$", "", text).removeprefix("x=").removeprefix(r"x\in").lower()


@pytest.mark.parametrize("name", FIELDS)
def test_every_gold_is_right_for_itself(name: str) -> None:
    golds = [gold for gold in load_golds(name) if str(gold) not in UNUSABLE]
    failed = [gold for gold in golds if REWARD.judge_gold(gold).value != 1.0]
    unpaid = [gold for gold in golds if REWARD.judge(rf"Hence $\boxed{{{gold}}}$.", gold).value != 1.0]
    print(f"{name}: {len(golds)} different golds", *failed, *unpaid, sep="\n")
    assert failed == []
    assert unpaid == []


@pytest.mark.parametrize("name", FIELDS)
def test_a_gold_is_wrong_for_another_problem(name: str) -> None:
    golds = [gold for gold in load_golds(name) if str(gold) not in UNUSABLE]
    rng = random.Random(0)
    pairs = [(gold, rng.choice(golds)) for gold in golds for _ in range(2)]
    pairs = [
        (gold, other_gold)
        for gold, other_gold in pairs
        if strip_typesetting(gold) != strip_typesetting(other_gold)
        and frozenset({str(gold), str(other_gold)}) not in EQUAL_BY_CHANCE
    ]
    paid = [
        (gold, other_gold)
        for gold, other_gold in pairs
        if REWARD.judge(rf"Hence $\boxed{{{gold}}}$.", other_gold).value == 1.0
    ]
    print(f"{name}: {len(pairs)} pairs of different golds", *paid, sep="\n")
    assert paid == []
