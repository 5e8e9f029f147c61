"""Step labels by rollouts and the judge's consensus."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_align.align.errors import DataError
from qwen_align.align.references import DataRef
from qwen_align.align.rows import Chat, Completion, Message, Problem, Row, RowError, Steps, Text, Trace
from qwen_align.data_builders.sieve import Drops, Sieve, sieve
from qwen_align.data_builders.step_labels import MonteCarloSteps, StepConsensus, find_first_wrong_step
from qwen_align.data_builders.step_prefixes_and_critiques import StepCritiques, StepPrefixes, make_prefix_id
from qwen_align.reward.verdict import Verdict

ASKED = [Message(role="system", content="Be kind."), Message(role="user", content="2+3+4?")]


def solution(row_id: str, *steps: str, gold: str = "9") -> Trace:
    return Trace(
        id=row_id,
        messages=ASKED,
        thinking="hm",
        answer="\n\n".join(steps),
        gold=gold,
        reward="math_answer",
        source="toy",
    )


def make_continuations(prompt_id: str, values: Sequence[float | None], **fields: Any) -> list[Row]:
    judged = [Verdict(value=value, reason="judged") for value in values]
    defaults: dict[str, Any] = {"prompt": ASKED, "text": "9", "finish_reason": "stop", "n_tokens": 1}
    return [
        Completion(prompt_id=prompt_id, sample=index, verdicts={"math_answer": one}, **defaults | fields)
        for index, one in enumerate(judged)
    ]


def run(builder: Any, **stages: Sequence[Row]) -> tuple[list[Any], list[tuple[str, str, str]]]:
    drops = Drops()
    rows = list(builder.build({name: lambda rows=rows: iter(rows) for name, rows in stages.items()}, 0, drops))
    return rows, [(drop.reason, drop.id, drop.detail) for drop in drops.rows]


def labelled(
    rows: Sequence[Row], tries: Sequence[Row], **settings: Any
) -> tuple[list[Any], list[tuple[str, str, str]]]:
    given = {"from_data": "rows", "from_rollout": "tries", "cut_after_wrong": False, "min_samples": 4, **settings}
    return run(MonteCarloSteps.model_validate(given), rows=rows, tries=tries)


GOOD = solution("s", "2+3=5.", "5+4=9.", "So \\boxed{9}.")


def test_prefixes_ask_to_go_on_after_each_step_but_the_last() -> None:
    rows, dropped = run(StepPrefixes(from_data=DataRef("rows")), rows=[GOOD])
    assert dropped == []
    assert [(row.id, row.gold, row.meta) for row in rows] == [
        ("s@0", "9", {"asked": ["2+3+4?"], "solution": "s", "step": 0}),
        ("s@1", "9", {"asked": ["2+3+4?"], "solution": "s", "step": 1}),
    ]
    assert all(isinstance(row, Problem) and row.messages[0] == ASKED[0] for row in rows)
    assert rows[0].messages[1].content.startswith("2+3+4?\n\n")
    assert "2+3=5.\n\nGo on" in rows[0].messages[1].content
    assert "2+3=5.\n\n5+4=9.\n\nGo on" in rows[1].messages[1].content
    assert list(sieve(rows, Sieve(), Drops())) == rows


def test_prefixes_that_cannot_be_made_are_counted() -> None:
    chat = Chat(id="c", messages=[Message(role="assistant", content="Hello.")])
    rows, dropped = run(StepPrefixes(from_data=DataRef("rows"), max_steps=2), rows=[chat, GOOD])
    assert rows == []
    assert dropped == [("no question before the solution", "c", ""), ("over 2 steps", "s", "")]
    with pytest.raises(RowError, match="row 't' is a text row without a solution"):
        run(StepPrefixes(from_data=DataRef("rows")), rows=[Text(id="t", text="t")])
    with pytest.raises(RowError, match="id 's' occurs twice"):
        run(StepPrefixes(from_data=DataRef("rows")), rows=[GOOD, GOOD])


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("{question}", "has to hold"),
        ("{question} {steps} {x}", "holds more than"),
        ("{question} {steps} {", "braces twice"),
    ],
)
def test_wrong_prompts_are_refused(prompt: str, message: str) -> None:
    for builder in (StepPrefixes, StepCritiques):
        with pytest.raises(ValueError, match=message):
            builder.model_validate({"from_data": "rows", "prompt": prompt})


TRIES = [*make_continuations("s@0", [1.0, 0.0, 0.0, 0.0]), *make_continuations("s@1", [0.0] * 4)]


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ({"labels": "hard"}, [True, False, True]),
        ({"labels": "soft"}, [0.25, 0.0, 1.0]),
        ({"labels": "hard", "cut_after_wrong": True}, [True, False]),
        ({"labels": "soft", "cut_after_wrong": True}, [0.25, 0.0]),
        ({"labels": "hard", "threshold": 0.25}, [False, False, True]),
        ({"labels": "hard", "threshold": 0.25, "cut_after_wrong": True}, [False]),
    ],
)
def test_labels_of_both_papers(settings: dict[str, Any], labels: list[bool | float]) -> None:
    ([row], dropped) = labelled([GOOD], TRIES, **settings)
    assert (row.labels, dropped) == (labels, [])
    assert row.steps == ["2+3=5.", "5+4=9.", "So \\boxed{9}."][: len(labels)]
    assert [type(label) for label in row.labels] == [type(label) for label in labels]
    assert (row.gold, row.source, row.messages) == ("9", "toy", ASKED)
    assert row.meta["n_steps"] == 3


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=6), min_size=1, max_size=5), st.booleans())
def test_soft_labels_are_shares_and_hard_ones_say_whether_any_succeeds(tries: list[list[bool]], is_right: bool) -> None:
    steps = [f"step {index}" for index in range(len(tries))]
    row = solution("s", *steps, "\\boxed{9}" if is_right else "\\boxed{8}")
    all_tries = [
        one
        for index, values in enumerate(tries)
        for one in make_continuations(make_prefix_id("s", index), [*map(float, values)])
    ]
    [soft], _ = labelled([row], all_tries, labels="soft")
    [hard], _ = labelled([row], all_tries, labels="hard")
    assert soft.labels == [*(sum(values) / len(values) for values in tries), float(is_right)]
    assert hard.labels == [*map(any, tries), is_right]
    assert hard.meta["first_wrong"] == find_first_wrong_step(hard) == find_first_wrong_step(soft)


def test_what_cannot_be_labelled_is_counted() -> None:
    rows = [GOOD, solution("n", "2+3=5", "\\boxed{9}", gold="")]
    kept, dropped = labelled(
        rows, [*make_continuations("s@0", [1.0, None, 1.0, 1.0]), *make_continuations("s@1", [1.0] * 4)]
    )
    assert kept == []
    assert dropped == [
        ("no verdict", "s@0#1", "judged"),
        ("too few continuations", "s", "step 0 has 3 of 4"),
        ("solution not judged", "n", ""),
    ]


def test_a_trace_whose_reward_nobody_knows_here_is_an_error() -> None:
    own = GOOD.model_copy(update={"reward": "python"})
    with pytest.raises(
        DataError, match=r"row 's': reward: 'python' is a reward of your own, .*let it judge completions"
    ):
        labelled([own], TRIES)


def test_completions_are_solutions_too_and_their_verdict_counts() -> None:
    rows = make_continuations("p", [1.0, 0.0], text="<think>\nhm\n</think>\n\n5.\n\n\\boxed{9}", gold="9", prompt=ASKED)
    tries = [*make_continuations("p#0@0", [1.0] * 4), *make_continuations("p#1@0", [1.0] * 4)]
    kept, _ = labelled(rows, tries)
    assert [(row.id, row.steps, row.labels) for row in kept] == [
        ("p#0", ["5.", "\\boxed{9}"], [True, True]),
        ("p#1", ["5.", "\\boxed{9}"], [True, False]),
    ]


def steps(row_id: str, *labels: bool | float) -> Steps:
    return Steps(id=row_id, messages=ASKED, steps=["a"] * len(labels), labels=list(labels))


def judged(solution_id: str, *texts: str) -> list[Row]:
    return [
        row
        for index, text in enumerate(texts)
        for row in make_continuations(
            f"{solution_id}@critique{index}", [None], text=text, meta={"solution": solution_id}
        )
    ]


def test_the_consensus_keeps_what_both_sides_say() -> None:
    own_index = [
        steps("a", True, False),
        steps("b", True, True),
        steps("c", 0.5, 0.0),
        steps("d", False),
        steps("e", True),
    ]
    judged_index = [steps("a", True, False, True), steps("b", True, False), steps("c", 0.1, 0.0, 0.0), steps("d", True)]
    kept, dropped = run(
        StepConsensus(from_data=DataRef("mine"), judge=DataRef("theirs")), mine=own_index, theirs=judged_index
    )
    assert [row.id for row in kept] == ["a", "c"]
    assert dropped == [
        ("judge disagrees", "b", "step -1 here, 1 by the judge; -1 is none"),
        ("judge disagrees", "d", "step 0 here, -1 by the judge; -1 is none"),
        ("not judged", "e", ""),
    ]


def test_critiques_vote_for_the_first_wrong_step() -> None:
    rows, _ = run(StepCritiques(from_data=DataRef("rows")), rows=[GOOD])
    assert rows[0].meta == {"asked": ["2+3+4?"], "solution": "s", "n_steps": 3}
    assert "[0] 2+3=5.\n\n[1] 5+4=9.\n\n[2] So" in rows[0].messages[-1].content
    assert list(sieve(rows, Sieve(), Drops())) == rows
    own_index = [steps("a", True, False), steps("b", True), steps("c", True, False)]
    judged_index = [
        *judged("a", "\\boxed{1}", "so \\boxed{1}", "\\boxed{0}", "no idea"),
        *judged("b", "It is fine: \\boxed{-1}"),
        *judged("c", "\\boxed{0}", "\\boxed{1}"),
    ]
    kept, dropped = run(
        StepConsensus(from_data=DataRef("mine"), judge=DataRef("theirs")), mine=own_index, theirs=judged_index
    )
    assert [row.id for row in kept] == ["a", "b"]
    assert [drop[0] for drop in dropped] == ["judgement without a step's number", "judge undecided"]


def test_only_steps_and_judgements_are_compared() -> None:
    with pytest.raises(RowError, match="row 's' is a trace row; steps rows are wanted"):
        run(StepConsensus(from_data=DataRef("mine"), judge=DataRef("theirs")), mine=[GOOD], theirs=[])
    with pytest.raises(RowError, match="row 's' is a trace row; a judge gives steps rows"):
        run(StepConsensus(from_data=DataRef("mine"), judge=DataRef("theirs")), mine=[], theirs=[GOOD])


def test_a_solution_of_one_step_has_no_prefix_and_is_counted() -> None:
    rows, dropped = run(StepPrefixes(from_data=DataRef("rows"), step_break="no such break"), rows=[GOOD])
    assert rows == []
    assert dropped == [("single step", "s", "")]
