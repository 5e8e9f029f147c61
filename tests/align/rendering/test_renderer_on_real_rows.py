"""On 2,000 real rows and the real Qwen3 tokenizer, ids equal transformers', and masks are what inference says."""

import hashlib
import importlib.util
import json
import os
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rendering.training_set import render_rows
from qwen_align.align.rows import Chat, Message, Row, Trace

DATA = Path(os.environ.get("QWEN_ALIGN_TEST_DATA", Path(__file__).parents[3] / "../shared/data")).resolve()
GOLDEN = DATA.parent / "golden" / "rendered_strings.json"
pytestmark = pytest.mark.skipif(
    not (DATA / "qwen3_tokenizer").is_dir(),
    reason=f"no real data at {DATA}; set QWEN_ALIGN_TEST_DATA to the folder that holds qwen3_tokenizer and gsm8k",
)

FAMILIES = ("qwen3", "qwen2_5", "qwen3_instruct_2507", "thinking_2507")


def template_source(family: str) -> str:
    if family == "qwen3":
        config = json.loads((DATA / "qwen3_tokenizer" / "tokenizer_config.json").read_text(encoding="utf-8"))
        return str(config["chat_template"])
    if family == "qwen3_nonthinking":
        return template_source("qwen3").replace("enable_thinking is defined and enable_thinking is false", "true")
    if family == "thinking_2507":  # Qwen3's, with a generation prompt that always opens the thinking block
        head, _, _ = bundled("qwen3").rpartition("{%- if add_generation_prompt %}")
        return head + r"{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %}"
    return bundled(family)


def bundled(name: str) -> str:
    """A template as TRL carries it; TRL itself is not imported."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Makes the renderer of the real tokenizer under a family's template."""
    source = DATA / "qwen3_tokenizer"
    renderers: dict[str, Renderer] = {}

    def load(family: str) -> Renderer:
        if family not in renderers:
            folder = tmp_path_factory.mktemp(family)
            for name in ("tokenizer.json", "tokenizer_config.json"):
                (folder / name).symlink_to(source / name)
            (folder / "chat_template.jinja").write_text(template_source(family), encoding="utf-8")
            renderers[family] = Renderer.load(folder)
        return renderers[family]

    return load


@pytest.fixture(scope="module")
def theirs() -> Any:
    return AutoTokenizer.from_pretrained(DATA / "qwen3_tokenizer")


EVERY_THIRD, ALL = 3, 1
SIZES = [
    pytest.param(EVERY_THIRD, id="some", marks=pytest.mark.slow(seconds=2)),
    pytest.param(ALL, id="all", marks=pytest.mark.evidence),
]


@pytest.fixture(scope="module", params=SIZES)
def rows(request: pytest.FixtureRequest) -> list[Trace | Chat]:
    """700 GSM8K traces, 500 English and 500 Chinese Alpaca chats, 300 tool conversations; or a third of them."""
    made: list[Trace | Chat] = []
    with (DATA / "gsm8k" / "train.jsonl").open(encoding="utf-8") as lines:
        for number, line in enumerate(islice(lines, 700)):
            problem = json.loads(line)
            steps, _, gold = problem["answer"].rpartition("\n#### ")
            made.append(
                Trace(
                    id=f"gsm8k-{number}",
                    messages=[Message(role="user", content=problem["question"])],
                    thinking=steps,
                    answer=f"\\boxed{{{gold}}}",
                    reward="math",
                )
            )
    for language in ("en", "zh"):
        for number, entry in enumerate(read_json(f"alpaca_{language}_demo.json")[:500]):
            asked = "\n".join(part for part in (entry["instruction"], entry["input"]) if part)
            turns = [Message(role="user", content=asked), Message(role="assistant", content=entry["output"])]
            made.append(Chat(id=f"alpaca-{language}-{number}", messages=turns, mode="no_think"))
    for number, entry in enumerate(read_json("glaive_toolcall_en_demo.json")):
        tools = [{"type": "function", "function": tool} for tool in json.loads(entry["tools"])]
        turns = [tool_turn(turn["from"], turn["value"]) for turn in entry["conversations"]]
        made.append(Chat(id=f"tools-{number}", messages=turns, mode="no_think", tools=tools))
    assert len(made) == 2000
    return made[:: request.param]


def read_json(name: str) -> list[dict[str, Any]]:
    loaded: list[dict[str, Any]] = json.loads((DATA / "chat" / name).read_text(encoding="utf-8"))
    return loaded


def tool_turn(speaker: str, value: str) -> Message:
    if speaker == "function_call":
        return Message(role="assistant", content="", tool_calls=[{"type": "function", "function": json.loads(value)}])
    role: Any = {"human": "user", "gpt": "assistant", "observation": "tool"}[speaker]
    return Message(role=role, content=value)


def whole_messages(row: Trace | Chat) -> list[Message]:
    if isinstance(row, Trace):
        return [*row.messages, Message(role="assistant", content=row.answer, thinking=row.thinking)]
    return row.messages


