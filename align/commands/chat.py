"""Implements `qwen-align chat`, a terminal conversation with the model of a stage."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from qwen_align.align.errors import RecipeError
from qwen_align.align.generation.engine import Request
from qwen_align.align.generation.local import LocalEngine
from qwen_align.align.pipeline.plan import Plan
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rows import Message, Mode
from qwen_align.align.settings.base import format_suggestion
from qwen_align.align.settings.sampling import SamplingSettings
from qwen_align.align.store.verify_inputs import InputVerifier
from qwen_align.reward.thinking import CLOSE, OPEN

COMMANDS = """/think, /no_think   think, or do not, from this turn on; behind a message: in this turn alone
/default             the model's default mode
/system TEXT         start a new conversation with this system message
/clear               start a new conversation
/quit                end (so does Ctrl-D)"""


class TextPiece(NamedTuple):
    """A piece of a streamed answer, with whether it is thinking."""

    text: str
    is_thinking: bool


@dataclass
class Conversation:
    """A chat conversation with a model.

    `mode` is the thinking mode of the turns to come, None for the model's default.
    """

    engine: LocalEngine
    renderer: Renderer
    sampling: SamplingSettings
    seed: int = 0
    mode: Mode | None = None
    messages: list[Message] = field(default_factory=list)
    turns: int = 0

    def stream_answer(self, text: str, mode: Mode | None) -> Iterator[TextPiece]:
        """Yields the model's answer to a user message while it is generated.

        Both turns then join the conversation, unless interrupted.
        """
        messages = [*self.messages, Message(role="user", content=text)]
        prompt = self.renderer.render_prompt(messages, mode=mode, flag=None)
        sampling = self.sampling.resolve_for_mode(mode or self.renderer.traits.default_mode or "no_think")
        if self.engine.length_limit is not None:
            n_free = self.engine.length_limit - len(prompt.ids)
            if n_free < 1:
                raise RecipeError("the conversation is longer than the model's context; /clear starts a new one")
            sampling = sampling.model_copy(update={"max_tokens": min(sampling.max_tokens, n_free)})
        request = Request(f"turn {self.turns}", prompt.ids, 1, sampling, seed=self.seed)
        spoken: dict[bool, str] = {True: "", False: ""}
        for piece in split_thinking(self._decode_stream(prompt.thinking_prefix, request)):
            spoken[piece.is_thinking] += piece.text
            yield piece
        thinking, answer = (spoken[is_thinking].strip() for is_thinking in (True, False))
        self.messages = [*messages, Message(role="assistant", content=answer, thinking=thinking or None)]
        self.turns += 1

    def restart(self, system: str | None = None) -> None:
        """Starts a new conversation with the given system message, or with the previous one if none is given."""
        self.messages = [Message(role="system", content=system)] if system else self.messages[:1]
        if self.messages and self.messages[0].role != "system":
            self.messages = []

    def _decode_stream(self, supplied: str, request: Request) -> Iterator[str]:
        """Yields the decoded text of a generation request token by token.

        An incomplete UTF-8 character waits for its remaining bytes.
        """
        yield supplied
        pending: list[int] = []
        for token in self.engine.stream_tokens(request):
            pending.append(token)
            text = self.renderer.decode(pending)
            if not text.endswith("\ufffd"):
                yield text
                pending = []
        if pending:
            yield self.renderer.decode(pending)


def split_thinking(texts: Iterator[str]) -> Iterator[TextPiece]:
    """Splits streamed text into thinking and answer pieces, without the thinking tags and the white space around them.

    A tag may come in parts.
    """
    is_thinking, is_start, pending = False, True, ""
    for text in texts:
        pending += text
        while (tag := CLOSE if is_thinking else OPEN) in pending:
            text_before_tag, _, pending = pending.partition(tag)
            if spoken := text_before_tag.strip() if is_start else text_before_tag.rstrip():
                yield TextPiece(spoken, is_thinking)
            is_thinking, is_start = not is_thinking, True
        shown = pending[: len(pending) - _count_tag_start(pending, tag)]
        pending = pending[len(shown) :]
        spoken = shown.lstrip() if is_start else shown
        if spoken:
            yield TextPiece(spoken, is_thinking)
            is_start = False
    if spoken := pending.rstrip():
        yield TextPiece(spoken, is_thinking)


def _count_tag_start(text: str, tag: str) -> int:
    """Counts the trailing characters of a streamed text that may be the start of a tag.

    The white space before them is counted too.
    """
    n_begun = next(n for n in range(len(tag) - 1, -1, -1) if text.endswith(tag[:n]))
    return len(text) - len(text[: len(text) - n_begun].rstrip())


def find_model_folder(plan: Plan, name: str) -> Path:
    """Returns the folder of the named model or of the model of the named stage.

    Raises RecipeError when there is no such model yet.
    """
    if name in plan.graph.models:
        return next(
            Path(entry["folder"]) for stage in plan.stages for entry in stage.inputs.values() if entry["name"] == name
        )
    matching = [stage for stage in plan.stages if stage.name == name]
    if not matching:
        names = [*plan.graph.models, *(stage.name for stage in plan.stages)]
        raise RecipeError(f"no stage or model is called '{name}'{format_suggestion(name, names)}")
    if not matching[0].is_stored:
        raise RecipeError(
            f"stage '{name}' has not run yet with these settings: qwen-align run; `qwen-align runs` lists what has run"
        )
    if matching[0].product != "model":
        raise RecipeError(f"stage '{name}' makes no model that can chat, but {matching[0].kind}")
    verifier = InputVerifier({stage.folder.path.resolve(): stage.name for stage in plan.stages if stage.is_stored})
    verifier.verify_folder(matching[0].folder.path)
    return matching[0].folder.path


def build_sampling_settings(**options: float | None) -> SamplingSettings:
    """Returns the sampling settings of the given options. Raises RecipeError for values that cannot be sampled with."""
    try:
        return SamplingSettings.model_validate(options)
    except ValidationError as error:
        detail = error.errors(include_url=False)[0]
        option = str(detail["loc"][0]).replace("_", "-") if detail["loc"] else "temperature"
        raise RecipeError(f"--{option}: {detail['msg']}; found {detail['input']}") from None


def run_chat(
    conversation: Conversation,
    read_line: Callable[[str], str],
    print_text: Callable[[str, bool], None],
    print_notice: Callable[[str], None],
) -> None:
    """Runs the chat loop: reads messages, prints answers and executes commands until /quit or the end of input.

    `print_text` gets pieces of an answer and whether they are thinking; `print_notice` what is not the model's.
    """
    while True:
        try:
            line = read_line(f"{conversation.mode or 'default'} > ").strip()
        except EOFError:
            return
        command, _, rest = line.partition(" ")
        if command == "/quit":
            return
        if command in ("/clear", "/system"):
            conversation.restart(rest.strip() or None)
            print_notice("a new conversation")
        elif line in ("/think", "/no_think", "/default"):
            conversation.mode = {"/think": "think", "/no_think": "no_think"}.get(line)  # type: ignore[assignment]
        elif command.startswith("/") or not line:
            print_notice(COMMANDS)
        else:
            _show_answer(conversation, line, print_text, print_notice)


def _show_answer(
    conversation: Conversation, line: str, print_text: Callable[[str, bool], None], print_notice: Callable[[str], None]
) -> None:
    """Prints the model's answer to one message. The last word of the message may set the thinking mode of this turn."""
    mode = conversation.mode
    for flag, flag_mode in (("/no_think", "no_think"), ("/think", "think")):
        if line.endswith(f" {flag}"):
            line, mode = line.removesuffix(flag).rstrip(), flag_mode  # type: ignore[assignment]
            break
    was_thinking = False
    try:
        for piece in conversation.stream_answer(line, mode):
            print_text("\n" if was_thinking and not piece.is_thinking else "", False)
            print_text(piece.text, piece.is_thinking)
            was_thinking = piece.is_thinking
    except KeyboardInterrupt:
        print_notice("interrupted; this turn is no part of the conversation")
    except (RecipeError, ValueError) as error:  # a template that does not know the mode
        print_notice(str(error))
    else:
        print_notice("")
