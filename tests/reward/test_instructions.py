"""Instructions: every kind by table, golds of the data set, loose and whole-prompt accuracy, time, and properties."""

import json
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_align.align.errors import RecipeError
from qwen_align.align.rows import Completion, Message
from qwen_align.reward.ifeval import latin_languages
from qwen_align.reward.ifeval.detect_language import SCRIPTS
from qwen_align.reward.ifeval.instruction_kinds import INSTRUCTION_KINDS
from qwen_align.reward.instructions import Instructions
from tests.clock import cpu_limit

CASES = [
    json.loads(line) for line in (Path(__file__).parents[1] / "cases" / "ifeval.jsonl").read_text("utf-8").splitlines()
]


def needs_langdetect(case: dict[str, Any]) -> bool:
    return case["kind"].startswith("change_case:english") or case["kwargs"].get("language") in latin_languages.LATIN


def gold_of(*asked: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return {"instruction_id_list": [kind for kind, _ in asked], "kwargs": [kwargs for _, kwargs in asked]}


def completion(text: str, gold: Any, sample: int = 0) -> Completion:
    prompt = [Message(role="user", content="Write.")]
    return Completion(
        prompt_id="p", sample=sample, prompt=prompt, text=text, finish_reason="stop", n_tokens=1, gold=gold
    )


TEA = ("keywords:existence", {"keywords": ["tea"]})
TWO_POINTS = ("detectable_format:number_bullet_lists", {"num_bullets": 2})
NO_COMMA = ("punctuation:no_comma", {})
FIRST_WORD = "length_constraints:nth_paragraph_first_word"
BOTH = "* green tea\n* black tea"


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['kind']}: {case['why']}")
def test_case(case: dict[str, Any]) -> None:
    if needs_langdetect(case):
        pytest.importorskip("langdetect", reason="not installed: pip install 'qwen-align[ifeval]'")
    verdict = Instructions().judge(case["text"], gold_of((case["kind"], case["kwargs"])))
    assert verdict.value == float(case["follows"])
    assert verdict.parts is not None
    assert verdict.parts[case["kind"]].reason == ("followed" if case["follows"] else "not followed")


def test_every_kind_has_three_cases_of_each_sort() -> None:
    counts = Counter((case["kind"], case["follows"]) for case in CASES)
    assert len(INSTRUCTION_KINDS) == 25
    assert set(counts) == {(kind, follows) for kind in INSTRUCTION_KINDS for follows in (True, False)}
    assert min(counts.values()) >= 3


def test_value_is_the_share_of_followed_instructions() -> None:
    gold = gold_of(TEA, TWO_POINTS)
    for text, share, reason in (
        (BOTH, 1.0, "all followed"),
        ("tea", 0.5, "some followed"),
        ("coffee", 0.0, "none followed"),
    ):
        for given_gold in (gold, None):
            verdict = Instructions().judge(text if given_gold else completion(text, gold), given_gold)
            assert (verdict.value, verdict.reason) == (share, reason)
        assert Instructions(every=True).judge(text, gold).value == float(share == 1.0)


def test_parts_are_told_apart_where_a_kind_is_asked_twice() -> None:
    asked = "change_case:capital_word_frequency"
    gold = gold_of(
        (asked, {"capital_frequency": 3, "capital_relation": "less than"}),
        NO_COMMA,
        (asked, {"capital_frequency": 1, "capital_relation": "at least"}),
    )
    verdict = Instructions().judge("no such word, none", gold)
    assert verdict.parts is not None
    assert {name: part.value for name, part in verdict.parts.items()} == {
        asked: 1.0,
        "punctuation:no_comma": 0.0,
        f"{asked}#2": 0.0,
    }


@pytest.mark.parametrize(
    ("text", "value", "reason"),
    [
        (f"<think>\nTwo points, both tea.\n</think>\n\n{BOTH}", 1.0, "all followed"),
        (f"Two, both tea.\n</think>\n\n{BOTH}", 1.0, "all followed"),
        (f"<think>\n{BOTH}\n</think>\n\ncoffee", 0.0, "none followed"),
        (f"<think>\n{BOTH}", 0.0, "unfinished thinking"),
        (f"<think>\nx\n</think>\n\n{BOTH}\n<think>", 0.0, "unfinished thinking"),
        ("<think>\n\n</think>\n\n", 0.0, "no answer"),
        ("", 0.0, "no answer"),
        (" \n", 0.0, "no answer"),
    ],
)
def test_only_what_follows_the_thinking_counts(text: str, value: float, reason: str) -> None:
    verdict = Instructions().judge(text, gold_of(TEA, TWO_POINTS))
    assert (verdict.value, verdict.reason) == (value, reason)


