"""Lists the columns of published data sets that change what a row means, so that none is left out unseen.

Names are of LLaMA-Factory, ms-swift, Axolotl, TRL, OpenRLHF, verl, NeMo, ShareGPT, ChatGLM, UltraFeedback, HelpSteer,
SmolTalk and KTO files. A column that no format reads and that says something is refused, unless the recipe names it.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from qwen_align.data_builders.bad_row_errors import BadValue, shorten_repr

LEARNT_KINDS = frozenset({"chat", "trace"})  # their reply is learnt as it is
REPLY_KINDS = LEARNT_KINDS | {"pair", "labelled"}
PROMPT_KINDS = REPLY_KINDS | {"problem"}
_MIN_PART_CHARACTERS = 20  # our choice: a short text, such as a number, may stand in another by chance
_YES, _NO = ("true", "1", "1.0", "yes", "good"), ("false", "0", "0.0", "no")


class ColumnMeaning(NamedTuple):
    """What a column says, for which kinds of rows that counts, and what to do about it.

    `advice` may have the column's name as `{column}`. `changes_nothing` tells the values that agree with reading the
    row without the column. Columns with `is_text` are not lost where their text stands in the row. `decided_by` are our
    fields: where the recipe names the column of one of them, it has decided.
    """

    what: str
    kinds: frozenset[str]
    advice: str
    changes_nothing: Callable[[Any], bool] = lambda value: False
    is_text: bool = False
    decided_by: tuple[str, ...] = ()


def is_empty(value: Any) -> bool:
    """Returns whether a value says nothing: null, a blank text, or a list or object of such values."""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, Mapping):
        return all(map(is_empty, value.values()))
    return all(map(is_empty, value)) if isinstance(value, list | tuple) else value is None


def says_yes(value: Any) -> bool:
    """Returns whether a value is true or 1, or a table's spelling of either."""
    return str(value).strip().lower() in _YES


def says_no(value: Any) -> bool:
    """Returns whether a value is false or 0, or a table's spelling of either."""
    return str(value).strip().lower() in _NO


def _says_finished(value: Any) -> bool:
    """Returns whether a finish reason says that the model ended its reply by itself."""
    return str(value).strip().lower() in ("stop", "eos", "end_turn", "stop_sequence", "tool_calls", "function_call")


_LABEL = ColumnMeaning(
    "whether the answer is good",
    LEARNT_KINDS | {"pair"},
    "the answer would be learnt as good whatever it says. format: kto reads true or false, 1 or 0, under label or "
    "kto_tag; else filter the file",
    says_yes,
)
_SCORE = ColumnMeaning(
    "how good the answer is",
    LEARNT_KINDS,
    "the answer would be learnt as good whatever it says; filter the file by it",
)
_HISTORY = ColumnMeaning(
    "earlier turns of the conversation",
    PROMPT_KINDS,
    "it is read under history beside a prompt or instruction that is a text: columns: {{history: {column}}}; else give "
    "the whole conversation as messages",
    decided_by=("history",),
)
_SYSTEM = ColumnMeaning(
    "a system message", PROMPT_KINDS, "name it, with the format or kind of rows: columns: {{system: {column}}}",
    is_text=True, decided_by=("system",),
)  # fmt: skip
_TOOLS = ColumnMeaning(
    "the tools that may be called", PROMPT_KINDS,
    "only chats have tools, under tools: rows: chat, columns: {{tools: {column}}}",
    decided_by=("tools",),
)  # fmt: skip
_MEDIA = ColumnMeaning("what the text goes with", PROMPT_KINDS, "rows are of text alone; filter the file")
_CONTEXT = ColumnMeaning(
    "a part of the question", PROMPT_KINDS, "put it into the prompt", is_text=True,
)  # fmt: skip
_PROMPT = ColumnMeaning(
    "another prompt", PROMPT_KINDS, "say which column is the prompt, in columns, or put both into one", is_text=True,
    decided_by=("prompt", "question", "problem", "input", "instruction", "query", "text"),
)  # fmt: skip
_THINKING = ColumnMeaning(
    "the thinking before the answer", LEARNT_KINDS | {"labelled"},
    "the answer would be learnt without it; read it by rows: trace, columns: {{thinking: {column}}}",
    is_text=True, decided_by=("thinking", "rows"),
)  # fmt: skip
_REJECTED = ColumnMeaning(
    "an answer that is worse than the other", LEARNT_KINDS, "read both by format: preference, or rows: pair",
    decided_by=("rejected", "rows"),
)  # fmt: skip
_TRAINED = ColumnMeaning(
    "whether or how much the row is trained", PROMPT_KINDS, "every row counts the same here; filter the file, or "
    "give stages of their own to a mixture's weights", says_yes,
)  # fmt: skip
_MASKED = ColumnMeaning(
    "what is not trained", REPLY_KINDS, "every assistant's turn of a chat is trained here; filter the file",
    lambda value: says_no(value) or str(value).strip().lower() in ("user", "human"),
)  # fmt: skip
_TEMPLATE = ColumnMeaning(
    "how the chat template is called", PROMPT_KINDS, "split the file and say mode: think or mode: no_think"
)
_FINISH = ColumnMeaning(
    "how the answer ended", LEARNT_KINDS, "an answer that was cut would be learnt as whole; filter the file",
    _says_finished,
)  # fmt: skip
_CUT = ColumnMeaning(
    "that the answer is not whole", LEARNT_KINDS, "it would be learnt as it is; filter the file", says_no
)
_BAD = ColumnMeaning(
    "that the answer is bad", LEARNT_KINDS, "it would be learnt all the same; filter the file", says_no
)

