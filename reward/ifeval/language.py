"""IFEval's `language` instruction: the whole text in one language."""

from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from qwen_align.align.settings.base import format_suggestion
from qwen_align.reward.ifeval.detect_language import SCRIPTS, is_in_language
from qwen_align.reward.ifeval.instruction import Instruction


def _check_language(code: str) -> str:
    """Returns the code of a language; raises for one that is not known here."""
    if code not in SCRIPTS:
        message = f"'{code[:20]}' is no language known here{format_suggestion(code, SCRIPTS)}"
        raise PydanticCustomError("language", "{said}", {"said": message})
    return code


class ResponseLanguage(Instruction):
    """Requires a text in a language, named by its ISO 639-1 code.

    A text without letters is in none (officially in any).
    """

    language: Annotated[str, AfterValidator(_check_language)]

    @property
    def required_language(self) -> str:
        """The code of the language the text has to be in."""
        return self.language

    def follows(self, text: str) -> bool:
        """Returns whether the text is in the language."""
        return is_in_language(text, self.language)
