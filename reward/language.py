"""The `language` reward, which measures the share of words written in the script of a target language."""

import re
from collections import Counter
from typing import Any, ClassVar, Literal

from pydantic import Field

from qwen_align.align.rows import Completion
from qwen_align.reward.base import BaseReward, Probe
from qwen_align.reward.thinking import CLOSE, OPEN
from qwen_align.reward.verdict import Verdict

Language = Literal["en", "zh", "ja", "ko"]
LANGUAGES: tuple[Language, ...] = ("en", "zh", "ja", "ko")

_HAN = r"\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_KANA = r"\u3040-\u30ff"
_LATIN = r"A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u1e00-\u1eff"
_HANGUL = r"\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3"
_EASTERN = _HAN + _KANA + _HANGUL  # set without spaces, so their words end where the script does
_WORD = re.compile(
    rf"(?P<zh>[{_HAN}])|(?P<ja>[{_KANA}])|(?P<ko>[{_HANGUL}]+)"
    rf"|(?P<en>[{_LATIN}]++(?![^\W{_EASTERN}]))|[^\W{_EASTERN}]+"
)
# Names of variables, points and functions are in no language: x, AB, sin.
_SYMBOL = re.compile(r"[A-Za-z]|[A-Z]{2,4}|sin|cos|tan|cot|sec|csc|log|ln|lg|exp|lim|max|min|mod|gcd|lcm")
_NO_WORD = re.compile(r".*[\d_].*|[\u0370-\u03ff\U0001d400-\U0001d7ff]")  # x_1, 3x, a Greek or mathematical letter
KANA_SHARE = 0.1  # our choice: Japanese prose has about half; names of things in Chinese prose stay far below

_OPENER = re.compile(r"```|`|\$\$|\$|\\\[|\\\(|\\begin\{[a-z]{1,12}\*?\}")
_LEFT_OUT = re.compile(
    r"https?://\S+|\\[A-Za-z]+"  # links, LaTeX commands
    r'|"[^"\n]{1,30}"|“[^”\n]{1,30}”|「[^」\n]{1,30}」|《[^》\n]{1,30}》'  # names and titles; what is longer is prose
)


