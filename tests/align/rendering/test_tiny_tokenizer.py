"""The tiny tokenizer against plain `tokenizers`, and its template against Qwen3's own."""

import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from qwen_align.align.rendering.tiny_tokenizer import CHAT_TEMPLATE, save_tokenizer, train_tokenizer

DATA = Path(os.environ.get("QWEN_ALIGN_TEST_DATA", Path(__file__).parents[3].parent / "shared" / "data"))
TEXTS = ["Ann has 33 apples. Tom gives Ann 12 more.\n33+12=45\n\\boxed{45}"] * 50


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_tokenizer(TEXTS, 400), folder, max_tokens=64)
    return folder


@pytest.fixture(scope="module")
def tiny(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(str(folder))


@pytest.fixture(scope="module")
def qwen3() -> Any:
    if not (DATA / "qwen3_tokenizer").is_dir():
        pytest.skip("Qwen3's tokenizer is not there: set QWEN_ALIGN_TEST_DATA to the data folder")
    return AutoTokenizer.from_pretrained(str(DATA / "qwen3_tokenizer"))


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def assistant(content: str, thought: str | None = None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **({"reasoning_content": thought} if thought else {}), **more}


SYSTEM = {"role": "system", "content": "Be brief."}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": "ü"}}}
BARE_CALL = {"name": "sub", "arguments": '{"a": 1}'}
RESULT = {"role": "tool", "content": "2"}

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "question": [user("2+2=?")],
    "system": [SYSTEM, user("2+2=?")],
    "answer without thinking": [user("2+2=?"), assistant("4")],
    "answer with thinking": [user("2+2=?"), assistant("4", "2+2=4")],
    "newlines around thinking": [user("2+2=?"), assistant("\n\n4\n", "\n2+2=4\n\n")],
    "thinking inside content": [user("2+2=?"), assistant("<think>\n2+2=4\n</think>\n\n4")],
    "no opening of thinking": [user("2+2=?"), assistant("2+2=4\n</think>\n\n4")],
    "two closings": [user("2+2=?"), assistant("<think>a</think>b</think>4")],
    "empty thinking": [user("2+2=?"), assistant("4", "") | {"reasoning_content": ""}],
    "thinking is null": [user("2+2=?"), assistant("4") | {"reasoning_content": None}],
    "history": [SYSTEM, user("2+2=?"), assistant("4", "2+2=4"), user("3+3=?"), assistant("6", "3+3=6")],
    "history ends with a question": [user("2+2=?"), assistant("<think>\nso\n</think>\n\n4"), user("3+3=?")],
    "two answers in a row": [user("2+2=?"), assistant("4", "one"), assistant("5", "two")],
    "first answer without thinking": [user("2+2=?"), assistant("4"), assistant("5", "two")],
    "second system turn": [SYSTEM, user("a"), SYSTEM, user("b")],
    "switch in the text": [user("2+2=? /no_think"), assistant("4")],
    "empty texts": [{"role": "system", "content": ""}, user(""), assistant("")],
    "tool call": [user("add"), assistant("", "I call", tool_calls=[CALL]), RESULT],
    "tool call with words": [user("add"), assistant("Wait.", tool_calls=[CALL, BARE_CALL]), RESULT, RESULT],
    "tool call, bare": [user("add"), assistant("", tool_calls=[BARE_CALL, CALL]), RESULT, assistant("2", "so")],
    "tool call in history": [user("add"), assistant("", "I", tool_calls=[CALL]), RESULT, assistant("2"), user("ok?")],
    "tool result as user": [user("add"), assistant("x", "y"), user("<tool_response>2</tool_response>"), assistant("2")],
    "only tool results": [user("<tool_response>2</tool_response>"), assistant("2", "so")],
    "tool first": [RESULT, user("ok?")],
}


@pytest.mark.parametrize("prompt", [{}, {"enable_thinking": True}, {"enable_thinking": False}], ids=str)
@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("generation", [False, True])
def test_template_renders_as_qwen3s(
    tiny: Any, qwen3: Any, name: str, generation: bool, prompt: dict[str, bool]
) -> None:
    ours, theirs = (
        tokenizer.apply_chat_template(CONVERSATIONS[name], tokenize=False, add_generation_prompt=generation, **prompt)
        for tokenizer in (tiny, qwen3)
    )
    assert ours == theirs


@pytest.mark.parametrize("name", ["system", "tool call", "tool call in history", "history"])
def test_tools_are_listed_in_one_system_turn(tiny: Any, qwen3: Any, name: str) -> None:
    tools = [{"type": "function", "function": {"name": "add", "description": "a < b & 'ü'", "parameters": {}}}] * 2
    ours, theirs = (
        tokenizer.apply_chat_template(CONVERSATIONS[name], tools=tools, tokenize=False, add_generation_prompt=True)
        for tokenizer in (tiny, qwen3)
    )
    # The wording around the list is our own; the list and all turns after it are as in Qwen3.
    start, end = "<tools>\n", "\n</tools>"
    assert ours.split(start)[-1].split(end)[0] == theirs.split(start)[-1].split(end)[0]
    assert ours.split("<|im_end|>\n")[1:] == theirs.split("<|im_end|>\n")[1:]
    assert ours.split("# Tools")[0] == theirs.split("# Tools")[0]


def test_transformers_and_tokenizers_agree(folder: Path, tiny: Any) -> None:
    plain = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = [
        "<|im_start|>user\nAnn's 12 größe 苹果 /no_think<|im_end|>\n",
        "<think>\n\n</think>\n\n\\boxed{4}",
        "  a\t\n\n b",
    ]
    for text in texts:
        ids = plain.encode(text, add_special_tokens=False).ids
        assert tiny(text, add_special_tokens=False)["input_ids"] == ids
        assert tiny.decode(ids) == plain.decode(ids, skip_special_tokens=False) == text


def test_special_tokens_are_qwens(tiny: Any) -> None:
    assert (tiny.eos_token, tiny.pad_token, tiny.bos_token) == ("<|im_end|>", "<|endoftext|>", None)
    thinking = tiny("<think>\nso\n</think>\n\n4<|im_end|>", add_special_tokens=False)["input_ids"]
    assert tiny.decode(thinking, skip_special_tokens=True) == "<think>\nso\n</think>\n\n4"
    for token in ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"):
        assert len(tiny(token, add_special_tokens=False)["input_ids"]) == 1
        assert token not in tiny.all_special_tokens


def test_digits_are_single_tokens_and_lines_end_alike(tiny: Any) -> None:
    ids = tiny("33+12=45\n", add_special_tokens=False)["input_ids"]
    assert [tiny.decode([number]) for number in ids] == ["3", "3", "+", "1", "2", "=", "4", "5", "\n"]
    raw = tiny("more.\n", add_special_tokens=False)["input_ids"]
    chat = tiny("more.<|im_end|>", add_special_tokens=False)["input_ids"]
    assert raw[:-1] == chat[:-1]


def test_training_is_deterministic() -> None:
    assert train_tokenizer(TEXTS, 400).to_str() == train_tokenizer(TEXTS, 400).to_str()


def test_chat_words_are_single_tokens(tiny: Any) -> None:
    for word in ("system", "user", "assistant", "\n\n", " /", "think"):
        assert len(tiny(word, add_special_tokens=False)["input_ids"]) == 1, word


def test_template_file_is_the_one_in_the_code(folder: Path) -> None:
    assert (folder / "chat_template.jinja").read_text(encoding="utf-8") == CHAT_TEMPLATE
