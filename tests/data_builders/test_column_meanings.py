"""Columns that change what a row means are read, or refused with what to do; the others are left out and counted."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from qwen_align.align.errors import DataError
from qwen_align.align.rows import Chat, Labelled, Message, Pair, Problem, Row, RowError, Trace
from qwen_align.data_builders.column_meanings import COLUMN_MEANINGS, PROMPT_KINDS, is_empty
from qwen_align.data_builders.conversion_report import Report
from qwen_align.data_builders.local_file import LocalFile
from qwen_align.data_builders.sieve import Drops

ASK, SAY, NO = (
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "assistant", "content": "3"},
)
HUMAN, GPT = {"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}
SYSTEM = Message(role="system", content="Be brief.")
USER, REPLY, WRONG = Message(**ASK), Message(**SAY), Message(**NO)
AND = Message(role="user", content="And 2+2?")
FOUR = Message(role="assistant", content="4")
TOOL = {"type": "function", "function": {"name": "add"}}


def build_rows(folder: Path, *values: Any, report: Report | None = None, **settings: Any) -> list[Row]:
    path = folder / "x.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    builder = LocalFile.model_validate({"path": str(path), **settings})
    return list(builder.build_with_report(report or Report(), Drops()))


def chat(*messages: Message, **more: Any) -> Chat:
    return Chat(id="x:1", messages=list(messages), **more)


def pair(*messages: Message) -> Pair:
    return Pair(id="x:1", messages=list(messages), chosen=REPLY, rejected=WRONG)


def labelled(completion: Message, label: bool) -> Labelled:
    return Labelled(id="x:1", messages=[USER], completion=completion, label=label)


READ: list[tuple[str, dict[str, Any], Row]] = [
    ("TRL's KTO with 0", {"prompt": "1+1?", "completion": "3", "label": 0}, labelled(WRONG, False)),
    ("KTO with 1.0", {"prompt": "1+1?", "completion": "2", "label": 1.0}, labelled(REPLY, True)),
    ("KTO of a response", {"question": "1+1?", "response": "3", "label": False}, labelled(WRONG, False)),
    ("KTO of ShareGPT", {"conversations": [HUMAN, GPT], "kto_tag": 1}, labelled(REPLY, True)),
    ("ChatGLM", {"prompt": "And 2+2?", "response": "4", "history": [["1+1?", "2"]]}, chat(USER, REPLY, AND, FOUR)),
    (
        "history of turns",
        {"prompt": "And 2+2?", "completion": "4", "history": [ASK, SAY]},
        chat(USER, REPLY, AND, FOUR),
    ),
    (
        "history of a table",
        {"instruction": "And 2+2?", "output": "4", "history": '[["1+1?", "2"]]'},
        chat(USER, REPLY, AND, FOUR),
    ),
    ("system of two sides", {"system": "Be brief.", "chosen": [ASK, SAY], "rejected": [ASK, NO]}, pair(SYSTEM, USER)),
    (
        "the same system twice",
        {"system": "Be brief.", "messages": [SYSTEM.model_dump(exclude_none=True), ASK, SAY]},
        chat(SYSTEM, USER, REPLY),
    ),
    (
        "Intel's orca pairs",
        {"system": "Be brief.", "question": "1+1?", "chosen": "2", "rejected": "3"},
        pair(SYSTEM, USER),
    ),
    ("ms-swift's pair", {"messages": [ASK, SAY], "rejected_response": "3"}, pair(USER)),
    ("ms-swift's turns", {"messages": [ASK, SAY], "rejected_messages": [ASK, NO]}, pair(USER)),
    ("a rejected text", {"messages": [ASK, SAY], "rejected": "3", "system": "Be brief."}, pair(SYSTEM, USER)),
    ("ShareGPT and a rejected text", {"conversations": [HUMAN, GPT], "rejected": "3"}, pair(USER)),
    ("turns before two texts", {"messages": [ASK], "chosen": "2", "rejected": "3"}, pair(USER)),
    ("tools of Alpaca", {"instruction": "1+1?", "output": "2", "tools": [TOOL]}, chat(USER, REPLY, tools=[TOOL])),
    ("tools of a question", {"question": "1+1?", "response": "2", "tools": [TOOL]}, chat(USER, REPLY, tools=[TOOL])),
]


@pytest.mark.parametrize(("what", "value", "expected"), READ, ids=[what for what, _, _ in READ])
def test_columns_that_change_the_meaning_are_read(
    tmp_path: Path, what: str, value: dict[str, Any], expected: Row
) -> None:
    report = Report()
    assert build_rows(tmp_path, value, report=report) == [expected]
    assert not report.n_left_out


PLAIN: dict[str, dict[str, Any]] = {
    "chat": {"messages": [ASK, SAY]},
    "trace": {"prompt": "1+1?", "thinking": "1 and 1", "answer": "2"},
    "pair": {"prompt": "1+1?", "chosen": "2", "rejected": "3"},
    "labelled": {"messages": [ASK, SAY], "label": True},
    "problem": {"prompt": "1+1?", "gold": "2"},
}
REFUSED: list[tuple[str, str, Any, str]] = [
    ("chat", "label", "bad", "whether the answer is good, and nothing reads it"),
    ("chat", "is_correct", False, "whether the answer is good"),
    ("chat", "isCorrect", "false", "whether the answer is good"),
    ("trace", "is_correct", 0, "whether the answer is good"),
    ("pair", "label", 0, "whether the answer is good"),
    ("chat", "score", 0.1, "how good the answer is"),
    ("chat", "reward", -1, "how good the answer is"),
    ("trace", "rewards", [1.0], "how good the answer is"),
    ("chat", "images", ["a.png"], "rows are of text alone"),
    ("pair", "images", ["a.png"], "rows are of text alone"),
    ("labelled", "videos", [{"path": "a"}], "rows are of text alone"),
    ("problem", "audios", "a.wav", "rows are of text alone"),
    ("chat", "history", [["a", "b"]], "earlier turns"),
    ("trace", "system_prompt", "Be brief.", r"columns: \{system: system_prompt\}"),
    ("pair", "tools", [TOOL], "pair rows carry none"),
    ("trace", "tools", [TOOL], "only chats have tools"),
    ("chat", "functions", [TOOL], r"columns: \{tools: functions\}"),
    ("trace", "context", "Ann did.", "a part of the question"),
    ("problem", "choices", ["1", "2"], "a part of the question"),
    ("trace", "input", "Of these:", "prompt and input are both there and differ"),
    ("chat", "weight", 0, "whether or how much the row is trained"),
    ("pair", "weight", 0.5, "whether or how much the row is trained"),
    ("chat", "train", False, "whether or how much the row is trained"),
    ("labelled", "loss_mask", [0, 1], "what is not trained"),
    ("chat", "mask", "Assistant", "what is not trained"),
    ("chat", "thinking_mode", "off", "say mode: think or mode: no_think"),
    ("pair", "reasoning_effort", "high", "say mode: think or mode: no_think"),
    ("chat", "finish_reason", "length", "an answer that was cut"),
    ("chat", "is_truncated", True, "not whole"),
    ("chat", "is_harmful", True, "that the answer is bad"),
    ("chat", "reasoning", "1 and 1", "the thinking before the answer"),
    ("chat", "train_on_inputs", True, "prompts are seen, never trained"),
    ("chat", "problem_is_valid", "No", "whether the question can be answered"),
    ("problem", "problem_is_valid", "Incomplete", "whether the question can be answered"),
    ("trace", "math_verify_passed", False, "whether the answer is good"),
    ("chat", "isReasoningComplete", "false", "whether the answer is good"),
    ("chat", "llm_judge_verified", 0, "whether the answer is good"),
    ("pair", "human_verified", False, "whether the answer is good"),
    ("chat", "response-has-errors", True, "that the answer is bad"),
    ("chat", "was_flagged", "yes", "that the answer is bad"),
    ("trace", "is_refusal", 1, "that the answer is bad"),
    ("pair", "is_tie", True, "that neither side is better"),
    ("chat", "suffix", "Answer in French.", "a part of the question"),
    ("trace", "grade", "F", "how good the answer is"),
]


@pytest.mark.parametrize(("kind", "column", "item", "message"), REFUSED)
def test_columns_that_nothing_reads_and_that_change_the_meaning_are_refused(
    tmp_path: Path, kind: str, column: str, item: Any, message: str
) -> None:
    plain = build_rows(tmp_path, PLAIN[kind])
    value = {**PLAIN[kind], column: item}
    with pytest.raises(RowError, match=rf"x\.jsonl:1: .*{message}"):
        build_rows(tmp_path, value)
    report = Report()
    assert build_rows(tmp_path, value, report=report, ignore_columns=[column]) == plain
    assert report.n_left_out == {column: 1}
    if column != "tools":  # which a pair reads, to refuse them
        kept = build_rows(tmp_path, value, report=Report(), keep_columns=[column]) if column != "input" else []
        assert all(not isinstance(row, Chat | Problem) or row.meta == {column: item} for row in kept)


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("item", [None, "", " ", [], {}, [None], {"a": None}])
def test_a_column_that_says_nothing_is_left_out_and_counted(tmp_path: Path, kind: str, item: Any) -> None:
    names = ("images", "history", "score", "reward", "weight", "context", "system", "tools", "rejected_messages")
    report = Report()
    if item in ([None], {"a": None}):
        names = ("images", "score", "weight", "context")
    assert build_rows(tmp_path, {**PLAIN[kind], **dict.fromkeys(names, item)}, report=report) == build_rows(
        tmp_path, PLAIN[kind]
    )
    assert {"images", "score", "weight", "context"} <= report.n_left_out.keys()


def read_one(value: Any, reject: Any) -> list[tuple[str, Any]]:
    return [("x.jsonl:1", value)]


def test_every_column_of_the_table_is_refused_unless_the_recipe_names_it() -> None:
    """By the table itself: a value that no rule can take for harmless."""
    n_refused = 0
    settings = LocalFile.model_validate({"path": "x.jsonl"})
    for name, meaning in COLUMN_MEANINGS.items():
        for kind in PLAIN.keys() & meaning.kinds:
            value = {**PLAIN[kind], name: ["something", 7]}
            if name in PLAIN[kind] or name in ("system", "tools", "history", "label", "ktotag"):
                continue
            with pytest.raises(DataError):
                list(settings.convert_rows(partial(read_one, value), "x.jsonl", Drops(), Report()))
            n_refused += 1
    assert n_refused > 300
    assert all(meaning.kinds <= PROMPT_KINDS for meaning in COLUMN_MEANINGS.values())


NEUTRAL = [
    {"label": "good"},
    {"images": "[]"},
    {"tools_used": "[]", "human_verified": True, "has_errors": "no"},
    {"is_correct": True},
    {"weight": 1.0},
    {"train": True},
    {"mask": "User"},
    {"finish_reason": "stop"},
    {"is_truncated": False},
    {"problem": "1+1?"},
    {"context": "1+1?"},
]


@pytest.mark.parametrize("more", NEUTRAL)
def test_a_column_that_agrees_with_how_the_row_is_read_is_left_out(tmp_path: Path, more: dict[str, Any]) -> None:
    report = Report()
    assert build_rows(tmp_path, {**PLAIN["chat"], **more}, report=report) == [chat(USER, REPLY)]
    assert report.n_left_out == dict.fromkeys(more, 1)


def test_keeping_all_columns_names_none(tmp_path: Path) -> None:
    value = {**PLAIN["chat"], "score": 1, "by": "ann"}
    with pytest.raises(RowError, match="score: is 1; that is how good the answer is"):
        build_rows(tmp_path, value, keep_columns="all")
    report = Report()
    [row] = build_rows(tmp_path, value, keep_columns="all", ignore_columns=["score"], report=report)
    assert isinstance(row, Chat)
    assert (row.meta, report.n_left_out) == ({"messages": [ASK, SAY], "by": "ann"}, {"score": 1})


def test_two_answers_or_prompts_have_to_be_told_apart(tmp_path: Path) -> None:
    value = {"question": "1+1?", "answer": "2", "response": "It is 2."}
    with pytest.raises(RowError, match=r"answer and response are both there and differ; say which.*\{answer: response"):
        build_rows(tmp_path, value, format="question_answer")
    report = Report()
    settings = {"format": "question_answer", "columns": {"answer": "response"}}
    long = Message(role="assistant", content="It is 2.")
    assert build_rows(tmp_path, value, report=report, **settings) == [chat(USER, long)]
    assert report.n_left_out == {"answer": 1}
    with pytest.raises(RowError, match="kto_tag and label are both there and differ"):
        build_rows(tmp_path, {"messages": [ASK, SAY], "label": True, "kto_tag": False})


def test_earlier_turns_are_read_by_columns_too(tmp_path: Path) -> None:
    value = {"query": "And 2+2?", "response": "4", "before": [["1+1?", "2"]]}
    columns = {"prompt": "query", "answer": "response", "history": "before"}
    assert build_rows(tmp_path, value, rows="chat", columns=columns) == [chat(USER, REPLY, AND, FOUR)]
    with pytest.raises(RowError, match="history: goes before a prompt that is a text; here it is a list of turns"):
        build_rows(tmp_path, {**value, "query": [ASK]}, rows="chat", columns=columns)


def test_a_short_text_does_not_stand_in_the_row_by_chance(tmp_path: Path) -> None:
    value = {"Body": "Ann has 1 pen.", "Question": "How many?", "Answer": 1.0}
    with pytest.raises(RowError, match="system: is 'a'; that is a system message"):
        build_rows(tmp_path, {**value, "system": "a"})


def test_a_bad_row_can_be_dropped(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    values = [PLAIN["chat"], {**PLAIN["chat"], "images": ["a.png"]}, {**PLAIN["chat"], "images": []}]
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    drops = Drops()
    assert len(list(LocalFile(path=str(path), on_bad_row="drop").build({}, 0, drops))) == 2
    assert drops.counts == {"column that changes the meaning": 1}


def test_ignored_columns_are_as_if_they_were_not_there(tmp_path: Path) -> None:
    value = {"prompt": "1+1?", "completion": "2", "label": 0, "kto_tag": True}
    report = Report()
    assert build_rows(tmp_path, value, ignore_columns=["label", "kto_tag"], report=report) == [chat(USER, REPLY)]
    assert (report.format, report.n_left_out) == ("prompt_completion", {"label": 1, "kto_tag": 1})
    with pytest.raises(DataError, match=r"no row has 'lable', which the recipe names\. Did you mean 'label'"):
        build_rows(tmp_path, {**value, "kto_tag": None}, ignore_columns=["lable"])
    for settings in ({"format": "kto", "columns": {"label": "label"}}, {"keep_columns": ["label"]}):
        with pytest.raises(ValidationError, match="ignore_columns: 'label' is named in columns or keep_columns too"):
            LocalFile.model_validate({"path": "x.jsonl", "ignore_columns": ["label"], **settings})


def test_traces_asked_for_by_name_decide_what_is_read(tmp_path: Path) -> None:
    value = {"prompt": "1+1?", "thinking": "1 and 1", "answer": "2"}
    assert build_rows(tmp_path, value, rows="chat") == [chat(USER, REPLY)]
    assert isinstance(build_rows(tmp_path, value)[0], Trace)


@pytest.mark.parametrize(("value", "expected"), [("a", False), (0, False), (False, False), ([0], False), ([{}], True)])
def test_what_is_empty(value: Any, expected: bool) -> None:
    assert is_empty(value) is expected


VERL = {"data_source": "x", "prompt": [ASK], "reward_model": {"style": "rule", "ground_truth": "2"}}


@pytest.mark.parametrize("settings", [{"rows": "problem"}, {"format": "prompt_gold"}])
def test_a_column_may_stand_inside_another(tmp_path: Path, settings: dict[str, str]) -> None:
    report = Report()
    settings = {**settings, "columns": {"gold": "reward_model.ground_truth"}}
    rows = build_rows(tmp_path, VERL, report=report, **settings)
    assert rows == [Problem(id="x:1", messages=[USER], gold="2", reward="math_answer")]
    assert report.n_left_out == {"data_source": 1}
    with pytest.raises(DataError, match=r"reward_model\.truth"):
        build_rows(tmp_path, VERL, **{**settings, "columns": {"gold": "reward_model.truth"}})


def test_an_id_of_several_rows_can_be_left_out(tmp_path: Path) -> None:
    values = [{"id": 7, "prompt": question, "completion": "2"} for question in ("1+1?", "3-1?")]
    with pytest.raises(RowError, match=r"id '7' is that of x\.jsonl:1 too; .*ignore_columns: \[id\]"):
        build_rows(tmp_path, *values)
    assert [row.id for row in build_rows(tmp_path, *values, ignore_columns=["id"])] == ["x:1", "x:2"]


def test_an_instruction_or_an_input_may_be_blank(tmp_path: Path) -> None:
    assert build_rows(tmp_path, {"instruction": "", "input": "1+1?", "output": "2"}) == [chat(USER, REPLY)]
    with pytest.raises(RowError, match="instruction: is blank"):
        build_rows(tmp_path, {"instruction": " ", "input": "", "output": "2"})


def test_keys_of_turns_can_be_ignored(tmp_path: Path) -> None:
    turns = [{**ASK, "info": {"source": "x"}}, {**SAY, "info": None, "toxic": False}]  # WildChat's, AM-DeepSeek's
    with pytest.raises(RowError, match=r"messages: 0: has 'info'.*ignore_columns: \[messages\.info\]"):
        build_rows(tmp_path, {"messages": turns})
    report = Report()
    ignored = ["conversation.info", "conversation.toxic"]
    settings = {"format": "messages", "columns": {"messages": "conversation"}, "ignore_columns": ignored}
    assert build_rows(tmp_path, {"conversation": turns}, report=report, **settings) == [chat(USER, REPLY)]
    assert report.n_left_out == dict.fromkeys(ignored, 1)
    with pytest.raises(DataError, match=r"no row has 'messages\.name'"):
        build_rows(tmp_path, {"messages": [ASK, SAY]}, ignore_columns=["messages.name"])
