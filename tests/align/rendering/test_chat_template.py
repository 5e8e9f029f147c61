"""Rendering equals transformers', and what a template does is read off its renderings."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers.utils.chat_template_utils import render_jinja_template

from qwen_align.align.rendering.chat_template import (
    ChatTemplate,
    TemplateError,
    detect_template_traits,
    extract_continuation,
    load_template,
)

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "<|im_end|>"}
EMPTY_BLOCK = "<think>\n\n</think>\n\n"


def bundled(name: str) -> str:
    """A template as TRL carries it; TRL itself is not imported."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def thinking_2507() -> str:
    """Qwen3-Thinking-2507's template: Qwen3's, with a generation prompt that always opens the thinking block."""
    head, found, _ = bundled("qwen3").rpartition("{%- if add_generation_prompt %}")
    assert found
    return head + r"{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %}"


def tiny_tokenizer(*added: str) -> Tokenizer:
    """Bytes as tokens, and the added ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    return tokenizer


CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN3 = (*CHATML, "<think>", "</think>")


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, special_tokens=SPECIAL_TOKENS, where="here")


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": 'Says <b>"how"</b> & where, 天气',
            "parameters": {"type": "object", "properties": {"zone": {"type": "string"}, "city": {"type": "string"}}},
        },
    }
]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"zone": "<CET>", "city": "北京"}}}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "question": [{"role": "user", "content": "What's 1 < 2 & 'x'?\n"}],
    "system": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "你好 👋"}],
    "answered": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "\na\n"}],
    "thought": [
        {"role": "user", "content": "q1"},
        {"role": "assistant", "content": "a1", "reasoning_content": "\nr1 "},
        {"role": "user", "content": "q2 /no_think"},
        {"role": "assistant", "content": "a2", "reasoning_content": ""},
    ],
    "inline": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>\nr\n</think>\n\na"}],
    "tools": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": "", "reasoning_content": "call it", "tool_calls": [CALL, CALL]},
        {"role": "tool", "content": '{"t": 3}'},
        {"role": "tool", "content": '{"t": 4}'},
        {"role": "assistant", "content": "3 or 4", "reasoning_content": "read it"},
        {"role": "user", "content": "thanks"},
    ],
}
TEMPLATES = {
    **{
        name: bundled(name)
        for name in ("qwen2_5", "qwen3", "qwen3_instruct_2507", "qwen3_training", "qwen3_5_think", "qwen3_8", "llama3")
    },
    "thinking_2507": thinking_2507(),
}


DATED = """
{%- set today = strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024" %}
{{- "Today Date: " + today + "\\n" }}
{%- for m in messages %}{{ m.role + ": " + m.content + "<|im_end|>" }}{% endfor %}
"""


def test_a_template_that_prints_the_date_prints_one_date() -> None:
    """Whatever the day; as Llama 3's templates do where there is no clock."""
    dated, fixed = template(DATED), template(DATED.replace("strftime_now is defined", "false"))
    assert dated.prints_date
    messages = CONVERSATIONS["question"]
    assert dated.render_text(messages) == fixed.render_text(messages)
    assert dated.render_text(messages).startswith("Today Date: 26 Jul 2024\n")
    assert not template(TEMPLATES["qwen3"]).prints_date


@pytest.mark.parametrize("source", ["{{ [1, 2, 3] | random }}", "{{ lipsum(1) }}"])
def test_a_template_that_draws_at_random_is_refused(source: str) -> None:
    with pytest.raises(TemplateError, match="draws something at random"):
        template(source).render_text(CONVERSATIONS["question"])


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_text_equals_transformers(name: str, conversation: str) -> None:
    ours = template(TEMPLATES[name])
    messages = CONVERSATIONS[conversation]
    for tools in (None, TOOLS):
        for generation in (False, True):
            for switch in ({}, {"enable_thinking": True}, {"enable_thinking": False}):
                [theirs], _ = render_jinja_template(
                    [messages],
                    tools=tools,
                    chat_template=TEMPLATES[name],
                    add_generation_prompt=generation,
                    **SPECIAL_TOKENS,
                    **switch,
                )
                text = ours.render_text(messages, tools=tools, add_generation_prompt=generation, **switch)
                assert text == theirs


@pytest.mark.parametrize(
    "source",
    [
        "{{ {'b': '<中>', 'a': [1, none, true]} | tojson }}{{ {'b': 1, 'a': 2} | tojson(indent=2, sort_keys=true) }}",
        "{% for m in messages %}{% if loop.index == 2 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
        "{% set x = 1 %}{% generation %}{% set x = 2 %}in{{ x }}{% endgeneration %}out{{ x }}",
        "{% for m in messages %}\n  {% if m.role == 'user' %}\n  u\n  {% endif %}\n{% endfor %}\n",
        "{{ strftime_now is defined }}{{ bos_token }}{{ unknown is defined }}{{ tools is none }}{{ dict(a=1).a }}",
        "{{ documents is none }}",
    ],
)
def test_dialect_equals_transformers(source: str) -> None:
    messages = CONVERSATIONS["thought"]
    [theirs], _ = render_jinja_template([messages], chat_template=source, **SPECIAL_TOKENS)
    assert template(source).render_text(messages) == theirs


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ raise_exception('system turns are not known') }}", "system turns are not known"),
        ("{{ messages[0].nothing | tojson }}", "not JSON serializable"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "unsafe"),
        ("{% set _ = messages.append(1) %}", "unsafe"),
    ],
)
def test_what_a_template_raises_is_told(source: str, said: str) -> None:
    with pytest.raises(TemplateError, match=f"refuses these messages: .*{said}"):
        template(source).render_text(CONVERSATIONS["question"])


