"""The `format` reward, which wants a thinking block in thinking mode and none in non-thinking mode."""

import re
from typing import Any, ClassVar, Literal

from pydantic import Field

from qwen_align.align.rows import Completion, Mode
from qwen_align.reward.base import BaseReward, Probe
from qwen_align.reward.thinking import CLOSE, OPEN, Turn, split_turn
from qwen_align.reward.verdict import Verdict

_TAGS = re.compile(r"</?(?:think|answer)>")
_ANSWER = ["<answer>", "</answer>"]
_BOTH = [OPEN, CLOSE, *_ANSWER]


def follows_mode(text: str, mode: Mode) -> bool:
    """Returns whether a model output contains thinking exactly if its mode asks for it.

    A malformed thinking block follows neither mode.
    """
    turn = split_turn(text)
    return isinstance(turn, Turn) and (turn.thinking is not None) == (mode == "think")


class Format(BaseReward):
    """A reward of 1.0 for a well-formed turn in the completion's thinking mode, else 0.0.

    think: one block with non-blank thinking, then a non-blank answer. no_think: a non-blank answer, alone or after
    an empty block. A completion without a mode, and a bare string, may be either. A block that is only white space
    counts as empty thinking in no_think too, unless it is exactly the empty block of Qwen's template.

    `layout: answer_tags` is that of DeepSeek-R1-Zero (arXiv:2501.12948, table 1): `<think>...</think>` and
    `<answer>...</answer>` with nothing but white space around them, line breaks as one likes; in no_think the answer
    alone or after a blank block. Unlike the pattern of open-r1 it is not met by text after the answer, by a second
    answer, or by blank parts.
    """

    role: ClassVar[Literal["outcome", "shaping"]] = "shaping"
    kind: Literal["format"] = "format"
    layout: Literal["qwen", "answer_tags"] = Field(
        default="qwen", description="qwen: a <think> block, then the answer. answer_tags: <think> and <answer> blocks"
    )

    def judge(self, completion: str | Completion, gold: Any = None) -> Verdict:
        """Judges whether the layout of one completion fits its thinking mode. `gold` is ignored."""
        text, mode = (completion, None) if isinstance(completion, str) else (completion.text, completion.mode)
        turn = split_turn(text) if self.layout == "qwen" else split_answer_tags(text)
        if isinstance(turn, str):
            return Verdict(value=0.0, reason=turn)
        if mode == "think" and turn.thinking is None:
            return Verdict(value=0.0, reason="no thinking")
        if mode == "no_think" and turn.thinking is not None:
            return Verdict(value=0.0, reason="thinking not asked for")
        return Verdict(value=1.0, reason="well formed")

    def probes(self) -> list[Probe]:
        """Returns probe turns with well-formed layouts, and malformed ones that lazy regular expressions accept."""
        answer = "7" if self.layout == "qwen" else "<answer>7</answer>"
        full_turn = f"<think>\n3+4=7\n</think>\n\n{answer}"
        return [
            Probe("thinking and answer", full_turn, None, True),
            Probe("answer alone", answer, None, True),
            Probe("empty block", f"<think>\n\n</think>\n\n{answer}", None, True),
            Probe("empty", "", None, False),
            Probe("blank thinking", f"<think>\n \n</think>\n\n{answer}", None, self.layout == "answer_tags"),
            Probe("no answer", "<think>\n3+4=7\n</think>\n\n", None, False),
            Probe("thinking never ends", "<think>\n3+4=7", None, False),
            Probe("no opening tag", f"3+4=7\n</think>\n\n{answer}", None, False),
            Probe("block within a block", f"<think>\n{full_turn}\n</think>\n\n{answer}", None, False),
            Probe("second block", full_turn + "\n" + full_turn, None, False),
            Probe("text before", "Sure! " + full_turn, None, False),
            Probe("tags repeated", "<think></think>" * 50 + answer, None, False),
        ]


def split_answer_tags(text: str) -> Turn | str:
    """Splits a turn in R1-Zero's `<think>` and `<answer>` layout into thinking and answer.

    Returns the reason as text if the layout is broken.
    """
    tags = _TAGS.findall(text)
    parts = _TAGS.split(text)
    if tags == _BOTH:
        before, thinking, between, answer, after = parts
    elif tags == _ANSWER:
        (before, answer, after), thinking, between = parts, "", ""
    elif tags == [OPEN]:
        return "unfinished thinking"
    else:
        return "malformed tags" if any(tag in tags for tag in _BOTH) else "no answer"
    if any(part.strip() for part in (before, between, after)):
        return "text outside the tags"
    return Turn(thinking if thinking.strip() else None, answer) if answer.strip() else "no answer"
