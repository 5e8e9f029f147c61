"""Renders Jinja chat templates as transformers' `apply_chat_template` does, and detects how a template treats thinking.

What a template does with thinking, and where a turn ends, is found by rendering short probes, not by model names.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from qwen_align.align.errors import RecipeError
from qwen_align.align.rows import Mode
from qwen_align.reward.thinking import CLOSE, OPEN

# "none": knows no thinking (Qwen2.5, ChatML). "hybrid": a switch turns thinking off (Qwen3).
# "always": thinking cannot be turned off (Qwen3-Thinking-2507). "never": cannot be turned on (Qwen3-Instruct-2507).
Thinking = Literal["none", "hybrid", "always", "never"]

# What `strftime_now` answers: what a row is rendered to must not depend on the day, or a stage that goes on the next
# day, and the evaluation of its model, would see other prompts. It is the date that Llama 3's templates print where
# there is no clock. To have another, write it into the template.
TEMPLATE_DATE = date(2024, 7, 26)

_SPECIAL_TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class TemplateError(RecipeError):
    """The error for a chat template, or a row under a template, that cannot be rendered as inference would render it.

    The message says what to do.
    """


@contextmanager
def prefix_template_errors(location: str) -> Iterator[None]:
    """Prepends `location` to the message of any TemplateError raised inside the `with` block."""
    try:
        yield
    except TemplateError as error:
        raise type(error)(f"{location}: {error}") from None


class TemplateTraits(NamedTuple):
    """The thinking behaviour and turn endings of a chat template, as detected from its renderings.

    `default_mode` is what the generation prompt asks for when nobody sets `enable_thinking`; None where the
    template knows no thinking. `thinking_prefix` is the part of the thinking block that the generation prompt already
    holds, by `enable_thinking`.
    """

    thinking: Thinking
    default_mode: Mode | None
    thinking_prefix: dict[bool | None, str]
    end_of_turn: str


class ChatTemplate:
    """A compiled chat template with its special tokens and the path it was read from.

    `prints_date`: it asks for today's date, and gets `TEMPLATE_DATE`.
    """

    def __init__(self, source: str, *, special_tokens: dict[str, str], where: str) -> None:
        self.where = where
        self.prints_date = "strftime_now" in source
        self.special_tokens = special_tokens
        try:
            self._template = _build_jinja_environment().from_string(source)
        except jinja2.TemplateError as error:
            raise TemplateError(f"{where}: not a Jinja template: {error}") from None

    def render_text(
        self,
        messages: Sequence[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = False,
        enable_thinking: bool | None = None,
    ) -> str:
        """Renders a conversation as one string. `enable_thinking` None leaves the template its own default."""
        if not messages:
            raise TemplateError("there is no message to render")
        switch = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        try:
            return self._template.render(
                **self.special_tokens,
                **switch,
                messages=list(messages),
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
            )
        # A template is a program over the row: what it raises is about this row (a role it refuses, a tool call
        # without a name), whatever the exception's type.
        except (jinja2.TemplateError, TypeError, ValueError, AttributeError, LookupError) as error:
            raise TemplateError(f"the template refuses these messages: {error}") from None


def load_template(folder: Path) -> ChatTemplate:
    """Loads the chat template of a model folder, from chat_template.jinja, else from tokenizer_config.json."""
    config_path = folder / "tokenizer_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8")) if config_path.is_file() else {}
    special_tokens = {name: token for name in _SPECIAL_TOKEN_NAMES if (token := read_special_token(config, name))}
    # transformers prefers the file when a folder has both.
    file = folder / "chat_template.jinja"
    if file.is_file():
        return ChatTemplate(file.read_text(encoding="utf-8"), special_tokens=special_tokens, where=str(file))
    source = config.get("chat_template")
    if isinstance(source, list):
        names = ", ".join(str(entry.get("name")) for entry in source)
        raise TemplateError(f"{config_path}: has several chat templates ({names}); copy one to chat_template.jinja")
    if not isinstance(source, str):
        raise TemplateError(
            f"{folder}: has no chat template (no chat_template.jinja, no 'chat_template' in tokenizer_config.json); "
            "base models may lack one: copy the file of the matching chat model there"
        )
    return ChatTemplate(source, special_tokens=special_tokens, where=str(config_path))


def read_special_token(config: dict[str, Any], name: str) -> str | None:
    """Returns the text of a special token from tokenizer_config.json.

    The file holds it as a string or as an object with 'content'.
    """
    token = config.get(name)
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def detect_template_traits(template: ChatTemplate, tokenizer: Tokenizer) -> TemplateTraits:
    """Detects how a chat template handles thinking and ends turns.

    Raises TemplateError if the template is not prefix-stable.

    Prefix-stable: a rendered conversation starts with the generation prompt of its own last answer, and goes on
    with that answer and one end-of-turn token. Otherwise training would see ids that inference never produces.
    """
    with prefix_template_errors(template.where):
        return _detect_traits(template, tokenizer)


def _detect_traits(template: ChatTemplate, tokenizer: Tokenizer) -> TemplateTraits:
    """Detects how a chat template handles thinking and ends turns. Errors do not name the template's path."""
    thinking_prefix = {switch: _find_thinking_prefix(template, switch) for switch in (None, True, False)}
    thinking = _classify_thinking(template, tokenizer, thinking_prefix)
    default_mode: Mode | None = None
    if thinking != "none":
        default_mode = "no_think" if CLOSE in thinking_prefix[None] or thinking == "never" else "think"
    cases: list[tuple[bool | None, str | None]] = [(None, None)]
    if thinking == "hybrid":
        cases = [(True, "probe thought"), (False, None), (None, "probe thought" if default_mode == "think" else None)]
    elif thinking == "always":
        cases = [(None, "probe thought")]
    ends = {_find_end_of_turn(template, tokenizer, switch, thought) for switch, thought in cases}
    if len(ends) > 1:
        raise TemplateError(f"turns end in different ways ({', '.join(sorted(ends))})")
    return TemplateTraits(thinking, default_mode, thinking_prefix, ends.pop())


