"""language: the whole text in one language."""

from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from qwen_align.align.settings.base import did_you_mean
from qwen_align.reward.ifeval.instruction import Instruction
from qwen_align.reward.ifeval.languages import SCRIPTS, is_in


def _known(code: str) -> str:
    if code not in SCRIPTS:
        said = f"'{code[:20]}' is no language known here{did_you_mean(code, SCRIPTS)}"
        raise PydanticCustomError("language", "{said}", {"said": said})
    return code


class ResponseLanguage(Instruction):
    """The text is in a language, told by its ISO 639-1 code; one without letters is in none (officially in any)."""

    language: Annotated[str, AfterValidator(_known)]

    @property
    def spoken(self) -> str:
        return self.language

    def follows(self, text: str) -> bool:
        return is_in(text, self.language)
