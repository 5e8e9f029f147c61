"""`qwen-align chat`: talk to a stage's model in the terminal, its thinking dimmed, thinking on or off turn by turn."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from qwen_align.align.errors import RecipeError
from qwen_align.align.generation.engine import Request
from qwen_align.align.generation.local import LocalEngine
from qwen_align.align.pipeline.plan import Plan
from qwen_align.align.rendering.renderer import Renderer
from qwen_align.align.rows import Message, Mode
from qwen_align.align.settings.base import did_you_mean
from qwen_align.align.settings.sampling import SamplingSettings
from qwen_align.reward.thinking import CLOSE, OPEN

COMMANDS = """/think, /no_think   think, or do not, from this turn on; behind a message: in this turn alone
/default             as the model likes
/system TEXT         a system message; begins anew
/clear               begin anew
/quit                end (so does Ctrl-D)"""


class Piece(NamedTuple):
    """A stretch of what the model says."""

    text: str
    is_thinking: bool


@dataclass
class Conversation:
    """Turns so far; `mode` is that of the turns to come, None for what the model does by itself."""

    engine: LocalEngine
    renderer: Renderer
    sampling: SamplingSettings
    seed: int = 0
    mode: Mode | None = None
    messages: list[Message] = field(default_factory=list)
    turns: int = 0

    def say(self, text: str, mode: Mode | None) -> Iterator[Piece]:
        """The model's answer as it comes; both turns are then part of the conversation, unless it was broken off."""
        asked = [*self.messages, Message(role="user", content=text)]
        prompt = self.renderer.render_prompt(asked, mode=mode, flag=None)
        sampling = self.sampling.for_mode(mode or self.renderer.traits.default_mode or "no_think")
        room = self.engine.model.config.max_position_embeddings - len(prompt.ids)
        if room < 1:
            raise RecipeError("the conversation is longer than the model's context; /clear begins anew")
        sampling = sampling.model_copy(update={"max_tokens": min(sampling.max_tokens, room)})
        request = Request(f"turn {self.turns}", prompt.ids, 1, sampling, seed=self.seed)
        said: dict[bool, str] = {True: "", False: ""}
        for piece in parted(self._texts(prompt.thinking_prefix, request)):
            said[piece.is_thinking] += piece.text
            yield piece
        thinking, answer = (said[is_thinking].strip() for is_thinking in (True, False))
        self.messages = [*asked, Message(role="assistant", content=answer, thinking=thinking or None)]
        self.turns += 1

    def begin_anew(self, system: str | None = None) -> None:
        self.messages = [Message(role="system", content=system)] if system else self.messages[:1]
        if self.messages and self.messages[0].role != "system":
            self.messages = []

    def _texts(self, supplied: str, request: Request) -> Iterator[str]:
        """Text as it comes; a character whose bytes are not all there waits."""
        yield supplied
        waiting: list[int] = []
        for token in self.engine.stream_tokens(request):
            waiting.append(token)
            text = self.renderer.decode(waiting)
            if not text.endswith("\ufffd"):
                yield text
                waiting = []
        if waiting:
            yield self.renderer.decode(waiting)


def parted(texts: Iterator[str]) -> Iterator[Piece]:
    """What is thought and what is said, without the tags, which may come in parts, and the white space around them."""
    is_thinking, begins, waiting = False, True, ""
    for text in texts:
        waiting += text
        while (tag := CLOSE if is_thinking else OPEN) in waiting:
            before, _, waiting = waiting.partition(tag)
            if said := before.strip() if begins else before.rstrip():
                yield Piece(said, is_thinking)
            is_thinking, begins = not is_thinking, True
        shown = waiting[: len(waiting) - _held(waiting, tag)]
        waiting = waiting[len(shown) :]
        said = shown.lstrip() if begins else shown
        if said:
            yield Piece(said, is_thinking)
            begins = False
    if said := waiting.rstrip():
        yield Piece(said, is_thinking)


def _held(text: str, tag: str) -> int:
    """How many characters at the end may be the beginning of the tag, with the white space before it."""
    begun = next(n for n in range(len(tag) - 1, -1, -1) if text.endswith(tag[:n]))
    return len(text) - len(text[: len(text) - begun].rstrip())


def model_folder(planned: Plan, name: str) -> Path:
    """The folder of a stage's or a named model; raises RecipeError when there is none, or not yet."""
    if name in planned.graph.models:
        return next(
            Path(entry["folder"]) for one in planned.stages for entry in one.inputs.values() if entry["name"] == name
        )
    makers = [one for one in planned.stages if one.stage.name == name]
    if not makers:
        names = [*planned.graph.models, *(one.stage.name for one in planned.stages)]
        raise RecipeError(f"no stage or model is called '{name}'{did_you_mean(name, names)}")
    if not makers[0].is_stored:
        raise RecipeError(f"stage '{name}' has not run yet: qwen-align run")
    if makers[0].product != "model":
        raise RecipeError(f"stage '{name}' makes no model one could talk to, but {makers[0].stage.kind}")
    return makers[0].folder.path


def talk(
    conversation: Conversation,
    ask: Callable[[str], str],
    show: Callable[[str, bool], None],
    tell: Callable[[str], None],
) -> None:
    """Asks, answers and obeys commands until /quit or the end of input.

    `show` gets stretches of an answer and whether they are thought; `tell` what is not the model's.
    """
    while True:
        try:
            line = ask(f"{conversation.mode or 'default'} > ").strip()
        except EOFError:
            return
        command, _, rest = line.partition(" ")
        if command == "/quit":
            return
        if command in ("/clear", "/system"):
            conversation.begin_anew(rest.strip() or None)
            tell("a new conversation")
        elif line in ("/think", "/no_think", "/default"):
            conversation.mode = {"/think": "think", "/no_think": "no_think"}.get(line)  # type: ignore[assignment]
        elif command.startswith("/") or not line:
            tell(COMMANDS)
        else:
            _answer(conversation, line, show, tell)


def _answer(
    conversation: Conversation, line: str, show: Callable[[str, bool], None], tell: Callable[[str], None]
) -> None:
    mode = conversation.mode
    for flag, of_flag in (("/no_think", "no_think"), ("/think", "think")):
        if line.endswith(f" {flag}"):
            line, mode = line.removesuffix(flag).rstrip(), of_flag  # type: ignore[assignment]
            break
    was_thinking = False
    try:
        for piece in conversation.say(line, mode):
            show("\n" if was_thinking and not piece.is_thinking else "", False)
            show(piece.text, piece.is_thinking)
            was_thinking = piece.is_thinking
    except KeyboardInterrupt:
        tell("broken off; the turn is forgotten")
    except (RecipeError, ValueError) as error:  # a template that cannot do what was asked
        tell(str(error))
    else:
        tell("")