_QUESTION: dict[str, Any] = {"role": "user", "content": "probe question"}


def _find_thinking_prefix(template: ChatTemplate, switch: bool | None) -> str:
    """Returns the part of the generation prompt from `<think>` on. Returns "" if the prompt has no `<think>`."""
    prompt = template.render_text([_QUESTION], add_generation_prompt=True, enable_thinking=switch)
    generation_prompt = prompt.rpartition(str(_QUESTION["content"]))[2]
    start = generation_prompt.find(OPEN)
    return generation_prompt[start:] if start >= 0 else ""


def _classify_thinking(
    template: ChatTemplate, tokenizer: Tokenizer, thinking_prefix: dict[bool | None, str]
) -> Thinking:
    """Classifies how a chat template treats thinking: none (unknown to it), hybrid (switchable), always or never."""
    is_closed = {switch: CLOSE in text for switch, text in thinking_prefix.items()}
    if is_closed[False] and not is_closed[True]:
        return "hybrid"
    if is_closed[None]:
        return "never"
    if thinking_prefix[None]:
        return "always"
    turn = {"role": "assistant", "content": "probe answer", "reasoning_content": "probe thought"}
    if "probe thought" in template.render_text([_QUESTION, turn]):
        return "always"  # it writes thinking and has no switch to turn it off
    # Qwen3-Instruct-2507 has the template of a model that knows no thinking and the tokenizer of one that does.
    return "never" if tokenizer.token_to_id(OPEN) is not None else "none"


