"""The `instructions` reward, which checks the 25 kinds of verifiable instructions of IFEval."""

from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from pydantic import Field

from qwen_align.align.rows import Completion
from qwen_align.reward.base import BaseReward, Probe
from qwen_align.reward.ifeval.instruction import Instruction
from qwen_align.reward.ifeval.instruction_kinds import parse_instruction_gold
from qwen_align.reward.ifeval.latin_languages import LATIN, require_langdetect
from qwen_align.reward.thinking import CLOSE, cut_at_turn_end, strip_thinking
from qwen_align.reward.verdict import Verdict


class Instructions(BaseReward):
    """A reward for the share of IFEval instructions in the gold that the answer follows.

    With `every`, it is 1.0 for all of them, else 0.0.

    Kinds and golds are those of IFEval (arXiv:2311.07911; `ifeval.instruction_kinds` has the table), `every` is its
    prompt-level accuracy. Only what follows the thinking is looked at; nothing and unfinished thinking follow no
    instruction. `loose` also pays where the text without its first line, its last line, both, or without asterisks
    follows one, as IFEval's loose accuracy does.

    It says that instructions were followed and nothing of the answer: stuffing in the keywords is following. Where the
    content matters, use it beside a reward that judges that.
    """

    judges_gold: ClassVar[bool] = True
    kind: Literal["instructions"] = "instructions"
    mode: Literal["strict", "loose"] = Field(
        default="strict", description="loose also pays for the text without its first line, last line, or asterisks"
    )
    every: bool = Field(default=False, description="pay 1 where all instructions are followed and else 0, no share")

    def judge(self, completion: str | Completion, gold: Any = None) -> Verdict:
        """Checks which instructions of a gold, by default its own, one completion follows and returns the verdict."""
        text = completion if isinstance(completion, str) else completion.text
        if gold is None and not isinstance(completion, str):
            gold = completion.gold
        try:
            instructions = parse_instruction_gold(gold)
        except ValueError:
            return Verdict(value=None, reason="unusable gold")
        visible = strip_thinking(cut_at_turn_end(text))
        answer = "" if visible is None else visible.lstrip("\n") if CLOSE in text else visible
        followed = [self._is_followed(instruction, answer) for _, instruction in instructions]
        share = sum(followed) / len(followed)
        if visible is None:
            reason = "unfinished thinking"
        elif not answer.strip():
            reason = "no answer"
        else:
            reason = {1.0: "all followed", 0.0: "none followed"}.get(share, "some followed")
        parts: dict[str, Verdict] = {}
        for (id_, _), is_followed in zip(instructions, followed, strict=True):
            parts[_make_part_label(id_, parts)] = Verdict(
                value=float(is_followed), reason="followed" if is_followed else "not followed"
            )
        return Verdict(value=float(share == 1.0) if self.every else share, reason=reason, parts=parts)

    def judge_gold(self, gold: Any) -> Verdict:
        """Returns a verdict of 1.0 for a gold whose instructions can all be checked.

        Otherwise the verdict has no value and names the problem.

        Raises RecipeError if one needs langdetect, which is not installed.
        """
        try:
            instructions = parse_instruction_gold(gold)
        except ValueError as error:
            return Verdict(value=None, reason=f"unusable gold: {error}")
        if any(instruction.required_language in LATIN for _, instruction in instructions):
            require_langdetect()
        return Verdict(value=1.0, reason="usable gold")

    def probes(self) -> list[Probe]:
        """Returns probe answers that follow two instructions, one or none, and answers that only seem to."""
        gold = {
            "instruction_id_list": ["keywords:existence", "detectable_format:number_bullet_lists"],
            "kwargs": [{"keywords": ["tea"]}, {"num_bullets": 2}],
        }
        options = {"instructions": [{"id": "detectable_format:constrained_response"}]}
        follows_both, follows_one = "* green tea\n* black tea", "Green tea."
        return [
            Probe("follows both", follows_both, gold, True),
            Probe("follows both after thinking", f"<think>\nTwo points.\n</think>\n\n{follows_both}", gold, True),
            Probe("follows one", follows_one, gold, not self.every),
            Probe("follows none", "Coffee.", gold, False),
            Probe("empty", "", gold, False),
            Probe("only in the thinking", f"<think>\n{follows_both}\n</think>\n\nCoffee.", gold, False),
            Probe("unfinished thinking", f"<think>\n{follows_both}", gold, False),
            Probe("unknown instruction", follows_both, {"instructions": [{"id": "keywords:tea"}]}, False),
            Probe("argument missing", follows_both, {"instructions": [{"id": "keywords:existence"}]}, False),
            Probe("all three options", _HEDGE, options, False),
        ]

    def _is_followed(self, instruction: Instruction, answer: str) -> bool:
        """Returns whether the answer, or in loose mode one of its variants, follows an instruction."""
        texts = _list_loose_variants(answer) if self.mode == "loose" else iter((answer,))
        return any(text.strip() and instruction.follows(text) for text in texts)


_HEDGE = "My answer is yes. My answer is no. My answer is maybe."


def _list_loose_variants(text: str) -> Iterator[str]:
    """Yields the eight text variants of IFEval's loose accuracy.

    They lack the first line, the last line or both, each with and without asterisks.
    """
    lines = text.split("\n")
    texts = (text, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1])))
    for variant in texts:
        yield variant
        yield variant.replace("*", "")


def _make_part_label(id_: str, taken: dict[str, Verdict]) -> str:
    """Returns an instruction's id as a label, with a number appended if the id was already used."""
    return id_ if id_ not in taken else f"{id_}#{1 + sum(label.split('#')[0] == id_ for label in taken)}"
