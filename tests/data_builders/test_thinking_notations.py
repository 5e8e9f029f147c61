"""Thinking in another notation than <think> is refused unless the prompt asks for it; so are other models' ends."""

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_align.align.rows import Chat, Message, Row, RowError
from qwen_align.data_builders.conversion_report import Report
from qwen_align.data_builders.local_file import LocalFile
from qwen_align.data_builders.sieve import Drops
from qwen_align.data_builders.sieve_checks import find_control_token_fault

OPEN_THOUGHTS = (
    "<|begin_of_thought|>\n\nCarry.\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\n2\n\n<|end_of_solution|>"
)
ASK = {"role": "user", "content": "1+1?"}


def build(folder: Path, value: dict[str, Any], report: Report) -> list[Row]:
    path = folder / "x.jsonl"
    path.write_text(json.dumps(value), encoding="utf-8")
    return list(LocalFile.model_validate({"path": str(path)}).build_with_report(report, Drops()))


def say(text: str) -> dict[str, Any]:
    return {"messages": [ASK, {"role": "assistant", "content": text}]}


@pytest.mark.parametrize(
    ("mark", "value"),
    [
        (
            "<|begin_of_thought|>",
            {"conversations": [{"from": "user", "value": "1+1?"}, {"from": "assistant", "value": OPEN_THOUGHTS}]},
        ),
        ("<thinking>", say("<thinking>Carry.</thinking>2")),
        ("<THINK>", say("\n<THINK>Carry.</THINK>2")),
        ("< think >", say("< think >Carry.</ think >2")),
        ("[THINK]", say("[THINK]Carry.[/THINK]2")),
        ("◁think▷", say("◁think▷Carry.◁/think▷2")),
        ("<|channel|>analysis", say("<|channel|>analysis<|message|>Carry.<|end|>2")),
        ("<reasoning>", {"prompt": "1+1?", "completion": "<reasoning>Carry.</reasoning>2"}),
        ("<thought>", {"prompt": "1+1?", "chosen": "<thought>Carry.</thought>2", "rejected": "3"}),
        ("<scratchpad>", {"prompt": "1+1?", "completion": "<scratchpad>Carry.</scratchpad>2", "label": True}),
    ],
)
def test_thinking_in_another_notation_is_a_bad_row(tmp_path: Path, mark: str, value: dict[str, Any]) -> None:
    with pytest.raises(RowError, match="thinking in another notation") as error:
        build(tmp_path, value, Report())
    assert f"begins with {mark}," in str(error.value)


def test_it_stays_where_the_prompt_asks_for_it_and_is_counted(tmp_path: Path) -> None:
    report = Report()
    (row,) = build(tmp_path, {"system": f"Think in {'<thinking>'}.", **say("<thinking>Carry.</thinking>2")}, report)
    assert isinstance(row, Chat)
    assert row.messages[-1].content == "<thinking>Carry.</thinking>2"
    assert report.n_converted == {"answers that begin with <thinking>, as their prompt asks": 1}


def test_a_text_that_speaks_of_tags_is_no_thinking(tmp_path: Path) -> None:
    (row,) = build(tmp_path, say("Use <thinking> tags, or `[THINK]`."), Report())
    assert isinstance(row, Chat)


@pytest.mark.parametrize("mark", ["</s>", "<|eot_id|>", "<end_of_turn>\n", "<|end|>", "<eoa>", "<｜end▁of▁sentence｜>"])
def test_an_answer_that_ends_with_another_models_end_is_dropped(mark: str) -> None:
    def fault(text: str) -> str | None:
        turns = [Message(**ASK), Message(role="assistant", content=text)]
        found = find_control_token_fault(Chat(id="1", messages=turns))
        return found and found.detail

    assert fault(f"2{mark}") == mark.strip()
    assert fault(f"{mark.strip()} ends a turn of other models.") is None


def test_html_is_no_end_of_a_turn() -> None:
    turns = [Message(**ASK), Message(role="assistant", content="not <s>3</s>")]
    assert find_control_token_fault(Chat(id="1", messages=turns)) is None