def _find_end_of_turn(template: ChatTemplate, tokenizer: Tokenizer, switch: bool | None, thought: str | None) -> str:
    """Returns the end-of-turn token of a chat template after checking prefix stability on two answers."""
    turn = {"role": "assistant", "content": "probe answer", "reasoning_content": thought or ""}
    tail = ""
    for history in ([_QUESTION], [_QUESTION, turn, _QUESTION]):
        prompt = template.render_text(history, add_generation_prompt=True, enable_thinking=switch)
        conversation = template.render_text([*history, turn], enable_thinking=switch)
        continuation = extract_continuation(prompt, conversation)
        if thought and thought not in continuation:
            raise TemplateError(
                "not prefix-stable: drops the thinking of the answer it renders; such a template "
                "cannot be trained with thinking: use one that reads 'reasoning_content'"
            )
        _, answer, tail = continuation.rpartition("probe answer")
        if not answer:
            raise TemplateError("not prefix-stable: the answer is not in what follows the prompt")
    end = tail.strip()
    if tokenizer.encode(end, add_special_tokens=False).ids != [tokenizer.token_to_id(end)]:
        raise TemplateError(
            f"an answer ends with {tail!r}, which is not one end-of-turn token of this tokenizer; "
            "template and tokenizer do not belong together, or the template does not close a turn"
        )
    return end


def extract_continuation(prompt: str, conversation: str) -> str:
    """Returns the part of the string `conversation` after the string `prompt`.

    Raises TemplateError if it does not start with `prompt`.
    """
    if conversation.startswith(prompt):
        return conversation[len(prompt) :]
    n_equal = next(i for i, char in enumerate(prompt) if conversation[i : i + 1] != char)
    raise TemplateError(
        f"not prefix-stable: inference would see {prompt[n_equal : n_equal + 40]!r} where the finished "
        f"conversation has {conversation[n_equal : n_equal + 40]!r}, so training would learn what inference never sees"
    )


class _TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox with the same answers, remembered: a template asks the same of thousands of messages.

    Whether an attribute is safe depends on its type and name alone. A field of a plain dict that
    no dict has as an attribute is what Jinja finds after its look-up of an attribute has failed.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._is_safe: dict[tuple[type, str], bool] = {}

    def getattr(self, obj: Any, attribute: str) -> Any:
        """Returns the field or attribute of a template's object that the sandbox allows."""
        if type(obj) is dict and attribute in obj and not hasattr(dict, attribute):
            return obj[attribute]
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Returns whether the sandbox allows a template to read an attribute."""
        key = (type(obj), attr)
        if key not in self._is_safe:
            self._is_safe[key] = super().is_safe_attribute(obj, attr, value)
        return self._is_safe[key]


def _build_jinja_environment() -> ImmutableSandboxedEnvironment:
    """Builds the sandboxed Jinja environment for chat templates, with the same dialect as transformers 5.

    It is sandboxed since templates are downloaded.
    """
    environment = _TemplateEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _dump_json
    environment.globals["raise_exception"] = _raise_template_exception
    environment.globals["strftime_now"] = TEMPLATE_DATE.strftime
    environment.filters["random"] = environment.globals["lipsum"] = _refuse_chance
    return environment


class _GenerationTag(jinja2.ext.Extension):
    """A Jinja extension that accepts and ignores the `{% generation %}` tag around an assistant's text.

    Masks come from the prompt's length instead.

    Its body keeps a scope of its own, as in transformers: what is set inside is not seen outside.
    """

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as a plain set)

    def parse(self, parser: Parser) -> nodes.Node:
        """Parses the body of a `{% generation %}` tag as ordinary template statements."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def _dump_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Serialises a value to plain JSON for chat templates.

    Jinja's own filter escapes HTML characters and sorts keys.
    """
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse_chance(*_: Any, **__: Any) -> None:
    """Raises the error for a template that draws something at random, as Jinja's `random` and `lipsum` do."""
    raise jinja2.TemplateError(
        "it draws something at random, so that the same row would be rendered otherwise each time"
    )


def _raise_template_exception(message: str) -> None:
    """Raises the error that a chat template requests by `raise_exception`."""
    raise jinja2.TemplateError(message)