class LanguageShare(BaseReward):
    """A reward for the share of words that are written in the script of the `target` language.

    0.0 if it is below `threshold` or there are no words.

    The language consistency reward of DeepSeek-R1 (arXiv:2501.12948, section 2.3.2: the share of target language words
    in the chain of thought). Every Chinese or Japanese character is a word, as is any other run of letters. Formulas,
    code, links, LaTeX commands, names in short quotes and names of variables are left out, so a text of nothing else
    has no words and is not paid. With `where: both` the lower share of thinking and answer counts, so that long
    thinking hides no answer in another language; parts without words are passed over.

    Scripts are told apart, not languages: any text in Latin letters counts as "en", French too. Japanese is told from
    Chinese by its kana. Languages that share their script with others (fr, de, vi, ru, ar ...) are therefore no target.
    `target: prompt` is the language of most words of the last user message: for Latin letters, as said, any such
    language; no verdict if the prompt is in none of the four.
    """

    role: ClassVar[Literal["outcome", "shaping"]] = "shaping"
    kind: Literal["language"] = "language"
    target: Language | Literal["prompt"] = Field(
        default="prompt", description="the language to write in; prompt: that of the last user message"
    )
    where: Literal["thinking", "answer", "both"] = Field(
        default="both", description="the part that is looked at; both: the lower share of the two counts"
    )
    threshold: float = Field(default=0.0, ge=0, le=1, description="shares below it are paid 0")

    def judge(self, completion: str | Completion, gold: Any = None) -> Verdict:
        """Judges how much of one completion is in the target language. `gold` is ignored."""
        target = self._find_target_language(completion)
        if target is None:
            return Verdict(value=None, reason="no language in the prompt")
        thinking, answer = _split_thinking(completion if isinstance(completion, str) else completion.text)
        if self.where == "thinking" and thinking is None:
            return Verdict(value=0.0, reason="no thinking")
        thinking_parts = [] if thinking is None or self.where == "answer" else [thinking]
        answer_parts = [] if self.where == "thinking" else [answer]
        part_shares = [
            part_share for part_share in map(compute_language_shares, thinking_parts + answer_parts) if part_share
        ]
        if not part_shares:
            return Verdict(value=0.0, reason="no words")
        share = min(part_share.get(target, 0.0) for part_share in part_shares)
        if share < self.threshold or share == 0.0:
            return Verdict(value=0.0, reason="wrong language")
        return Verdict(value=share, reason="one language" if share == 1.0 else "mixed languages")

    def _find_target_language(self, completion: str | Completion) -> Language | None:
        """Returns the language that a completion should be written in.

        Returns None if the prompt is in none of the four languages.
        """
        if self.target != "prompt":
            return self.target
        user_turns = [] if isinstance(completion, str) else [turn for turn in completion.prompt if turn.role == "user"]
        shares = compute_language_shares(user_turns[-1].content) if user_turns else {}
        return next((language for language in LANGUAGES if shares.get(language, 0.0) > 0.5), None)

    def probes(self) -> list[Probe]:
        """Returns probe texts in and outside of the target language.

        A target of `prompt` gives no reward, as bare strings have no prompt.
        """
        sentences = {
            "en": "Three and four make seven.",
            "zh": "三加四等于七。",
            "ja": "三たす四は七です。",
            "ko": "셋 더하기 넷은 일곱.",
        }
        target = self.target if self.target != "prompt" else None
        other_language = "zh" if target != "zh" else "en"
        sentence, outside = sentences[target or "en"], sentences[other_language]
        return [
            Probe("in the language", f"<think>\n{sentence}\n</think>\n\n{sentence}", None, target is not None),
            Probe(
                "in another language",
                f"<think>\n{outside}\n</think>\n\n{outside}",
                None,
                False,
            ),
            Probe("empty", "", None, False),
            Probe("formulas only", "<think>\n$3+4=7$\n</think>\n\n$7$", None, False),
            Probe("code only", f"<think>\n```\n{sentence}\n```\n</think>\n\n`7`", None, False),
            Probe("numbers only", "<think>\n3+4=7\n</think>\n\n7", None, False),
        ]


def compute_language_shares(text: str) -> dict[str, float]:
    """Returns the share of each language among the words of a text.

    Words in other scripts count as "other"; the dict is empty for a text without words.
    """
    counts: Counter[str] = Counter()
    for word in _WORD.finditer(extract_prose(text)):
        language = word.lastgroup or "other"
        if language == "en" and _SYMBOL.fullmatch(word[0]):
            continue
        if language == "other" and _NO_WORD.fullmatch(word[0]):
            continue
        counts[language] += 1
    if counts["ja"] >= KANA_SHARE * (counts["ja"] + counts["zh"]):
        counts["ja"] += counts.pop("zh", 0)
    n_words = counts.total()
    return {language: count / n_words for language, count in counts.items() if count}


def extract_prose(text: str) -> str:
    """Removes code, formulas, links, LaTeX commands and short quotes from a text. Linear in its length."""
    prose_parts: list[str] = []
    position = 0
    unclosed: set[str] = set()  # closers that do not occur any more, or every opener would search to the end
    for opener in _OPENER.finditer(text):
        if opener.start() < position:
            continue
        mark = opener[0]
        closer = {r"\[": r"\]", r"\(": r"\)"}.get(mark, mark.replace("begin", "end", 1))
        end = -1 if closer in unclosed else text.find(closer, opener.end())
        if end < 0:
            unclosed.add(closer)
        elif mark not in ("`", "$") or "\n" not in text[opener.end() : end]:
            prose_parts.append(text[position : opener.start()])
            position = end + len(closer)
    prose_parts.append(text[position:])
    return _LEFT_OUT.sub(" ", " ".join(prose_parts))


def _split_thinking(text: str) -> tuple[str | None, str]:
    """Splits a text at its last `</think>` into thinking and answer.

    Without tags all is answer, in an open block all is thinking.
    """
    before, closer, after = text.rpartition(CLOSE)
    if not closer and OPEN in after:
        before, closer, after = after, CLOSE, ""
    return (before.replace(OPEN, " ").replace(CLOSE, " "), after) if closer else (None, after)
