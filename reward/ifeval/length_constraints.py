"""IFEval's `length_constraints` instructions on the number of words, sentences and paragraphs."""

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from qwen_align.reward.ifeval.count_sentences import count_sentences
from qwen_align.reward.ifeval.count_words import count_words
from qwen_align.reward.ifeval.instruction import Instruction, Phrase, Positive, Relation, satisfies_relation

_DIVIDER = "***"
_PARAGRAPH = "\n\n"


class NumberSentences(Instruction):
    """An IFEval instruction to write a given number of sentences, as counted by `count_sentences`."""

    num_sentences: Positive
    relation: Relation

    def follows(self, text: str) -> bool:
        """Returns whether the number of sentences in the text is as the instruction asks."""
        return satisfies_relation(count_sentences(text), self.relation, self.num_sentences)


class NumberWords(Instruction):
    """An IFEval instruction to write a given number of words, as counted by `count_words`."""

    num_words: Positive
    relation: Relation

    def follows(self, text: str) -> bool:
        """Returns whether the number of words in the text is as the instruction asks."""
        return satisfies_relation(count_words(text), self.relation, self.num_words)


class NumberParagraphs(Instruction):
    """An IFEval instruction to write exactly a given number of paragraphs separated by `***`.

    Only the first and the last may be blank and do not count.
    """

    num_paragraphs: Positive

    def follows(self, text: str) -> bool:
        """Returns whether the text has exactly the number of paragraphs asked for."""
        first, *others = text.split(_DIVIDER)
        last = others.pop() if others else ""
        if not all(middle.strip() for middle in others):
            return False
        return len(others) + bool(first.strip()) + bool(last.strip()) == self.num_paragraphs


class NthParagraphFirstWord(Instruction):
    """An IFEval instruction to write a given number of paragraphs, the nth of which starts with a given word.

    The case does not count.

    Blank paragraphs do not count but keep their place, as in the official code: after three blank lines the nth
    paragraph is one further back. The word ends at the first of `.,?!'"`, in the argument too.
    """

    num_paragraphs: Positive
    nth_paragraph: Positive
    first_word: Phrase

    @model_validator(mode="after")
    def _check_can_be_followed(self) -> "NthParagraphFirstWord":
        """Raises if the nth paragraph cannot exist or the first word is not a word."""
        if self.nth_paragraph > self.num_paragraphs:
            raise PydanticCustomError("nth", "nth_paragraph is more than num_paragraphs")
        if len(self.first_word.split()) > 1 or not _find_first_word(self.first_word):
            raise PydanticCustomError("word", "first_word is not one word")
        return self

    def follows(self, text: str) -> bool:
        """Returns whether the text has exactly the number of paragraphs asked for and the nth starts with the word."""
        paragraphs = text.split(_PARAGRAPH)
        if sum(1 for paragraph in paragraphs if paragraph.strip()) != self.num_paragraphs:
            return False
        nth = paragraphs[self.nth_paragraph - 1]
        return bool(nth.strip()) and _find_first_word(nth) == _find_first_word(self.first_word)


def _find_first_word(text: str) -> str:
    """Returns the first word of a text in lower case, without punctuation."""
    word = text.split(maxsplit=1)[0].lstrip("'").lstrip('"')
    ends = [position for position in map(word.find, ".,?!'\"") if position >= 0]
    return word[: min(ends, default=len(word))].lower()
