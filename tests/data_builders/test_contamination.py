"""Each rule on its own, the golden case of s1's code, and the rules inside the sieve."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from qwen_align.align.errors import DataError
from qwen_align.align.references import find_outside_files, find_references
from qwen_align.align.rows import Chat, Message, Problem, Row, RowError, Text, Trace
from qwen_align.align.settings.build_data import BuildData
from qwen_align.align.stages.build_data import build_rows as build
from qwen_align.data_builders.benchmark_questions import Question
from qwen_align.data_builders.contamination import (
    Contamination,
    Finder,
    Qwen25MathOverlap,
    Qwen25Overlap,
    S1Overlap,
    SameWords,
)
from qwen_align.data_builders.sieve import Drop, Drops, Sieve, sieve

DATA = Path(os.environ.get("QWEN_ALIGN_TEST_DATA", Path(__file__).parents[2] / "../shared/data")).resolve()
GOLDEN = DATA.parent / "golden" / "s1_decontamination.json"
ADAPTER: TypeAdapter[Contamination] = TypeAdapter(Contamination)

ASKED = "A train leaves Paris at 9 in the morning and travels 320 miles to Lyon at 80 miles an hour. When is arrival?"
WORDS = ASKED.split()


def finder(method: str, *questions: str, **settings: Any) -> Finder:
    rule = ADAPTER.validate_python({"method": method, "against": "bench", **settings})
    return rule.make_finder([Question(f"q{number}", text) for number, text in enumerate(questions)])


@pytest.mark.skipif(not GOLDEN.is_file(), reason=f"no golden case at {GOLDEN}; set QWEN_ALIGN_TEST_DATA")
@pytest.mark.filterwarnings("ignore:contamination:UserWarning")
def test_s1_golden() -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    find = finder("s1", *golden["test"])
    found = [index for index, text in enumerate(golden["train"]) if find(text)]
    assert found == golden["contaminated_train_indices"]


@pytest.mark.parametrize(
    ("text", "s1", "math", "lcs"),
    [
        (ASKED, True, True, True),
        (ASKED.upper(), True, True, True),
        ("  \n".join(WORDS), True, True, True),
        (f"Read this. {ASKED} Explain every step of the way.", True, True, True),
        (ASKED.replace(" ", ", "), False, True, True),  # signs belong to s1's words
        (" ".join(WORDS[:8]) + " who knows", True, False, False),
        (" ".join(WORDS[:7]) + " who knows", False, False, False),
        # a 13-gram of 23 words, then others: 14 of the shorter's 23 are 0.609, 13 of 23 are 0.565
        (" ".join(WORDS[:14] + ["x"] * 9), True, True, True),
        (" ".join(WORDS[:13] + ["x"] * 10), True, False, False),
        # every eighth word another: no n-gram left, but most of the sequence
        (" ".join("x" if index % 7 == 6 else word for index, word in enumerate(WORDS)), False, False, True),
        (" ".join(WORDS[::-1]), False, False, False),
        ("", False, False, False),
    ],
)
def test_rules_side_by_side(text: str, s1: bool, math: bool, lcs: bool) -> None:
    assert len(WORDS) == 23
    assert (finder("s1", ASKED)(text) is not None) == s1
    assert (finder("qwen2.5_math", ASKED)(text) is not None) == math
    assert (finder("qwen2.5", ASKED)(text) is not None) == lcs


@pytest.mark.parametrize(
    ("n_common", "n_all", "math", "lcs"),
    [(21, 35, False, True), (22, 35, True, True), (20, 35, False, False), (13, 20, True, True), (12, 14, False, False)],
)
def test_thresholds_are_exact(n_common: int, n_all: int, math: bool, lcs: bool) -> None:
    """Qwen2.5 asks for at least 0.6 of the shorter, Qwen2.5-Math for more; both for 13 units."""
    asked = [f"w{index}" for index in range(n_all)]
    text = " ".join(asked[:n_common] + ["x"] * (n_all - n_common))
    assert (finder("qwen2.5_math", " ".join(asked))(text) is not None) == math
    assert (finder("qwen2.5", " ".join(asked))(text) is not None) == lcs


def test_the_overlap_shows_the_question_and_what_is_shared() -> None:
    other = "An entirely different question about the price of forty apples in the market of Lyon on a rainy day"
    text = f"Well: {ASKED}"
    assert finder("s1", other, ASKED)(text) == ("q1", "'a train leaves paris at 9 in the'")
    ngram = "'a train leaves paris at 9 in the morning and travels 320 miles'"
    assert finder("qwen2.5_math", other, ASKED)(text) == ("q1", f"23 in common, 1.00 of the shorter, {ngram}")
    assert finder("qwen2.5", other, ASKED)(text) == ("q1", "23 in common, 1.00 of the shorter")
    assert finder("same_words", other, ASKED)(ASKED.upper() + "!") == ("q1", "the same words")


def test_a_math_row_is_held_against_every_question_with_its_ngram() -> None:
    long = " ".join([*WORDS, *(f"more{index}" for index in range(40))])
    other_text = " ".join([*WORDS, *(f"other{index}" for index in range(40))])
    found = finder("qwen2.5_math", long, ASKED)(other_text)
    assert found is not None
    assert found.question == "q1"  # all of it, while q0 has 23 of 63 in common


def test_chinese_has_words_in_the_rules_of_qwen_only() -> None:
    asked = "一列火车早上九点从北京出发，以每小时八十公里的速度行驶三百二十公里到达天津，请问它几点到达？"
    text = "请看：" + asked.replace("，", "。")
    assert finder("qwen2.5_math", asked)(text) is not None
    assert finder("qwen2.5", asked)(text) is not None
    with pytest.warns(UserWarning, match="1 of 1 questions of bench are too short for method 's1'"):
        assert finder("s1", asked)(asked) is None


def test_short_questions_are_told_and_found_by_same_words() -> None:
    with pytest.warns(UserWarning, match=r"1 of 2 questions .* a second rule with method same_words does"):
        find = finder("s1", ASKED, "Compute $1+2$.")
    assert find("compute $1+2$.") is None
    find = finder("same_words", ASKED, "Compute $1+2$.", "Compute 1, 2")
    assert find("compute 1 + 2") == ("q1", "the same words")
    assert find("compute 1 + 2 + 3") is None
    with pytest.warns(UserWarning, match="they hold no word"):
        assert finder("same_words", "?!")("...") is None


def test_no_warning_without_a_short_question() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for method in ("s1", "qwen2.5_math", "qwen2.5", "same_words"):
            finder(method, ASKED)


def test_tokens_of_a_tokenizer(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(["?", *WORDS]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    find = finder("qwen2.5", ASKED, tokenizer=str(tmp_path / "tokenizer.json"))
    assert find(ASKED) == ("q0", "23 in common, 1.00 of the shorter")
    assert find(ASKED.upper()) is None  # case is the tokenizer's business
    with pytest.raises(ValueError, match="there is no such file"):
        finder("qwen2.5", ASKED, tokenizer=str(tmp_path / "none.json"))
    with pytest.raises(DataError, match=r"tokenizer: .*: is a folder; a model's tokenizer\.json is meant"):
        finder("qwen2.5", ASKED, tokenizer=str(tmp_path))
    for content in ("{}", "", '{"model": {}}'):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(DataError, match=r"other\.json: is no tokenizer\.json: .*; a model's is meant"):
            finder("qwen2.5", ASKED, tokenizer=str(tmp_path / "other.json"))


def find_with_plain_s1(train: list[str], test: list[str]) -> list[int]:
    """Rows that share an 8-gram with the test side, by building all n-grams of both."""

    def ngrams(text: str) -> set[str]:
        words = " ".join(text.lower().strip().split()).split()
        return {" ".join(words[start : start + 8]) for start in range(len(words) - 7)}

    asked = set[str]().union(*map(ngrams, test))
    return [index for index, text in enumerate(train) if not asked.isdisjoint(ngrams(text))]


@pytest.mark.skipif(not (DATA / "gsm8k").is_dir(), reason=f"no real data at {DATA}; set QWEN_ALIGN_TEST_DATA")
@pytest.mark.filterwarnings("ignore:contamination:UserWarning")
def test_s1_verdicts_on_real_rows_are_those_of_the_plain_way() -> None:
    def column(path: str, key: str) -> list[str]:
        return [json.loads(line)[key] for line in (DATA / path).read_text(encoding="utf-8").splitlines()]

    train, test = column("gsm8k/train.jsonl", "question"), column("gsm8k/test.jsonl", "question")
    find = finder("s1", *test)
    found = [index for index, text in enumerate(train) if find(text)]
    assert found == find_with_plain_s1(train, test)
    assert len(found) == 70
    assert all(find(text) for text in test if len(text.split()) >= 8)


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


def problem(row_id: str, text: str, system: str | None = None) -> Problem:
    turns = [Message(role="system", content=system)] if system else []
    return Problem(id=row_id, messages=[*turns, user(text)], gold="1", reward="math_answer")


def sieve_rows(rows: list[Row], *rules: dict[str, Any], bench: list[Row] | None = None) -> tuple[list[str], list[Drop]]:
    settings = Sieve.model_validate({"contamination": list(rules)})
    drops = Drops()
    kept = list(sieve(rows, settings, drops, {"bench": lambda: iter(bench or [])}))
    return [row.id for row in kept], drops.rows


def test_the_sieve_names_rule_pair_and_ngram() -> None:
    rows: list[Row] = [problem("a", "What is half of two?"), problem("b", f"Now: {ASKED}")]
    kept, dropped = sieve_rows(rows, {"against": "bench", "method": "s1"}, bench=[problem("m1", ASKED)])
    assert kept == ["a"]
    assert dropped == [Drop("contaminated: bench, s1", "b", "m1: 'a train leaves paris at 9 in the'")]


@pytest.mark.filterwarnings("ignore:contamination:UserWarning")
def test_rules_are_asked_in_order_and_counted_apart() -> None:
    rows: list[Row] = [problem("a", ASKED), problem("b", "compute 1+2"), problem("c", "compute 1+3")]
    rules = [{"against": "bench", "method": "s1"}, {"against": "bench", "method": "same_words"}]
    kept, dropped = sieve_rows(rows, *rules, bench=[problem("m1", ASKED), problem("m2", "Compute $1+2$.")])
    assert kept == ["c"]
    assert [drop.reason for drop in dropped] == ["contaminated: bench, s1", "contaminated: bench, same_words"]


def test_the_same_system_message_is_no_contamination() -> None:
    instruction = "Please reason step by step, and put your final answer within a box at the end."
    rows: list[Row] = [problem("a", "What is half of two?", system=instruction)]
    bench: list[Row] = [problem("m1", ASKED, system=instruction)]
    assert sieve_rows(rows, {"against": "bench", "method": "s1", "part": "everything"}, bench=bench) == (["a"], [])


def test_user_turns_or_everything() -> None:
    quoting = Trace(
        id="a", messages=[user("What is half of two?")], thinking=ASKED, answer="1", gold="1", reward="math_answer"
    )
    second_turn = Chat(id="b", messages=[user("Hello."), assistant("Hello!"), user(ASKED), assistant("At one.")])
    reply = Chat(id="c", messages=[user("Ask me something."), assistant(ASKED)])
    text = Text(id="d", text=f"Exercises. {ASKED}")
    rows: list[Row] = [quoting, second_turn, reply, text]
    rule = {"against": "bench", "method": "s1"}
    assert sieve_rows(rows, rule, bench=[problem("m1", ASKED)])[0] == ["a", "c"]
    assert sieve_rows(rows, {**rule, "part": "everything"}, bench=[problem("m1", ASKED)])[0] == []


def test_a_contaminated_row_does_not_shadow_a_good_one() -> None:
    rule = {"against": "bench", "method": "s1", "part": "everything"}
    chats: list[Row] = [
        Chat(id=name, messages=[user("Ask!"), assistant(text)]) for name, text in (("a", ASKED), ("b", "1?"))
    ]
    kept, _ = sieve_rows([*chats, chats[1].model_copy(update={"id": "c"})], rule, bench=[problem("m1", ASKED)])
    assert kept == ["b"]


def sieve_against_file(tmp_path: Path, *lines: str, **rule: Any) -> tuple[list[str], list[Drop]]:
    path = tmp_path / "maths" / "test.jsonl"
    path.parent.mkdir()
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    settings = {"against_file": str(path), "column": "problem", "method": "s1", **rule}
    return sieve_rows([problem("a", f"Now: {ASKED}")], settings)


def test_a_file_as_benchmark(tmp_path: Path) -> None:
    lines = [json.dumps({"problem": text}) for text in ("x " * 20, ASKED)]
    kept, dropped = sieve_against_file(tmp_path, *lines)
    assert kept == []
    assert dropped == [
        Drop("contaminated: maths/test.jsonl, s1", "a", "maths/test.jsonl:2: 'a train leaves paris at 9 in the'")
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "x"}', r"test.jsonl:1: 'problem' is missing"),
        ('{"problems": "x"}', r"test.jsonl:1: 'problem' is missing. Did you mean 'problems'\?"),
        ('{"problem": null}', r"test.jsonl:1: 'problem' is None, not a text"),
        ('{"problem": ["x"]}', r"test.jsonl:1: 'problem' is \['x'\], not a text"),
        ('"x"', r"test.jsonl:1: is str 'x', not an object"),
        ('{"problem": "x', r"test.jsonl:1: is not JSON"),
    ],
)
def test_a_wrong_benchmark_row_is_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(RowError, match=message):
        sieve_against_file(tmp_path, line)


def test_an_empty_or_missing_benchmark_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"maths/test.jsonl holds no question"):
        sieve_against_file(tmp_path)
    with pytest.raises(DataError, match="bench holds no question"):
        sieve_rows([problem("a", ASKED)], {"against": "bench", "method": "s1"})
    with pytest.raises(DataError, match="there is no such file"):
        sieve_rows([], {"against_file": str(tmp_path / "none.jsonl"), "column": "x", "method": "s1"})
    with pytest.raises(ValueError, match="against: 'other' is none of the sources: bench"):
        sieve_rows([], {"against": "other", "method": "s1"})


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"method": "s1"}, "give one of them"),
        ({"method": "s1", "against": "a", "against_file": "b.jsonl", "column": "c"}, "give one of them"),
        ({"method": "s1", "against_file": "b.jsonl"}, "give both or neither"),
        ({"method": "s1", "against": "a", "column": "c"}, "give both or neither"),
        ({"method": "s1", "against_file": "b.txt", "column": "c"}, "convert the file"),
        ({"method": "s1", "against": "a", "ngram": 0}, "ngram"),
        ({"method": "s1", "against": "a", "above_share": 0.5}, "above_share"),
        ({"method": "s2", "against": "a"}, "s1"),
        ({"against": "a"}, "method"),
    ],
)
def test_wrong_settings(rule: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sieve.model_validate({"contamination": [rule]})


def test_stages_and_files_are_inputs_of_the_stage(tmp_path: Path) -> None:
    rules = [
        {"against": "math500", "method": "s1"},
        {"against_file": "b.jsonl", "column": "q", "method": "qwen2.5", "tokenizer": "t.json"},
    ]
    settings = Sieve.model_validate({"contamination": rules}, context={"folder": tmp_path})
    assert list(find_references(settings)) == [("contamination[0].against", "math500")]
    assert list(find_outside_files(settings)) == [
        ("contamination[1].against_file", str(tmp_path / "b.jsonl")),
        ("contamination[1].tokenizer", str(tmp_path / "t.json")),
    ]


def test_a_stage_reads_its_benchmark_from_an_earlier_one() -> None:
    data = {"kind": "arithmetic", "rows": "problem", "n": 8, "steps": [5]}
    spec = BuildData.model_validate({"name": "data", "kind": "build_data", "builder": data})
    bench = list(build(spec, {}, 0, Drops()))
    rules = [{"against": "dev", "method": "same_words"}]
    spec = spec.model_copy(update={"sieve": Sieve.model_validate({"contamination": rules})})
    drops = Drops()
    kept = list(build(spec, {"dev": lambda: iter(bench[:3])}, 0, drops))
    assert kept == bench[3:]
    assert drops.counts == {"contaminated: dev, same_words": 3}


def test_rules_are_named_by_their_classes_too() -> None:
    asked = [Question("q0", ASKED)]
    for rule in (S1Overlap, Qwen25MathOverlap, Qwen25Overlap, SameWords):
        assert rule(against="bench").make_finder(asked)(ASKED) is not None  # type: ignore[arg-type]