def test_broken_template_and_empty_conversation_are_refused() -> None:
    with pytest.raises(TemplateError, match="here: not a Jinja template"):
        template("{% if %}")
    with pytest.raises(TemplateError, match="no message"):
        template("x").render_text([])


def test_template_file_comes_before_the_config(tmp_path: Path) -> None:
    config = {"chat_template": "from config {{ eos_token }}", "eos_token": {"content": "<e>"}, "bos_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert load_template(tmp_path).render_text(CONVERSATIONS["question"]) == "from config <e>"
    (tmp_path / "chat_template.jinja").write_text("from file {{ eos_token }}", encoding="utf-8")
    assert load_template(tmp_path).render_text(CONVERSATIONS["question"]) == "from file <e>"


def test_folders_without_one_template_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match="has no chat template"):
        load_template(tmp_path)
    config = {"chat_template": [{"name": "default", "template": "x"}, {"name": "tool_use", "template": "y"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(TemplateError, match=r"several chat templates \(default, tool_use\)"):
        load_template(tmp_path)


NOTHING = {None: "", True: "", False: ""}


@pytest.mark.parametrize(
    ("source", "tokens", "thinking", "default_mode", "supplied"),
    [
        (bundled("qwen2_5"), CHATML, "none", None, NOTHING),
        (bundled("qwen3"), QWEN3, "hybrid", "think", {**NOTHING, False: EMPTY_BLOCK}),
        (bundled("qwen3_instruct_2507"), QWEN3, "never", "no_think", NOTHING),
        (thinking_2507(), QWEN3, "always", "think", dict.fromkeys(NOTHING, "<think>\n")),
        (
            bundled("qwen3_5_nothink"),
            QWEN3,
            "hybrid",
            "no_think",
            {None: EMPTY_BLOCK, True: "<think>\n", False: EMPTY_BLOCK},
        ),
        (
            bundled("qwen3").replace("enable_thinking is defined and enable_thinking is false", "true"),
            QWEN3,
            "never",
            "no_think",
            dict.fromkeys(NOTHING, EMPTY_BLOCK),
        ),
        (
            bundled("qwen3").replace("enable_thinking is defined and enable_thinking is false", "false"),
            QWEN3,
            "always",
            "think",
            NOTHING,
        ),
    ],
    ids=["qwen2.5", "qwen3", "instruct-2507", "thinking-2507", "qwen3.5 small", "qwen3 nonthinking", "no switch"],
)
def test_traits(source: str, tokens: tuple[str, ...], thinking: str, default_mode: str | None, supplied: Any) -> None:
    traits = detect_template_traits(template(source), tiny_tokenizer(*tokens))
    assert traits == (thinking, default_mode, supplied, "<|im_end|>")


CHATML_SOURCE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Writes and supplies an empty thinking block, and has no place for thinking.
FORGETFUL_SOURCE = CHATML_SOURCE.replace("m.role + '\n'", "m.role + '\n' + (block if m.role == 'assistant' else '')")
FORGETFUL_SOURCE = "{% set block = '<think></think>' %}" + FORGETFUL_SOURCE.replace(
    "'<|im_start|>assistant\n'", "'<|im_start|>assistant\n' + (block if enable_thinking is false else '')"
)


@pytest.mark.parametrize(
    ("source", "tokens", "said"),
    [
        (FORGETFUL_SOURCE, QWEN3, "drops the thinking of the answer"),
        (
            bundled("qwen3").replace(
                "'<|im_end|>\\n'", "('<|endoftext|>' if enable_thinking is false else '<|im_end|>')"
            ),
            QWEN3,
            "turns end in different ways",
        ),
        (bundled("deepseek_r1_distill"), QWEN3, "inference would see '<think>.*' where the finished .* has 'probe"),
        (CHATML_SOURCE.replace("assistant\n'", "bot\n'"), CHATML, "would see 'bot.n' where .* has 'assistant"),
        (CHATML_SOURCE.replace("m.content + '<|im_end|>", "m.content + '"), CHATML, "does not close a turn"),
        (CHATML_SOURCE, ("<|im_start|>",), "template and tokenizer do not belong together"),
        (CHATML_SOURCE.replace("m.content", "(m.content | upper)"), CHATML, "answer is not in what follows"),
    ],
    ids=[
        "no place for thinking",
        "two ends",
        "thinking dropped",
        "another role name",
        "no end of turn",
        "foreign tokenizer",
        "rewritten answer",
    ],
)
def test_templates_inference_would_not_follow_are_refused(source: str, tokens: tuple[str, ...], said: str) -> None:
    with pytest.raises(TemplateError, match=f"^here: .*{said}"):
        detect_template_traits(template(source), tiny_tokenizer(*tokens))


def test_a_second_answer_is_probed_too() -> None:
    # The first question is rendered differently once a second one follows an open prompt.
    source = CHATML_SOURCE.replace("m.content +", "('' if add_generation_prompt and messages[2] else m.content) +")
    with pytest.raises(TemplateError, match="not prefix-stable"):
        detect_template_traits(template(source), tiny_tokenizer(*CHATML))


@pytest.mark.parametrize(("whole", "seen", "has"), [("abX", "'c'", "'X'"), ("ab", "'c'", "''")])
def test_continuation_names_where_the_texts_part(whole: str, seen: str, has: str) -> None:
    assert extract_continuation("ab", "abc") == "c"
    with pytest.raises(TemplateError, match=f"would see {seen} where the finished conversation has {has}"):
        extract_continuation("abc", whole)
