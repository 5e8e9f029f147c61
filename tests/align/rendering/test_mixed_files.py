"""Files in which some answers think, as Qwen3's: each answer is trained as inference renders it, or a counted drop.

What is expected is said by hand: the switch, the history as the file has it, and what the model has to say. Prompts are
those of transformers and Qwen's own template.
"""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from transformers import AutoTokenizer

from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rendering.training_set import render_rows
from qwen_align.align.rows import Row
from qwen_align.data_builders.local_file import LocalFile
from qwen_align.data_builders.sieve import Drops, Sieve, sieve

DATA = Path(os.environ.get("QWEN_ALIGN_TEST_DATA", Path(__file__).parents[3] / "../shared/data")).resolve()
pytestmark = pytest.mark.skipif(
    not (DATA / "qwen3_tokenizer").is_dir(),
    reason=f"no real data at {DATA}; set QWEN_ALIGN_TEST_DATA to the folder that holds qwen3_tokenizer",
)

EMPTY = "<think>\n\n</think>\n\n"
THOUGHT = "<think>\nfirst\n    then\n</think>\n\n"
OFF, DEFAULT = {"enable_thinking": False}, dict[str, Any]()
LOST = "answers without the thinking of their conversation"
CALL = {"type": "function", "function": {"name": "get", "arguments": {"city": "Oslo"}}}
CALLED = '<tool_call>\n{"name": "get", "arguments": {"city": "Oslo"}}\n</tool_call>'
TOOLS = [{"type": "function", "function": {"name": "get", "parameters": {"type": "object", "properties": {}}}}]


class Case(NamedTuple):
    """A conversation as texts in turn, user first, and what is trained of it.

    `trained`: the place of an answer, how the template is asked, and what the model says. `reason`: why it is dropped.
    """

    texts: tuple[str, ...]
    trained: tuple[tuple[int, dict[str, Any], str], ...] = ()
    reason: str = ""
    system: str = ""


CASES = {
    "thinks": Case(("q", THOUGHT + "a"), ((1, DEFAULT, THOUGHT + "a"),)),
    "thinks, /think": Case(("q /think", THOUGHT + "a"), ((1, DEFAULT, THOUGHT + "a"),)),
    "thinks, opened by the prompt": Case(("q1", THOUGHT[8:] + "a"), ((1, DEFAULT, THOUGHT + "a"),)),
    "code": Case(("code", THOUGHT + "    return 1\n"), ((1, DEFAULT, THOUGHT + "    return 1\n"),)),
    "empty block": Case(("q", EMPTY + "a"), ((1, OFF, "a"),)),
    "empty block, /no_think": Case(("q /no_think", EMPTY + "a"), ((1, DEFAULT, EMPTY + "a"),)),
    "empty block before code": Case(("code", EMPTY + "    return 1\n"), ((1, OFF, "    return 1\n"),)),
    "plain": Case(("q2", "a"), ((1, OFF, "a"),)),
    "plain, /no_think": Case(("q2 /no_think", "a"), ((1, DEFAULT, EMPTY + "a"),)),
    "the last flag wins": Case(("q /think or /no_think", "a"), ((1, DEFAULT, EMPTY + "a"),)),
    "a flag in Chinese": Case(("一加一等于几？/no_think", "二"), ((1, DEFAULT, EMPTY + "二"),)),
    "in the system message": Case(("q", EMPTY + "a"), ((1, DEFAULT, EMPTY + "a"),), system="Be brief. /no_think"),
    "system, then user": Case(("q /think", THOUGHT + "a"), ((1, DEFAULT, THOUGHT + "a"),), system="/no_think"),
    "disobeys /no_think": Case(("q /no_think", THOUGHT + "a"), reason="thinking under /no_think"),
    "disobeys the system message": Case(("q", THOUGHT + "a"), reason="thinking under /no_think", system="/no_think"),
    "disobeys /think, plain": Case(("q /think", "a"), reason="no thinking under /think"),
    "disobeys /think, empty block": Case(("q3 /think", EMPTY + "a"), reason="no thinking under /think"),
    "three turns": Case(
        ("q1", THOUGHT + "a1", "q2 /no_think", EMPTY + "a2", "q3 /think", THOUGHT + "a3"),
        ((1, DEFAULT, THOUGHT + "a1"), (3, DEFAULT, EMPTY + "a2"), (5, DEFAULT, THOUGHT + "a3")),
    ),
    "no flag, three turns": Case(
        ("q1", "a1", "q2", "a2", "q3", "a3"), ((1, OFF, "a1"), (3, OFF, "a2"), (5, OFF, "a3"))
    ),
    "thinks, then not": Case(
        ("q1", THOUGHT + "a1", "q2", EMPTY + "a2"), ((1, DEFAULT, THOUGHT + "a1"), (3, OFF, "a2"))
    ),
    "a history without its thinking": Case(("q1", "a1", "q2", THOUGHT + "a2"), ((3, DEFAULT, THOUGHT + "a2"),)),
    "disobeys in the second turn": Case(
        ("q1", THOUGHT + "a1", "q2 /no_think", THOUGHT + "a2"), reason="thinking under /no_think"
    ),
    "the flag holds on": Case(("q1 /no_think", "a1", "q2", THOUGHT + "a2"), reason="thinking under /no_think"),
}


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer.load(DATA / "qwen3_tokenizer")


@pytest.fixture(scope="module")
def theirs() -> Any:
    return AutoTokenizer.from_pretrained(DATA / "qwen3_tokenizer")


