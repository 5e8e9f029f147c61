"""IFEval's `length_constraints` instructions: how many words, sentences and paragraphs."""

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from qwen_align.reward.ifeval.count_sentences import count_sentences
from qwen_align.reward.ifeval.count_words import count_words
from qwen_align.reward.ifeval.instruction import Instruction, Phrase, Positive, Relation, satisfies_relation

_DIVIDER = "***"
_PARAGRAPH = "\n\n"


class NumberSentences(Instruction):
    """Requires as many sentences as asked; see `count_sentences` for where one ends."""

    num_sentences: Positive
    relation: Relation

    def follows(self, text: str) -> bool:
        """Returns whether the text has as many sentences as asked."""
        return satisfies_relation(count_sentences(text), self.relation, self.num_sentences)


class NumberWords(Instruction):
    """Requires as many words as asked; see `count_words` for what one is."""

    num_words: Positive
    relation: Relation

    def follows(self, text: str) -> bool:
        """Returns whether the text has as many words as asked."""
        return satisfies_relation(count_words(text), self.relation, self.num_words)


class NumberParagraphs(Instruction):
    """Requires exactly so many paragraphs between dividers `***`.

    Only the first and the last may be blank and do not count.
    """

    num_paragraphs: Positive

    def follows(self, text: str) -> bool:
        """Returns whether the text has exactly so many paragraphs."""
        first, *others = text.split(_DIVIDER)
        last = others.pop() if others else ""
        if not all(middle.strip() for middle in others):
            return False
        return len(others) + bool(first.strip()) + bool(last.strip()) == self.num_paragraphs


class NthParagraphFirstWord(Instruction):
    """Requires exactly so many paragraphs between blank lines, the nth of which starts with a word.

    The case does not count.

    Blank paragraphs do not count but keep their place, as in the official code: after three blank lines the nth
    paragraph is one further back. The word ends at the first of `.,?!'"`, in the argument too.
    """

    num_paragraphs: Positive
    nth_paragraph: Positive
    first_word: Phrase

    @model_validator(mode="after")
    def _check_can_be_followed(self) -> "NthParagraphFirstWord":
        """Raises where the nth paragraph cannot be there or the first word is none."""
        if self.nth_paragraph > self.num_paragraphs:
            raise PydanticCustomError("nth", "nth_paragraph is more than num_paragraphs")
        if len(self.first_word.split()) > 1 or not _find_first_word(self.first_word):
            raise PydanticCustomError("word", "first_word is not one word")
        return self

    def follows(self, text: str) -> bool:
        """Returns whether the text has exactly so many paragraphs and the nth starts with the word."""
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
