"""Finds replies that begin with their own prompt, as files for base models have them, and cuts the prompt off."""

from typing import Literal

from qwen_align.align.rows import Chat, Labelled, Message, Pair, Row
from qwen_align.data_builders.bad_row_errors import BadValue, shorten_repr

PROMPTS_CUT = "prompts cut off before their answers"  # how it is counted
RepeatedPrompt = Literal["refuse", "cut", "keep"]
# Our choice: a lone reply may begin with a short prompt by itself ("Hello" and "Hello!"; a word and what it means): in
# LLaMA-Factory's demo files 4 of 2,299 do, with prompts of up to 5 characters, and no pair of 299 in both sides.
MIN_PROMPT_CHARACTERS = 20


def settle_repeated_prompt(row: Row, rule: RepeatedPrompt, *, has_text_prompt: bool) -> Row:
    """Returns a row after the rule for replies that begin with their whole prompt. Others are returned unchanged.

    Of rows that are no pairs only those are looked at whose source has a prompt that is a text: turns and instructions
    are answered, a prompt may be continued. Raises BadValue for such a row where the rule is `refuse`, and where
    nothing is left after the cut.
    """
    if rule == "keep" or not isinstance(row, Pair | Labelled | Chat):
        return row
    if not has_text_prompt and not isinstance(row, Pair):
        return row
    prompt_turns, replies = _split_row(row)
    if not prompt_turns or prompt_turns[-1].role != "user" or any(reply.role != "assistant" for reply in replies):
        return row
    prompt = prompt_turns[-1].content.strip()
    if len(prompt) < (1 if isinstance(row, Pair) else MIN_PROMPT_CHARACTERS):
        return row
    if not all(reply.content.lstrip().startswith(prompt) for reply in replies):
        return row
    if rule == "refuse":
        who = "both sides begin" if isinstance(row, Pair) else "the answer begins"
        raise BadValue(
            "prompt repeated in the answer",
            f"{who} with the whole prompt, {shorten_repr(prompt)}: say repeated_prompt: cut where the file repeats "
            "every prompt before its answer, or repeated_prompt: keep where the answers are meant so",
        )
    cut = [_cut_prompt(reply, prompt) for reply in replies]
    if isinstance(row, Pair):
        return row.model_copy(update={"chosen": cut[0], "rejected": cut[1]})
    if isinstance(row, Labelled):
        return row.model_copy(update={"completion": cut[0]})
    return row.model_copy(update={"messages": [*prompt_turns, *cut]})


def _split_row(row: Pair | Labelled | Chat) -> tuple[list[Message], list[Message]]:
    """Returns the turns of a row's prompt and its replies: both sides of a pair, or the last turn of a chat."""
    if isinstance(row, Pair):
        return row.messages, [row.chosen, row.rejected]
    if isinstance(row, Labelled):
        return row.messages, [row.completion]
    return row.messages[:-1], row.messages[-1:]


def _cut_prompt(reply: Message, prompt: str) -> Message:
    """Returns a reply without the prompt that it begins with. Raises BadValue if nothing is left."""
    answer = reply.content.lstrip().removeprefix(prompt).lstrip()
    if not answer:
        raise BadValue("blank field", f"an answer is nothing but its prompt, {shorten_repr(prompt)}")
    return reply.model_copy(update={"content": answer})