def as_messages(case: Case) -> list[dict[str, Any]]:
    system = [{"role": "system", "content": case.system}] if case.system else []
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(case.texts)]
    return [*system, *turns]


def as_sharegpt(case: Case) -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(case.texts)]
    return {"conversations": turns, "system": case.system or None}


def as_alpaca(case: Case) -> dict[str, Any]:
    *history, asked, said = case.texts
    pairs = [list(pair) for pair in zip(history[::2], history[1::2], strict=True)]
    return {"instruction": asked, "output": said, "history": pairs, "system": case.system or None}


def as_prompt_completion(case: Case) -> dict[str, Any]:
    *prompt, said = as_messages(case)
    return {"prompt": prompt, "completion": said["content"]}


def build(path: Path, values: list[dict[str, Any]], **settings: Any) -> tuple[list[Row], Drops]:
    """The rows of a file that is read without a setting of its modes, after the sieve, and the drops."""
    path.write_text("".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values), encoding="utf-8")
    drops = Drops()
    built = LocalFile.model_validate({"path": str(path), **settings}).build({}, 0, drops)
    return list(sieve(built, Sieve(), drops)), drops


def expected_sample(theirs: Any, messages: list[dict[str, Any]], switch: dict[str, Any], said: str) -> list[int]:
    ids: list[int] = theirs.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, **switch
    )["input_ids"]
    return ids + theirs.encode(said + "<|im_end|>", add_special_tokens=False)


@pytest.mark.parametrize(
    "write", [lambda case: {"messages": as_messages(case)}, as_sharegpt, as_alpaca, as_prompt_completion]
)
def test_a_mixed_file_is_trained_as_inference_renders_it(
    tmp_path: Path, renderer: Renderer, theirs: Any, write: Any
) -> None:
    rows, drops = build(tmp_path / "mixed.jsonl", [{"id": name, **write(case)} for name, case in CASES.items()])
    assert {drop.id: drop.reason for drop in drops.rows} == {
        name: case.reason for name, case in CASES.items() if case.reason
    }
    rendered = render_rows(renderer, rows, max_tokens=500)
    expected = [
        expected_sample(theirs, as_messages(case)[: place + bool(case.system)], switch, said)
        for name, case in CASES.items()
        for place, switch, said in case.trained
    ]
    assert [sample.ids for sample in rendered.samples] == expected
    seen = sum(len(case.texts) // 2 - len(case.trained) for case in CASES.values() if not case.reason)
    assert rendered.dropped == {LOST: seen}
    assert sum(rendered.modes.values()) == len(expected)
    for sample in rendered.samples:  # what is in front of the first trained token is the prompt, and nothing after it
        n_seen = sample.mask.index(True)
        assert all(sample.mask[n_seen:])
        text = renderer.tokenizer.decode(sample.ids[n_seen:], skip_special_tokens=False)
        assert any(text == said + "<|im_end|>" for case in CASES.values() for _, _, said in case.trained)


def test_columns_of_thinking_may_be_blank(tmp_path: Path, renderer: Renderer, theirs: Any) -> None:
    values = [
        {"question": "q1", "thinking": "first\n    then", "answer": "a"},
        {"question": "q2", "thinking": "", "answer": "a"},
        {"question": "q3 /no_think", "thinking": None, "answer": "a"},
        {"question": "q4 /no_think", "thinking": "r", "answer": "a"},
    ]
    rows, drops = build(tmp_path / "columns.jsonl", values, format="prompt_trace")
    assert drops.counts == {"thinking under /no_think": 1}
    assert Counter(row.row for row in rows) == {"trace": 1, "chat": 2}
    switches = [(DEFAULT, THOUGHT + "a"), (OFF, "a"), (DEFAULT, EMPTY + "a")]
    assert [sample.ids for sample in render_rows(renderer, rows, max_tokens=500).samples] == [
        expected_sample(theirs, [{"role": "user", "content": value["question"]}], switch, said)
        for value, (switch, said) in zip(values, switches, strict=False)
    ]


def test_calls_of_tools_are_trained_in_the_mode_of_their_question(
    tmp_path: Path, renderer: Renderer, theirs: Any
) -> None:
    def turns(thought: str, said: str) -> list[dict[str, Any]]:
        return [
            {"role": "user", "content": "weather?"},
            {"role": "assistant", "content": thought, "tool_calls": [CALL]},
            {"role": "tool", "content": "sunny"},
            {"role": "assistant", "content": said},
        ]

    conversations = [turns(THOUGHT, THOUGHT + "It is sunny."), turns("", "Sunny."), turns(THOUGHT, "Sun.")]
    rows, drops = build(tmp_path / "t.jsonl", [{"messages": messages, "tools": TOOLS} for messages in conversations])
    assert drops.counts == {}
    turns_of = [renderer.render_turns(row) for row in rows]
    think, no_think, half = conversations

    def expect(messages: list[dict[str, Any]], place: int, switch: dict[str, Any], said: str) -> list[int]:
        return expected_sample(theirs, messages[:place], {**switch, "tools": TOOLS}, said)

    assert [[turn.ids for turn in one] for one in turns_of] == [
        [expect(think, 1, DEFAULT, THOUGHT + CALLED), expect(think, 3, DEFAULT, THOUGHT + "It is sunny.")],
        [expect(no_think, 1, OFF, CALLED), expect(no_think, 3, OFF, "Sunny.")],
        [expect(half, 1, DEFAULT, THOUGHT + CALLED)],  # an answer beside a call that thinks lost its thinking
    ]
    assert render_rows(renderer, rows, max_tokens=500).dropped == {LOST: 1}