_PROMPT_TRAINED = ColumnMeaning(
    "that the prompt is trained too", REPLY_KINDS, "prompts are seen, never trained, here; leave it out", says_no
)
_TIE = ColumnMeaning(
    "that neither side is better", frozenset({"pair"}), "one would be preferred all the same; filter the file", says_no
)
_VALID = ColumnMeaning(
    "whether the question can be answered", PROMPT_KINDS, "every row is taken as sound; filter the file", says_yes
)

_NAMES: dict[ColumnMeaning, str] = {
    _LABEL: (
        "label kto_tag is_correct correct correctness is_right right is_good good accepted is_accepted passed "
        "is_passed success resolved is_resolved verified is_verified is_chosen is_preferred preferred "
        "thumbs_up thumb feedback is_safe is_response_safe verdict judgement judgment preference winner "
        "better_response_id safer_response_id"
    ),
    _SCORE: (
        "score scores reward rewards rating ratings quality quality_score overall_score final_score rm_score "
        "reward_score reward_model_score model_score judge_score answer_score response_score completion_score "
        "helpfulness harmlessness coherence advantage advantages grade grades stars feedback_score user_rating "
        "llm_score gpt_score gpt4_score eval_score"
    ),
    _HISTORY: "history chat_history conversation_history dialogue_history dialog_history previous_turns",
    _SYSTEM: "system system_prompt system_message sys_prompt system_instruction systemprompt",
    _TOOLS: "tools functions available_tools tool_schemas tool_definitions available_functions",
    _MEDIA: (
        "image images video videos audio audios image_path image_paths image_url image_urls video_path audio_path "
        "objects multi_modal_data pixel_values"
    ),
    _CONTEXT: (
        "context contexts passage passages document documents paragraph paragraphs article background knowledge "
        "choices options option_a option_b a b c d starter_code few_shot fewshot_examples prefill response_prefix "
        "prefix suffix persona"
    ),
    _PROMPT: "prompt question problem input instruction query",
    _THINKING: (
        "thinking reasoning reasoning_content cot chain_of_thought rationale thought thoughts complex_cot "
        "thinking_trajectory reasoning_trace"
    ),
    _REJECTED: (
        "rejected rejected_response rejected_messages rejected_output rejected_answer rejected_completion "
        "rejected_conversations"
    ),
    _TRAINED: (
        "weight weights sample_weight sample_weights loss_weight loss_scale loss train trainable is_trained "
        "train_on_turn"
    ),
    _MASKED: "mask masked loss_mask mask_history train_mask assistant_masks completion_mask ignore_loss",
    _TIE: "tie is_tie",
    _PROMPT_TRAINED: "train_on_inputs train_on_input train_on_prompt",
    _VALID: "valid is_valid problem_is_valid question_is_valid solution_is_valid is_answerable answerable",
    _TEMPLATE: ("thinking_mode think_mode reasoning_effort thinking_budget chat_template"),
    _FINISH: "finish_reason finish_reasons stop_reason",
    _CUT: "truncated is_truncated is_incomplete cut_off",
    _BAD: "is_harmful harmful is_bad bad is_wrong wrong is_hallucination hallucination toxic is_toxic",
}


