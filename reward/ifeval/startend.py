"""IFEval's `startend` instructions, which ask for a last phrase or for quotation marks around the whole text."""

from qwen_align.reward.ifeval.instruction import Instruction, Phrase


class EndChecker(Instruction):
    """An IFEval instruction to end the text with a given phrase, in any case of letters.

    `"` may follow, or end the phrase (officially it may not).
    """

    end_phrase: Phrase

    def follows(self, text: str) -> bool:
        """Returns whether the text ends with the required phrase."""
        lowered, phrase = text.strip().lower(), self.end_phrase.lower()
        return lowered.endswith(phrase) or lowered.strip('"').endswith(phrase)


class Quotation(Instruction):
    """An IFEval instruction to put the whole text between two `"`."""

    def follows(self, text: str) -> bool:
        """Returns whether the whole text is between quotation marks."""
        text = text.strip()
        return len(text) > 1 and text.startswith('"') and text.endswith('"')
