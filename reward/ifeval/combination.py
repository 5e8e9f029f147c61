"""IFEval's `combination` instructions, which ask for two responses or for repeating the prompt first."""

from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from qwen_align.reward.ifeval.instruction import Instruction

_DIVIDER = "******"


def _check_prompt(value: str) -> str:
    """Strips white space around the prompt to repeat. Raises if the prompt is blank."""
    if not value.strip():
        raise PydanticCustomError("blank", "the prompt to repeat is blank")
    return value.strip()


class TwoResponses(Instruction):
    """An IFEval instruction to give two different responses separated by `******`.

    Separators may also stand before and after.
    """

    def follows(self, text: str) -> bool:
        """Returns whether the text contains exactly two different responses."""
        first, *others = (part.strip() for part in text.split(_DIVIDER))
        between = others[:-1]
        responses = [part for part in (first, *others) if part]
        return all(between) and len(responses) == 2 and responses[0] != responses[1]


class RepeatPrompt(Instruction):
    """An IFEval instruction to start the answer by repeating the prompt, in any case of letters."""

    prompt_to_repeat: Annotated[str, AfterValidator(_check_prompt)]

    def follows(self, text: str) -> bool:
        """Returns whether the text starts with the prompt."""
        return text.strip().lower().startswith(self.prompt_to_repeat.lower())
