"""The generator, checked by a reader of its own: questions are parsed and traces recomputed from their text alone."""

import re
from collections import Counter
from importlib.resources import files
from itertools import islice

import pytest
import yaml
from pydantic import ValidationError

from qwen_align.align.rows import Chat, Problem, Text, Trace, compute_rows_digest
from qwen_align.data_builders import arithmetic
from qwen_align.data_builders.arithmetic import Arithmetic

LOSS_WORDS = (" to ", " loses ", " sells ", " takes ", " removed.", " off.")


def read_question(question: str) -> list[int]:
    """Start and signed changes, from the question's words or its expression."""
    expression = re.search(r"\d+(?:[+-]\d+)+", question)
    if expression:
        return [int(number) for number in re.findall(r"[+-]?\d+", expression[0])]
    opening, *changes, asked = re.split(r"(?<=\.) ", question)
    assert not re.search(r"\d", asked)
    return [read_number(opening), *(read_number(sentence) * (-1 if is_loss(sentence) else 1) for sentence in changes)]


def is_loss(sentence: str) -> bool:
    return any(word in sentence for word in LOSS_WORDS)


def read_number(sentence: str) -> int:
    (number,) = re.findall(r"\d+", sentence)
    return int(number)


def check_equations(lines: list[str], numbers: list[int]) -> None:
    now = numbers[0]
    for line, change in zip(lines, numbers[1:], strict=True):
        left, right, result = re.fullmatch(r"(\d+)([+-]\d+)=(\d+)", line).groups()  # type: ignore[union-attr]
        assert (int(left), int(right), int(result)) == (now, change, now + change)
        now += change


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_golds_and_traces_are_right(split: arithmetic.Split) -> None:
    for row in Arithmetic(rows="trace", n=600, steps=[1, 2, 3, 4, 5], split=split).generate(3):
        assert isinstance(row, Trace)
        numbers = read_question(row.messages[0].content)
        assert row.gold == str(sum(numbers))
        assert row.answer == f"\\boxed{{{row.gold}}}"
        assert len(numbers) - 1 == row.meta["steps"]
        check_equations(row.thinking.split("\n"), numbers)


def test_values_and_changes_stay_in_range() -> None:
    for row in Arithmetic(rows="problem", n=2000, steps=[1, 5, 8]).generate(0):
        assert isinstance(row, Problem)
        start, *changes = read_question(row.messages[0].content)
        totals = [start + sum(changes[:i]) for i in range(len(changes) + 1)]
        assert all(0 <= total <= 99 for total in totals)
        assert all(2 <= abs(change) <= 20 for change in changes)


def test_direct_rows_answer_without_thinking() -> None:
    for row in Arithmetic(rows="direct", n=300, steps=[1, 2], split="dev").generate(0):
        assert isinstance(row, Chat)
        user, answer = row.messages
        assert (row.mode, user.role, answer.role, answer.thinking) == ("no_think", "user", "assistant", None)
        assert answer.content == f"\\boxed{{{sum(read_question(user.content))}}}"


def test_steps_are_cycled_and_half_are_stories() -> None:
    rows = list(Arithmetic(rows="problem", n=2000, steps=[2, 3, 4, 5, 5]).generate(0))
    steps, forms = Counter(row.meta["steps"] for row in rows), Counter(row.meta["form"] for row in rows)
    assert steps == {2: 400, 3: 400, 4: 400, 5: 800}
    assert 900 < forms["words"] < 1100  # 1000 +- 4.5 standard deviations
    assert set(forms) == {"words", "expression"}


def test_wordings_vary() -> None:
    rows = Arithmetic(rows="problem", n=3000, steps=[1]).generate(0)
    templates = {re.sub(r"\d+", "N", row.messages[0].content) for row in rows if isinstance(row, Problem)}
    assert len(templates) > 1000
    assert sum("+" in template for template in templates) == sum("-" in template for template in templates) > 5


def skeletons(settings: Arithmetic, seed: int) -> set[tuple[int, ...]]:
    return {
        tuple(read_question(row.messages[0].content)) for row in settings.generate(seed) if isinstance(row, Problem)
    }


def test_splits_share_no_numbers_whatever_seed_and_size() -> None:
    # One step has so few skeletons that two unrelated sets of this size would all but surely share some.
    train = skeletons(Arithmetic(rows="problem", n=4000, steps=[1, 2]), seed=1)
    dev = skeletons(Arithmetic(rows="problem", n=500, steps=[1, 2], split="dev"), seed=1)
    test = skeletons(Arithmetic(rows="problem", n=900, steps=[2, 1], split="test"), seed=2)
    assert not train & dev
    assert not train & test
    assert not dev & test
    assert train & skeletons(Arithmetic(rows="problem", n=4000, steps=[1, 2]), seed=2)


def test_split_shares_are_eight_one_one() -> None:
    totals = [arithmetic.Total(start, (change,)) for start in range(21, 80) for change in range(2, 21)]
    shares = Counter(map(arithmetic.assign_split, totals))
    assert 0.75 < shares["train"] / len(totals) < 0.85
    assert shares["dev"] > 0.07 * len(totals) < shares["test"]


def test_text_holds_facts_direct_answers_and_solved_problems_of_its_split() -> None:
    kinds: Counter[str] = Counter()
    for row in Arithmetic(rows="text", n=3000, steps=[1, 2, 3]).generate(0):
        assert isinstance(row, Text)
        kinds[read_text(row.text)] += 1
    assert kinds["facts"] / 3000 == pytest.approx(0.20, abs=0.03)
    assert kinds["direct"] / 3000 == pytest.approx(0.18, abs=0.03)
    assert kinds["solved"] / 3000 == pytest.approx(0.62, abs=0.04)


