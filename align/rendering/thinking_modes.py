"""What `mode` and `flag` mean for each kind of template: how the prompt is rendered, what the completion must be.

Builders write `mode` and `flag`; only this module turns them into template settings. On a hybrid template:

    mode       flag        prompt                                     trained
    None       None        the template's default                     what that default asks for
    think      None        default                                    <think> thinking </think> answer
    think      /think      default, flag after the last user message  the same
    no_think   /no_think   default, flag (the soft switch)            an empty thinking block, answer
    no_think   None        thinking off (the hard switch)             answer; the empty block is in the prompt
    no_think   None, with /no_think as the last flag of the prompt's own text: as under the flag
    no_think   /think      thinking off, flag                         answer: the hard switch wins
    think      /no_think   refused

A flag without a mode implies its mode. In a conversation whose user messages hold flags of their own, each answer obeys
that of its message, or is not trained: see `turn_switch`.
"""

from collections.abc import Sequence
from typing import NamedTuple

from qwen_align.align.rendering.chat_template import END_THINK, THINK, TemplateError, Traits
from qwen_align.align.rows import Flag, Message, Mode, last_flag

_MODE_OF_FLAG: dict[Flag, Mode] = {"/think": "think", "/no_think": "no_think"}


class Switch(NamedTuple):
    """How a prompt is rendered and what its completion must be; `mode` None: with or without thinking."""

    mode: Mode | None
    enable_thinking: bool | None


def read_switch(traits: Traits, mode: Mode | None, flag: Flag | None) -> Switch:
    """The switch for a row's mode and flag; raises TemplateError where the template cannot do what they ask."""
    if mode == "think" and flag == "/no_think":
        raise TemplateError("mode 'think' under flag '/no_think' contradicts itself; drop one of them")
    said = mode or (_MODE_OF_FLAG[flag] if flag else None)
    if traits.thinking == "hybrid":
        thinks = None if traits.default_mode == "think" else True
        if said is None:
            return Switch(traits.default_mode, None)
        if said == "think" or (said == "no_think" and flag == "/no_think"):
            return Switch(said, thinks)
        return Switch(said, False)
    if traits.thinking == "none":
        if mode == "no_think" and flag == "/think":
            raise TemplateError(
                "mode 'no_think' under flag '/think' needs a template with a switch to turn thinking off"
            )
        return Switch(said, None)
    if flag is not None:
        raise TemplateError(f"flag '{flag}' is for hybrid models; this model {_FIXED[traits.thinking]}")
    if said is not None and said != traits.default_mode:
        raise TemplateError(
            f"mode '{said}' cannot be trained or asked for: this model {_FIXED[traits.thinking]}; "
            "use a hybrid model, or rows of the other mode"
        )
    return Switch(traits.default_mode, None)


_FIXED = {
    "always": "always thinks (its template opens the thinking block and cannot leave it out)",
    "never": "never thinks (its template writes no thinking block)",
}


def check_mode(switch: Switch, thinking: str | None) -> None:
    """Raises TemplateError if an answer to be trained has thinking where the mode forbids it, or lacks it."""
    has_thinking = bool(thinking and thinking.strip())
    if switch.mode == "no_think" and has_thinking:
        raise TemplateError(
            "has thinking, but its prompt asks for none; set mode: think on a model that thinks, "
            "or leave the thinking out"
        )
    if switch.mode == "think" and not has_thinking:
        raise TemplateError(
            "has no thinking, but its prompt asks for it: training it would teach the model to leave its thinking "
            "block empty; set mode: no_think if it is meant to have none, else give its thinking"
        )


def with_flag(messages: Sequence[Message], flag: Flag | None) -> list[Message]:
    """The messages with the flag after the text of the last user message."""
    flagged = list(messages)
    if flag is None:
        return flagged
    for place in range(len(flagged) - 1, -1, -1):
        if flagged[place].role == "user":
            content = f"{flagged[place].content} {flag}"
            flagged[place] = flagged[place].model_copy(update={"content": content})
            return flagged
    raise TemplateError(f"there is no user message to put flag '{flag}' on")


class TurnSwitch(NamedTuple):
    """Mode and flag of one answer in a conversation."""

    mode: Mode | None
    flag: Flag | None


def turn_switch(messages: Sequence[Message], mode: Mode | None, flag: Flag | None) -> TurnSwitch | None:
    """What the answer after these messages has to obey, in a conversation of `mode` and `flag`.

    A user message has one flag: the conversation's is for those that hold none. None if the answer, which is in the
    conversation's mode, would be trained against its message's own; only the hard switch wins over `/think`.
    """
    asked = next((message for message in reversed(messages) if message.role == "user"), None)
    own = None if asked is None else last_flag([asked])
    if flag is None or own is None:
        return TurnSwitch(mode, flag)
    is_hard = mode == "no_think" and flag == "/think"
    return TurnSwitch(mode or _MODE_OF_FLAG[flag], None) if own == flag or is_hard else None


def with_inline_thinking(message: Message) -> Message:
    """The message with its thinking in front of its content, for templates that would drop it silently."""
    if message.role != "assistant" or message.thinking is None:
        return message
    if not message.thinking.strip():
        return message.model_copy(update={"thinking": None})
    block = f"{THINK}\n{message.thinking.strip(_NEWLINE)}\n{END_THINK}\n\n"
    return message.model_copy(update={"content": block + message.content.lstrip(_NEWLINE), "thinking": None})


_NEWLINE = "\n"  # Qwen3's template strips newlines, and nothing else, around thinking and before the answer


def has_tags(message: Message) -> bool:
    """Whether the content itself holds a thinking tag: raw model output rather than an answer."""
    return message.thinking is None and (THINK in message.content or END_THINK in message.content)


def thought_in(text: str) -> str:
    """The thinking in raw model output, closed or not; "" if there is none."""
    before, _, _ = text.partition(END_THINK)
    return before.partition(THINK)[2] if THINK in before else (before if END_THINK in text else "")
