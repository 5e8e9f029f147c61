"""Converts the fields `mode` and `flag` of a row to chat-template settings and to whether its completion thinks.

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
that of its message, or is not trained: see `resolve_turn_mode`.
"""

from collections.abc import Sequence
from typing import NamedTuple

from qwen_align.align.rendering.chat_template import TemplateError, TemplateTraits
from qwen_align.align.rows import Flag, Message, Mode, find_last_flag
from qwen_align.reward.thinking import contains_thinking_tag, wrap_thinking

_MODE_OF_FLAG: dict[Flag, Mode] = {"/think": "think", "/no_think": "no_think"}


class ThinkingSwitch(NamedTuple):
    """The template settings of a prompt and the thinking mode its completion must have. `mode` None allows both."""

    mode: Mode | None
    enable_thinking: bool | None


def resolve_thinking_switch(traits: TemplateTraits, mode: Mode | None, flag: Flag | None) -> ThinkingSwitch:
    """Returns the template settings for a row's thinking mode and flag.

    Raises TemplateError where the template cannot do that.
    """
    if mode == "think" and flag == "/no_think":
        raise TemplateError("mode 'think' under flag '/no_think' contradicts itself; drop one of them")
    asked_mode = mode or (_MODE_OF_FLAG[flag] if flag else None)
    if traits.thinking == "hybrid":
        thinking_on = None if traits.default_mode == "think" else True
        if asked_mode is None:
            return ThinkingSwitch(traits.default_mode, None)
        if asked_mode == "think" or (asked_mode == "no_think" and flag == "/no_think"):
            return ThinkingSwitch(asked_mode, thinking_on)
        return ThinkingSwitch(asked_mode, False)
    if traits.thinking == "none":
        if mode == "no_think" and flag == "/think":
            raise TemplateError(
                "mode 'no_think' under flag '/think' needs a template with a switch to turn thinking off"
            )
        return ThinkingSwitch(asked_mode, None)
    if flag is not None:
        raise TemplateError(f"flag '{flag}' is for hybrid models; this model {_FIXED[traits.thinking]}")
    if asked_mode is not None and asked_mode != traits.default_mode:
        raise TemplateError(
            f"mode '{asked_mode}' cannot be trained or asked for: this model {_FIXED[traits.thinking]}; "
            "use a hybrid model, or rows of the other mode"
        )
    return ThinkingSwitch(traits.default_mode, None)


_FIXED = {
    "always": "always thinks (its template opens the thinking block and cannot leave it out)",
    "never": "never thinks (its template writes no thinking block)",
}


def check_thinking_fits_mode(switch: ThinkingSwitch, thinking: str | None) -> None:
    """Checks that an answer has thinking if, and only if, its mode asks for it. Raises TemplateError otherwise."""
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


def append_flag(messages: Sequence[Message], flag: Flag | None) -> list[Message]:
    """Returns the messages with a thinking flag (/think or /no_think) appended to the last user message."""
    flagged = list(messages)
    if flag is None:
        return flagged
    for index in range(len(flagged) - 1, -1, -1):
        if flagged[index].role == "user":
            content = f"{flagged[index].content} {flag}"
            flagged[index] = flagged[index].model_copy(update={"content": content})
            return flagged
    raise TemplateError(f"there is no user message to put flag '{flag}' on")


class TurnMode(NamedTuple):
    """The thinking mode and flag of one answer in a conversation."""

    mode: Mode | None
    flag: Flag | None


def resolve_turn_mode(messages: Sequence[Message], mode: Mode | None, flag: Flag | None) -> TurnMode | None:
    """Returns the thinking mode and flag that the answer after the messages has to obey.

    `mode`, `flag`: the conversation's.

    A user message has one flag: the conversation's is for those that hold none. None if the answer, which is in the
    conversation's mode, would be trained against its message's own; only the hard switch wins over `/think`.
    """
    last_user_message = next((message for message in reversed(messages) if message.role == "user"), None)
    own_flag = None if last_user_message is None else find_last_flag([last_user_message])
    if flag is None or own_flag is None:
        return TurnMode(mode, flag)
    is_hard = mode == "no_think" and flag == "/think"
    return TurnMode(mode or _MODE_OF_FLAG[flag], None) if own_flag == flag or is_hard else None


def inline_thinking(message: Message) -> Message:
    """Returns the message with its thinking moved into its content, for templates that would otherwise drop it."""
    if message.role != "assistant" or message.thinking is None:
        return message
    if not message.thinking.strip():
        return message.model_copy(update={"thinking": None})
    return message.model_copy(update={"content": wrap_thinking(message.thinking, message.content), "thinking": None})


def has_thinking_tags(message: Message) -> bool:
    """Returns whether a message's content itself contains a thinking tag.

    It is raw model output then, rather than an answer.
    """
    return message.thinking is None and contains_thinking_tag(message.content)
