"""Published formats: each recognised by its keys, converted whole, and named where keys do not tell."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen_align.align.errors import DataError
from qwen_align.align.rows import Chat, Labelled, Message, Pair, Problem, Row, RowError, Text, Trace, to_json_line
from qwen_align.data_builders.conversion_report import Report
from qwen_align.data_builders.format_recognition import FORMATS, FormatName
from qwen_align.data_builders.local_file import LocalFile
from qwen_align.data_builders.message_conversion import split_thinking
from qwen_align.data_builders.sieve import Drops

ASK, SAY, NO = (
    {"role": "user", "content": "1+1?"},
    {"role": "assistant", "content": "2"},
    {"role": "assistant", "content": "3"},
)
HUMAN, GPT = {"from": "human", "value": "1+1?"}, {"from": "gpt", "value": "2"}
SYSTEM = Message(role="system", content="Be brief.")
USER, REPLY, WRONG = Message(**ASK), Message(**SAY), Message(**NO)
ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 1}}}
CALLING = Message(role="assistant", content="", tool_calls=[CALL])
RESULT = Message(role="tool", content="2")
GSM8K = {"question": "1+1?", "answer": "1+1=<<1+1=2>>2\n#### 2"}
S1 = {"question": "1+1?", "solution": "2", "cot_type": "math"}
TRACE = {"messages": [USER], "reward": "math_answer"}
CODE = {"prompt": "def f():\n", "test": "def check(c):\n    assert c() is None", "entry_point": "f"}
ASSERTS = ["assert f() == 1", "assert f(2) == 2"]


def build_rows(folder: Path, *values: Any, report: Report | None = None, **settings: Any) -> list[Row]:
    path = folder / "x.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    builder = LocalFile.model_validate({"path": str(path), **settings})
    return list(builder.build_with_report(report or Report(), Drops()))


def chat(*messages: Message, **more: Any) -> Chat:
    return Chat(id="x:1", messages=list(messages), **more)


RECOGNISED: list[tuple[str, dict[str, Any], Row]] = [
    ("messages", {"messages": [ASK, SAY]}, chat(USER, REPLY)),
    ("messages", {"messages": [ASK, SAY], "system": "Be brief.", "tools": None}, chat(SYSTEM, USER, REPLY)),
    (
        "messages",
        {"messages": [ASK, {**SAY, "reasoning_content": "1 and 1"}]},
        chat(USER, Message(role="assistant", content="2", thinking="1 and 1")),
    ),
    (
        "messages",
        {"messages": [ASK, {**SAY, "content": "<think>\n1 and 1\n</think>\n\n2"}]},
        chat(USER, Message(role="assistant", content="2", thinking="1 and 1")),
    ),
    (
        "messages",
        {"messages": [ASK, {**SAY, "content": "<think>\n\n</think>\n\n2"}]},
        chat(USER, Message(role="assistant", content="2", thinking="")),
    ),
    ("messages", {"messages": [{**ASK, "content": [{"type": "text", "text": "1+1?"}]}, SAY]}, chat(USER, REPLY)),
    (
        "messages",
        {
            "messages": [
                ASK,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1, "b": 1}'}}
                    ],
                },
                {"role": "tool", "content": "2", "tool_call_id": "c"},
                SAY,
            ],
            "tools": [ADD],
        },
        chat(USER, Message(role="assistant", content="", tool_calls=[{"id": "c", **CALL}]), RESULT, REPLY, tools=[ADD]),
    ),
    ("sharegpt", {"conversations": [HUMAN, GPT]}, chat(USER, REPLY)),
    ("sharegpt", {"conversations": [HUMAN, GPT], "system": ""}, chat(USER, REPLY)),
    ("sharegpt", {"conversations": [{"from": "system", "value": "Be brief."}, HUMAN, GPT]}, chat(SYSTEM, USER, REPLY)),
    (
        "sharegpt",
        {
            "conversations": [
                HUMAN,
                {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1, "b": 1}}'},
                {"from": "observation", "value": "2"},
                GPT,
            ],
            "tools": '[{"name": "add", "parameters": {"type": "object"}}]',
        },
        chat(USER, CALLING, RESULT, REPLY, tools=[ADD]),
    ),
    ("alpaca", {"instruction": "1+1?", "input": "", "output": "2"}, chat(USER, REPLY)),
    (
        "alpaca",
        {"instruction": "Add", "input": "1+1", "output": "2", "history": [["1+1?", "3"]], "system": "Be brief."},
        chat(SYSTEM, USER, WRONG, Message(role="user", content="Add\n1+1"), REPLY),
    ),
    ("prompt_completion", {"prompt": "1+1?", "completion": "2"}, chat(USER, REPLY)),
    ("prompt_completion", {"prompt": [ASK], "completion": [SAY]}, chat(USER, REPLY)),
    ("question_answer", {"question": "1+1?", "response": "2"}, chat(USER, REPLY)),
    (
        "preference",
        {"prompt": "1+1?", "chosen": "2", "rejected": "3"},
        Pair(id="x:1", messages=[USER], chosen=REPLY, rejected=WRONG),
    ),
    (
        "preference",
        {"prompt": [ASK], "chosen": SAY, "rejected": [NO], "score_chosen": 8, "score_rejected": 3.5},
        Pair(id="x:1", messages=[USER], chosen=REPLY, rejected=WRONG, margin=4.5),
    ),
    (
        "preference",
        {"chosen": [ASK, SAY], "rejected": [ASK, NO], "chosen_rating": 5.0, "rejected_rating": 2.0},
        Pair(id="x:1", messages=[USER], chosen=REPLY, rejected=WRONG, margin=3.0),
    ),
    (
        "preference",
        {"prompt": "1+1?", "chosen": [ASK, SAY], "rejected": [ASK, NO]},
        Pair(id="x:1", messages=[USER], chosen=REPLY, rejected=WRONG),
    ),
    (
        "preference",
        {"chosen": [ASK, NO, ASK, SAY], "rejected": [ASK, NO, ASK, NO]},
        Pair(id="x:1", messages=[USER, WRONG, USER], chosen=REPLY, rejected=WRONG),
    ),
    (
        "preference",
        {"instruction": "Add", "input": "1+1", "chosen": "2", "rejected": "3"},
        Pair(id="x:1", messages=[Message(role="user", content="Add\n1+1")], chosen=REPLY, rejected=WRONG),
    ),
    (
        "sharegpt_preference",
        {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "3"}},
        Pair(id="x:1", messages=[USER], chosen=REPLY, rejected=WRONG),
    ),
    ("kto", {"messages": [ASK, SAY], "label": True}, Labelled(id="x:1", messages=[USER], completion=REPLY, label=True)),
    (
        "kto",
        {"prompt": "1+1?", "completion": "3", "label": False},
        Labelled(id="x:1", messages=[USER], completion=WRONG, label=False),
    ),
    (
        "kto",
        {"instruction": "1+1?", "output": "2", "kto_tag": "true"},
        Labelled(id="x:1", messages=[USER], completion=REPLY, label=True),
    ),
    ("gsm8k", GSM8K, Problem(id="x:1", messages=[USER], gold="2", reward="math_answer")),
    (
        "s1k",
        {**S1, "thinking_trajectories": ["1 and", "1 "], "attempt": " 2\n"},
        Trace(id="x:1", thinking="1 and\n1", answer="2", **TRACE),
    ),
    (
        "s1k_deepseek",
        {**S1, "deepseek_thinking_trajectory": "1 and 1", "deepseek_attempt": "2"},
        Trace(id="x:1", thinking="1 and 1", answer="2", **TRACE),
    ),
    (
        "s1k_gemini",
        {**S1, "gemini_thinking_trajectory": "1 and 1", "gemini_attempt": "2"},
        Trace(id="x:1", thinking="1 and 1", answer="2", **TRACE),
    ),
    (
        "prompt_trace",
        {"prompt": "1+1?", "thinking": "1 and 1", "answer": "2"},
        Trace(id="x:1", thinking="1 and 1", answer="2", **TRACE),
    ),
    ("limo", {"question": "1+1?", "solution": "2", "answer": "2"}, chat(USER, REPLY)),
    (
        "prompt_gold",
        {"problem": "1+1?", "solution": "so \\boxed{2}", "answer": "2.0"},
        Problem(id="x:1", gold="2.0", **TRACE),
    ),
    ("prompt_gold", {"problem": "1+1?", "solution": "so \\boxed{2}"}, Problem(id="x:1", gold="2", **TRACE)),
    ("prompt_gold", {"question": "1+1?", "answer": 2.0}, Problem(id="x:1", gold=2.0, **TRACE)),
    ("prompt_gold", {"input": "1+1?", "target": 2}, Problem(id="x:1", gold=2, **TRACE)),
    (
        "svamp",
        {"Body": "Ann has 1 pen. ", "Question": "How many?", "Answer": 1.0},
        Problem(
            id="x:1",
            messages=[Message(role="user", content="Ann has 1 pen. How many?")],
            gold=1.0,
            reward="math_answer",
        ),
    ),
    ("text", {"text": "1+1=2", "url": "a"}, Text(id="x:1", text="1+1=2")),
    (
        "humaneval",
        {**CODE, "task_id": "HumanEval/0", "canonical_solution": "    return None\n"},
        Problem(
            id="x:1",
            messages=[Message(role="user", content="def f():\n")],
            gold={**CODE, "canonical_solution": "    return None\n"},
            reward="code_tests",
        ),
    ),
    (
        "mbpp",
        {"text": "Write f.", "code": "def f(x=1): return x", "test_list": ASSERTS, "test_setup_code": ""},
        Problem(
            id="x:1",
            messages=[
                Message(role="user", content="Write f. Your code should pass these tests:\n\n" + "\n".join(ASSERTS))
            ],
            gold={"tests": ASSERTS, "code": "def f(x=1): return x"},
            reward="code_tests",
        ),
    ),
    ("typed", {"row": "text", "id": "x:1", "text": "a"}, Text(id="x:1", text="a")),
]


@pytest.mark.parametrize(("name", "value", "expected"), RECOGNISED)
def test_each_format_is_recognised_and_convert_value(
    tmp_path: Path, name: str, value: dict[str, Any], expected: Row
) -> None:
    report = Report()
    assert build_rows(tmp_path, value, report=report) == [expected]
    assert (report.format, report.is_recognised, report.n_made) == (name, True, {expected.row: 1})
    if name != "typed":
        assert build_rows(tmp_path, value, format=name) == [expected]


def test_every_format_has_a_case_and_a_name() -> None:
    assert {name for name, _, _ in RECOGNISED} - {"typed"} == set(FORMATS) == set(get_args(FormatName))


AMBIGUOUS: list[tuple[dict[str, Any], list[str]]] = [
    ({"prompt": "1+1?", "answer": "2"}, ["question_answer", "prompt_gold"]),
    ({"problem": "1+1?", "question": "1+1?", "solution": "2", "answer": "2"}, ["limo", "prompt_gold"]),
    (
        {
            **S1,
            "gemini_thinking_trajectory": "a",
            "gemini_attempt": "b",
            "deepseek_thinking_trajectory": "c",
            "deepseek_attempt": "d",
        },
        ["s1k_deepseek", "s1k_gemini"],
    ),
    ({"messages": [ASK, SAY], "conversations": [HUMAN, GPT]}, ["messages", "sharegpt"]),
]


@pytest.mark.parametrize(("value", "candidates"), AMBIGUOUS)
def test_what_keys_do_not_tell_has_to_be_named(tmp_path: Path, value: dict[str, Any], candidates: list[str]) -> None:
    with pytest.raises(DataError, match=rf"x\.jsonl: could be in 2 formats; name one, as format: {candidates[0]}") as e:
        build_rows(tmp_path, value)
    assert all(f"{name} (" in str(e.value) for name in candidates)
    for name in candidates:
        assert len(build_rows(tmp_path, value, format=name)) == 1


def test_what_rows_are_to_become_can_decide(tmp_path: Path) -> None:
    value = {"prompt": "1+1?", "answer": "2"}
    assert build_rows(tmp_path, value, format="auto", rows="problem") == [Problem(id="x:1", gold="2", **TRACE)]
    assert build_rows(tmp_path, value, format="auto", rows="chat") == [chat(USER, REPLY)]
    with pytest.raises(DataError, match="in no format we know that makes pair rows; their keys: prompt, answer"):
        build_rows(tmp_path, value, format="auto", rows="pair")


def test_a_mixture_of_formats_is_no_format(tmp_path: Path) -> None:
    alpaca = {"instruction": "1+1?", "output": "2"}
    with pytest.raises(DataError, match=r"messages .* fits 1 of the first 3 rows, first .*x\.jsonl:3"):
        build_rows(tmp_path, alpaca, alpaca, {"messages": [ASK, SAY]})


def test_a_row_of_another_format_is_a_bad_row(tmp_path: Path) -> None:
    alpaca = {"instruction": "1+1?", "output": "2"}
    with pytest.raises(RowError, match=r"x\.jsonl:2: 'instruction' is missing; the row's keys: a"):
        build_rows(tmp_path, alpaca, {"a": 1})


@pytest.mark.parametrize(
    ("rows", "marks", "expected"),
    [
        ("chat", "keep", chat(USER, Message(role="assistant", content=GSM8K["answer"]))),
        ("chat", "remove", chat(USER, Message(role="assistant", content="1+1=2\n#### 2"))),
        ("trace", "remove", Trace(id="x:1", thinking="1+1=2", answer="\\boxed{2}", gold="2", **TRACE)),
    ],
)
def test_gsm8k_with_its_solutions(tmp_path: Path, rows: str, marks: str, expected: Row) -> None:
    assert build_rows(tmp_path, GSM8K, format="gsm8k", rows=rows, calculator_marks=marks) == [expected]


def test_a_conversation_with_thinking_can_be_a_trace(tmp_path: Path) -> None:
    value = {"messages": [ASK, {"role": "assistant", "content": "<think>1 and 1</think>2"}]}
    trace = Trace(id="x:1", thinking="1 and 1", answer="2", **TRACE)
    assert build_rows(tmp_path, value, format="messages", rows="trace") == [trace]
    with pytest.raises(RowError, match=r"x\.jsonl:1: is no trace"):
        build_rows(tmp_path, {"messages": [ASK, SAY]}, format="messages", rows="trace")


def test_columns_rename_and_are_kept(tmp_path: Path) -> None:
    report = Report()
    value = {"no": 7, "q": "1+1?", "a": "2", "level": 3, "url": "x", "nothing": None}
    row = build_rows(
        tmp_path,
        value,
        report=report,
        format="prompt_gold",
        columns={"id": "no", "prompt": "q", "gold": "a"},
        keep_columns=["level"],
    )
    assert row == [Problem(id="7", gold="2", meta={"level": 3}, **TRACE)]
    assert report.n_left_out == {"url": 1, "nothing": 1}
    assert report.format_lines()[1:] == [
        "1 problem rows made",
        "column 'nothing' left out of 1 rows",
        "column 'url' left out of 1 rows",
    ]
    with pytest.raises(RowError, match="keep_columns: text rows have no meta"):
        build_rows(tmp_path, {"text": "a", "n": 1}, keep_columns="all")


def test_a_column_that_no_row_has_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"x\.jsonl: no row has 'levl', which the recipe names. Did you mean 'level'"):
        build_rows(tmp_path, {**GSM8K, "level": 1}, keep_columns=["levl"])


@pytest.mark.parametrize(
    ("settings", "value", "message"),
    [
        (
            {"format": "gsm8k", "columns": {"question": "nope"}},
            {"question": "a", "answer": "#### 2"},
            r"'question' is missing; .*But columns names 'nope' as question, which the row does not have; its keys: "
            "question, answer",
        ),
        (
            {"format": "prompt_gold", "columns": {"prompt": "q", "gold": "a"}},
            {"q": "1+1?", "b": 2},
            "columns names 'a' as gold, which the row does not have; its keys: q, b",
        ),
        (
            {"format": "gsm8k", "columns": {"question": "q"}},
            {"q": "1+1?"},
            "'answer' is missing; the row's keys: [^.]*$",
        ),
    ],
)
def test_a_column_that_the_first_row_lacks_is_named(
    tmp_path: Path, settings: dict[str, Any], value: dict[str, Any], message: str
) -> None:
    with pytest.raises(RowError, match=rf"x\.jsonl:1: .*{message}"):
        build_rows(tmp_path, value, **settings)


def test_what_was_converted_is_reported(tmp_path: Path) -> None:
    report = Report()
    thought = {"role": "assistant", "content": "<think>a</think>2", "name": "ann"}
    build_rows(tmp_path, {"messages": [ASK, thought], "by": 1}, {"messages": [ASK, SAY, ASK]}, report=report)
    assert report.to_manifest() == {
        "format": "messages",
        "recognised": True,
        "made": {"chat": 2},
        "converted": {
            "<think> blocks moved to thinking": 1,
            "conversations that end with a user's turn": 1,
            "turns' 'name' left out": 1,
        },
        "columns_left_out": {"by": 1},
    }


texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(str.strip)


@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=3), texts)
def test_formats_of_one_conversation_give_one_row(pairs: list[tuple[str, str]], system: str) -> None:
    """OpenAI's, ShareGPT's and Alpaca's way to write it differ in nothing that is kept."""
    if any("think>" in text for pair in pairs for text in pair):
        return
    messages = [{"role": "system", "content": system}]
    conversations = []
    for asked, answer in pairs:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
        conversations += [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    (*history, last) = pairs
    alpaca = {
        "instruction": last[0],
        "output": last[1],
        "history": [list(pair) for pair in history],
        "system": system,
    }
    ways = [{"messages": messages}, {"conversations": conversations, "system": system}, alpaca]
    rows = {to_json_line(row) for value in ways for row in convert_value(value)}
    assert len(rows) == 1


def convert_value(value: dict[str, Any]) -> list[Row]:
    settings = LocalFile.model_validate({"path": "x.jsonl"})
    return list(settings.convert_rows(lambda reject: iter([("x.jsonl:1", value)]), "x.jsonl", Drops(), Report()))


@given(texts, texts)
def test_thinking_and_answer_come_apart_as_they_were_put_together(thinking: str, answer: str) -> None:
    if "think>" in thinking + answer:
        return
    split = split_thinking(f"<think>\n{thinking}\n</think>\n\n{answer}")
    assert split.thinking == thinking.strip("\r\n")
    assert split.answer == answer.lstrip("\r\n")
    # The prompt of a model that always thinks opens the block, so that its completions have the rest alone.
    assert split_thinking(f"{thinking}\n</think>\n\n{answer}") == split


@pytest.mark.parametrize(
    ("content", "thinking", "answer"),
    [
        ("<think>\nr\n</think>\n\n    return 1\n", "r", "    return 1\n"),
        ("<think>\n    if x:\n        y\n</think>\n\n\treturn 1", "    if x:\n        y", "\treturn 1"),
        ("<think>\r\nr\r\n</think>\r\n\r\n  a", "r", "  a"),
        ("<think>r</think>a", "r", "a"),
        ("r</think>a", "r", "a"),
        ("r\n</think>\n\na", "r", "a"),
        ("\n</think>\n\na", "", "a"),
        ("<think>\n\n</think>\n\n  a", "", "  a"),
    ],
)
def test_indentation_and_blocks_that_the_prompt_opened_are_read(content: str, thinking: str, answer: str) -> None:
    assert split_thinking(content) == (thinking, answer)


@pytest.mark.parametrize(
    "more",
    [
        {"reasoning": "1 and 1", "reasoning_content": "1 and 1"},
        {"thinking": "1 and 1", "reasoning": "1 and 1", "reasoning_content": ""},
        {"content": "<think>\n1 and 1\n</think>\n\n2", "reasoning_content": "1 and 1\n"},
        {"content": "1 and 1\n</think>\n\n2", "reasoning": "1 and 1"},
    ],
)
def test_thinking_that_is_given_twice_alike_is_read_once(tmp_path: Path, more: dict[str, Any]) -> None:
    [row] = build_rows(tmp_path, {"messages": [ASK, {**SAY, **more}]})
    assert isinstance(row, Chat)
    assert (row.messages[-1].content, (row.messages[-1].thinking or "").strip()) == ("2", "1 and 1")


@pytest.mark.parametrize("said", ["false", False, " False"])
def test_a_column_of_the_switch_is_the_rows_mode(tmp_path: Path, said: Any) -> None:
    [row] = build_rows(tmp_path, {"messages": [ASK, SAY], "enable_thinking": said})
    assert isinstance(row, Chat)
    assert row.mode == "no_think"
    both = {"enable_thinking": said, "chat_template_kwargs": {"enable_thinking": True}}
    with pytest.raises(RowError, match="only enable_thinking, true or false, is read"):
        build_rows(tmp_path, {"messages": [ASK, SAY], **both})


@pytest.mark.parametrize(
    ("given", "settings", "mode"),
    [
        ({"enable_thinking": False}, {}, "no_think"),
        ({"enable_thinking": True}, {"mode": "no_think"}, "think"),
        ('{"enable_thinking": false}', {}, "no_think"),
        ({"enable_thinking": None, "tools": None}, {"mode": "think"}, "think"),  # a table's padding
        ({"enable_thinking": True, "custom_instructions": "", "python_tools": []}, {}, "think"),  # SmolTalk2's
        (None, {}, None),
        ({}, {}, None),
    ],
)
def test_a_row_may_ask_the_template_for_its_mode(
    tmp_path: Path, given: Any, settings: dict[str, Any], mode: str | None
) -> None:
    report = Report()
    value = {"messages": [ASK, SAY], "chat_template_kwargs": given}
    [row] = build_rows(tmp_path, value, report=report, **settings)
    assert isinstance(row, Chat)
    assert row.mode == mode
    assert not report.n_left_out


def test_single_turns_of_a_tree_are_no_raw_texts(tmp_path: Path) -> None:
    value = {"message_id": "2", "parent_id": "1", "text": "2", "role": "assistant"}  # OpenAssistant's
    with pytest.raises(DataError, match="in no format we know; their keys: message_id"):
        build_rows(tmp_path, value)


WRONG_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"prompt": "1+1?", "chosen": "2", "rejected": "2"}, "chosen and rejected are equal"),
    (
        {"prompt": "1+1?", "chosen": "2", "rejected": "3", "score_chosen": 2, "score_rejected": 7.5},
        r"score_chosen is 2 and score_rejected 7.5: .*ignore_columns: \[score_chosen, score_rejected\]",
    ),
    (
        {
            "conversations": [HUMAN],
            "chosen": GPT,
            "rejected": {**GPT, "value": "3"},
            "chosen_rating": 1,
            "rejected_rating": 2,
        },
        "chosen_rating is 1 and rejected_rating 2: by its scores the rejected side is the better one",
    ),
    (
        {"prompt": "1+1?", "chosen": "2", "rejected": "3", "margin": 1, "reward_chosen": 0, "reward_rejected": 1},
        "reward_chosen is 0 and reward_rejected 1",
    ),
    ({"prompt": "1+1?", "chosen": [NO, ASK, SAY], "rejected": "3"}, "chosen: has 3 turns, and those before the last"),
    ({"prompt": "1+1?", "chosen": [ASK], "rejected": "3"}, "chosen: ends with a user's turn"),
    ({"chosen": [ASK, SAY], "rejected": [SAY, NO]}, "'prompt' is missing, and chosen and rejected begin with no"),
    ({"chosen": "2", "rejected": "3"}, "'prompt' is missing, and chosen and rejected begin with no"),
    ({"prompt": "1+1?", "chosen": "2", "rejected": "3", "margin": "one"}, "margin: is 'one', not a number"),
    ({"prompt": "1+1?", "chosen": "2", "rejected": "3", "margin": "nan"}, "margin: is 'nan', not a number"),
    ({"prompt": "1+1?", "chosen": "2", "rejected": "3", "margin": True}, "margin: is True, not a number"),
    ({"prompt": [ASK, SAY], "chosen": "2", "rejected": "3"}, "prompt: ends with an assistant's turn"),
    ({"prompt": "1+1?", "chosen": "2", "rejected": "3", "tools": [ADD]}, "tools: pair rows carry none"),
    ({"conversations": [HUMAN, GPT], "chosen": GPT, "rejected": GPT}, "conversations: ends with an assistant's turn"),
    ({"messages": [{"role": "system", "content": "a"}, ASK, SAY], "system": "b"}, "opens with a system message of its"),
    ({"messages": [ASK, SAY], "tools": "[{}]"}, "tools.0.: is {}; a function's schema has a name"),
    ({"messages": [ASK, SAY], "tools": "[{"}, "tools: is not JSON"),
    ({"messages": [{**ASK, "thinking": "a"}, SAY]}, "has thinking in a user turn"),
    (
        {"messages": [ASK, {**SAY, "thinking": "a", "reasoning_content": "b"}]},
        "has both thinking and reasoning_content, and they differ",
    ),
    (
        {"messages": [ASK, SAY], "chat_template_kwargs": {"date": "today"}},
        "chat_template_kwargs or enable_thinking: is .*only enable_think",
    ),
    (
        {"messages": [ASK, SAY], "chat_template_kwargs": {"enable_thinking": "no"}},
        "only enable_thinking, true or false",
    ),
    ({"messages": [{**ASK, "content": " "}, SAY]}, "messages: a user's turn is blank"),
    ({"messages": [ASK], "label": True}, "does not end with an assistant's turn after a prompt"),
    ({"instruction": "a", "output": "b", "history": [["c"]]}, "history: 0: is ..c.., not two texts"),
    ({"instruction": "a", "output": "b", "history": "c"}, "history: is 'c', not a list of turns"),
    ({"instruction": "a", "input": 3, "output": "b"}, "input: is 3, not a text"),
    ({"problem": "a", "question": "b", "answer": 2}, "question and problem are both there and differ; say which"),
    ({"problem": "a", "solution": "no box"}, "solution: .*and there is no other gold"),
    ({"question": "a", "answer": "b\n#### "}, "answer: nothing follows the last '####'"),
    ({**S1, "thinking_trajectories": [" "], "attempt": "2"}, "thinking_trajectories: is blank"),
    ({**S1, "thinking_trajectories": [1], "attempt": "2"}, "thinking_trajectories: is .1., not a text or a list"),
    ({"text": "Write f.", "test_list": "assert f()"}, "test_list: is 'assert f..', not a list of texts"),
]


@pytest.mark.parametrize(("value", "message"), WRONG_ROWS)
def test_wrong_rows_of_a_format_are_named(tmp_path: Path, value: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError, match=rf"x\.jsonl:1: .*{message}"):
        build_rows(tmp_path, value)


def test_a_named_column_decides_between_two(tmp_path: Path) -> None:
    value = {"problem": "a", "question": "1+1?", "answer": 2}
    row = build_rows(tmp_path, value, format="prompt_gold", columns={"prompt": "question"})
    assert row == [Problem(id="x:1", gold=2, **TRACE)]