def test_no_answer_follows_nothing_not_even_what_forbids() -> None:
    forbidding = gold_of(NO_COMMA, ("keywords:forbidden_words", {"forbidden_words": ["tea"]}))
    for text in ("", "\n\n", "<think>\nx\n</think>\n\n", "<think>\nx"):
        assert Instructions().judge(text, forbidding).value == 0.0
        assert Instructions(mode="loose").judge(text, forbidding).value == 0.0


def test_the_blank_line_after_thinking_is_no_paragraph() -> None:
    first = {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "tea"}
    gold = gold_of(("length_constraints:nth_paragraph_first_word", first))
    assert Instructions().judge("<think>\nx\n</think>\n\nTea it is.", gold).value == 1.0


@pytest.mark.parametrize(
    ("text", "asked", "why"),
    [
        ("Sure, here it is:\nTea.", NO_COMMA, "without the first line"),
        ("Tea.\nAnything else, Sir?", NO_COMMA, "without the last line"),
        ("Sure, Sir:\nTea.\nAnything else, Sir?", NO_COMMA, "without both"),
        ("**Bye now.**", ("startend:end_checker", {"end_phrase": "Bye now."}), "without asterisks"),
        ('Sure:\n**"Tea."**', ("startend:quotation", {}), "without the first line and asterisks"),
        ('**"Tea."**\nDone', ("startend:quotation", {}), "without the last line and asterisks"),
        ('Sure:\n**"Tea."**\nDone', ("startend:quotation", {}), "without both and asterisks"),
    ],
)
def test_loose_pays_the_variants_of_the_paper(text: str, asked: tuple[str, dict[str, Any]], why: str) -> None:
    assert Instructions().judge(text, gold_of(asked)).value == 0.0
    assert Instructions(mode="loose").judge(text, gold_of(asked)).value == 1.0, why


def test_loose_leaves_no_more_out_than_a_line_at_each_end() -> None:
    gold = gold_of(NO_COMMA)
    assert Instructions(mode="loose").judge("Well, well,\nyes, yes,\nno, no", gold).value == 0.0
    assert Instructions(mode="loose").judge("Well, well", gold).value == 0.0


def test_the_forms_of_a_gold() -> None:
    hub = {
        "key": 1,
        "prompt": "Two points.",
        "instruction_id_list": ["detectable_format:number_bullet_lists", "punctuation:no_comma"],
        "kwargs": [{"num_bullets": 2.0, "keywords": None, "relation": float("nan")}, None],
    }
    short = {"instructions": [{"id": TWO_POINTS[0], "num_bullets": 2}, {"id": "punctuation:no_comma"}]}
    for gold in (hub, short):
        assert Instructions().judge(BOTH, gold).value == 1.0
        assert Instructions().judge(BOTH + ", please", gold).value == 0.5
        assert Instructions().judge_gold(gold).value == 1.0


