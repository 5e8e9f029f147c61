"""Masks and refusals, on a small tokenizer with the templates of each Qwen family."""

import importlib.util
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from qwen_align.align.rendering.chat_template import TemplateError
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rendering.samples import (
    Sample,
    TurnCounts,
    compute_length_percentiles,
    merge_turns,
    split_into_pieces,
)
from qwen_align.align.rendering.training_set import render_pairs, render_rows
from qwen_align.align.rows import Chat, Completion, Message, Pair, Problem, Row, Text, Trace

CHATML = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_pad|>")
QWEN3 = (*CHATML, "<think>", "</think>")
ASKED = "<|im_start|>user\nq{flag}<|im_end|>\n<|im_start|>assistant\n"
EMPTY = "<think>\n\n</think>\n\n"


def bundled(name: str) -> str:
    """A template as TRL carries it; TRL itself is not imported."""
    spec = importlib.util.find_spec("trl")
    assert spec is not None
    assert spec.origin is not None
    return (Path(spec.origin).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")


def thinking_2507() -> str:
    """Qwen3-Thinking-2507's template: Qwen3's, with a generation prompt that always opens the thinking block."""
    head, _, _ = bundled("qwen3").rpartition("{%- if add_generation_prompt %}")
    return head + r"{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n<think>\n' }}{%- endif %}"


def write_folder(folder: Path, source: str, added: tuple[str, ...], **config: Any) -> Path:
    """A model folder's tokenizer: bytes as tokens, and the added ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    # What Renderer.load must not let into a sample.
    start = ("<|im_start|>", tokenizer.token_to_id("<|im_start|>"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[start])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=9)
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": source, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def renderers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Renderer]:
    folder = tmp_path_factory.mktemp("tokenizers")
    families = {
        "none": (bundled("qwen2_5"), CHATML),
        "hybrid": (bundled("qwen3"), QWEN3),
        "always": (thinking_2507(), QWEN3),
        "never": (bundled("qwen3_instruct_2507"), QWEN3),
        "hybrid-open": (bundled("qwen3_5_think"), QWEN3),
        "hybrid-off": (bundled("qwen3_5_nothink"), QWEN3),
    }
    return {name: Renderer.load(write_folder(folder / name, *parts)) for name, parts in families.items()}


def user(content: str) -> Message:
    return Message(role="user", content=content)


def said(content: str, thinking: str | None = None, **more: Any) -> Message:
    return Message(role="assistant", content=content, thinking=thinking, **more)


def chat(*messages: Message, **more: Any) -> Chat:
    return Chat(id="c1", messages=list(messages), **more)


def trace(asked: str, answer: str, thinking: str) -> Trace:
    return Trace(id="c1", messages=[user(asked)], thinking=thinking, answer=answer, reward="math_answer")


def halves(renderer: Renderer, sample: Sample) -> tuple[str, str]:
    """What is seen and what is trained, as text; the trained tokens must be the sample's end."""
    n_seen = sample.mask.index(True)
    assert sample.mask == [False] * n_seen + [True] * (len(sample.ids) - n_seen)
    seen, trained = sample.ids[:n_seen], sample.ids[n_seen:]
    return (
        renderer.tokenizer.decode(seen, skip_special_tokens=False),
        renderer.tokenizer.decode(trained, skip_special_tokens=False),
    )


THOUGHT, ANSWERED = "<think>\nr\n</think>\n\na<|im_end|>", "a<|im_end|>"


@pytest.mark.parametrize(
    ("family", "mode", "flag", "thinking", "supplied", "trained"),
    [
        ("hybrid", None, None, "r", "", THOUGHT),
        ("hybrid", "think", None, "r", "", THOUGHT),
        ("hybrid", "think", "/think", "r", "", THOUGHT),
        ("hybrid", None, "/think", "r", "", THOUGHT),
        ("hybrid", "no_think", "/no_think", None, "", EMPTY + ANSWERED),
        ("hybrid", None, "/no_think", None, "", EMPTY + ANSWERED),
        ("hybrid", "no_think", None, None, EMPTY, ANSWERED),
        ("hybrid", "no_think", None, " \n", EMPTY, ANSWERED),
        ("hybrid", "no_think", "/think", None, EMPTY, ANSWERED),
        ("always", None, None, "r", "<think>\n", THOUGHT.removeprefix("<think>\n")),
        ("always", "think", None, "\nr\n", "<think>\n", THOUGHT.removeprefix("<think>\n")),
        ("never", None, None, None, "", ANSWERED),
        ("never", "no_think", None, "", "", ANSWERED),
        ("none", None, None, None, "", ANSWERED),
        ("none", None, None, "r", "", THOUGHT),
        ("none", "think", "/think", "r", "", THOUGHT),
        ("none", "no_think", "/no_think", None, "", ANSWERED),
        ("hybrid-open", None, None, "r", "<think>\n", THOUGHT.removeprefix("<think>\n")),
        ("hybrid-open", "no_think", None, None, EMPTY, ANSWERED),
        ("hybrid-open", "no_think", "/no_think", None, "<think>\n", "\n</think>\n\n" + ANSWERED),
        ("hybrid-off", None, None, None, EMPTY, ANSWERED),
        ("hybrid-off", "think", None, "r", "<think>\n", THOUGHT.removeprefix("<think>\n")),
    ],
)
def test_prompt_and_trained_text(
    renderers: dict[str, Renderer],
    family: str,
    mode: Any,
    flag: Any,
    thinking: str | None,
    supplied: str,
    trained: str,
) -> None:
    renderer = renderers[family]
    prompt = renderer.render_prompt([user("q")], mode=mode, flag=flag)
    assert prompt.thinking_prefix == supplied
    [sample] = renderer.render_samples(chat(user("q"), said("a", thinking), mode=mode, flag=flag))
    seen, learnt = halves(renderer, sample)
    assert learnt == trained
    assert seen.endswith(ASKED.format(flag=f" {flag}" if flag else "") + supplied)
    assert sample.ids[: len(prompt.ids)] == prompt.ids
    assert sample.mask.index(True) == len(prompt.ids)
    # A trace of the same content is the same sample.
    trace = Trace(
        id="t", messages=[user("q")], thinking=thinking or "", answer="a", reward="math", mode=mode, flag=flag
    )
    assert renderer.render_samples(trace) == [sample]
    # So is a completion, whose text has the supplied part in front.
    text = supplied + trained.removesuffix("<|im_end|>")
    assert renderer.render_samples(completion(text, mode=mode, flag=flag)) == [sample]


def completion(text: str, **more: Any) -> Completion:
    fields: dict[str, Any] = {"finish_reason": "stop", "n_tokens": 1, "prompt": [user("q")], **more}
    return Completion(prompt_id="p", sample=0, text=text, **fields)


@pytest.mark.parametrize(
    ("family", "row", "why"),
    [
        ("hybrid", chat(user("q"), said("a"), mode="think"), "no thinking in mode think: .* under its `builder:`"),
        ("hybrid", chat(user("q"), said("a", "r"), mode="no_think"), "thinking in mode no_think: "),
        ("hybrid", chat(user("q /no_think"), said("a", "r")), "thinking under /no_think: .* under `sieve:`"),
        ("hybrid", chat(user("q /no_think"), said("a", "r"), mode="think"), "thinking under /no_think: "),
        ("hybrid", chat(user("q /think"), said("a")), "message 2: no thinking under /think: "),
        ("none", chat(user("q /think"), said("a")), "message 2: no thinking under /think: "),
        ("none", chat(user("q /no_think"), said("a", "r")), "message 2: thinking under /no_think: "),
        ("hybrid", trace("q /no_think", "a", "r"), "thinking under /no_think: "),
        ("hybrid", chat(user("q"), said("a", "r"), mode="think", flag="/no_think"), "contradicts itself"),
        ("hybrid", chat(user("q"), said("r\n</think>\n\na")), "put the thinking into the field 'thinking'"),
        ("hybrid", chat(user("q"), said("<think>\nr\n</think>\n\na")), "put the thinking into the field 'thinking'"),
        ("always", chat(user("q"), said("a"), mode="no_think"), "this model always thinks"),
        ("always", chat(user("q"), said("a", "r"), flag="/think"), "for hybrid models"),
        ("always", chat(user("q"), said("a")), "has no thinking, .* give its thinking, .* `mode: no_think`"),
        ("always", chat(user("q"), said("a", "r"), user("q2"), said("a2")), "message 4: has no thinking"),
        ("never", chat(user("q"), said("a", "r")), "its prompt asks for none"),
        ("never", chat(user("q"), said("a"), mode="think"), "this model never thinks"),
        ("never", chat(user("q"), said("a"), flag="/no_think"), "for hybrid models"),
        ("none", chat(user("q"), said("a"), mode="no_think", flag="/think"), "needs a template with a switch"),
        ("none", chat(user("q"), said("a"), mode="think"), "no thinking in mode think"),
        ("none", chat(user("q")), "no token would be in the loss"),
        ("none", chat(said("a")), "needs a user or tool message before it, found nothing"),
        ("none", chat(user("q"), said("a"), said("b")), "message 3: .* found an assistant turn"),
        ("none", chat(user("q"), said(" ")), "the assistant says nothing"),
        ("none", chat(user("q"), said("a<|im_end|>b")), "holds <|im_end|> before its end"),
        ("none", chat(user("q"), said("a<|endoftext|>")), "holds <|endoftext|> before its end"),
        ("none", chat(Message(role="user", content="q", thinking="r"), said("a")), "only assistant turns"),
        (
            "none",
            chat(Message(role="system", content="s"), said("a", "r"), flag="/think", mode="think"),
            "no user message",
        ),
        ("none", Text(id="c1", text=""), "nothing to train"),
        ("none", Problem(id="c1", messages=[user("q")], reward="math"), "a problem row has no answer to train"),
    ],
)
def test_rows_that_would_train_something_wrong_are_refused(
    renderers: dict[str, Renderer], family: str, row: Row, why: str
) -> None:
    with pytest.raises(TemplateError, match=f"^row 'c1': .*{why.replace('|', '.')}"):
        renderers[family].render_samples(row)


@pytest.mark.parametrize(
    ("text", "more", "why"),
    [
        ("<think>\nr\n</think>\n\na", {"finish_reason": "length"}, "cut at its token limit"),
        ("a", {}, "has no thinking"),
        ("a", {"mode": "no_think"}, "has to start with '<think>.n.n</think>"),
        ("<think>\nr\n</think>\n\na", {"mode": "no_think", "flag": "/no_think"}, "its prompt asks for none"),
        ("r\n</think>\n\na", {"mode": "no_think", "flag": "/no_think"}, "its prompt asks for none"),
        ("<think>\nr\n</think>\n\na<|im_end|>b", {}, "before its end"),
    ],
)
def test_completions_that_must_not_be_trained_are_refused(
    renderers: dict[str, Renderer], text: str, more: dict[str, Any], why: str
) -> None:
    with pytest.raises(TemplateError, match=f"^row 'p#0': .*{why}"):
        renderers["hybrid"].render_samples(completion(text, **more))


def test_each_turn_of_a_thinking_chat_is_what_inference_sees_and_says(renderers: dict[str, Renderer]) -> None:
    renderer = renderers["hybrid"]
    messages = [user("q1"), said("a1", "r1"), user("q2"), said("a2", "r2"), user("q3"), said("a3", "r3")]
    samples = renderer.render_samples(chat(*messages, flag="/think"))
    assert len(samples) == 3
    for turn, sample in enumerate(samples):
        history = messages[: 2 * turn + 1]
        seen, learnt = halves(renderer, sample)
        assert sample.ids[: sample.mask.index(True)] == renderer.render_prompt(history, mode="think", flag="/think").ids
        assert learnt == f"<think>\nr{turn + 1}\n</think>\n\na{turn + 1}<|im_end|>"
        assert "<think>" not in seen
        assert seen.count("/think") == 1
        assert f"q{turn + 1} /think<|im_end|>" in seen


def test_each_answer_of_a_chat_without_a_mode_has_its_own(renderers: dict[str, Renderer]) -> None:
    row = chat(
        *(user("q1"), said("a1", "r1"), user("q2 /no_think"), said("a2", ""), user("q3 /think"), said("a3", "r3")),
        *(user("q4 /no_think"), said("a4")),
    )
    counts = TurnCounts()
    learnt = [halves(renderers["hybrid"], turn)[1] for turn in renderers["hybrid"].render_turns(row, counts)]
    assert learnt == [
        "<think>\nr1\n</think>\n\na1<|im_end|>",
        EMPTY + "a2<|im_end|>",
        "<think>\nr3\n</think>\n\na3<|im_end|>",
        EMPTY + "a4<|im_end|>",
    ]
    assert counts == TurnCounts(Counter({"no_think (/no_think)": 2, "think": 1, "think (/think)": 1}))
    rendered = render_rows(renderers["hybrid"], [row, chat(user("q"), said("a"))], max_tokens=500)
    assert rendered.modes["no_think (enable_thinking=False)"] == 1
    # a template without modes has the same texts, without an empty block
    [merged] = renderers["none"].render_samples(row)
    text = renderers["none"].tokenizer.decode(merged.ids, skip_special_tokens=False)
    assert text.count("<think>\nr1\n</think>\n\na1") == text.count("<|im_start|>assistant\na2") == 1


def test_an_earlier_answer_without_the_thinking_of_its_conversation_is_counted(renderers: dict[str, Renderer]) -> None:
    row = chat(user("q1"), said("a1"), user("q2"), said("a2", "r2"))
    for family in ("hybrid", "always"):
        rendered = render_rows(renderers[family], [row], max_tokens=500)
        assert rendered.dropped == {"answers without the thinking of their conversation": 1}
        [sample] = rendered.samples
        assert "a1<|im_end|>" in halves(renderers[family], sample)[0]
    assert render_rows(renderers["none"], [row], max_tokens=500).dropped == {}


def test_tool_turns_keep_their_thinking_until_the_next_question(renderers: dict[str, Renderer]) -> None:
    renderer = renderers["hybrid"]
    call = {"function": {"name": "get", "arguments": {"city": "X"}}}
    tools = [{"type": "function", "function": {"name": "get"}}]
    row = chat(
        user("q1"),
        said("", "r1", tool_calls=[call]),
        Message(role="tool", content="sunny"),
        said("a1", "r2"),
        user("q2"),
        said("a2", "r3"),
        tools=tools,
    )
    called = '<think>\nr1\n</think>\n\n<tool_call>\n{"name": "get", "arguments": {"city": "X"}}\n</tool_call><|im_end|>'
    turns = [halves(renderer, turn) for turn in renderer.render_turns(row)]
    assert [learnt for _, learnt in turns] == [
        called,
        "<think>\nr2\n</think>\n\na1<|im_end|>",
        "<think>\nr3\n</think>\n\na2<|im_end|>",
    ]
    assert all(seen.startswith("<|im_start|>system\n# Tools") for seen, _ in turns)
    assert called + "\n<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>" in turns[1][0]
    assert "r1" not in turns[2][0]
    # The second turn merely continues the first, the third does not.
    first, second = renderer.render_samples(row)
    assert sum(first.mask) == sum(sum(turn.mask) for turn in renderer.render_turns(row)[:2])
    assert second == renderer.render_turns(row)[2]


def test_turns_of_a_plain_template_are_one_sample_with_the_same_trained_tokens(renderers: dict[str, Renderer]) -> None:
    renderer = renderers["none"]
    row = chat(user("q1"), said("a1", "r1"), user("q2"), said("a2"), user("q3"), said("\na3"))
    turns = renderer.render_turns(row)
    [merged] = renderer.render_samples(row)
    trained = [merged.ids[: i + 1] for i, is_trained in enumerate(merged.mask) if is_trained]
    apart = [turn.ids[: i + 1] for turn in turns for i, is_trained in enumerate(turn.mask) if is_trained]
    assert trained == apart
    assert merged.ids == turns[-1].ids
    assert renderer.tokenizer.decode(merged.ids, skip_special_tokens=False).count("<think>\nr1\n</think>") == 1


def test_turns_that_do_not_continue_are_not_merged() -> None:
    one = Sample([1, 2, 3], [False, True, True])
    assert merge_turns([one, Sample([1, 2, 4, 5], [False, False, False, True])]) == [
        one,
        Sample([1, 2, 4, 5], [False, False, False, True]),
    ]
    assert merge_turns([one, Sample([1, 2, 3, 4], [False, False, False, True])]) == [
        Sample([1, 2, 3, 4], [False, True, True, True])
    ]
    assert merge_turns([]) == []


@pytest.mark.parametrize(
    ("call", "why"),
    [
        ({"function": {"arguments": {}}}, "a tool call needs"),
        ({"function": {"name": "get", "arguments": '{"city": "X"}'}}, "give them as an object"),
    ],
)
def test_tool_calls_a_template_would_garble_are_refused(
    renderers: dict[str, Renderer], call: dict[str, Any], why: str
) -> None:
    with pytest.raises(TemplateError, match=why):
        renderers["none"].render_samples(chat(user("q"), said("", tool_calls=[call])))


def test_what_a_template_drops_is_noticed(tmp_path: Path) -> None:
    source = bundled("qwen3_instruct_2507").replace("+ '\\n' + content }}", "+ '\\n' + content.split('#')[0] }}")
    renderer = Renderer.load(write_folder(tmp_path / "drops", source, QWEN3))
    assert renderer.render_samples(chat(user("q"), said("a")))
    with pytest.raises(TemplateError, match="does not write its content as it is"):
        renderer.render_samples(chat(user("q"), said("a # b")))


def test_a_turn_that_a_template_does_not_end_is_refused(tmp_path: Path) -> None:
    end = "('' if message.content == 'odd' else '<|im_end|>')"
    source = bundled("qwen2_5").replace("message.content + '<|im_end|>'", f"message.content + {end}")
    renderer = Renderer.load(write_folder(tmp_path / "open", source, CHATML))
    assert renderer.render_samples(chat(user("q"), said("even")))
    with pytest.raises(TemplateError, match=r"does not end the answer with <.im_end.>"):
        renderer.render_samples(chat(user("q"), said("odd")))


PAIR = Pair(id="d1", messages=[user("q")], chosen=said("a", "r"), rejected=said("b", "s"))


def test_pair(renderers: dict[str, Renderer]) -> None:
    renderer = renderers["always"]
    pair = renderer.render_pair(PAIR)
    assert pair.prompt == renderer.render_prompt([user("q")], mode=None, flag=None).ids
    texts = [renderer.tokenizer.decode(ids, skip_special_tokens=False) for ids in (pair.chosen, pair.rejected)]
    assert texts == ["r\n</think>\n\na<|im_end|>", "s\n</think>\n\nb<|im_end|>"]


@pytest.mark.parametrize(
    ("mode", "flag", "rejected", "text"),
    [
        (None, None, said("b"), EMPTY + "b<|im_end|>"),  # answers without thinking
        (None, None, said("<think>\nand so on and on"), "<think>\nand so on and on<|im_end|>"),  # never closes
        ("no_think", "/no_think", said("b", "s"), "<think>\ns\n</think>\n\nb<|im_end|>"),  # thinks when told not to
        ("no_think", None, said(EMPTY + "<think>\ns\n</think>\n\nb"), "<think>\ns\n</think>\n\nb<|im_end|>"),
    ],
)
def test_the_rejected_side_may_disobey(
    renderers: dict[str, Renderer], mode: Any, flag: Any, rejected: Message, text: str
) -> None:
    renderer = renderers["hybrid"]
    chosen = said("a", None if mode else "r")
    row = PAIR.model_copy(update={"chosen": chosen, "rejected": rejected, "mode": mode, "flag": flag})
    assert renderer.tokenizer.decode(renderer.render_pair(row).rejected, skip_special_tokens=False) == text


def test_a_pair_without_a_mode_has_that_of_its_chosen_side(renderers: dict[str, Renderer]) -> None:
    renderer = renderers["hybrid"]
    plain = PAIR.model_copy(update={"chosen": said("a"), "rejected": said("b")})
    off = renderer.render_prompt(PAIR.messages, mode="no_think", flag=None).ids
    assert renderer.render_pair(plain).prompt == off
    assert renderer.render_pair(plain.model_copy(update={"chosen": said("a", "r")})).prompt != off
    only_rejected = plain.model_copy(update={"rejected": said("b", "s")})
    rendered = render_pairs(renderer, [plain, only_rejected], max_tokens=500)
    assert (len(rendered.pairs), rendered.dropped) == (1, {"pairs of which only the rejected side thinks": 1})


@pytest.mark.parametrize(
    ("mode", "chosen", "rejected", "why"),
    [
        (None, said("a"), said("b", "s"), "rejected: thinks, but its prompt"),
        ("think", said("a"), said("b", "s"), "chosen: no thinking in mode think"),
        ("think", said("<think>\n\n</think>\n\na"), said("b", "s"), "chosen: no thinking in mode think"),
        ("no_think", said("a", "r"), said("b"), "chosen: thinking in mode no_think"),
        ("no_think", said("a"), said("b", "s"), "rejected: thinks, but its prompt"),
        ("no_think", said("a"), said("<think>\ns"), "rejected: raw output has to start with"),
    ],
)
def test_pairs_inference_could_not_produce_are_refused(
    renderers: dict[str, Renderer], mode: Any, chosen: Message, rejected: Message, why: str
) -> None:
    row = PAIR.model_copy(update={"chosen": chosen, "rejected": rejected, "mode": mode})
    with pytest.raises(TemplateError, match=f"^row 'd1': {why}"):
        renderers["hybrid"].render_pair(row)


def test_a_chosen_side_may_be_raw_output(renderers: dict[str, Renderer]) -> None:
    renderer = renderers["always"]
    raw = PAIR.model_copy(update={"chosen": said("<think>\nr\n</think>\n\na")})
    assert renderer.render_pair(raw) == renderer.render_pair(PAIR)


def test_over_long_samples_are_dropped_and_counted_and_never_cut(renderers: dict[str, Renderer]) -> None:
    renderer = renderers["hybrid"]
    short = chat(user("q"), said("a", "r"))
    n_short = len(renderer.render_samples(short)[0].ids)
    long = chat(user("q"), said("a", "r" * n_short))
    n_prompt = len(renderer.render_prompt([user("q")], mode=None, flag=None).ids)
    asks = chat(user("q" * (1 + n_short - n_prompt)), said("a", "r"))  # a prompt of just the limit
    grows = chat(user("q"), said("a", "r"), user("q"), said("a", "r"))
    rendered = render_rows(renderer, [short, long, asks, grows], max_tokens=n_short)
    assert rendered.samples == renderer.render_samples(short) * 2
    assert rendered.dropped == {f"over {n_short} tokens": 1, f"prompt over {n_short} tokens": 2}
    assert len(rendered.lengths) == 5
    assert rendered.lengths[:2] == [n_short, 2 * n_short - 1]
    assert render_rows(renderer, [short], max_tokens=n_short - 1).samples == []


def test_over_long_pairs_are_dropped_by_their_longer_side(renderers: dict[str, Renderer]) -> None:
    renderer = renderers["hybrid"]
    longer = PAIR.model_copy(update={"rejected": said("b", "ss")})
    n_tokens = len(renderer.render_pair(PAIR).prompt) + len(renderer.render_pair(PAIR).chosen)
    rendered = render_pairs(renderer, [PAIR, longer], max_tokens=n_tokens)
    assert rendered == ([renderer.render_pair(PAIR)], {f"over {n_tokens} tokens": 1}, [n_tokens, n_tokens + 1])


def test_a_raw_text_is_trained_whole_and_ends_with_end_of_text(renderers: dict[str, Renderer]) -> None:
    renderer = renderers["hybrid"]
    [sample] = renderer.render_samples(Text(id="t", text="好 text"))
    assert all(sample.mask)
    assert sample.ids[-1] == renderer.tokenizer.token_to_id("<|endoftext|>") == renderer.end_of_text_id
    assert renderer.decode(sample.ids) == "好 text"


def test_decode_keeps_thinking_tags_and_drops_only_what_ends_generation(renderers: dict[str, Renderer]) -> None:
    renderer = renderers["hybrid"]
    text = "<think>\nr\n</think>\n\na<|im_end|>b"
    ids = [*renderer.encode(text), renderer.end_of_turn_id, renderer.pad_id, renderer.pad_id]
    assert renderer.decode(ids) == text
    assert renderer.decode([renderer.pad_id]) == ""
    assert renderer.decode([]) == ""


def test_pieces_are_whole_characters_and_join_to_the_text(renderers: dict[str, Renderer]) -> None:
    renderer = renderers["hybrid"]
    [sample] = renderer.render_samples(chat(user("好"), said("a好👋\ufffdz", "想")))
    shown = list(split_into_pieces(renderer.tokenizer, sample))
    assert "".join(piece.text for piece in shown) == renderer.tokenizer.decode(sample.ids, skip_special_tokens=False)
    trained = [piece.text for piece in shown if piece.is_trained]
    assert trained[:3] == ["<think>", "\n", "想"]
    assert trained[-1] == "<|im_end|>"
    assert "👋" in trained


def test_pieces_end_where_the_mask_changes(renderers: dict[str, Renderer]) -> None:
    renderer = renderers["hybrid"]
    character = renderer.encode("好")
    assert len(character) == 3
    shown = list(split_into_pieces(renderer.tokenizer, Sample(character, [False, True, True])))
    assert [piece.is_trained for piece in shown] == [False, True]


def test_length_percentiles() -> None:
    assert compute_length_percentiles([5, 1, 2, 3, 4]) == {50: 3, 90: 5, 99: 5, 100: 5}
    assert compute_length_percentiles(list(range(1, 201)), [1, 50, 99]) == {1: 2, 50: 100, 99: 198}
    assert compute_length_percentiles([7], [0]) == {0: 7}
    assert compute_length_percentiles([]) == {}


def test_tokens_of_a_folder(tmp_path: Path) -> None:
    base = Renderer.load(write_folder(tmp_path / "base", bundled("qwen3"), QWEN3, eos_token="<|endoftext|>"))
    token = base.tokenizer.token_to_id
    assert base.stop_ids == [token("<|im_end|>"), token("<|endoftext|>")]
    assert (base.end_of_turn_id, base.pad_id) == (token("<|im_end|>"), token("<|endoftext|>"))
    same = Renderer.load(write_folder(tmp_path / "same", bundled("qwen3"), QWEN3, pad_token="<|im_end|>"))
    assert same.pad_id == token("<|endoftext|>")
    s1 = Renderer.load(write_folder(tmp_path / "s1", bundled("qwen3"), QWEN3, pad_token="<|fim_pad|>"))
    assert s1.pad_id == token("<|fim_pad|>")
    assert s1.decode([*s1.encode("a"), s1.end_of_turn_id, s1.pad_id]) == "a"


def test_folders_that_cannot_be_trained_on_are_refused(tmp_path: Path) -> None:
    tokens = ("<|im_start|>", "<|im_end|>")
    folder = write_folder(tmp_path / "no pad", bundled("qwen2_5"), tokens, pad_token="<|im_end|>")
    with pytest.raises(TemplateError, match=r"'pad_token' is '<.im_end.>', no token of its own"):
        Renderer.load(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(TemplateError, match=r"no pad: has no tokenizer.json"):
        Renderer.load(folder)


def test_prompt_errors_name_their_place(renderers: dict[str, Renderer]) -> None:
    with pytest.raises(TemplateError, match=r"^problem 'p1': .*always thinks"):
        renderers["always"].render_prompt([user("q")], mode="no_think", flag=None, where="problem 'p1'")
    with pytest.raises(TemplateError, match="found an assistant turn"):
        renderers["always"].render_prompt([user("q"), said("a")], mode=None, flag=None)


words = st.text(st.sampled_from("ab 好\n<>#'1"), min_size=1, max_size=12).filter(str.strip)


@given(st.lists(st.tuples(words, words, words), min_size=1, max_size=3), st.sampled_from(["hybrid", "always", "none"]))
def test_any_thinking_chat_trains_exactly_what_is_said(
    renderers: dict[str, Renderer], talk: list[tuple[str, str, str]], family: str
) -> None:
    renderer = renderers[family]
    messages = [turn for asks, thinks, answers in talk for turn in (user(asks), said(answers, thinks))]
    for place, sample in enumerate(renderer.render_turns(chat(*messages))):
        prompt = renderer.render_prompt(messages[: 2 * place + 1], mode=None, flag=None)
        n_seen = len(prompt.ids)
        assert sample.ids[:n_seen] == prompt.ids
        assert sample.mask == [False] * n_seen + [True] * (len(sample.ids) - n_seen)
        _, thinks, answers = talk[place]
        written = f"<think>\n{thinks.strip(chr(10))}\n</think>\n\n{answers.lstrip(chr(10))}"
        assert prompt.thinking_prefix + renderer.decode(sample.ids[n_seen:]) == written
        assert sample.ids[-1] == renderer.end_of_turn_id


def test_render_needs_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, qwen_align.align.rendering.renderer;"
        "print(*{'torch', 'transformers', 'trl', 'datasets', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "", "")
