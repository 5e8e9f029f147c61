"""IFEval's `startend` instructions: the last phrase, and quotation marks around everything."""

from qwen_align.reward.ifeval.instruction import Instruction, Phrase


class EndChecker(Instruction):
    """Requires a text that ends with the phrase, whatever the case.

    `"` may follow, or end the phrase (officially it may not).
    """

    end_phrase: Phrase

    def follows(self, text: str) -> bool:
        """Returns whether the text ends with the phrase."""
        lowered, phrase = text.strip().lower(), self.end_phrase.lower()
        return lowered.endswith(phrase) or lowered.strip('"').endswith(phrase)


class Quotation(Instruction):
    """Requires a whole text between two `"`."""

    def follows(self, text: str) -> bool:
        """Returns whether the whole text is between quotation marks."""
        text = text.strip()
        return len(text) > 1 and text.startswith('"') and text.endswith('"')
