"""Near duplicates: what is dropped is truly near, the first is kept, and nothing depends on the process."""

import os
import random
import subprocess
import sys
import zlib
from typing import Any

import pytest

from qwen_align.align.rows import Chat, Completion, Message, Problem, Row, Text
from qwen_align.data_builders.near_duplicates import Near, NearDuplicateFinder, NearDuplicates
from qwen_align.data_builders.sieve import Drop, Drops, Sieve, sieve

WORDS = [f"word{number}" for number in range(400)]
STORY = "Ann has 12 apples and buys 30 more at the market before she gives half of them to Tom , how many are left ?"


def changed(text: str, n: int) -> str:
    """The text with its last n words replaced."""
    words = text.split()
    return " ".join([*words[: len(words) - n], *(f"other{index}" for index in range(n))])


def jaccard(one: str, other: str, n: int = 5) -> float:
    """Of texts whose words are single units in lower case."""
    a, b = ({tuple(words[at : at + n]) for at in range(len(words) - n + 1)} for words in (one.split(), other.split()))
    return len(a & b) / len(a | b)


def sieve_rows(rows: list[Row], **settings: Any) -> tuple[list[str], list[Drop]]:
    drops = Drops()
    kept = sieve(rows, Sieve(near_duplicates=NearDuplicates(**settings), gold_is_usable=False), drops)
    return [row.id for row in kept], drops.rows


def test_every_near_one_is_named_with_its_true_index() -> None:
    finder = NearDuplicates().make_finder()
    text = " ".join(WORDS[:100])
    assert finder.find_or_keep("a", text) is None
    for n in (1, 5, 10):
        assert finder.find_or_keep(f"b{n}", changed(text, n)) == Near("a", jaccard(text, changed(text, n)))
    assert finder.find_or_keep("far", changed(text, 50)) is None
    near_far = finder.find_or_keep("near the far one", changed(text, 51))
    assert near_far == Near("far", jaccard(changed(text, 50), changed(text, 51)))


@pytest.mark.parametrize(("n_changed", "is_near"), [(13, True), (14, False)])
def test_the_threshold_is_on_the_true_index(n_changed: int, is_near: bool) -> None:
    """14 words of 100 give 82 of 110 shingles, 0.745; so many bands make candidates of both."""
    text = " ".join(WORDS[:100])
    assert (jaccard(text, changed(text, n_changed)) >= 0.75) == is_near
    finder = NearDuplicates(bands=100, hashes_per_band=2).make_finder()
    assert finder.find_or_keep("a", text) is None
    assert (finder.find_or_keep("b", changed(text, n_changed)) is not None) == is_near


def test_recall_and_precision_on_random_texts() -> None:
    """At index 0.85 and above a pair becomes candidates with probability 0.988 and more (FineWeb's bands)."""
    draw = random.Random(1)
    finder = NearDuplicates().make_finder()
    originals = [" ".join(draw.choices(WORDS, k=80)) for _ in range(300)]
    assert not any(finder.find_or_keep(f"{number}", text) for number, text in enumerate(originals))
    found = [finder.find_or_keep(f"copy {number}", changed(text, 4)) for number, text in enumerate(originals)]
    assert all(near.id == str(number) for number, near in enumerate(found) if near)
    assert sum(near is not None for near in found) >= 290  # 0.9 a pair: 0.9996 of them


def find_with_library(texts: list[str], settings: NearDuplicates) -> list[Near | None]:
    """The verdicts by datasketch's own index, every candidate counted."""
    from datasketch import MinHash, MinHashLSH  # type: ignore[import-untyped]

    n_hashes = settings.bands * settings.hashes_per_band
    index = MinHashLSH(num_perm=n_hashes, params=(settings.bands, settings.hashes_per_band))
    kept: list[set[str]] = []
    verdicts: list[Near | None] = []
    names: list[str] = []
    for number, text in enumerate(texts):
        words, n = text.split(), settings.shingle
        shingles = {" ".join(words[at : at + n]) for at in range(max(1, len(words) - n + 1))}
        minhash = MinHash(num_perm=n_hashes, seed=1, hashfunc=zlib.crc32, scheme="affine32")
        minhash.update_batch([shingle.encode() for shingle in shingles])
        indices = ((place, len(shingles & kept[place]) / len(shingles | kept[place])) for place in index.query(minhash))
        near = min(((place, alike) for place, alike in indices if alike >= settings.threshold), default=None)
        verdicts.append(None if near is None else Near(names[near[0]], near[1]))
        if near is None:
            index.insert(len(kept), minhash, check_duplication=False)
            kept.append(shingles)
            names.append(f"{number}")
    return verdicts


def make_template_texts(n: int, n_common: int, n_own: int, seed: int = 0) -> list[str]:
    """Texts that begin with the same words."""
    draw = random.Random(seed)
    common = " ".join(draw.choices(WORDS, k=n_common))
    return [f"{common} {' '.join(draw.choices(WORDS, k=n_own))}" for _ in range(n)]


