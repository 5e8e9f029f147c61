"""IFEval's `combination` instructions: two responses, and the request before the answer."""

from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

from qwen_align.reward.ifeval.instruction import Instruction

_DIVIDER = "******"


def _check_prompt(value: str) -> str:
    """Returns the prompt to repeat without white space around it; raises for a blank one."""
    if not value.strip():
        raise PydanticCustomError("blank", "the prompt to repeat is blank")
    return value.strip()


class TwoResponses(Instruction):
    """Requires two different texts with `******` between them, and perhaps before the first and after the last."""

    def follows(self, text: str) -> bool:
        """Returns whether the text holds exactly two different responses."""
        first, *others = (part.strip() for part in text.split(_DIVIDER))
        between = others[:-1]
        responses = [part for part in (first, *others) if part]
        return all(between) and len(responses) == 2 and responses[0] != responses[1]


class RepeatPrompt(Instruction):
    """Requires a text that starts with the request, whatever the case."""

    prompt_to_repeat: Annotated[str, AfterValidator(_check_prompt)]

    def follows(self, text: str) -> bool:
        """Returns whether the text starts with the request."""
        return text.strip().lower().startswith(self.prompt_to_repeat.lower())