def read_text(text: str) -> str:
    """The document's kind, after checking it."""
    if not text.startswith("Question:\n"):
        lines = text.split("\n")
        first = int(re.match(r"\d+", lines[0])[0])  # type: ignore[index]
        check_equations(lines, [first, *(int(re.search(r"[+-]\d+", line)[0]) for line in lines)])  # type: ignore[index]
        return "facts"
    _, question, *middle, answer = text.split("\n")
    numbers = read_question(question)
    assert arithmetic.assign_split(arithmetic.Total(numbers[0], tuple(numbers[1:]))) == "train"
    assert answer == f"\\boxed{{{sum(numbers)}}}"
    if middle == ["Answer:"]:
        return "direct"
    assert (middle[0], middle[-1]) == ("Steps:", "Answer:")
    check_equations(middle[1:-1], numbers)
    return "solved"


@pytest.mark.parametrize("rows", ["problem", "trace", "direct", "text"])
def test_a_build_is_a_function_of_settings_and_seed(rows: str) -> None:
    settings = Arithmetic.model_validate({"rows": rows, "n": 400, "steps": [1, 2, 3]})
    assert compute_rows_digest(settings.generate(7)) == compute_rows_digest(settings.generate(7))
    assert compute_rows_digest(settings.generate(7)) != compute_rows_digest(settings.generate(8))
    own_seed = settings.model_copy(update={"seed": 7})
    assert compute_rows_digest(own_seed.generate(8)) == compute_rows_digest(settings.generate(7))


def test_a_longer_build_begins_with_the_shorter_one() -> None:
    long, short = (list(Arithmetic(rows="problem", n=n, steps=[1, 2]).generate(0)) for n in (300, 100))
    assert long[:100] == short


def test_no_row_comes_twice_and_equal_questions_have_equal_ids() -> None:
    rows = [row for row in Arithmetic(rows="problem", n=5000, steps=[1]).generate(0) if isinstance(row, Problem)]
    questions = {row.messages[0].content: row.id for row in rows}
    assert len(questions) == len(set(questions.values())) == 5000
    traces = [row for row in Arithmetic(rows="trace", n=5000, steps=[1]).generate(0) if isinstance(row, Trace)]
    shared = [row for row in traces if row.messages[0].content in questions]
    assert shared
    assert all(row.id == questions[row.messages[0].content] for row in shared)


def test_exhausted_wordings_are_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arithmetic, "LARGEST_VALUE", 4)
    monkeypatch.setattr(arithmetic, "draw_story", lambda random, total: "one wording")
    with pytest.raises(ValueError, match=r"only \d+ of 500 distinct rows.*ask for fewer"):
        list(Arithmetic(rows="problem", n=500, steps=[1]).generate(0))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"steps": []}, "steps"),
        ({"steps": [0]}, "greater than or equal to 1"),
        ({"n": 0}, "greater than 0"),
        ({"facts_share": 0.1}, "'rows: text' only"),
        ({"rows": "text", "facts_share": 0.5, "direct_share": 0.6}, "at most 1"),
        ({"step": [1]}, "Did you mean 'steps'"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Arithmetic.model_validate({"rows": "problem", "n": 1, "steps": [1]} | wrong)


@pytest.mark.parametrize(
    "share",
    [
        pytest.param(0.2, id="a fifth", marks=pytest.mark.slow(seconds=3)),
        pytest.param(1.0, id="all", marks=pytest.mark.evidence),
    ],
)
def test_no_evaluation_question_is_in_the_bases_text(share: float) -> None:
    """The base's text, made again from its recipe: no document asks for numbers of the dev or test split."""
    recipe = yaml.safe_load((files("qwen_align") / "recipes" / "tiny_base.yaml").read_text(encoding="utf-8"))
    (stage,) = [stage for stage in recipe["stages"] if stage["kind"] == "build_data"]
    splits: tuple[arithmetic.Split, ...] = ("dev", "test")
    held_out = {
        row.messages[0].content
        for split in splits
        for row in Arithmetic.model_validate(
            {"rows": "problem", "n": 5000, "steps": [1, 2, 3], "split": split}
        ).generate(0)
        if isinstance(row, Problem)
    }
    kinds: Counter[str] = Counter()
    rows = Arithmetic.model_validate(stage["builder"]).generate(recipe["seed"])
    for row in islice(rows, round(share * stage["builder"]["n"])):
        assert isinstance(row, Text)
        kinds[read_text(row.text)] += 1  # which asserts that the question's numbers are of the train split
        assert held_out.isdisjoint(row.text.split("\n"))
    assert kinds["direct"] + kinds["solved"] > share * 100_000


def test_quickstart_trains_on_no_question_it_asks() -> None:
    recipe = yaml.safe_load((files("qwen_align") / "recipes" / "quickstart.yaml").read_text(encoding="utf-8"))
    asked = {ref for stage in recipe["stages"] if stage["kind"] == "evaluate" for ref in stage["from_data"]}
    numbers: dict[bool, set[tuple[int, ...]]] = {True: set(), False: set()}
    for stage in recipe["stages"]:
        if stage.get("builder", {}).get("kind") != "arithmetic" or stage["builder"]["rows"] == "text":
            continue
        for row in Arithmetic.model_validate(stage["builder"]).generate(stage.get("seed", recipe["seed"])):
            assert isinstance(row, (Problem, Trace, Chat))
            numbers[stage["name"] in asked].add(tuple(read_question(row.messages[0].content)))
    assert len(numbers[True]) > 300
    assert len(numbers[False]) > 4000
    assert not numbers[True] & numbers[False]