@pytest.mark.parametrize(
    "settings", [{}, {"threshold": 0.6}, {"threshold": 0.9, "shingle": 2}, {"bands": 30, "hashes_per_band": 3}]
)
def test_verdicts_are_those_of_counting_every_candidate(settings: dict[str, Any]) -> None:
    draw = random.Random(2)
    texts = [" ".join(draw.choices(WORDS, k=draw.randrange(1, 90))) for _ in range(150)]
    texts += [" ".join(draw.choices(WORDS, k=900)) for _ in range(5)]
    texts += [changed(text, draw.randrange(1 + len(text.split()) // 8)) for text in draw.choices(texts, k=150)]
    texts += [*make_template_texts(60, 60, 16), *make_template_texts(60, 60, 8, seed=1)]
    draw.shuffle(texts)
    finder = NearDuplicates(**settings).make_finder()
    found = [finder.find_or_keep(f"{number}", text) for number, text in enumerate(texts)]
    assert found == find_with_library(texts, NearDuplicates(**settings))
    assert 50 < sum(near is not None for near in found) < 250


def test_texts_of_one_template_are_hardly_ever_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A third of the pairs are candidates, at an index of 0.64."""
    n_counted = 0
    shingles = NearDuplicateFinder._collect_shingles

    def counting(finder: NearDuplicateFinder, units: list[str]) -> set[str]:
        nonlocal n_counted
        n_counted += 1
        return shingles(finder, units)

    monkeypatch.setattr(NearDuplicateFinder, "_collect_shingles", counting)
    finder = NearDuplicates().make_finder()
    assert not any(finder.find_or_keep(f"{n}", text) for n, text in enumerate(make_template_texts(600, 60, 16)))
    assert 600 <= n_counted < 700


def test_chinese_by_characters() -> None:
    finder = NearDuplicates().make_finder()
    text = "小明有十二个苹果，他又在市场上买了三十个苹果，然后把其中的一半送给了小红，请问小明现在还剩下多少个苹果呢？"
    assert finder.find_or_keep("a", text) is None
    assert finder.find_or_keep("b", text.replace("呢", "")) is not None
    assert finder.find_or_keep("c", "今天天气很好，我们一起去公园散步，看到了许多美丽的花朵和小鸟。") is None


@pytest.mark.parametrize(
    ("one", "other", "is_near"),
    [
        ("3 + 4", "3 + 4", True),
        ("3 + 4", "3 - 4", False),
        ("Yes", "yes", True),
        ("Yes", "no", False),
        ("", "", False),
    ],
)
def test_short_texts_are_one_shingle(one: str, other: str, is_near: bool) -> None:
    finder = NearDuplicates().make_finder()
    assert finder.find_or_keep("a", one) is None
    assert (finder.find_or_keep("b", other) is not None) == is_near


def problem(row_id: str, text: str, **fields: Any) -> Problem:
    return Problem(id=row_id, messages=[Message(role="user", content=text)], reward="math_answer", **fields)


def chat(row_id: str, system: str, reply: Message) -> Chat:
    turns = [Message(role="system", content=system), Message(role="user", content=STORY), reply]
    return Chat(id=row_id, messages=turns)


def test_the_sieve_keeps_the_first_and_names_it() -> None:
    rows: list[Row] = [problem("a", STORY), problem("b", STORY.replace("left", "here")), problem("c", STORY)]
    kept, dropped = sieve_rows(rows)
    assert kept == ["a"]
    assert dropped == [
        Drop("near duplicate", "b", "of a: 0.83 of the shingles are common"),
        Drop("duplicate", "c", "of a"),
    ]


def test_an_equal_copy_of_a_dropped_row_is_of_the_kept_one() -> None:
    near = STORY.replace("left", "here")
    _, dropped = sieve_rows([problem("a", STORY), problem("b", near), problem("c", near)])
    assert [(drop.reason, drop.detail[:4]) for drop in dropped] == [("near duplicate", "of a")] * 2


def test_rows_of_other_modes_system_messages_and_kinds_are_no_duplicates() -> None:
    message = Message(role="assistant", content="27")
    call = Message(role="assistant", content="27", tool_calls=[{"name": "add"}])
    rows: list[Row] = [
        problem("a", STORY),
        problem("b", STORY + " .", mode="no_think"),
        problem("c", STORY + " .", flag="/think"),
        Text(id="d", text=STORY),
        chat("e", "Be brief.", message),
        chat("f", "Be kind.", message),
        chat("g", "Be brief.", call),
    ]
    assert sieve_rows(rows) == ([row.id for row in rows], [])
    assert sieve_rows([*rows, chat("h", "Be kind.", Message(role="assistant", content="28"))])[1][0].id == "h"


def test_questions_alone_can_be_compared() -> None:
    rows: list[Row] = [
        chat(f"{n}", "", Message(role="assistant", content=f"{n} " + " ".join(WORDS[n:]))) for n in (9, 99)
    ]
    assert sieve_rows(rows)[0] == ["9", "99"]
    assert sieve_rows(rows, part="question")[0] == ["9"]


def test_alike_completions_of_a_model_are_no_duplicates() -> None:
    asked = [Message(role="user", content=STORY)]
    rows: list[Row] = [
        Completion(prompt_id="p", sample=n, prompt=asked, text="27", finish_reason="stop", n_tokens=1) for n in range(2)
    ]
    assert sieve_rows(rows)[0] == ["p#0", "p#1"]


SCRIPT = """
import random
from qwen_align.data_builders.near_duplicates import NearDuplicates
draw, finder = random.Random(3), NearDuplicates().make_finder()
texts = [[f"w{draw.randrange(99)}" for _ in range(60)] for _ in range(50)]
for number in range(400):
    words = list(texts[number % 50])
    for _ in range(draw.randrange(3)):
        words[draw.randrange(60)] = "x"
    print(number, finder.find_or_keep(str(number), " ".join(words)))
"""


@pytest.mark.slow
def test_the_hash_seed_of_the_process_changes_nothing() -> None:
    def said(seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        return subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
        ).stdout

    assert said("1") == said("2")
    assert 100 < said("1").count("Near(") < 350


@pytest.mark.parametrize(
    "wrong", [{"threshold": 0.0}, {"threshold": 1.1}, {"bands": 1}, {"shingle": 0}, {"part": "all"}]
)
def test_wrong_settings(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        NearDuplicates(**wrong)
