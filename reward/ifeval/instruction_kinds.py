"""The table of IFEval's instruction kinds by their ids, and the parsing of a gold into instructions.

Zhou et al. 2023, Instruction-Following Evaluation for Large Language Models, arXiv:2311.07911; ids, arguments and what
is counted are those of google-research/instruction_following_eval. Where its code does not do what its instruction
says, the class here does, and says "officially".
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from qwen_align.align.rows import format_first_error
from qwen_align.align.settings.base import format_suggestion
from qwen_align.reward.ifeval import (
    change_case,
    combination,
    detectable_content,
    detectable_format,
    keywords,
    length_constraints,
    punctuation,
    startend,
)
from qwen_align.reward.ifeval.instruction import Instruction, drop_empty_arguments
from qwen_align.reward.ifeval.language import ResponseLanguage

INSTRUCTION_KINDS: dict[str, type[Instruction]] = {
    "keywords:existence": keywords.Existence,
    "keywords:frequency": keywords.Frequency,
    "keywords:forbidden_words": keywords.ForbiddenWords,
    "keywords:letter_frequency": keywords.LetterFrequency,
    "language:response_language": ResponseLanguage,
    "length_constraints:number_sentences": length_constraints.NumberSentences,
    "length_constraints:number_paragraphs": length_constraints.NumberParagraphs,
    "length_constraints:number_words": length_constraints.NumberWords,
    "length_constraints:nth_paragraph_first_word": length_constraints.NthParagraphFirstWord,
    "detectable_content:number_placeholders": detectable_content.NumberPlaceholders,
    "detectable_content:postscript": detectable_content.Postscript,
    "detectable_format:number_bullet_lists": detectable_format.NumberBulletLists,
    "detectable_format:constrained_response": detectable_format.ConstrainedResponse,
    "detectable_format:number_highlighted_sections": detectable_format.NumberHighlightedSections,
    "detectable_format:multiple_sections": detectable_format.MultipleSections,
    "detectable_format:json_format": detectable_format.JsonFormat,
    "detectable_format:title": detectable_format.Title,
    "combination:two_responses": combination.TwoResponses,
    "combination:repeat_prompt": combination.RepeatPrompt,
    "startend:end_checker": startend.EndChecker,
    "startend:quotation": startend.Quotation,
    "change_case:capital_word_frequency": change_case.CapitalWordFrequency,
    "change_case:english_capital": change_case.EnglishCapital,
    "change_case:english_lowercase": change_case.EnglishLowercase,
    "punctuation:no_comma": punctuation.NoComma,
}


def parse_instruction_gold(gold: Any) -> list[tuple[str, Instruction]]:
    """Parses a gold into a list of instruction ids and instructions. Raises ValueError that names what is unusable.

    A gold is a row of the data set, `{"instruction_id_list": [...], "kwargs": [{...}, ...]}`, whose other fields are
    not looked at, or `{"instructions": [{"id": ..., **kwargs}, ...]}`. Arguments that are None are not given.
    """
    items = _list_instructions(gold)
    if not items:
        raise ValueError("the gold has no instructions")
    return [(id_, _make_instruction(id_, kwargs)) for id_, kwargs in items]


def _list_instructions(gold: Any) -> list[tuple[Any, Any]]:
    """Returns the id and arguments of each instruction in a gold. Raises ValueError for an unknown format."""
    if not isinstance(gold, Mapping):
        raise ValueError("the gold is no object with instruction_id_list and kwargs, or instructions")
    if "instructions" in gold:
        rows = gold["instructions"]
        if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
            raise ValueError("instructions is no list of objects")
        return [(row.get("id"), {name: row[name] for name in row if name != "id"}) for row in rows]
    ids, kwargs = gold.get("instruction_id_list"), gold.get("kwargs")
    if not isinstance(ids, list) or not isinstance(kwargs, list) or len(ids) != len(kwargs):
        raise ValueError("instruction_id_list and kwargs are no lists of one length")
    return list(zip(ids, kwargs, strict=True))


def _make_instruction(id_: Any, kwargs: Any) -> Instruction:
    """Creates the instruction of an id with its arguments. Raises ValueError if either is invalid."""
    if not isinstance(id_, str) or id_ not in INSTRUCTION_KINDS:
        raise ValueError(f"'{str(id_)[:80]}' is no instruction{format_suggestion(str(id_)[:80], INSTRUCTION_KINDS)}")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise ValueError(f"{id_}: its kwargs are no object")
    try:
        return INSTRUCTION_KINDS[id_](**drop_empty_arguments(kwargs or {}))
    except ValidationError as error:
        raise ValueError(f"{id_}: {format_first_error(error)}") from None
