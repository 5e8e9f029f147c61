"""The table of instruction kinds, by their ids in IFEval, and how a gold is read.

Zhou et al. 2023, Instruction-Following Evaluation for Large Language Models, arXiv:2311.07911; ids, arguments and what
is counted are those of google-research/instruction_following_eval. Where its code does not do what its instruction
says, the class here does, and says "officially".
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from qwen_align.align.rows import format_first_error
from qwen_align.align.settings.base import did_you_mean
from qwen_align.reward.ifeval import combination, content, keywords, layout, length, letter_case, punctuation, startend
from qwen_align.reward.ifeval.instruction import Instruction, without_empty
from qwen_align.reward.ifeval.language import ResponseLanguage

KINDS: dict[str, type[Instruction]] = {
    "keywords:existence": keywords.Existence,
    "keywords:frequency": keywords.Frequency,
    "keywords:forbidden_words": keywords.ForbiddenWords,
    "keywords:letter_frequency": keywords.LetterFrequency,
    "language:response_language": ResponseLanguage,
    "length_constraints:number_sentences": length.NumberSentences,
    "length_constraints:number_paragraphs": length.NumberParagraphs,
    "length_constraints:number_words": length.NumberWords,
    "length_constraints:nth_paragraph_first_word": length.NthParagraphFirstWord,
    "detectable_content:number_placeholders": content.NumberPlaceholders,
    "detectable_content:postscript": content.Postscript,
    "detectable_format:number_bullet_lists": layout.NumberBulletLists,
    "detectable_format:constrained_response": layout.ConstrainedResponse,
    "detectable_format:number_highlighted_sections": layout.NumberHighlightedSections,
    "detectable_format:multiple_sections": layout.MultipleSections,
    "detectable_format:json_format": layout.JsonFormat,
    "detectable_format:title": layout.Title,
    "combination:two_responses": combination.TwoResponses,
    "combination:repeat_prompt": combination.RepeatPrompt,
    "startend:end_checker": startend.EndChecker,
    "startend:quotation": startend.Quotation,
    "change_case:capital_word_frequency": letter_case.CapitalWordFrequency,
    "change_case:english_capital": letter_case.EnglishCapital,
    "change_case:english_lowercase": letter_case.EnglishLowercase,
    "punctuation:no_comma": punctuation.NoComma,
}


def read_gold(gold: Any) -> list[tuple[str, Instruction]]:
    """The instructions of a gold with their ids; raises ValueError that names what is unusable.

    A gold is a row of the data set, `{"instruction_id_list": [...], "kwargs": [{...}, ...]}`, whose other fields are
    not looked at, or `{"instructions": [{"id": ..., **kwargs}, ...]}`. Arguments that are None are not given.
    """
    asked = _asked(gold)
    if not asked:
        raise ValueError("the gold has no instructions")
    return [(id_, _instruction(id_, kwargs)) for id_, kwargs in asked]


def _asked(gold: Any) -> list[tuple[Any, Any]]:
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


def _instruction(id_: Any, kwargs: Any) -> Instruction:
    if not isinstance(id_, str) or id_ not in KINDS:
        raise ValueError(f"'{str(id_)[:80]}' is no instruction{did_you_mean(str(id_)[:80], KINDS)}")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise ValueError(f"{id_}: its kwargs are no object")
    try:
        return KINDS[id_](**without_empty(kwargs or {}))
    except ValidationError as error:
        raise ValueError(f"{id_}: {format_first_error(error)}") from None
