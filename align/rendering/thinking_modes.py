"""Converts thinking modes and flags to chat-template settings and to whether a completion thinks.

Only this module turns them into template settings. A prompt without an answer, and a completion, have the fields `mode`
and `flag` of their row; the mode of a row's answer is decided before, by `decide_answer_mode`. On a hybrid template:

    mode       flag        prompt                                     trained
    None       None        the template's default                     what that default asks for (prompts, completions)
    plain      None        thinking off (the hard switch)             answer; the empty block is in the prompt
    think      None        default                                    <think> thinking </think> answer
    think      /think      default, flag after the last user message  the same
    no_think   /no_think   default, flag (the soft switch)            an empty thinking block, answer
    no_think   None        thinking off (the hard switch)             answer; the empty block is in the prompt
    no_think   None, with /no_think as the last flag of the prompt's own text: as under the flag
    no_think   /think      thinking off, flag                         answer: the hard switch wins
    think      /no_think   refused

A flag without a mode implies its mode. A template without modes writes a plain answer as it is.
"""

from collections.abc import Sequence
from typing import NamedTuple

from qwen_align.align.answer_modes import (
    MODE_OF_FLAG,
    AnswerMode,
    Contradiction,
    Untrained,
    decide_answer_mode,
)
from qwen_align.align.rendering.chat_template import TemplateError, TemplateTraits
from qwen_align.align.rows import Flag, Message, Mode, find_last_flag
from qwen_align.reward.thinking import contains_thinking_tag, wrap_thinking

_HOW_TO_MEND = (
    "its data stage drops such rows with `thinking_fits_mode: true` under `sieve:`; without a `mode:` under its "
    "`builder:` each row's own flags and thinking decide"
)


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
    asked_mode = mode or (MODE_OF_FLAG[flag] if flag else None)
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
            "use a hybrid model, or rows of the other mode (`mode:` under `builder:` of the stage that makes them)"
        )
    return ThinkingSwitch(traits.default_mode, None)


_FIXED = {
    "always": "always thinks (its template opens the thinking block and cannot leave it out)",
    "never": "never thinks (its template writes no thinking block)",
}


def choose_answer_mode(
    traits: TemplateTraits, messages: Sequence[Message], index: int, mode: Mode | None, flag: Flag | None
) -> AnswerMode | Untrained:
    """Chooses the thinking mode in which a template trains the answer at an index of a conversation.

    `mode`, `flag`: the row's. On a hybrid template a plain answer is not thinking. Raises TemplateError for an answer
    that contradicts its mode or flag.
    """
    decision = decide_answer_mode(messages, index, mode, flag)
    if isinstance(decision, Contradiction):
        raise TemplateError(f"{decision.reason}: training it would teach the model to disobey; {_HOW_TO_MEND}")
    if traits.thinking == "hybrid":
        return decision._replace(mode=decision.mode or "no_think") if isinstance(decision, AnswerMode) else decision
    if isinstance(decision, AnswerMode):
        return decision._replace(mode=mode)  # what a template without a switch asks for is the same for all rows
    knows_no_thinking = traits.thinking == "none" and mode is None and flag is None
    if knows_no_thinking and find_last_flag(messages[:index]) is None:
        return AnswerMode(None, None)
    return decision


def check_thinking_fits_mode(switch: ThinkingSwitch, thinking: str | None) -> None:
    """Checks that an answer has thinking if, and only if, its mode asks for it. Raises TemplateError otherwise."""
    has_thinking = bool(thinking and thinking.strip())
    if switch.mode == "no_think" and has_thinking:
        raise TemplateError(
            "has thinking, but its prompt asks for none: train it on a model that thinks, and not under "
            "`mode: no_think` (under `builder:` of its data stage), or leave the thinking out"
        )
    if switch.mode == "think" and not has_thinking:
        raise TemplateError(
            "has no thinking, but its prompt asks for it: training it would teach the model to leave its thinking "
            "block empty; give its thinking, or train it on a model whose template can turn thinking off (under "
            "`mode: no_think`, under `builder:` of its data stage)"
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
    return not message.thinking and contains_thinking_tag(message.content)
