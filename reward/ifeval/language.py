"""IFEval's `language` instruction, which asks for the whole text in one language."""

from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from qwen_align.align.settings.base import format_suggestion
from qwen_align.reward.ifeval.detect_language import SCRIPTS, is_in_language
from qwen_align.reward.ifeval.instruction import Instruction


def _check_language(code: str) -> str:
    """Validates a language code and returns it. Raises if the language is not supported."""
    if code not in SCRIPTS:
        message = f"'{code[:20]}' is no language known here{format_suggestion(code, SCRIPTS)}"
        raise PydanticCustomError("language", "{said}", {"said": message})
    return code


class ResponseLanguage(Instruction):
    """An IFEval instruction to answer in a language named by its ISO 639-1 code.

    A text without letters is in none (officially in any).
    """

    language: Annotated[str, AfterValidator(_check_language)]

    @property
    def required_language(self) -> str:
        """Returns the code of the language that the text must be in."""
        return self.language

    def follows(self, text: str) -> bool:
        """Returns whether the text is written in the language."""
        return is_in_language(text, self.language)
