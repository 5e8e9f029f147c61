"""What `check` says before anything is trained, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.commands import check
from qwen_align.align.errors import DataError, RecipeError
from qwen_align.align.pipeline.plan import plan as make_plan
from qwen_align.align.pipeline.run import run as run_plan
from qwen_align.align.rows import Chat, Message, Pair, Problem, Row, to_json_line
from qwen_align.data_builders import arithmetic

SAMPLING = {"temperature": 1.0, "max_tokens": 8}
DATA: dict[str, Any] = {
    "name": "data",
    "kind": "build_data",
    "builder": {"kind": "arithmetic", "rows": "trace", "n": 40, "steps": [1, 2, 3]},
}
PROBLEMS: dict[str, Any] = {**DATA, "name": "problems", "builder": {**DATA["builder"], "rows": "problem"}}
SFT: dict[str, Any] = {
    "name": "sft",
    "kind": "sft",
    "from_model": "base",
    "from_data": ["data"],
    "max_tokens": 128,
    "batch": 8,
    "epochs": 3,
    "learning_rate": 1e-4,
}
ROLLOUT: dict[str, Any] = {
    "name": "draws",
    "kind": "rollout",
    "from_model": "sft",
    "from_data": "problems",
    "completions_per_prompt": 2,
    "sampling": SAMPLING,
    "rewards": [{"kind": "math_answer"}],
}
PAIRS: dict[str, Any] = {"name": "pairs", "kind": "build_data", "builder": {"kind": "pairs", "from_data": "draws"}}
DPO: dict[str, Any] = {**SFT, "name": "dpo", "kind": "dpo", "from_data": ["pairs"], "beta": 0.1}
GRPO: dict[str, Any] = {
    "name": "grpo",
    "kind": "grpo",
    "from_model": "base",
    "from_data": ["problems"],
    "steps": 5,
    "prompts_per_step": 4,
    "completions_per_prompt": 2,
    "sampling": SAMPLING,
    "rewards": [{"kind": "math_answer"}],
    "learning_rate": 1e-4,
}
EVALUATE: dict[str, Any] = {
    "name": "eval",
    "kind": "evaluate",
    "from_model": "grpo",
    "from_data": ["problems"],
    "completions_per_prompt": 3,
    "sampling": SAMPLING,
    "thinking_switches": [{"method": "default"}, {"method": "flag", "mode": "think"}],
}
PRETRAIN: dict[str, Any] = {"name": "base", "kind": "pretrain", "from_data": "texts", "steps": 100}
TEXTS: dict[str, Any] = {**DATA, "name": "texts", "builder": {**DATA["builder"], "rows": "text"}}


@pytest.fixture
def said(tiny_model: Path, tmp_path: Path, write_recipe: Callable[..., Path]) -> Callable[..., list[str]]:
    """The lines `check` says of these stages on the tiny model, without the last."""

    def of(*stages: dict[str, Any], models: dict[str, Any] | None = None, **rest: Any) -> list[str]:
        models = {"base": {"path": str(tiny_model)}} if models is None else models
        planned = make_plan(write_recipe(list(stages), models=models, **rest), tmp_path)
        *lines, last = check.describe_plan(planned)
        assert last == f"{len(planned.stages)} stages, {len(planned.stages)} to run; home: {tmp_path}"
        return lines

    return of


def file_stage(folder: Path, *rows: Row, name: str = "data") -> dict[str, Any]:
    (folder / f"{name}.jsonl").write_text("".join(to_json_line(row) + "\n" for row in rows))
    builder = {"kind": "local_file", "path": f"{name}.jsonl", "rows": "typed"}
    return {"name": name, "kind": "build_data", "builder": builder}


def chat(number: int, n_words: int) -> Chat:
    turns = [Message(role="user", content="?"), Message(role="assistant", content=" ".join(["7"] * n_words))]
    return Chat(id=f"c{number}", messages=turns, mode="no_think")


def test_every_kind_says_what_it_would_do(said: Callable[..., list[str]]) -> None:
    lines = said(DATA, PROBLEMS, SFT, ROLLOUT, PAIRS, DPO, GRPO, EVALUATE)
    names = [line.split()[1] for line in lines if line[:3].strip()]
    assert names == ["data", "problems", "sft", "draws", "pairs", "dpo", "grpo", "eval"]
    text = "\n".join(lines)
    assert "data      build_data  to run  rows 40" in text
    assert "samples 40, steps 15, no warm-up" in text  # 40 samples x 3 epochs / batches of 8
    assert "40 prompts x 2 completions, at most 8 tokens each" in text
    assert "pairs     build_data  to run  unknown until draws" in text
    assert "dpo       dpo         to run  unknown until draws" in text
    assert "5 steps of 4 prompts x 2 completions" in text
    assert "40 questions x 2 switches x 3 completions, at most 8 tokens each" in text


def test_lengths_and_drops_are_those_of_the_rendered_rows(said: Callable[..., list[str]], tmp_path: Path) -> None:
    rows = [chat(number, n_words) for number, n_words in enumerate([1, 2, 3, 4, 50])]
    lines = said(file_stage(tmp_path, *rows), {**SFT, "max_tokens": 40, "batch": 3, "epochs": 1})
    assert lines[0].endswith("rows 5")
    assert lines[1].endswith("samples 4, dropped 1 over 40 tokens, steps 2, no warm-up")
    percentiles = dict(part.split()[-2:] for part in lines[2].partition("tokens: ")[2].split(", ")[:-1])
    assert list(percentiles) == ["p50", "p90", "p99", "p100"]
    prompt = int(percentiles["p50"]) - 2 * 3  # " 7" is two tokens; the median answer has three of them
    assert int(percentiles["p100"]) == prompt + 2 * 50
    assert lines[2].endswith("limit 40")


@pytest.mark.parametrize(("epochs", "steps"), [(0.1, 1), (0.55, 6), (1, 10), (1.01, 11), (2.5, 25)])
def test_steps_are_rounded_up(said: Callable[..., list[str]], epochs: float, steps: int) -> None:
    assert f"steps {steps}" in said(DATA, {**SFT, "batch": 4, "epochs": epochs})[1].split(", ")


def test_what_the_sieve_drops_is_counted(said: Callable[..., list[str]], tmp_path: Path) -> None:
    rows = [chat(1, 1), chat(2, 1), chat(3, 2), chat(4, 0)]
    assert said(file_stage(tmp_path, *rows), SFT)[0].endswith("rows 2, dropped 1 duplicate, 1 blank answer")


def test_limits_hold(said: Callable[..., list[str]]) -> None:
    assert said({**DATA, "limit": 7}, SFT)[0].endswith("rows 7")


def test_a_base_to_be_made_is_unknown_and_its_documents_are_counted(said: Callable[..., list[str]]) -> None:
    lines = said(TEXTS, PRETRAIN, DATA, SFT, models={})
    assert lines[1].endswith("40 documents")
    assert lines[3].endswith("unknown until base")


def test_a_hub_model_is_unknown_until_it_is_there(said: Callable[..., list[str]]) -> None:
    lines = said(DATA, SFT, models={"base": {"hub": "Qwen/Qwen3-0.6B-Base", "revision": "0" * 40}})
    assert lines[1].endswith("unknown until the hub model is downloaded")


def test_greedy_thinking_is_noted(said: Callable[..., list[str]]) -> None:
    greedy = {**EVALUATE, "from_model": "base", "sampling": {"temperature": 0.0, "max_tokens": 8}}
    notes = [line for line in said(PROBLEMS, greedy) if line.startswith("note: ")]
    assert len(notes) == 1, "however many switches and prompts think"
    assert notes[0].startswith("note: stage 'eval': sampling: temperature 0 in thinking mode")


def test_a_template_that_prints_the_date_is_noted(
    said: Callable[..., list[str]], tiny_model: Path, tmp_path: Path
) -> None:
    dated = shutil.copytree(tiny_model, tmp_path / "dated")
    template = dated / "chat_template.jinja"
    template.write_text('{{- "Today: " + strftime_now("%d %b %Y") + "\\n" }}' + template.read_text())
    models = {"base": {"path": str(dated)}}
    (note,) = [line for line in said(DATA, SFT, models=models) if line.startswith("note: ")]
    assert note.startswith(f"note: {template}: prints today's date; here it always prints 26 Jul 2024")


def test_what_is_stored_is_read_not_built(tiny_model: Path, tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    path = write_recipe([DATA, SFT], models={"base": {"path": str(tiny_model)}})
    planned = make_plan(path, tmp_path)
    folder = planned.stages[0].folder.path
    folder.mkdir(parents=True)
    (folder / "rows.jsonl").write_text("".join(to_json_line(chat(number, 1)) + "\n" for number in range(6)))
    manifest = {"summary": {"rows": 6, "dropped": {"duplicate": 1234}}, "libraries": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    lines = list(check.describe_plan(planned))
    assert lines[0].endswith("build_data  stored  rows 6, dropped 1,234 duplicate")
    assert "samples 6, steps 3" in lines[1]
    assert lines[-1].startswith("2 stages, 1 to run")


def test_nothing_is_written(said: Callable[..., list[str]], tmp_path: Path) -> None:
    said(DATA, PROBLEMS, SFT, EVALUATE | {"from_model": "sft"})
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize(
    ("stages", "error", "message"),
    [
        ([PROBLEMS, {**SFT, "from_data": ["problems"]}], RecipeError, "'sft': row '.*': a problem row has no answer"),
        ([DATA, {**DPO, "from_model": "base", "from_data": ["data"]}], DataError, "'dpo': row .*; pair rows are wante"),
        ([DATA, {**GRPO, "from_data": ["data"]}], DataError, "'grpo': row '.*' is a trace; problem rows are wanted"),
        ([DATA, {**SFT, "max_tokens": 5}], DataError, "'sft': nothing to train on; dropped: .*40.* See max_tokens"),
    ],
)
def test_the_first_thing_wrong_is_refused_with_its_stage(
    said: Callable[..., list[str]], stages: list[dict[str, Any]], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        said(*stages)


def test_a_data_stage_that_keeps_nothing_is_refused(said: Callable[..., list[str]], tmp_path: Path) -> None:
    empty = file_stage(tmp_path, chat(1, 0), chat(2, 0))
    with pytest.raises(DataError, match=r"stage 'data': no row is left; dropped: {'blank answer': 2}\. See builder"):
        said(empty, SFT)
    lines = said({**empty, "on_empty": "pass_through"}, {**SFT, "on_empty": "pass_through"})
    assert len(lines) == 2
    assert lines[0].endswith("dropped 2 blank answer")
    assert lines[1].endswith("nothing to train on")


def test_a_builder_that_makes_too_few_rows_is_refused(
    said: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "MAX_REDRAWS", 0)
    with pytest.raises(DataError, match="stage 'data': arithmetic: only 0 of 40 distinct rows found"):
        said(DATA, SFT)


def test_an_empty_stage_may_be_passed_through(said: Callable[..., list[str]]) -> None:
    lines = said(DATA, {**SFT, "max_tokens": 5, "on_empty": "pass_through"})
    assert lines[1].endswith("dropped 40 prompt over 5 tokens")


def pair(number: int, chosen: int, rejected: int) -> Pair:
    sides = [Message(role="assistant", content=" ".join(["7"] * n), thinking="t") for n in (chosen, rejected)]
    asked = [Message(role="user", content=f"question {number}")]
    return Pair(id=f"p{number}", messages=asked, chosen=sides[0], rejected=sides[1])


def test_a_pair_without_a_margin_is_refused_where_margins_are_asked_for(
    said: Callable[..., list[str]], tmp_path: Path
) -> None:
    scorer = {
        **SFT,
        "name": "scorer",
        "kind": "reward_model",
        "from_model": "base",
        "from_data": ["pairs"],
        "margins": True,
    }
    rows = [pair(1, 1, 2), pair(2, 1, 2)]
    with_margins = [row.model_copy(update={"margin": 0.5}) for row in rows]
    assert "samples 2" in "\n".join(said(file_stage(tmp_path, *with_margins, name="pairs"), scorer))
    with pytest.raises(DataError, match=r"'scorer': row '.*': has no margin, which reward_model's margins: true"):
        said(file_stage(tmp_path, *rows, name="pairs"), scorer)


def test_pairs_are_counted_with_their_longer_side(said: Callable[..., list[str]], tmp_path: Path) -> None:
    rows = file_stage(tmp_path, pair(1, 1, 2), pair(2, 60, 1), pair(3, 1, 60), name="pairs")
    lines = said(rows, {**DPO, "from_model": "base", "max_tokens": 90, "batch": 1, "epochs": 1})
    assert lines[1].endswith("samples 1, dropped 2 over 90 tokens, steps 1, no warm-up")


def test_limits_are_checked_at_the_door(tiny_model: Path, write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    builder = {"kind": "arithmetic", "rows": "problem", "n": 4, "steps": [1]}
    problems = {"name": "problems", "kind": "build_data", "builder": builder}
    sampling = {"temperature": 1.0, "max_tokens": 100_000}
    rewards = [{"kind": "math_answer"}]
    asked = {"from_model": "base", "sampling": sampling, "completions_per_prompt": 2}
    grpo = {**asked, "name": "grpo", "kind": "grpo", "from_data": ["problems"], "steps": 1, "prompts_per_step": 1}
    for stage in (
        {**asked, "name": "rollout", "kind": "rollout", "from_data": "problems", "rewards": rewards},
        {**asked, "name": "evaluate", "kind": "evaluate", "from_data": ["problems"]},
        {**grpo, "rewards": rewards, "learning_rate": 1e-4},
    ):
        recipe = write_recipe([problems, stage], models={"base": {"path": str(tiny_model)}})
        with pytest.raises(RecipeError, match=r"take up to \d+ \+ 100000 tokens, but the model has \d+ positions"):
            list(check.describe_plan(make_plan(recipe, tmp_path)))
    odd = {**grpo, "rewards": rewards, "learning_rate": 1e-4, "runtime": {"processes": 3}}
    recipe = write_recipe([problems, odd], models={"base": {"path": str(tiny_model)}})
    with pytest.raises(RecipeError, match=r"a batch of 2 rows does not divide by runtime.processes: 3"):
        list(check.describe_plan(make_plan(recipe, tmp_path)))


def test_rewards_of_ones_own_are_imported_and_audited(said: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def judge(completion, gold):\n    return float(str(gold) in completion.text)\n")
    rewards = [{"kind": "python", "file": "mine.py"}]
    text = "\n".join(said(PROBLEMS, {**GRPO, "rewards": rewards}))
    assert "judge pays for what solves nothing: the gold in the thinking only" in text
    with pytest.raises(RecipeError, match=r"stage 'grpo': reward .*mine.py: AttributeError: .* no function 'judges'"):
        said(PROBLEMS, {**GRPO, "rewards": [{**rewards[0], "name": "judges"}]})


def test_shaping_that_is_scaled_is_told(said: Callable[..., list[str]]) -> None:
    heavy = [{"kind": "math_answer"}, {"kind": "format", "weight": 0.5}]
    assert any("shaping weights x 0.5, so that" in line for line in said(PROBLEMS, {**GRPO, "rewards": heavy}))
    light = [{"kind": "math_answer"}, {"kind": "format", "weight": 0.25}]
    assert not any("shaping" in line for line in said(PROBLEMS, {**GRPO, "rewards": light}))


def test_golds_a_reward_cannot_use_are_counted(said: Callable[..., list[str]], tmp_path: Path) -> None:
    rows = [
        Problem(id=f"p{n}", messages=[Message(role="user", content=f"1+{n}?")], gold=gold, reward="math_answer")
        for n, gold in enumerate(["2", None])
    ]
    data = file_stage(tmp_path, *rows, name="problems")
    text = "\n".join(said({**data, "sieve": {"gold_is_usable": False}}, GRPO))
    assert "math_answer: 1 golds of 2 are unusable, the first 'p1': None" in text
    evaluate = EVALUATE | {"from_model": "base"}
    found = "1 golds of 2 are unusable and will have no verdict, the first that of question 'p1': unusable gold"
    assert found in "\n".join(said({**data, "sieve": {"gold_is_usable": False}}, evaluate))
    with pytest.raises(DataError, match=f"stage 'eval': {found}; its gold is None; max_no_verdict_share is 0.4"):
        said({**data, "sieve": {"gold_is_usable": False}}, evaluate | {"max_no_verdict_share": 0.4})
    held_out = {"from_data": ["problems"], "every_steps": 1, "max_no_verdict_share": 0.4}
    with pytest.raises(DataError, match=f"stage 'grpo': held_out: {found}"):
        said({**data, "sieve": {"gold_is_usable": False}}, {**GRPO, "held_out": held_out})


CALLS = {"calls": [{"name": "add", "arguments": {"a": 1}}]}
MIXED: list[tuple[Any, str]] = [("2", "math_answer"), (CALLS, "tool_calls")]


def problems(folder: Path, *golds_and_rewards: tuple[Any, str]) -> dict[str, Any]:
    """A stage of problems with these golds, each naming its reward; none is dropped."""
    rows = [
        Problem(id=f"p{n}", messages=[Message(role="user", content=f"1+{n}?")], gold=gold, reward=reward)
        for n, (gold, reward) in enumerate(golds_and_rewards)
    ]
    return {**file_stage(folder, *rows, name="problems"), "sieve": {"gold_is_usable": False}}


@pytest.mark.parametrize("stage", [GRPO, {**ROLLOUT, "from_model": "base"}])
def test_each_row_needs_a_gold_for_its_own_reward_alone(
    said: Callable[..., list[str]], tmp_path: Path, stage: dict[str, Any]
) -> None:
    both = [{"kind": "math_answer"}, {"kind": "tool_calls"}]
    assert "unusable" not in "\n".join(said(problems(tmp_path, *MIXED), {**stage, "rewards": both}))
    idle = "\n".join(said(problems(tmp_path, MIXED[0]), {**stage, "rewards": both}))
    assert "tool_calls judges no row: they name math_answer" in idle
    only = "\n".join(said(problems(tmp_path, *MIXED), {**stage, "rewards": both[:1]}))
    assert "math_answer: 1 golds of 2 are unusable, the first 'p1'" in only


@pytest.mark.parametrize("stage", [GRPO, {**ROLLOUT, "from_model": "base"}])
def test_a_stage_in_which_no_row_gets_a_verdict_is_refused(
    said: Callable[..., list[str]], tmp_path: Path, stage: dict[str, Any]
) -> None:
    with pytest.raises(DataError, match="rewards: math_answer can use none of the 2 golds, so"):
        said(problems(tmp_path, *[(CALLS, "tool_calls")] * 2), stage)
    both = {**stage, "rewards": [{"kind": "math_answer"}, {"kind": "tool_calls"}]}
    with pytest.raises(DataError, match=r"rewards: .* can use none of the 2 golds"):
        said(problems(tmp_path, (None, "math_answer"), (None, "tool_calls")), both)


@pytest.mark.parametrize("stage", [GRPO, EVALUATE, ROLLOUT])
def test_questions_and_golds_that_look_exchanged_are_refused(
    said: Callable[..., list[str]], tmp_path: Path, stage: dict[str, Any]
) -> None:
    """A sentence is a usable gold, so nothing else would say so."""

    def rows(*exchanged: bool) -> dict[str, Any]:
        asked = ["What is the sum of one apple and two?", "3"]
        made = [
            Problem(
                id=f"p{n}",
                messages=[Message(role="user", content=pair[0] + "!" * n)],
                gold=pair[1],
                reward="math_answer",
            )
            for n, pair in enumerate(asked[::-1] if one else asked for one in exchanged)
        ]
        return file_stage(tmp_path, *made, name="problems")

    stage = {**stage, "from_model": "base"}
    with pytest.raises(DataError, match=r"2 of 3 golds are longer than their questions, the first that of 'p0': 'What"):
        said(rows(True, False, True), stage)
    assert said(rows(True, False, False), stage), "one long answer proves nothing"


def test_a_gold_that_is_a_whole_solution_is_not_taken_for_a_question(
    said: Callable[..., list[str]], tmp_path: Path
) -> None:
    golds = ["We add one and two, which makes three. #### 3", r"One and two make three, \boxed{3}."]
    rows = [
        Problem(id=f"p{n}", messages=[Message(role="user", content=f"1+{n}?")], gold=gold, reward="math_answer")
        for n, gold in enumerate(golds)
    ]
    assert said(file_stage(tmp_path, *rows, name="problems"), GRPO)


def later(name: str, folder: Path, expect_rows: int | None = 100, **rest: Any) -> dict[str, Any]:
    """A stage on a file that is not there yet."""
    path = str(folder / f"{name}.jsonl")
    builder: dict[str, Any] = {"kind": "local_file", "path": path, "rows": "typed"}
    if expect_rows:
        builder["expect_rows"] = expect_rows
    return {"name": name, "kind": "build_data", "builder": builder, **rest}


def test_rows_to_come_are_counted_as_the_recipe_expects_them(said: Callable[..., list[str]], tmp_path: Path) -> None:
    more = {**later("more", tmp_path, 60), "limit": 20}
    sft = {**SFT, "from_data": ["data", "more"], "batch": 16, "epochs": 5, "warmup_steps": 3}
    evaluate = {**EVALUATE, "from_model": "sft", "from_data": ["more"]}
    rollout = {**ROLLOUT, "from_data": "more"}
    lines = [line.split("to run")[-1].strip() for line in said(later("data", tmp_path), more, sft, evaluate, rollout)]
    assert lines == [
        f"unknown until {tmp_path}/data.jsonl is there",
        "rows 100, if all are kept",
        f"unknown until {tmp_path}/more.jsonl is there",
        "rows 20, if all are kept",
        f"unknown until {tmp_path}/data.jsonl is there",
        "if all 120 rows are kept: steps 38, 3 of warm-up; limit 128",
        f"unknown until {tmp_path}/more.jsonl is there",
        "if all 20 rows are kept: 20 questions x 2 switches x 3 completions",
        f"unknown until {tmp_path}/more.jsonl is there",
        "if all 20 rows are kept: 20 prompts x 2 completions",
    ]


def test_rows_that_are_there_count_beside_those_to_come(said: Callable[..., list[str]], tmp_path: Path) -> None:
    lines = said(DATA, later("more", tmp_path, 8), {**SFT, "from_data": ["data", "more"], "batch": 4, "epochs": 1})
    assert lines[-1].strip() == "if all 48 rows are kept: steps 12, no warm-up; limit 128"


def test_a_missing_file_of_unknown_size_is_refused(said: Callable[..., list[str]], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"stage 'data': builder\.path: .*data\.jsonl: no such file"):
        said(later("data", tmp_path, None), SFT)


def test_nothing_runs_while_a_file_is_missing(
    tiny_model: Path, tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    path = write_recipe([DATA, later("more", tmp_path), SFT], models={"base": {"path": str(tiny_model)}})
    planned = make_plan(path, tmp_path)
    with pytest.raises(RecipeError, match=r"stage 'more': builder\.path: .*more\.jsonl: no such file"):
        run_plan(planned, None)  # type: ignore[arg-type]
    assert not (tmp_path / "store").exists()
    (tmp_path / "more.jsonl").write_text(to_json_line(chat(1, 1)) + "\n")
    there = make_plan(path, tmp_path)
    assert [one.missing for one in there.stages] == [None, None, None]
    assert there.find_stages("more")[0].key != planned.find_stages("more")[0].key
    assert there.find_stages("sft")[0].key == planned.find_stages("sft")[0].key, "it does not read the file"


def test_what_is_on_the_hub_is_not_downloaded_for_a_look(said: Callable[..., list[str]]) -> None:
    builder = {"kind": "hub", "dataset": "someone/rows", "revision": "0" * 40, "format": "messages", "expect_rows": 10}
    lines = said({"name": "data", "kind": "build_data", "builder": builder}, {**SFT, "batch": 3, "epochs": 1})
    assert lines[0].endswith("unknown until someone/rows is downloaded")
    assert lines[3].strip() == "if all 10 rows are kept: steps 4, no warm-up; limit 128"


@pytest.mark.parametrize(
    ("warm_up", "says"),
    [(0, "no warm-up"), (14, "14 of warm-up"), (15, "all of warm-up (warmup_steps 15)"), (99, "all of warm-up")],
)
def test_warm_up_is_told(said: Callable[..., list[str]], warm_up: int, says: str) -> None:
    assert f"steps 15, {says}" in said(DATA, {**SFT, "warmup_steps": warm_up})[1]


@pytest.mark.parametrize(
    ("warm_up", "critic_warm_up", "says"),
    [
        (0, 0, "10 updates, no warm-up"),
        (3, 0, "10 updates, 3 of warm-up"),
        (6, 2, "10 updates, 4 of them of the critic alone, all of warm-up (warmup_steps 6)"),
        (0, 9, "10 updates, 10 of them of the critic alone, none of the policy"),
    ],
)
def test_warm_up_of_online_rl_is_told(
    said: Callable[..., list[str]], warm_up: int, critic_warm_up: int, says: str
) -> None:
    """As optimizer.build_schedule has it: the policy's schedule begins after the updates of the critic alone."""
    critic = {"learning_rate": 1e-4, "warmup_steps": critic_warm_up}
    ppo = {**GRPO, "kind": "ppo", "updates": {"epochs": 2}, "warmup_steps": warm_up, "critic": critic}
    assert said(PROBLEMS, ppo)[1].endswith(f"completions, {says}")