def as_dicts(messages: list[Message]) -> list[dict[str, Any]]:
    """Messages as a user of transformers writes them."""
    return [
        {"reasoning_content" if key == "thinking" else key: value for key, value in message.model_dump().items()}
        for message in messages
    ]


def their_ids(theirs: Any, family: str, messages: list[Message], **settings: Any) -> list[int]:
    encoded = theirs.apply_chat_template(
        as_dicts(messages), chat_template=template_source(family), tokenize=True, return_dict=True, **settings
    )
    ids: list[int] = encoded["input_ids"]
    return ids


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_equal_transformers(load: Any, theirs: Any, rows: list[Trace | Chat], family: str) -> None:
    renderer: Renderer = load(family)
    differ = []
    for row in rows:
        messages = whole_messages(row)
        tools = row.tools if isinstance(row, Chat) else None
        ours = renderer.encode(renderer.render_text(messages, tools=tools))
        prompt = renderer.encode(
            renderer.render_text(messages[:-1], tools=tools, add_generation_prompt=True, enable_thinking=False)
        )
        asked = {"tools": tools, "add_generation_prompt": True, "enable_thinking": False}
        if ours != their_ids(theirs, family, messages, tools=tools) or prompt != their_ids(
            theirs, family, messages[:-1], **asked
        ):
            differ.append(row.id)
    assert differ == []


def expected_answer(message: Message, thinking: str | None) -> str:
    """What a model says in a turn, written down independently of any template."""
    said = "" if thinking is None else f"<think>\n{thinking}\n</think>\n\n"
    said += message.content
    for call in message.tool_calls or []:
        function = call["function"]
        arguments = json.dumps(function["arguments"], ensure_ascii=False)
        said += f'<tool_call>\n{{"name": "{function["name"]}", "arguments": {arguments}}}\n</tool_call>'
    return said + "<|im_end|>"


# family, how rows that do not think are switched, and what of their empty block is trained and not supplied
SWITCHES = [
    ("qwen3", {"mode": "no_think"}, {"enable_thinking": False}, None),
    ("qwen3", {"mode": "no_think", "flag": "/no_think"}, {}, ""),
    ("qwen2_5", {"mode": None}, {}, None),
    ("qwen3_instruct_2507", {"mode": None}, {}, None),
]


@pytest.mark.parametrize(("family", "row_switch", "their_switch", "block"), SWITCHES)
def test_chats_train_what_inference_sees_and_says(
    load: Any,
    theirs: Any,
    rows: list[Trace | Chat],
    family: str,
    row_switch: dict[str, Any],
    their_switch: dict[str, Any],
    block: str | None,
) -> None:
    renderer: Renderer = load(family)
    end = renderer.end_of_turn_id
    n_turns = 0
    for row in rows:
        if isinstance(row, Trace):
            continue
        row = row.model_copy(update=row_switch)
        places = [place for place, message in enumerate(row.messages) if message.role == "assistant"]
        for place, sample in zip(places, renderer.render_turns(row), strict=True):
            history = list(row.messages[:place])
            if row.flag:
                last = max(i for i, message in enumerate(history) if message.role == "user")
                history[last] = Message(role="user", content=f"{history[last].content} {row.flag}")
            asked = {"tools": row.tools, "add_generation_prompt": True, **their_switch}
            prompt = their_ids(theirs, family, history, **asked)
            answer = renderer.encode(expected_answer(row.messages[place], block))
            assert sample.ids == prompt + answer, row.id
            assert sample.mask == [False] * len(prompt) + [True] * len(answer), row.id
            assert answer[-1] == end
            assert end not in answer[:-1]
            n_turns += 1
    assert n_turns > 1500 * len(rows) / 2000


@pytest.mark.parametrize(("family", "supplied"), [("qwen3", ""), ("thinking_2507", "<think>\n")])
def test_traces_train_what_inference_sees_and_says(
    load: Any, theirs: Any, rows: list[Trace | Chat], family: str, supplied: str
) -> None:
    renderer: Renderer = load(family)
    traces = [row for row in rows if isinstance(row, Trace)]
    for row in traces:
        prompt = their_ids(theirs, family, row.messages, add_generation_prompt=True)
        said = expected_answer(Message(role="assistant", content=row.answer), row.thinking).removeprefix(supplied)
        [sample] = renderer.render_samples(row)
        assert sample.ids == prompt + renderer.encode(said), row.id
        assert sample.mask == [False] * len(prompt) + [True] * (len(sample.ids) - len(prompt)), row.id
        assert renderer.render_prompt(row.messages, mode=row.mode, flag=row.flag) == (prompt, supplied)