UNUSABLE = [
    (None, "no object"),
    ("punctuation:no_comma", "no object"),
    ({}, "no lists of one length"),
    ({"instruction_id_list": [], "kwargs": []}, "no instructions"),
    ({"instructions": []}, "no instructions"),
    ({"instructions": "punctuation:no_comma"}, "no list of objects"),
    ({"instructions": [{"kind": "punctuation:no_comma"}]}, "'None' is no instruction"),
    ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}, "one length"),
    ({"instruction_id_list": ["punctuation:no_comma"]}, "one length"),
    ({"instruction_id_list": [["punctuation:no_comma"]], "kwargs": [{}]}, "is no instruction"),
    (gold_of(("punctuation:no_commas", {})), "no_commas' is no instruction. Did you mean 'punctuation:no_comma'"),
    (gold_of(("keywords:key_sentences", {})), "'keywords:key_sentences' is no instruction"),
    ({"instruction_id_list": ["punctuation:no_comma"], "kwargs": ["{}"]}, "punctuation:no_comma: its kwargs"),
    (gold_of(("punctuation:no_comma", {"keywords": ["a"]})), "punctuation:no_comma: 'keywords' is no setting"),
    (gold_of(("keywords:existence", {})), "keywords:existence: keywords: is missing"),
    (gold_of(("keywords:existence", {"keywords": None})), "keywords:existence: keywords: is missing"),
    (gold_of(("keywords:existence", {"keywords": []})), "keywords:existence: keywords"),
    (gold_of(("keywords:existence", {"keywords": "tea"})), "keywords:existence: keywords"),
    (gold_of(("keywords:existence", {"keywords": ["tea", " "]})), "keywords:existence: keywords.1"),
    (gold_of(("keywords:existence", {"keywords": [5]})), "keywords:existence: keywords.0"),
    (gold_of(("keywords:frequency", {"keyword": "a", "frequency": 2})), "keywords:frequency: relation"),
    (gold_of(("keywords:frequency", {"keyword": "a", "frequency": 2, "relation": "at most"})), "relation"),
    (gold_of(("keywords:frequency", {"keyword": "a", "frequency": 0, "relation": "less than"})), "frequency"),
    (gold_of(("keywords:frequency", {"keyword": "a", "frequency": True, "relation": "less than"})), "frequency"),
    (gold_of(("length_constraints:number_words", {"num_words": 2.5, "relation": "at least"})), "num_words"),
    (gold_of(("length_constraints:number_words", {"num_words": -1, "relation": "at least"})), "num_words"),
    (gold_of(("length_constraints:number_words", {"num_words": "9", "relation": "at least"})), "num_words"),
    (gold_of(("detectable_format:number_bullet_lists", {"num_bullets": -1})), "num_bullets"),
    (gold_of(("keywords:letter_frequency", {"letter": "ab", "let_frequency": 1, "let_relation": "at least"})), "one"),
    (gold_of(("language:response_language", {"language": "xx"})), "'xx' is no language known here"),
    (
        gold_of((FIRST_WORD, {"num_paragraphs": 1, "nth_paragraph": 2, "first_word": "a"})),
        "length_constraints:nth_paragraph_first_word: nth_paragraph is more",
    ),
    (
        gold_of((FIRST_WORD, {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "a b"})),
        "first_word is not one word",
    ),
    (gold_of(("combination:repeat_prompt", {"prompt_to_repeat": " "})), "prompt to repeat is blank"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "said"), UNUSABLE, ids=lambda value: value if isinstance(value, str) else "")
def test_an_unusable_gold_is_never_paid_and_the_reason_names_it(gold: Any, said: str) -> None:
    verdict = Instructions().judge(BOTH, gold)
    assert (verdict.value, verdict.reason) == (None, "unusable gold")
    told = Instructions().judge_gold(gold)
    assert told.value is None
    assert told.reason.startswith("unusable gold: ")
    assert said in told.reason


def test_one_unusable_instruction_makes_the_gold_unusable() -> None:
    assert Instructions().judge(BOTH, gold_of(TEA, ("keywords:nothing", {}))).value is None


def test_probes_are_paid_as_they_say() -> None:
    for reward in (Instructions(), Instructions(every=True), Instructions(mode="loose")):
        for probe in reward.probes():
            value = reward.judge(probe.completion, probe.gold).value
            assert (value is not None and value > 0) == probe.pays, probe.name


def test_what_needs_langdetect_says_so_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    latin_languages._load_profiles.cache_clear()
    monkeypatch.setitem(sys.modules, "langdetect", None)
    try:
        for asked in (("language:response_language", {"language": "fr"}), ("change_case:english_capital", {})):
            with pytest.raises(RecipeError, match=r"pip install 'qwen-align\[ifeval\]'"):
                Instructions().judge_gold(gold_of(asked))
            with pytest.raises(RecipeError, match="langdetect"):
                Instructions().judge("BONJOUR LE MONDE", gold_of(asked))
        for code in set(SCRIPTS) - set(latin_languages.LATIN):
            gold = gold_of(("language:response_language", {"language": code}))
            assert Instructions().judge_gold(gold).value == 1.0
            assert Instructions().judge("Hello.", gold).value == 0.0
    finally:
        latin_languages._load_profiles.cache_clear()