def test_questions_judged_by_ones_own_reward_want_its_file(said: Callable[..., list[str]], tmp_path: Path) -> None:
    asked = [Message(role="user", content="?")]
    rows = file_stage(tmp_path, Problem(id="p", messages=asked, gold="x", reward="python"), name="problems")
    evaluate = {**EVALUATE, "from_model": "base"}
    with pytest.raises(RecipeError, match="stage 'eval': its questions are judged by a reward of your own; name it"):
        said(rows, evaluate)
    (tmp_path / "mine.py").write_text("def judge(completion, gold):\n    return 0.0\n")
    lines = said(rows, {**evaluate, "rewards": [{"kind": "python", "file": "mine.py"}]})
    assert "1 questions x 2 switches" in lines[1]


def test_a_reward_that_no_question_names_is_refused(said: Callable[..., list[str]]) -> None:
    """It was ignored without a word, whatever it would have said."""
    wrong = {"rewards": [{"kind": "code_tests"}]}
    with pytest.raises(RecipeError, match=r"stage 'eval': rewards: no question names 'code_tests'.*name math_answer"):
        said(PROBLEMS, {**EVALUATE, "from_model": "base", **wrong})
    held_out = {"from_data": ["problems"], "every_steps": 1, **wrong}
    with pytest.raises(RecipeError, match="stage 'grpo': held_out: rewards: no question names 'code_tests'"):
        said(PROBLEMS, {**GRPO, "held_out": held_out})


@pytest.mark.parametrize("stage", [ROLLOUT, GRPO])
def test_golds_none_of_which_a_reward_can_use_are_refused(
    said: Callable[..., list[str]], tmp_path: Path, stage: dict[str, Any]
) -> None:
    row = Problem(id="p", messages=[Message(role="user", content="1+1?")], gold=None, reward="math_answer")
    data = {**file_stage(tmp_path, row, name="problems"), "sieve": {"gold_is_usable": False}}
    with pytest.raises(DataError, match=r"rewards: math_answer can use none of the 1 golds.*unusable gold"):
        said(data, stage | {"from_model": "base"})
