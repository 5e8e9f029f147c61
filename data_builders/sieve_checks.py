"""Checks a single data row for faults, one kind of fault per function."""

import re
from typing import Literal, NamedTuple

from qwen_align.align.answer_modes import find_unfit_answer
from qwen_align.align.errors import DataError
from qwen_align.align.rows import Chat, Labelled, Message, Pair, Problem, Row, Steps, Text, Trace
from qwen_align.data_builders.row_texts import get_turns, list_all_texts, list_replies
from qwen_align.reward.settings import OWN_REWARD, make_default_reward
from qwen_align.reward.thinking import CLOSE, OPEN, extract_thinking

MAX_DETAIL_CHARACTERS = 200  # characters of a gold or of a shared text that are quoted


class Fault(NamedTuple):
    """The reason, short and countable, why a row is dropped, with a detail."""

    reason: str
    detail: str


def find_empty_fault(row: Row) -> Fault | None:
    """Returns a fault for a row with a blank user turn or text, or with a pair of equal sides.

    Returns None if there is none.
    """
    if isinstance(row, Text):
        return None if row.text.strip() else Fault("blank text", "")
    blank_turn = next(
        (n for n, turn in enumerate(get_turns(row), 1) if turn.role == "user" and not turn.content.strip()), 0
    )
    if blank_turn:
        return Fault("blank user turn", f"turn {blank_turn}")
    if isinstance(row, Pair) and _strip_message(row.chosen) == _strip_message(row.rejected):
        return Fault("chosen equals rejected", "so nothing is preferred")
    return None


def _strip_message(turn: Message) -> tuple[str, str, object]:
    """Returns the contents of a message without surrounding white space, for comparison."""
    return turn.content.strip(), (turn.thinking or "").strip(), turn.tool_calls or None


def find_length_fault(n_characters: int, min_characters: int, max_characters: int | None) -> Fault | None:
    """Returns a fault if a text of `n_characters` is too short or too long. `max_characters` None: no bound."""
    if n_characters < min_characters:
        return Fault("too short", f"{n_characters} characters")
    if max_characters is not None and n_characters > max_characters:
        return Fault("too long", f"{n_characters} characters")
    return None


def find_language_fault(row: Row, language: Literal["en", "zh"], min_script_share: float) -> Fault | None:
    """Returns a fault if too few of a row's letters are of the script of the given language.

    A row without letters is of any language.
    """
    share = compute_script_share(" ".join(list_all_texts(row)), language)
    if share is None or share >= min_script_share:
        return None
    return Fault(f"not {language}", f"{share:.2f} of the letters")


def find_thinking_fault(row: Row) -> Fault | None:
    """Returns a fault for thinking tags in texts, or for blank thinking or answers, in assistant turns.

    User turns may speak of tags.
    """
    if isinstance(row, Trace):
        if not row.thinking.strip():
            return Fault("blank thinking", "a Trace row has thinking; without any it is a Chat row")
        turns = [Message(role="assistant", content=row.answer, thinking=row.thinking)]
    elif isinstance(row, Pair | Labelled):
        turns = list_replies(row)
    elif isinstance(row, Steps):
        turns = [Message(role="assistant", content="\n".join(row.steps))]
    elif isinstance(row, Chat):
        turns = [message for message in row.messages if message.role == "assistant"]
    else:
        return None
    for turn in turns:
        tag = next((tag for tag in (OPEN, CLOSE) if tag in turn.content or tag in (turn.thinking or "")), None)
        if tag:
            return Fault("thinking tags in the text", f"{tag}; thinking goes into a field of its own, without tags")
        if not turn.content.strip() and not turn.tool_calls:
            return Fault("blank answer", "")
    return None


def find_mode_fault(row: Row) -> Fault | None:
    """Returns a fault for answers to learn that contradict the row's mode or the flag in force.

    Of a pair only the chosen side has to obey. Returns None if no answer does, and one at least can be trained.
    """
    if isinstance(row, Chat):
        messages, answer = row.messages, None
    elif isinstance(row, Trace):
        messages, answer = row.messages, Message(role="assistant", content=row.answer, thinking=row.thinking)
    elif isinstance(row, Pair):
        messages, answer = row.messages, row.chosen
        if not answer.thinking:  # what a model said may stand there word for word
            answer = answer.model_copy(update={"thinking": extract_thinking(answer.content) or answer.thinking})
    else:
        return None
    indices = [index for index, turn in enumerate(messages) if turn.role == "assistant"]
    if answer is not None:
        messages, indices = [*messages, answer], [len(messages)]
    unfit = find_unfit_answer(messages, indices, row.mode, row.flag)
    return Fault(unfit.reason, f"turn {unfit.turn}") if unfit else None