@pytest.mark.parametrize("family", ["qwen3", "thinking_2507"])
def test_two_pieces_are_encoded_as_the_whole_would_be(load: Any, rows: list[Trace | Chat], family: str) -> None:
    """No token crosses the border between prompt and completion on any real row.

    One would if a completion began with white space that holds a newline, after the newline that ends the prompt:
    then inference could not produce the ids of the whole text either.
    """
    renderer: Renderer = load(family)
    trained = [row for row in rows if family == "qwen3" or isinstance(row, Trace)]
    n_apart = 0
    for row in trained:
        for sample in renderer.render_turns(row):
            text = renderer.tokenizer.decode(sample.ids, skip_special_tokens=False)
            n_apart += renderer.encode(text) != sample.ids
    assert n_apart == 0


@pytest.mark.slow(seconds=1)
def test_an_answer_that_begins_with_a_newline_is_encoded_apart_from_the_prompt(load: Any) -> None:
    renderer: Renderer = load("qwen2_5")
    messages = [Message(role="user", content="q"), Message(role="assistant", content="\na")]
    [sample] = renderer.render_samples(Chat(id="newline", messages=messages))
    prompt = renderer.render_prompt(messages[:1], mode=None, flag=None).ids
    assert sample.ids == prompt + renderer.encode("\na<|im_end|>")
    whole = renderer.encode(renderer.tokenizer.decode(sample.ids, skip_special_tokens=False))
    assert whole[: len(prompt)] != prompt  # "\n\n" is one token: no prompt ends that way


def test_merged_turns_train_the_same_tokens_after_the_same_tokens(load: Any, rows: list[Trace | Chat]) -> None:
    renderer: Renderer = load("qwen2_5")
    n_apart = n_merged = 0
    for row in rows:
        if not row.id.startswith("tools-"):
            continue
        row = row.model_copy(update={"mode": None})
        turns, merged = renderer.render_turns(row), renderer.render_samples(row)
        assert len(merged) == 1, row.id
        for turn in turns:
            assert merged[0].ids[: len(turn.ids)] == turn.ids, row.id
        masks = ([*turn.mask, *[False] * (len(merged[0].ids) - len(turn.ids))] for turn in turns)
        assert merged[0].mask == [any(place) for place in zip(*masks, strict=True)], row.id
        n_apart += sum(len(turn.ids) for turn in turns)
        n_merged += len(merged[0].ids)
    assert n_merged < n_apart / 2


def test_over_long_rows_are_counted(load: Any, rows: list[Trace | Chat]) -> None:
    renderer: Renderer = load("qwen3")
    rendered = render_rows(renderer, rows, max_tokens=512)
    n_over = sum(length > 512 for length in rendered.lengths)
    assert 0 < n_over == sum(rendered.dropped.values())
    assert set(rendered.dropped) == {"over 512 tokens", "prompt over 512 tokens"}
    assert max(len(sample.ids) for sample in rendered.samples) <= 512
    assert all(sample.ids[-1] == renderer.end_of_turn_id for sample in rendered.samples)


@pytest.mark.slow(seconds=1)
@pytest.mark.skipif(not GOLDEN.is_file(), reason=f"no golden strings at {GOLDEN}")
def test_golden_strings(load: Any) -> None:
    cases = json.loads(GOLDEN.read_text(encoding="utf-8")) if GOLDEN.is_file() else []
    seen: Counter[str] = Counter()
    for case in cases:
        if "messages" not in case:
            continue
        messages = [
            Message.model_validate({"thinking" if key == "reasoning_content" else key: turn[key] for key in turn})
            for turn in case["messages"]
        ]
        text = load(case["template"]).render_text(messages, **case["kwargs"])
        assert text.encode() == case["text"].encode(), case["name"]
        assert hashlib.sha256(text.encode()).hexdigest() == case["sha256"], case["name"]
        seen[case["template"]] += 1
    assert seen == {"qwen2_5": 3, "qwen3": 6, "qwen3_nonthinking": 1}


@pytest.mark.slow(seconds=1)
@pytest.mark.skipif(not GOLDEN.is_file(), reason=f"no golden strings at {GOLDEN}")
def test_golden_limo_halves(load: Any) -> None:
    """LIMO's masked source and trained target, as its authors' code makes them, less the newline after the turn."""
    golden = {case["name"]: case["text"] for case in json.loads(GOLDEN.read_text(encoding="utf-8"))}
    renderer: Renderer = load("qwen2_5")
    row: Row = Chat(
        id="limo",
        messages=[
            Message(role="system", content="Please reason step by step, and put your final answer within \\boxed{}."),
            Message(role="user", content="What is 1+1?"),
            Message(role="assistant", content="Okay, 1+1.\n\n**Final Answer**\n\n\\boxed{2}"),
        ],
    )
    [sample] = renderer.render_samples(row)
    n_seen = sample.mask.index(True)
    seen, said = (
        renderer.tokenizer.decode(ids, skip_special_tokens=False) for ids in (sample.ids[:n_seen], sample.ids[n_seen:])
    )
    assert seen == golden["limo_llamafactory_masked_source"]
    assert said + "\n" == golden["limo_llamafactory_trained_target"]