ASKED = [(case["kind"], case["kwargs"]) for case in CASES if not needs_langdetect(case)]
pieces = st.lists(
    st.sampled_from(
        [*"*[]<>\"'.!?,#-_1aA\n ", "\n\n", "***", "******", "tea ", "Section 1 ", "P.S.", "[x]", "中", "。", "</think>"]
    ),
    max_size=30,
).map("".join)
texts = pieces | st.text(max_size=40) | st.sampled_from([case["text"] for case in CASES])
golds = st.lists(st.sampled_from(ASKED), min_size=1, max_size=5)


@given(texts, golds, st.randoms(use_true_random=False))
def test_value_is_a_share_and_order_does_not_matter(text: str, asked: list[Any], random: Any) -> None:
    verdict = Instructions().judge(text, gold_of(*asked))
    assert verdict.value is not None
    assert 0.0 <= verdict.value <= 1.0
    assert verdict.parts is not None
    assert len(verdict.parts) == len(asked)
    assert verdict.value * len(asked) == pytest.approx(sum(part.value or 0.0 for part in verdict.parts.values()))
    assert (verdict.value == 1.0) == (Instructions(every=True).judge(text, gold_of(*asked)).value == 1.0)
    shuffled = random.sample(asked, len(asked))
    assert Instructions().judge(text, gold_of(*shuffled)).value == verdict.value


@given(texts, golds)
def test_loose_pays_whatever_strict_pays(text: str, asked: list[Any]) -> None:
    strict, loose = (Instructions(mode=mode).judge(text, gold_of(*asked)) for mode in ("strict", "loose"))
    assert strict.parts is not None
    assert loose.parts is not None
    for name, part in strict.parts.items():
        assert (part.value or 0.0) <= (loose.parts[name].value or 0.0)


@given(st.lists(st.tuples(texts, golds), max_size=5))
def test_a_batch_gets_what_each_gets_alone_also_in_threads(rows: list[Any]) -> None:
    reward = Instructions()
    completions = [completion(text, gold_of(*asked), n) for n, (text, asked) in enumerate(rows)]
    alone = [reward.judge(one) for one in completions]
    assert reward.judge_many(completions) == alone
    assert reward.judge_group(completions) == alone
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(reward.judge, completions)) == alone


NAMES = sorted({name for _, kwargs in ASKED for name in kwargs})
WITHOUT_LIBRARY = sorted(kind for kind in INSTRUCTION_KINDS if not kind.startswith("change_case:english"))
values = st.none() | st.integers(-2, 3) | st.floats() | st.text(max_size=5) | st.lists(st.text(max_size=3), max_size=2)


@given(st.sampled_from(WITHOUT_LIBRARY), st.dictionaries(st.sampled_from([*NAMES, "x"]), values, max_size=3))
def test_every_gold_is_read_or_its_instruction_named(kind: str, kwargs: dict[str, Any]) -> None:
    gold = gold_of((kind, kwargs))
    told = Instructions().judge_gold(gold)
    assert told.value == 1.0 or (told.value is None and kind in told.reason)
    assert (Instructions().judge("", gold).value is None) == (told.value is None)


# What a pattern that looks ahead or back too far would choke on, over and over.
LONG = [
    "a",
    "*",
    "[",
    "<<",
    "\n",
    " ",
    ". ",
    ".)",
    "?!",
    '"',
    "'",
    "-",
    "A ",
    "Section ",
    "1",
    "p.",
    "{",
    "[1,",
    "中",
    "a\u0301",
    "x@",
]


@pytest.mark.parametrize("unit", LONG)
def test_a_long_text_takes_linear_time(unit: str) -> None:
    short, long = unit * (30_000 // len(unit)), unit * (300_000 // len(unit))
    gold = gold_of(*{kind: (kind, kwargs) for kind, kwargs in ASKED}.values())

    def cpu_s(text: str) -> float:
        start = time.process_time()
        Instructions().judge(text, gold)
        return time.process_time() - start

    cpu_s(short)
    assert cpu_s(long) < 30 * max(min(cpu_s(short), cpu_s(short)), 0.002)


def test_a_megabyte_of_prose_takes_a_second() -> None:
    text = ("Green tea, [black] tea. *Dr.* Who's? " * 27_028)[:1_000_000]
    gold = gold_of(*{kind: (kind, kwargs) for kind, kwargs in ASKED}.values())
    with cpu_limit(5.0):
        assert Instructions().judge(text, gold).value is not None