# What Qwen's tokenizers read as one token of their own: in a row's text it would end turns and open others.
_CONTROL_TOKEN = re.compile(
    r"<\|(?:endoftext|im_start|im_end|fim_(?:prefix|middle|suffix|pad)|repo_name|file_sep|(?:image|video|vision)_pad"
    r"|(?:object_ref|box|quad|vision)_(?:start|end))\|>"
)


# Where other models' turns end (Llama, Mistral, Gemma, Phi, InternLM, DeepSeek): to Qwen's tokenizers they are letters,
# which the model would learn to write. </s> closes <s> in HTML, so only one without it is an end.
_END_OF_OTHERS = re.compile(
    r"(?:<\|(?:eot_id|eom_id|end|end_of_text|eot)\|>|<end_of_turn>|<eos>|<eo[ahms]>|<｜end▁of▁sentence｜>"
    r"|</s>)\s*\Z"
)


def find_control_token_fault(row: Row) -> Fault | None:
    """Returns a fault if any text of a row holds a control token, such as <|im_end|>, or ends with another model's.

    It may be a token of the template or of the tokenizer.
    """
    for text in list_all_texts(row):
        token = _CONTROL_TOKEN.search(text) or _END_OF_OTHERS.search(text)
        if token and not (token[0].startswith("</s>") and "<s>" in text.lstrip()[1:]):
            return Fault("control token in the text", token[0].strip())
    return None


# NuminaMath's, for questions that ask for a proof and those whose answer was not found in the solution.
_PLACEHOLDERS = frozenset({"proof", "notfound", "not found"})


def find_gold_fault(row: Row) -> Fault | None:
    """Returns a fault if a row's gold answer does not pass the row's own reward, unless that is one of the user's own.

    Raises DataError if the reward is unknown.
    """
    if not isinstance(row, Problem | Trace) or (isinstance(row, Trace) and row.gold is None):
        return None  # a trace may be trained without anyone judging it
    if row.reward == OWN_REWARD:
        return None  # the stage that judges knows whose it is and whether it needs a gold; `check` tries it on two rows
    if row.reward == "math_answer" and str(row.gold).strip().lower() in _PLACEHOLDERS:
        return Fault("no gold", f"{row.gold!r} stands where there is none, and a model that boxes it would be paid")
    try:
        reward = make_default_reward(row.reward)
    except ValueError as error:
        consequence = "so nobody can tell whether its gold is usable; set sieve.gold_is_usable: false"
        raise DataError(f"row '{row.id}': reward: {error}, {consequence}") from None
    verdict = reward.judge_gold(row.gold)
    if verdict.value is None:
        return Fault(verdict.reason, f"{row.gold!r}"[:MAX_DETAIL_CHARACTERS])
    if verdict.value < 1.0:
        return Fault("gold fails its own reward", f"{verdict.reason}: {row.gold!r}"[:MAX_DETAIL_CHARACTERS])
    return None


_NOT_PROSE = re.compile(
    r"```.{0,4000}?```|`[^`\n]*`|\$\$.{0,2000}?\$\$|\$[^$\n]*\$|\\\[.{0,2000}?\\\]|\\\(.{0,2000}?\\\)|\\[A-Za-z]+|https?://\S+",
    re.DOTALL,
)
_LATIN = re.compile(r"[A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f]")
_HAN = re.compile(r"[\u3400-\u9fff\U00020000-\U0003ffff]")


def compute_script_share(text: str, language: Literal["en", "zh"]) -> float | None:
    """Computes the share of a text's letters that are of the script of the given language.

    Returns None for a text without letters. Formulas between dollar signs or LaTeX brackets, code, commands and links
    are left out.
    """
    prose = _NOT_PROSE.sub(" ", text)
    n_letters = sum(map(str.isalpha, prose))
    script = _LATIN if language == "en" else _HAN
    return len(script.findall(prose)) / n_letters if n_letters else None