def _normalise_name(column: str) -> str:
    """Returns a column's name without case, spaces, dashes and underscores: is_correct, isCorrect and Is-Correct."""
    return column.lower().replace("_", "").replace("-", "").replace(" ", "").replace(".", "")


COLUMN_MEANINGS: dict[str, ColumnMeaning] = {
    _normalise_name(name): meaning for meaning, names in _NAMES.items() for name in names.split()
}


# Words of columns that judge a row by yes or no: math_verify_passed, answerIsWrong.
_PRAISING_WORDS = frozenset(
    "correct correctness valid verified accepted approved passed complete completed finished success successful solved "
    "resolved safe".split()
)
_CONDEMNING_WORDS = frozenset(
    "incorrect invalid wrong bad toxic harmful unsafe truncated incomplete hallucinated hallucination error errors "
    "corrupted flagged spam nsfw deleted rejected failed failure refused refusal".split()
)
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_JUDGED_GOOD = _LABEL._replace(changes_nothing=lambda value: not says_no(value))
_JUDGED_BAD = _BAD._replace(changes_nothing=lambda value: not says_yes(value))


_EMPTY_CELLS = ("[]", "{}", "null")  # a table's spelling of what says nothing


def _find_meaning_by_words(column: str) -> ColumnMeaning | None:
    """Returns the meaning of a column by the words of its name, if they judge one way. Only yes or no counts then."""
    words = {word.lower() for word in _WORD.findall(column)}
    praises, condemns = bool(words & _PRAISING_WORDS), bool(words & _CONDEMNING_WORDS)
    if praises == condemns or not words.isdisjoint(("not", "no", "non")):
        return None
    return _JUDGED_GOOD if praises else _JUDGED_BAD


def _stands_in(value: str, texts: Sequence[str]) -> bool:
    """Returns whether a text is one of the texts, or a part of one that is too long to be there by chance."""
    return any(value == text.strip() or (len(value) >= _MIN_PART_CHARACTERS and value in text) for text in texts)


def refuse_lost_meaning(
    values: Mapping[str, Any], left_out: Iterable[str], kind: str, texts: Sequence[str], named: Iterable[str]
) -> None:
    """Raises BadValue if a column that is left out of a row changes what the row means.

    `kind` and `texts` are the row's, `left_out` are the source's columns that nothing read, `named` our fields that the
    recipe's `columns` names, and `rows` if it says what to make.
    """
    named = frozenset(named)
    for column in left_out:
        meaning = COLUMN_MEANINGS.get(_normalise_name(column)) or _find_meaning_by_words(column)
        if meaning is None or kind not in meaning.kinds or not named.isdisjoint(meaning.decided_by):
            continue
        value = values[column]
        if is_empty(value) or value in _EMPTY_CELLS or meaning.changes_nothing(value):
            continue
        if meaning.is_text and isinstance(value, str) and _stands_in(value.strip(), texts):
            continue
        raise BadValue(
            "column that changes the meaning",
            f"{column}: is {shorten_repr(value)}; that is {meaning.what}, and nothing reads it: "
            f"{meaning.advice.format(column=column)}. To leave it out all the same: ignore_columns: [{column}]",
        )
